"""Errors that are sentences for a person.

`InputError` is raised for what the user gave (a parameter, a file, a row): the command line prints it as one line
`error: ...` and exits with 2. Anything else is a fault while running: exit code 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """The user's input is wrong; the message names the key, file or row, what was expected and what came."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that helps with a misspelt `name`: the nearest known names, or all of them when none is near."""
    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(known)}"
