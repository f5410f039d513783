"""What a stream is and how it was learnt, in words, from what its runs recorded."""

from __future__ import annotations

from typing import Any

from .results import Stream

FIRST = ("source", "scenario", "clients", "experiences", "order", "partition")
SETTLED = ("train", "models")  # sections that are usually the same for all methods of a stream


def sentence(stream: Stream) -> str:
    """`digits, class-incremental: 5 clients, 5 experiences, partition dirichlet (alpha 0.5); 5 methods, 15 runs`"""
    about = stream.every[0].about["experiment"]["stream_parameters"]
    partition = about["partition"]
    kind = (
        f"{partition['kind']} (alpha {partition['alpha']:g})" if partition["kind"] == "dirichlet" else partition["kind"]
    )
    counts = [
        counted(about["clients"], "client"),
        counted(about["experiences"], "experience"),
        f"partition {kind}",
    ]
    size = f"{counted(len(stream.runs), 'method')}, {counted(len(stream.every), 'run')}"
    return f"{about['source']}, {about['scenario']}: {', '.join(counts)}; {size}"


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def parameters(stream: Stream) -> list[tuple[str, str]]:
    """(key, value) of all that is not empty or off in the stream's parameters, then of its training and network."""
    experiments = [run.about["experiment"] for run in stream.every]
    own = experiments[0]["stream_parameters"]
    found = [(key, plain(own[key])) for key in (*FIRST, *sorted({*own} - {*FIRST})) if own.get(key)]
    for name in SETTLED:
        same = all(each[name] == experiments[0][name] for each in experiments)
        found.append((name, plain(experiments[0][name]) if same else "differs between methods, see their commands"))
    digests = sorted({run.about["stream_digest"][:12] for run in stream.every})
    return [*found, ("digest", ", ".join(digests))]


def warnings(stream: Stream) -> list[str]:
    """What makes methods less comparable than the tables look."""
    found = []
    if len({run.about["stream_digest"] for run in stream.every}) > 1:
        found.append("Not all methods met the same data: their streams have different digests.")
    personal = sorted(name for name, runs in stream.runs.items() if (runs[0].matrix_of_main["client"] >= 0).all())
    if 0 < len(personal) < len(stream.runs):
        found.append(
            f"The answer of {', '.join(personal)} is a client's own model, measured on that client's test data, of the "
            "others one model, measured on all test data: compare these by own data, not by final."
        )
    if len({tuple(run.seed for run in runs) for runs in stream.runs.values()}) > 1:
        found.append("Methods were run with different seeds; differences are over the seeds that two methods share.")
    if unclean := [run for run in stream.every if run.about.get("git_clean") is False]:
        found.append(f"The code of {counted(len(unclean), 'run')} had changes that are in no commit (marked +).")
    return found


def plain(value: Any) -> str:
    """A value of JSON as a person would write it, without what is empty or off: `kind dirichlet, alpha 0.5`."""
    if isinstance(value, dict):
        said = [(key, plain(each), isinstance(each, dict | list)) for key, each in value.items() if each]
        return ", ".join(f"{key} ({text})" if nested else f"{key} {text}" for key, text, nested in said if text)
    if isinstance(value, list):
        return "; ".join(filter(None, map(plain, value)))
    return f"{value:g}" if isinstance(value, float) else str(value)
