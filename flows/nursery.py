"""One process that imports what runs need, and forks one for each seed: three seeds do not import torch three times.

    python -m flows.nursery     one order on its standard input, an answer on its output for each seed that has ended

The order is `{"commands": {SEED: ARGUMENTS}, "at_once": N, "environment": {NAME: VALUE}}`, an answer
`{"seed": SEED, "status": STATUS, "said": TEXT}`, each a JSON object on a line. SIGTERM ends all seeds in order.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

import cli
from tasks import tracking
from tasks.forked_tracker import fork, name_process

from .server import end_with_parent
from .settings import importing


def prepare() -> None:
    """Imports all that a run imports in its course."""
    with importing():
        import torch._dynamo  # noqa: F401  by the first optimizer

        from tasks import reporting  # noqa: F401

        from . import conduct, experiment, page  # noqa: F401
    if sys.platform == "linux":
        tracking.begin = fork
    gc.freeze()  # of what all have in common, the collector would make a copy for each


def serve(order: dict[str, Any]) -> Sequence[str] | None:
    """Starts the seeds and answers; returns in their processes too.

    Returns:
        The arguments of `fcl` in the process of a seed, None here once all seeds have ended.
    """
    os.environ |= order["environment"]
    waiting, running, stopped = list(order["commands"].items()), {}, []

    def stop(*_: object) -> None:
        stopped.append(True)
        for number in running:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.kill(number, signal.SIGTERM)  # as orderly an end as Ctrl-C

    signal.signal(signal.SIGTERM, stop)
    while running or (waiting and not stopped):
        while waiting and len(running) < order["at_once"] and not stopped:
            seed, arguments = waiting.pop(0)
            said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed when the seed has ended
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # a seed is known, or does not exist
            number = begin(seed, arguments, said)
            if number:
                running[number] = seed, said
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            if not number:
                return arguments
        number, status = os.wait()
        seed, said = running.pop(number)
        with said:
            said.seek(0)
            answer = {"seed": seed, "status": os.waitstatus_to_exitcode(status), "said": said.read()}
        try:
            print(json.dumps(answer), flush=True)
        except BrokenPipeError:  # who gave the order is gone; the others are ending too
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return None


def begin(seed: str, arguments: Sequence[str], said: IO[str]) -> int:
    """The number of the seed's new process, 0 in that process."""
    if sys.platform != "linux":  # macOS: system libraries do not outlive a fork
        command = [sys.executable, "-m", "cli", *arguments]
        files = [(os.POSIX_SPAWN_DUP2, said.fileno(), each) for each in (1, 2)]
        files.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
        return os.posix_spawn(sys.executable, command, os.environ, file_actions=files, setpgroup=0)
    number = os.fork()
    if number == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with_parent()
        name_process(f"fcl seed {seed}")
        os.setpgid(0, 0)  # Ctrl-C reaches it by way of the process that gave the order, once
        os.dup(1)  # stays open, so that who gave the order knows when the last seed has ended, also without the nursery
        for file, place in ((os.open(os.devnull, os.O_RDONLY), 0), (said.fileno(), 1), (said.fileno(), 2)):
            os.dup2(file, place)
    return number


def main() -> None:
    prepare()
    line = sys.stdin.readline()
    arguments = serve(json.loads(line)) if line else None
    if arguments is not None:
        sys.argv = ["fcl", *arguments]
        cli.main()


if __name__ == "__main__":
    main()
