"""The reproducibility checklist of a paper's experiments, filled in from what its runs recorded.

The questions are those of the NeurIPS paper checklist that a program can answer, by their numbers there. Every answer
says where it comes from; what no run recorded is called "not recorded".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from errors import InputError, nearest
from metrics.comparison import collect, table, to_markdown

from .assets import about, sources
from .recorded import UNKNOWN, Runs, once

PAPERS = {  # the system's method: the paper
    "large_small": "Large-Small Model Collaborative Framework for Federated Continual Learning, arXiv 2508.09489",
    "fedbe": "Mitigating Catastrophic Forgetting with Adaptive Transformer Block Expansion in Federated Fine-Tuning, "
    "arXiv 2506.05977",
    "tap": "TAP: Two-Stage Adaptive Personalization of Multi-task and Multi-Modal Foundation Models in Federated "
    "Learning, arXiv 2509.26524",
    "dac": "Projected Latent Distillation for Data-Agnostic Consolidation in Distributed Continual Learning, "
    "arXiv 2303.15888",
}
SHARED = {  # sections that methods have in common, where they need them
    "Training": "train",
    "Networks": "models",
    "Foundation model": "foundation",
    "Devices": "devices",
    "Simulated faults": "faults",
}


def checklist(paper: str, root: Path) -> str:
    """The checklist in Markdown.

    Args:
        paper: a key of `PAPERS`.
        root: the project's folder, with `results/`.
    Raises:
        InputError: `paper` is none of these.
    """
    if paper not in PAPERS:
        raise InputError(f"no paper '{paper}'; {nearest(paper, PAPERS)}")
    runs = Runs(paper, root / "results")
    lines = [f"# Reproducibility checklist: {paper}", "", PAPERS[paper], ""]
    if not runs.all:
        lines += [f"results/ has no run of {paper}: 0 of the questions can be answered.", ""]
        return "\n".join(lines)
    lines += [
        f"Filled in by `python -m flows.checklists` from {len(runs.all)} runs in results/: all methods on the streams "
        f"on which {paper} was run. Numbers of the NeurIPS paper checklist; claims, limitations, theory, ethics, "
        "impact, safeguards, new assets, human subjects, language models (1-3, 9-11, 13-16) are for its authors.",
        "",
    ]
    for title, answers in SECTIONS:
        lines += [f"## {title}", "", *answers(runs, root), ""]
    return "\n".join(lines)


def reproducibility(runs: Runs, root: Path) -> Iterator[str]:
    lock = "`dvc repro` makes what dvc.lock names" if (root / "dvc.lock").is_file() else "there is no dvc.lock"
    yield (
        "How to run: `fcl trace results/STREAM/NAME/seed-N` prints the command of each run, `fcl verify --all --stream "
        f"STREAM` runs all of them again and compares; {lock}."
    )
    yield ""
    yield "Expected metrics (metrics.json of each run):"
    for stream in runs.streams:
        yield from ("", f"### {stream}", "", to_markdown(table(collect(runs.results, stream))).rstrip())
    yield ""
    own = _listed(_stream(run)["seed"] for run in runs.all)
    yield (
        "Randomness: every draw is derived by name from the experiment seed (run.json, `seed`) and the stream's own "
        f"(`stream_parameters.seed`: {own}); no global generator is used (randomness.py)."
    )
    yield ""
    failures = sum(len(run.get("failures", ())) for run in runs.all)
    yield f"Failures that runs survived: {failures} (run.json, `failures`)."


def code_and_data(runs: Runs, root: Path) -> Iterator[str]:
    unclean = sum(run.get("git_clean") is not True for run in runs.all)
    yield (
        f"- Code: commit {_listed(runs.values('git_commit'))} (run.json, `git_commit`); {unclean} of {len(runs.all)} "
        "runs with changes that were not committed, or not known to be without (`git_clean`)."
    )
    yield f"- Dependencies: requirements.lock with SHA-256 {_listed(runs.values('lock_digest'))} (`lock_digest`)."
    data = sorted(path.name for path in root.glob("*.dvc"))
    yield f"- Data: {_listed(data) if data else 'no .dvc file: versions of raw data ' + UNKNOWN} (project folder)."
    for stream in runs.streams:
        digests = once(run["stream_digest"] for every in runs.of(stream).values() for run in every)
        yield f"- Stream {stream}: digest {_listed(digests)} (`stream_digest`), built by `fcl stream {stream}`."


def settings(runs: Runs, root: Path) -> Iterator[str]:
    for stream in runs.streams:
        methods = runs.of(stream)
        first = next(iter(methods.values()))[0]
        yield from (f"### {stream}", "", "From run.json, `experiment`; keys as in params.yaml.", "")
        yield f"- Splits (`streams.{stream}`): {_flat(_stream(first))}"
        for label, key in SHARED.items():
            known = {name: _said(each[0]["experiment"].get(key)) for name, each in methods.items()}
            for value in filter(None, once(known.values())):
                who = [name for name in known if known[name] == value]
                yield f"- {label} (`{key}`), {'all methods' if len(who) == len(known) else _listed(who)}: {value}"
        for name, every in methods.items():
            chosen = _flat(every[0]["experiment"]["method_parameters"]) or "no parameters of its own"
            yield f"- {name} (`methods.{every[0]['method']}`): {chosen}"
        yield ""
    yield f"How hyperparameters were chosen: {UNKNOWN}; params.yaml has the values, no run has the search."


def significance(runs: Runs, root: Path) -> Iterator[str]:
    digests = len(once(run["stream_digest"] for run in runs.all))
    yield (
        "Error bars: mean ± sample standard deviation (n - 1) over experiment seeds: initial models, batches "
        f"and sampled clients, not the streams ({digests} in all, `stream_digest`). Metrics are those of the last "
        "round, never of the best."
    )
    yield from ("", "| stream | name | seeds | error bars |", "|---|---|---|---|")
    for stream in runs.streams:
        for name, every in runs.of(stream).items():
            seeds = [run["seed"] for run in every]
            bars = f"over {len(seeds)} runs" if len(seeds) > 1 else "none: 1 run"
            yield f"| {stream} | {name} | {_listed(seeds)} | {bars} |"
    yield from ("", "(folders results/STREAM/NAME/seed-N)")


def compute(runs: Runs, root: Path) -> Iterator[str]:
    yield (
        f"- Machines: {_listed(runs.values('machine'))}; CPUs: {_listed(runs.values('cpus'))}; device: "
        f"{_listed(runs.values('device'))}; GPU: {_listed(each or 'none' for each in runs.values('gpu'))}."
    )
    yield f"- Workers: {_listed(runs.values('workers'))}, {_listed(runs.values('runner'))}; memory: {UNKNOWN}."
    versions = once(json.dumps(run.get("versions", {}), sort_keys=True) for run in runs.all)
    yield f"- Versions: {_listed(_flat(json.loads(each)) for each in versions)}."
    total = sum(run["seconds"] for run in runs.all)
    yield f"- In total {total:.0f} s of wall time in {len(runs.all)} runs. What else was tried: {UNKNOWN}."
    yield from ("", "| stream | name | runs | seconds per run | seconds in total |", "|---|---|---:|---:|---:|")
    for stream in runs.streams:
        for name, every in runs.of(stream).items():
            spent = [run["seconds"] for run in every]
            yield f"| {stream} | {name} | {len(spent)} | {sum(spent) / len(spent):.1f} | {sum(spent):.1f} |"
    yield from (
        "",
        "(run.json of each run; `seconds` is wall time, also of runs that others had a share of the machine in)",
    )


def licences(runs: Runs, root: Path) -> Iterator[str]:
    for source in once(each for run in runs.all for each in sources(run["experiment"])):
        yield f"- `{source}` (run.json, `experiment`): {about(source)} (report/assets.py)."
    yield f"- Packages: the names and versions are in requirements.lock; their licences: {UNKNOWN}."


SECTIONS = (
    ("4. Experimental result reproducibility", reproducibility),
    ("5. Open access to data and code", code_and_data),
    ("6. Experimental setting and details", settings),
    ("7. Statistical significance", significance),
    ("8. Compute resources", compute),
    ("12. Licences of existing assets", licences),
)


def _stream(run: dict[str, Any]) -> dict[str, Any]:
    return run["experiment"]["stream_parameters"]


def _said(value: Any) -> str:
    """A section in a line; empty where an experiment does not have it."""
    return _flat(value) if isinstance(value, dict) else json.dumps(value) if value else ""


def _flat(tree: dict[str, Any], prefix: str = "") -> str:
    """`rounds 5, augmentation.crop 0`; what is not set is left out."""
    found = []
    for key, value in sorted(tree.items()):
        if isinstance(value, dict):
            found.append(_flat(value, f"{prefix}{key}."))
        elif value is not None:
            found.append(f"{prefix}{key} {value}")
    return ", ".join(each for each in found if each)


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(UNKNOWN if each is None else each) for each in once(values))
