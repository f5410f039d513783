"""What streams and foundation models are made from: who made it, and under which licence, as far as it is stated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNKNOWN = "licence not recorded"
# The beginning of a source as params.yaml names it, or a folder's name in it: what it is, its licence, who states that.
KNOWN = {
    "digits": (
        "Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI), test part as in scikit-learn",
        "CC BY 4.0, as stated by the UCI repository",
    ),
    "cifar100": ("CIFAR-100 (Krizhevsky 2009)", "none stated by its authors"),
    "cifar10": ("CIFAR-10 (Krizhevsky 2009)", "none stated by its authors"),
    "ag_news": (
        "AG News (Zhang et al. 2015, from Gulli's corpus)",
        "none stated; its author allows research and other non-commercial use",
    ),
    "china.jpg": ("photograph by danielbuechele, in scikit-learn", "CC BY 2.0, as stated by scikit-learn"),
    "flower.jpg": ("photograph in scikit-learn", "CC BY 2.0, as stated by scikit-learn"),
}


def sources(experiment: Mapping[str, Any]) -> list[str]:
    """The sources that an experiment's parameters name: its stream's, and those of foundation model and server."""
    stream, found = experiment["stream_parameters"], []
    several = stream.get("multitask") or {}
    found += [stream["source"]] if stream["source"] != "tasks" else [several.get("images"), several.get("texts")]
    foundation = experiment.get("foundation") or {}
    found += [foundation["source"]] if foundation.get("source", "pretrain") != "pretrain" else []
    for value in experiment["method_parameters"].values():  # such as the server's own images
        source = value.get("source") if isinstance(value, dict) else None
        found += [source] if source and source not in ("public", "noise", "oracle") else []
    return [each for each in found if each]


def about(source: str) -> str:
    """What a source is by its name, and its licence; `UNKNOWN` where this module does not know the name."""
    name = source.lower()
    for key, (what, licence) in KNOWN.items():
        if name == key or name.endswith((f":{key}", f"/{key}")) or f"/{key}/" in name:
            return f"{what}; licence: {licence}"
    return UNKNOWN
