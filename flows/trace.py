"""`fcl trace FILE`: the chain behind a result, figure, table, model or built stream, from the file to the code.

What is found is compared with what is there now: dvc.lock, the digests in run.json, the stream in built/, params.yaml.
What does not agree is a doubt, said in a sentence of its own. Nothing is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metrics import provenance
from tasks.files import file_digest
from tasks.source import git, source

from . import lockfile
from .built import damage, folder_of, foundation_of, stream_command, stream_of
from .commands import again, since
from .origins import Origin, find, model_header, run_of

RECORDED = ("prefect_flow_run", "mlflow_run", "mlflow_experiment", "started", "seconds", "machine", "cpus", "gpu")
HOW = ("device", "runner", "workers", "versions", "lock_digest")


def trace(path: Path, root: Path) -> dict[str, Any]:
    """All that is known of where `path` comes from.

    Returns:
        `path`, `what` it is, `how` that is known; then, each None where it cannot be known or does not apply: `run`
        (`provenance.ORIGIN`), `folder`, `command` that makes it again, `parameters` that differ from params.yaml now,
        `stream` and `foundation` (digest and folder in built/), `recorded` by the run (Prefect's and MLflow's ids,
        machine, versions), `runs` of a comparison; and `code` that is here now, `dvc` (see `lockfile.recorded`),
        `doubts`.
    Raises:
        InputError: there is no such file, or nothing says where it comes from.
    """
    path = path.resolve()
    origin = find(path, root)
    run, folder = origin.run, origin.folder
    if run and not folder and (located := run_of(run, root)):
        run, folder = located
    chain: dict[str, Any] = {"path": lockfile.shown(path, root), "what": origin.what, "how": origin.how}
    chain["run"] = {name: run.get(name) for name in provenance.ORIGIN} if run else None
    chain["folder"] = (
        (folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)) if folder else None
    )
    chain |= _parameters(run, folder, root)
    known = run or origin.record or {}
    chain["stream"] = folder_of("streams", known.get("stream_digest") or stream_of(origin), root)
    chain["foundation"] = folder_of("foundations", known.get("foundation_digest") or foundation_of(origin), root)
    chain["recorded"] = {name: run.get(name) for name in (*RECORDED, *HOW)} if folder else None
    if chain["recorded"] is None and run and run.get("mlflow_run"):
        chain["recorded"] = {"mlflow_run": run["mlflow_run"]}
    chain["mlflow_model"] = origin.mlflow_model
    chain["runs"] = [_compared(each, root) for each in origin.compared] if origin.compared else None
    chain["code"] = source(root)
    copied = folder and not path.is_relative_to(folder)
    chain["dvc"] = lockfile.recorded(folder if copied else path, root)
    chain["doubts"] = list(_doubts(path, origin, run, folder, chain, root))
    if not run and chain["dvc"]:
        lock, stage = chain["dvc"][0]["lock"], chain["dvc"][0]["stage"]
        elsewhere = f"{lock.removesuffix('.lock')}.yaml:" if "/" in lock else ""
        chain["command"] = f"dvc repro {elsewhere}{stage}"
    elif not run and origin.what == "task stream":
        chain["command"] = stream_command(origin.record, root)
    return chain


def _parameters(run: Mapping[str, Any] | None, folder: Path | None, root: Path) -> dict[str, Any]:
    """`command`, `parameters`, and in words why one of them is not known."""
    found: dict[str, Any] = {"command": None, "parameters": None, "unknown": None}
    if not run or "experiment" not in run:
        return found
    now, differences, why = since(run, root)
    if now is None:
        return found | {"unknown": why}
    return found | {"parameters": differences, "command": again(run, folder, root)}


def _compared(run: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """A run of a comparison, and whether results/ still has it: `now` is "same", "another" or "gone"."""
    path = root / "results" / run["name"] / "run.json"
    if not path.is_file():
        return {**run, "now": "gone"}
    same = json.loads(path.read_text()).get("digest") == run["digest"]
    return {**run, "now": "same" if same else "another"}


def _doubts(
    path: Path,
    origin: Origin,
    run: Mapping[str, Any] | None,
    folder: Path | None,
    chain: Mapping[str, Any],
    root: Path,
) -> Iterator[str]:
    """What does not agree, a sentence each."""
    if folder and run:
        if (
            hashlib.sha256(json.dumps(run["experiment"], sort_keys=True).encode()).hexdigest()
            != run["parameter_digest"]
        ):
            yield "run.json was changed after the run: its parameters have another digest than it says"
        if "files" in run:
            yield from _changed(path, folder, run["files"])
        yield from _strangers(path, folder, run)
    for each in chain["dvc"]:
        if not each["same"]:
            state = "is not there" if each["now"] is None else f"has {each['now']}"
            yield f"{each['path']} {state}, {each['lock']} ({each['stage']}) says {each['recorded']}"
    yield from damage(origin)
    if origin.compared is None and origin.what.endswith("of a comparison"):
        yield "which runs were compared is not recorded"
    commit = (run or {}).get("git_commit")
    if commit and chain["code"]["git_commit"] and git(root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        yield f"this repository does not have the commit {commit}"
    if run and not folder:
        yield "its run is not in results/: what only run.json says is not known"


def _changed(path: Path, folder: Path, files: Mapping[str, str]) -> Iterator[str]:
    """Of a run's files those that are no longer what the run wrote."""
    if not path.is_relative_to(folder):
        if path.is_file() and file_digest(path) not in files.values():
            yield "its bytes are not those of any file of the run: it was changed, or made again"
        return
    inside = path.relative_to(folder).as_posix()
    for name, digest in files.items():
        if name == inside or path == folder or name.startswith(f"{inside}/"):
            now = file_digest(folder / name)
            if now != digest:
                yield f"{name} {'was changed after the run' if now else 'is missing'}"
    if path.is_file() and path.name != "run.json" and inside not in files:
        yield f"{inside} is not one of the files that the run wrote"


def _strangers(path: Path, folder: Path, run: Mapping[str, Any]) -> Iterator[str]:
    """Files whose own metadata names another run than run.json does."""
    for each in [path] if path.is_file() else sorted(folder.rglob("*")):
        own = (model_header(each) or {}).get("run") if each.suffix == ".safetensors" else provenance.read(each)
        if own and own.get("digest") != run["digest"]:
            yield f"{each.name} names the run {own.get('digest')}, run.json {run['digest']}"
