"""One experiment with several seeds: a process for each, side by side, on one Prefect server."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import IO

from rich.console import Console

from errors import InputError

from .server import end_with_parent, prefect_server

POLL = 0.1  # seconds between looks at the processes


def run_seeds(commands: Mapping[int, Sequence[str]], at_once: int, console: Console) -> None:
    """Runs `fcl` with each seed's arguments and prints what each said when it ends.

    A seed that fails does not stop the others. Ctrl-C stops all; each can be resumed.

    Args:
        commands: arguments of `fcl`, by seed.
        at_once: processes at the same time, at least 1.
    Raises:
        InputError: seeds were refused, and all that failed were: their input is wrong.
        RuntimeError: a seed failed; names which.
    """
    failed: dict[int, int] = {}
    with prefect_server() as wait, ExitStack() as stack:
        wait()
        waiting, running = list(commands.items()), {}
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    seed, arguments = waiting.pop(0)
                    said = stack.enter_context(tempfile.TemporaryFile("w+"))
                    running[seed] = start(arguments, said), said
                time.sleep(POLL)
                for seed, (process, said) in list(running.items()):
                    if process.poll() is not None:
                        del running[seed]
                        tell(said, console)
                        failed |= {seed: process.returncode} if process.returncode else {}
        except BaseException:
            for process, _ in running.values():
                process.terminate()  # as orderly an end as Ctrl-C
            for process, said in running.values():
                process.wait()
                tell(said, console)
            raise
    if failed:
        which = ", ".join(map(str, sorted(failed)))
        if set(failed.values()) == {2}:
            raise InputError(f"seed {which} was refused, see above")
        raise RuntimeError(f"seed {which} did not finish, see above; repeat the command with --resume")


def tell(said: IO[str], console: Console) -> None:
    """Prints what a seed's process wrote."""
    said.seek(0)
    console.print(said.read().rstrip(), markup=False, highlight=False, soft_wrap=True)


def start(arguments: Sequence[str], said: IO[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "cli", *arguments]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=subprocess.STDOUT,
        preexec_fn=end_with_parent,
        process_group=0,  # Ctrl-C reaches it by way of this process, once
    )
