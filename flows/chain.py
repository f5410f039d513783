"""The chain that `fcl trace` finds, in words, and as an entry of a bibliography."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

UNKNOWN = "not recorded"
SHOWN = 20  # runs of a comparison, and files: more are counted


def lines(chain: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, text) of each line."""
    yield "file", chain["path"]
    yield "is", f"{chain['what']} ({chain['how']})"
    run = chain["run"]
    if run:
        yield from _run(chain, run)
    elif chain["command"]:
        yield "made by", chain["command"]
    for kind in ("stream", "foundation"):
        if chain[kind]:
            where = chain[kind]["folder"] or "not in built/ now"
            yield f"{kind} digest", f"{chain[kind]['digest']} ({where})"
    yield from _dvc(chain)
    if chain["recorded"]:
        yield from _recorded(chain["recorded"])
    if chain["mlflow_model"]:
        yield "MLflow model", chain["mlflow_model"]
    for each in (chain["runs"] or ())[:SHOWN]:
        state = {"same": "", "another": "; results/ has another run there now", "gone": "; no longer in results/"}
        yield "compared", f"{each['name']}: {each['digest']} at {_commit(each)}{state[each['now']]}"
    if len(chain["runs"] or ()) > SHOWN:
        yield "compared", f"and {len(chain['runs']) - SHOWN} more runs (--json has them)"
    for doubt in chain["doubts"]:
        yield "DOUBT", doubt


def _run(chain: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "run", f"{run['method']} on {run['stream']}, seed {run['seed']}" if run["method"] else UNKNOWN
    yield "results", chain["folder"] or "not in results/"
    yield "run digest", run["digest"] or UNKNOWN
    yield "code", _commit(run) + _here(run, chain["code"])
    yield "parameters", run["parameter_digest"] or UNKNOWN
    if chain["parameters"] is None:
        yield "against params.yaml", chain["unknown"] or "not known without its run.json"
    elif not chain["parameters"]:
        yield "against params.yaml", "no difference"
    for each in chain["parameters"] or ():
        yield "against params.yaml", f"{each['key']} {each['then']} then, {each['now']} now"
    verify = f"fcl verify {chain['folder']}" if chain["folder"] else "not known without its run.json"
    yield "made by", chain["command"] or verify
    if chain["command"] and chain["folder"]:
        yield "checked by", verify


def _commit(run: Mapping[str, Any]) -> str:
    if not run["git_commit"]:
        return "commit not recorded"
    clean = {True: "", False: ", and changes that were not committed", None: ", whether clean is not recorded"}
    return run["git_commit"] + clean[run["git_clean"]]


def _here(run: Mapping[str, Any], code: Mapping[str, Any]) -> str:
    if not run["git_commit"] or run["git_commit"] == code["git_commit"]:
        return ""
    return f"; here is {code['git_commit'] or 'no commit'}"


def _dvc(chain: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not chain["dvc"]:
        yield "dvc.lock", "has no stage for it"
    for each in chain["dvc"][:SHOWN]:
        state = "as on disk" if each["same"] else "NOT as on disk"
        yield each["lock"], f"{each['stage']}: {each['path']} {each['recorded']}, {state}"


def _recorded(known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Prefect flow run", known.get("prefect_flow_run") or UNKNOWN
    yield "MLflow run", known.get("mlflow_run") or UNKNOWN
    if "machine" not in known:
        return
    processors = f", {known['cpus']} CPUs" if known["cpus"] else ""
    yield "machine", f"{known['machine']}{processors}, {known['gpu'] or known['device']}"
    yield "computed", f"{known['started']}, {known['seconds']} s, {known['workers']} {known['runner']}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in (known["versions"] or {}).items()) or UNKNOWN
    yield "requirements.lock", known["lock_digest"] or UNKNOWN


def bibtex(chain: Mapping[str, Any]) -> str:
    """A `@misc` that names digest and commit. Who made it, and where it can be had, the author adds."""
    run, runs = chain["run"], chain["runs"]
    if run:
        title, digest = f"{run['method']} on {run['stream']}, seed {run['seed']}", run["digest"]
        code = _commit(run)
    elif runs:
        title, digest = f"Comparison of {len(runs)} runs", _joint_digest(runs)
        code = " and ".join(sorted({_commit(each) for each in runs}))
    else:
        about = chain["foundation"] or chain["stream"] or {}
        title, digest, code = f"{chain['what']} {chain['path']}", about.get("digest"), UNKNOWN
    details = [f"digest {digest or UNKNOWN}", f"code: {code}"]
    if run:
        details += [f"parameters {run['parameter_digest']}", f"stream {run['stream_digest']}"]
    fields = {"title": f"{{{_tex(title)}}}", "howpublished": _tex(chain["what"]), "note": _tex("; ".join(details))}
    started = (chain["recorded"] or {}).get("started")
    if started:
        fields["year"] = started[:4]
    body = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@misc{{fcl-{(digest or 'unknown')[:12]},\n{body}}}"


def _joint_digest(runs: list[Mapping[str, Any]]) -> str:
    """SHA-256 over the runs' digests, in their order."""
    return hashlib.sha256(json.dumps([each["digest"] for each in runs]).encode()).hexdigest()


def _tex(text: str) -> str:
    return text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")
