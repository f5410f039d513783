"""What DVC itself recorded is read and hashed as DVC does it; what git says of the tree a run starts from."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flows.lockfile import digest, recorded
from tasks.source import source

STAGES = """
stages:
  table:
    cmd: python make.py
    outs: [results/one.txt, results/models]
"""
INNER = """
stages:
  inner:
    matrix: {seed: [0, 1]}
    wdir: ..
    cmd: echo ${item.seed} > results/inner-${item.seed}
    outs: ["results/inner-${item.seed}"]
"""
MAKE = """
from pathlib import Path
for name in ("one.txt", "models/b.bin", "models/a/z.bin", "models/a.bin", "models/ä.bin", "models/B.bin"):
    path = Path("results") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project folder that DVC has reproduced, with a second dvc.yaml in a folder of it."""
    root = tmp_path_factory.mktemp("dvc")
    (root / "dvc.yaml").write_text(STAGES)
    (root / "make.py").write_text(MAKE)
    (root / "more").mkdir()
    (root / "more" / "dvc.yaml").write_text(INNER)
    quiet = os.environ | {"DVC_NO_ANALYTICS": "true", "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    for command in (["init", "--no-scm", "-q"], ["repro", "-q", "dvc.yaml", "more/dvc.yaml"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=root, env=quiet, check=True)
    return root


def test_files_and_folders_have_the_hashes_that_dvc_recorded(project):
    found = {each["path"]: each for each in recorded(project / "results", project)}
    assert set(found) == {"results/one.txt", "results/models", "results/inner-0", "results/inner-1"}
    assert all(each["same"] for each in found.values())
    assert found["results/models"]["recorded"].endswith(".dir")
    assert (found["results/inner-1"]["lock"], found["results/inner-1"]["stage"]) == ("more/dvc.lock", "inner@1")


def test_a_file_is_found_in_the_folder_that_a_stage_made(project):
    (about,) = recorded(project / "results" / "models" / "a" / "z.bin", project)
    assert (about["stage"], about["path"]) == ("table", "results/models")
    assert recorded(project / "make.py", project) == []


def test_what_was_changed_or_is_gone_is_no_longer_the_same(project):
    path = project / "results" / "models" / "b.bin"
    kept = path.read_bytes()
    try:
        path.write_text("other")
        assert [each["same"] for each in recorded(path, project)] == [False]
        path.unlink()
        assert [each["same"] for each in recorded(path, project)] == [False]
    finally:
        path.write_bytes(kept)
    assert [each["same"] for each in recorded(path, project)] == [True]
    assert digest(project / "nowhere") is None


def test_a_lock_file_that_dvc_writes_does_not_make_a_tree_unclean(tmp_path):
    assert source(tmp_path) == {"git_commit": None, "git_clean": None}
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    (tmp_path / "inner").mkdir()
    for name in ("dvc.lock", "inner/dvc.lock", "code.py"):
        (tmp_path / name).write_text("first")
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "dvc.lock").write_text("second")
    (tmp_path / "inner" / "dvc.lock").write_text("second")
    for folder in (tmp_path, tmp_path / "inner"):
        assert source(folder)["git_clean"] is True
        assert len(source(folder)["git_commit"]) == 40
    (tmp_path / "code.py").write_text("second")
    for folder in (tmp_path, tmp_path / "inner"):
        assert source(folder)["git_clean"] is False
