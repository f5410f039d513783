"""A store that fails for a while or for good, a full disk, and what a power cut may leave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from errors import InputError

# A store that fails: a file stands where its folder of uploads was


class Outage:
    """The store's uploads cannot be written or read from a step on, until `over` is called."""

    def __init__(self, step: int, seconds: float | None) -> None:
        self.step, self.seconds = step, seconds

    def __call__(self, run):
        def at(done, total, what):
            if done == self.step:
                self.folder = Path(run.site.store.path, "uploads")
                self.folder.rename(self.folder.with_name("away"))
                self.folder.write_text("in the way")
                if self.seconds is not None:
                    self.end = threading.Timer(self.seconds, self.over)
                    self.end.start()

        return at

    def over(self) -> None:
        self.folder.unlink()
        self.folder.with_name("away").rename(self.folder)


@pytest.mark.parametrize("runner", ["threads", "processes"])
def test_a_store_that_fails_for_a_while_costs_nothing_but_time(runner, play_run, undisturbed, assert_same):
    outage = Outage(step=2, seconds=2)
    run = play_run("fedavg", runner=runner, workers=1, during=outage)
    outage.end.join()
    assert_same(run, undisturbed)
    assert run.json("run.json")["failures"] == [], "no client is blamed for it"


def test_a_store_that_goes_on_failing_stops_the_run_which_can_be_resumed(play_run, new_out, undisturbed, assert_same):
    from tasks.patience import StoreFailed

    out, outage = new_out(), Outage(step=2, seconds=None)
    with pytest.raises(StoreFailed, match=r"store has failed for \d s, run.store_patience is 1 \(.*uploads.*--resume"):
        play_run("fedavg", "run.store_patience=1", out=out, during=outage)
    assert not out.exists()
    outage.over()
    assert_same(play_run("fedavg", out=out, resume=True), undisturbed)


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("to mount a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves no space."""
    filler = disk / "filler"
    with open(filler, "ab", buffering=0) as file:
        for size in (2**16, 2**8, 1):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue
    assert os.statvfs(disk).f_bavail == 0
    return filler


def test_a_store_without_space_stops_the_run_which_goes_on_when_there_is_some(
    small_disk, play_run, new_out, undisturbed, assert_same
):
    from tasks.patience import StoreFailed

    out, place = new_out(), f"run.store={small_disk}"

    def during(run):
        return lambda done, total, what: fill(small_disk) if done == 3 else None

    with pytest.raises(StoreFailed, match=rf"no space is left for {small_disk}.*; make some, then go on with --resume"):
        play_run("fedavg", place, out=out, during=during)
    assert not out.exists()
    left = [path for path in small_disk.rglob("*") if path.suffix == ".tmp"]
    assert left == [], "nothing half-written"
    (small_disk / "filler").unlink()
    reported: list[int] = []
    resumed = play_run(
        "fedavg", place, out=out, resume=True, during=lambda run: lambda done, total, what: reported.append(done)
    )
    assert reported[0] == 4, "what was done is not done again"
    assert_same(resumed, undisturbed)


def test_results_without_space_are_said_in_one_line_and_written_by_resume(
    small_disk, fcl, workshop, play_run, undisturbed, assert_same
):
    filler, out = fill(small_disk), small_disk / "results"
    command = ("run", "fedavg", "--stream", "digits", "--out", out, "--set", "run.device=cpu")
    status, said, error = fcl(*command)
    assert (status, said) == (1, "")
    assert error == f"error: StoreFailed: no space is left for {small_disk}; make some, then go on with --resume\n"
    assert list(small_disk.iterdir()) == [filler]
    filler.unlink()
    status, said, error = fcl(*command, "--resume")
    assert (status, error) == (0, "")
    assert json.loads((out / "run.json").read_text())["digest"] == undisturbed.digest


# What a power cut may leave on a disk that says it has written what it has not


@pytest.fixture
def interrupted(play_run, new_out):
    """A run that stopped after its fourth step: its output folder and its run folder."""
    out, folders = new_out(), []

    def stop(run):
        def at(done, total, what):
            if done == 4:
                folders.append(run.folder.path)
                raise InterruptedError("stopped by the test")

        return at

    with pytest.raises(InterruptedError):
        play_run("scaffold", out=out, during=stop)
    return out, folders[0]


def state(folder: Path) -> Path:
    """The file of client 2's state."""
    kind, digest, _ = json.loads((folder / "checkpoint.json").read_text())["progress"]["clients"]["2"]
    return folder / "store" / kind / f"{digest}.safetensors"


def truncated_state(folder: Path) -> str:
    os.truncate(state(folder), 100)
    return f"{state(folder)} (missing or not whole)"


def zeros_for_a_state(folder: Path) -> str:
    state(folder).write_bytes(bytes(state(folder).stat().st_size))
    return f"{state(folder)} (missing or not whole)"


def missing_state(folder: Path) -> str:
    said = f"{state(folder)} (missing or not whole)"
    state(folder).unlink()
    return said


def zeros_in_the_journal(folder: Path) -> str:
    journal = folder / "journal.jsonl"
    data = journal.read_bytes()
    journal.write_bytes(data[:-50] + bytes(50))
    return "journal (a line of it is no JSON)"


def shorter_journal(folder: Path) -> str:
    os.truncate(folder / "journal.jsonl", 100)
    return "journal (it is shorter than the checkpoint says)"


def empty_checkpoint(folder: Path) -> str:
    os.truncate(folder / "checkpoint.json", 0)
    return f"{folder / 'checkpoint.json'} is damaged"


DAMAGES = [
    truncated_state,
    zeros_for_a_state,
    missing_state,
    zeros_in_the_journal,
    shorter_journal,
    empty_checkpoint,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_did_not_reach_the_disk_is_noticed_when_the_run_is_resumed(damage, interrupted, play_run):
    out, folder = interrupted
    said = damage(folder)
    with pytest.raises(InputError) as refused:
        play_run("scaffold", out=out, resume=True)
    message = str(refused.value)
    assert (
        message.startswith("--resume: ") and said in message and message.endswith("run without --resume to start over")
    )


def test_where_that_is_wanted_a_damaged_run_starts_over(interrupted, play_run):
    out, folder = interrupted
    missing_state(folder)
    reported: list[int] = []
    play_run(
        *("scaffold", "run.resume_mismatch=restart"),
        out=out,
        resume=True,
        during=lambda run: lambda done, total, what: reported.append(done),
    )
    assert reported[0] == 1


def test_a_checkpoint_counts_after_all_it_refers_to_is_on_the_disk(play_run, monkeypatch):
    """What the system was asked to write: every state, the journal, the new checkpoint, and then the rename.

    Teachers are written again each round as they were, also by who is late: a new file in the place of the old one.
    """
    from tasks import files

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc here to see which file a descriptor is of")
    written, synced, checkpoints, before = set(), [], [], [0]
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        fsync(descriptor)
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        written.discard(synced[-1])

    def noted_replace(old, new):
        replace(old, new)
        if Path(new).name != "checkpoint.json":
            written.add(str(new))
            return
        progress, store = json.loads(Path(new).read_text())["progress"], Path(new).parent / "store"
        states = {f"{store}/{kind}/{name}.safetensors" for kind, name, _ in [progress["server"], *clients(progress)]}
        assert states <= set(synced) and not states & written
        assert {f"{Path(new).parent}/journal.jsonl", str(old)} <= set(synced[before[-1] :])
        before.append(len(synced))
        checkpoints.append(len(states))

    def clients(progress):
        return progress["clients"].values()

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(files.os, "replace", noted_replace)
    run = play_run("fedlwf", "faults.deadline=1", workers=1)
    assert (run.rounds.fault == "late").any()
    assert len(checkpoints) == 1 + 3 * 3 and max(checkpoints) > 1
    assert str(run.out.parent) in synced and any(path.endswith("run.json") for path in synced), "so are the results"


def test_waiting_grows_and_ends(tmp_path):
    from tasks.patience import StoreFailed, patiently

    tries = []

    def attempt():
        tries.append(tmp_path)
        return tmp_path.read_bytes()  # of a folder

    with pytest.raises(StoreFailed, match=r"here has failed for 1 s, run.store_patience is 1 \(IsADirectoryError: "):
        patiently(attempt, "here", 1)
    assert 2 <= len(tries) <= 6, "each wait is twice as long as the one before"
    tries.clear()
    with pytest.raises(FileNotFoundError):
        patiently(lambda: tries.append(0) or (tmp_path / "none").read_bytes(), "here", 60)
    assert len(tries) == 1, "that a file is missing is an answer"
