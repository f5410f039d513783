"""Which source code a run starts from, as git knows it."""

from __future__ import annotations

import subprocess
from pathlib import Path

# DVC writes its lock file after each stage, so that in a reproduction no run but the first would be clean.
EVERYTHING_BUT_LOCKS = (":(top)", ":(top,exclude,glob)**/dvc.lock")


def source(root: Path) -> dict[str, str | bool | None]:
    """`git_commit`, and `git_clean`: nothing but dvc.lock differs from it; both None without git or a commit."""
    commit, status = git(root, "rev-parse", "HEAD"), git(root, "status", "--porcelain", "--", *EVERYTHING_BUT_LOCKS)
    return {"git_commit": commit, "git_clean": None if commit is None or status is None else status == ""}


def git(root: Path, *arguments: str) -> str | None:
    """What git says, or None where there is no git or no commit."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
