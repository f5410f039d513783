"""Which code the result of a method depends on, as a file that changes when that code does.

python -m flows.code_digests        writes built/code/METHOD.txt for every method, foundation.txt and stream.txt

The stages of dvc.yaml depend on these files instead of on folders: who changes or adds a method runs its experiments
again, not all others'. A line is a file's digest and path. Comments and docstrings do not count.
"""

from __future__ import annotations

import ast
import hashlib
import io
import sys
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import methods
from parameters import project_root
from tasks.run import LOCK, PROJECT

ALWAYS = ("flows/experiment.py", "flows/conduct.py", "tasks/worker_processes.py")  # what every run begins with
WHOLE = ("models", "streams")  # found by name while a run lasts
FOUNDATION = ("flows/foundation.py", "tasks/foundation.py", "methods/pretraining.py")
# What people see of a run: servers, MLflow, pages and figures. A change there is no reason to train again.
ASIDE = (
    *(
        f"flows/{name}.py"
        for name in ("application", "nursery", "page", "progress", "seeds", "server", "services", "tables")
    ),
    *(f"tasks/{name}.py" for name in ("artifacts", "delivery", "forked_tracker", "interruption", "tracking")),
    *("metrics/plots.py", "streams/picture.py"),
)


@cache
def digest(path: Path) -> str:
    """SHA-256 of what Python runs of a file: without comments, docstrings, empty lines and spaces at a line's end."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    for start, end in sorted([*_comments(source), *_docstrings(source)], reverse=True):
        (first, left), (last, right) = start, end
        head, tail = lines[first - 1].encode()[:left].decode(), lines[last - 1].encode()[right:].decode()
        lines[first - 1 : last] = [head + tail]
    kept = "\n".join(filter(None, (line.rstrip() for line in "".join(lines).splitlines())))
    return hashlib.sha256(kept.encode()).hexdigest()


Span = tuple[tuple[int, int], tuple[int, int]]  # (line from 1, byte from 0) of beginning and end


def _comments(source: str) -> Iterator[Span]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            (line, left), (_, right) = token.start, token.end
            yield (line, len(token.line[:left].encode())), (line, len(token.line[:right].encode()))


def _docstrings(source: str) -> Iterator[Span]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield (first.lineno, first.col_offset), (first.end_lineno, first.end_col_offset)


@cache
def imported(path: Path) -> frozenset[Path]:
    """The project's own files that a file imports anywhere in it, packages as their `__init__.py`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for each in node.names:
                found |= _files(PROJECT, each.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = PROJECT if not node.level else path.parents[node.level - 1]
            parts = node.module.split(".") if node.module else []
            found |= _files(base, parts)
            for each in node.names:  # it may be a module of the package
                found |= _files(base, [*parts, each.name])
    return frozenset(found)


def _files(base: Path, parts: list[str]) -> set[Path]:
    place = base.joinpath(*parts)
    return {each for each in (place.with_suffix(".py"), place / "__init__.py") if parts and each.is_file()}


def closure(paths: Iterable[Path]) -> set[Path]:
    """The files and all that they import, directly or not."""
    found: set[Path] = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        if path not in found and path.relative_to(PROJECT).as_posix() not in ASIDE:
            found.add(path)
            waiting += imported(path)
    return found


def code_of(method: str) -> set[Path]:
    """All files that a run of `method` may execute and that may change its result."""
    own = PROJECT / Path(*methods.get(method).__module__.split(".")).with_suffix(".py")
    always = [PROJECT / name for name in ALWAYS]
    whole = [path for folder in WHOLE for path in (PROJECT / folder).glob("*.py")]
    return closure([own, *always, *whole])


def write(name: str, files: Iterable[Path], folder: Path) -> None:
    lines = [f"{digest(path)}  {path.relative_to(PROJECT).as_posix()}" for path in sorted(files)]
    lock = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    (folder / f"{name}.txt").write_text("\n".join([*lines, f"{lock}  {LOCK.name}", ""]))


def main(root: Path) -> None:
    folder = root / "built" / "code"
    folder.mkdir(parents=True, exist_ok=True)
    for method in methods.names():
        write(method, code_of(method), folder)
    write("foundation", closure([PROJECT / name for name in FOUNDATION]), folder)
    write("stream", closure((PROJECT / "streams").glob("*.py")), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else project_root())
