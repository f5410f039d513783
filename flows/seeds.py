"""One experiment with several seeds: a process for each, side by side, on one Prefect server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from rich.console import Console

from errors import InputError

from .server import end_with_parent, prefect_server


class SideBySide:
    """The process that the seeds' processes are forked from (`flows/nursery.py`).

    Use as a context manager. It starts at once, since it needs three seconds for its imports.
    """

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=end_with_parent,
            process_group=0,  # Ctrl-C reaches it by way of this process, once
            text=True,
        )

    def __enter__(self) -> SideBySide:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def run(self, commands: Mapping[int, Sequence[str]], at_once: int, console: Console) -> None:
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
        unheard = set(commands)
        with prefect_server() as wait:
            wait()
            try:
                self._order(commands, at_once)
                for answer in map(json.loads, self.process.stdout):
                    tell(answer["said"], console)
                    seed = int(answer["seed"])
                    unheard.remove(seed)
                    failed |= {seed: answer["status"]} if answer["status"] else {}
            except BaseException:
                self.process.terminate()
                for answer in map(json.loads, self.process.stdout):
                    tell(answer["said"], console)
                raise
        if unheard:
            console.print("note: the process that the seeds were forked from has ended", soft_wrap=True)
        failed |= dict.fromkeys(unheard, 1)
        if failed:
            which = ", ".join(map(str, sorted(failed)))
            if set(failed.values()) == {2}:
                raise InputError(f"seed {which} was refused, see above")
            raise RuntimeError(f"seed {which} did not finish, see above; repeat the command with --resume")

    def _order(self, commands: Mapping[int, Sequence[str]], at_once: int) -> None:
        server = {name: value for name, value in os.environ.items() if name == "PREFECT_API_URL"}  # may be new
        order = {"commands": commands, "at_once": at_once, "environment": server}
        with suppress(BrokenPipeError):  # it has ended: no seed will have answered
            print(json.dumps(order), file=self.process.stdin, flush=True)


def tell(said: str, console: Console) -> None:
    """Prints what a seed's process wrote."""
    if said.strip():
        console.print(said.rstrip(), markup=False, highlight=False, soft_wrap=True)
