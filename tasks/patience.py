"""A store or disk that fails: tried again for a while, then one sentence that says where, why and how to go on."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from . import interruption

Result = TypeVar("Result")
FULL = {errno.ENOSPC, errno.EDQUOT}
FIRST, LONGEST = 0.05, 5.0  # seconds between two tries; each wait is twice the one before
# What a remote store's client raises when it is called wrongly; anything else may be the network or the server.
WRONG_CALL = (ImportError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError)


class StoreFailed(RuntimeError):
    """A store or disk is full, or went on failing; nobody's training is at fault, and the run can be resumed."""


def patiently(attempt: Callable[[], Result], where: str, patience: float, remote: bool = False) -> Result:
    """What `attempt` gives, tried again with growing waits while it raises OSError.

    Args:
        where: the folder or URL, for the message.
        patience: seconds after its first failure up to which it is tried again.
        remote: no local folder; its client library may raise errors of its own instead of OSError.
    Raises:
        StoreFailed: it went on failing, or there is no space, which waiting does not make.
        FileNotFoundError: as `attempt` raised it: that a file is missing is an answer.
    """
    first, pause = None, FIRST
    while True:
        try:
            return attempt()
        except FileNotFoundError:
            raise
        except Exception as error:
            if getattr(error, "errno", None) in FULL:
                raise StoreFailed(no_space(where)) from error
            if not isinstance(error, OSError) and (not remote or isinstance(error, WRONG_CALL)):
                raise
            now = time.monotonic()
            first = now if first is None else first
            if now - first >= patience or interruption.received():
                raise StoreFailed(
                    f"{where} has failed for {now - first:.0f} s, run.store_patience is {patience:g} "
                    f"({type(error).__name__}: {error}); when it works again, go on with --resume"
                ) from error
            time.sleep(min(pause, first + patience - now))
            pause = min(2 * pause, LONGEST)


@contextmanager
def space_for(where: str) -> Iterator[None]:
    """Says where there is no space, which the libraries that write figures and tables do not.

    Raises:
        StoreFailed: the block ran out of it.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StoreFailed(no_space(where)) from error
        raise


def no_space(where: str) -> str:
    return f"no space is left for {where}; make some, then go on with --resume"
