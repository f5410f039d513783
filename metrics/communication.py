"""What a run cost: bytes exactly as they were sent, and the clients' work. A refused upload was sent too: it counts."""

from __future__ import annotations

from math import fsum

import numpy as np
import pandas as pd

from metrics.accuracy import average_accuracy

FAULTS = ("drop", "slow", "late")
LEFT_OUT = ("drop", "late")  # not admitted, but nothing was wrong with an upload


def costs(rounds: pd.DataFrame) -> dict[str, float]:
    """The run's sums over clients and rounds, all >= 0: bytes each way, samples, optimizer steps, refused uploads.

    `client_seconds` is the work of all clients; `simulated_seconds = sum_rounds max_clients seconds` is how long they
    would take side by side, each round as long as its slowest client. [field] `simulated_time` is the same over the
    devices and costs that a method assumes (`simulated`, see `metrics.time`), where it has a cost model. Where faults
    are simulated there are the shares of what befell clients, over clients and rounds.
    """
    sums = {name: int(rounds[name].sum()) for name in ("bytes_up", "bytes_down", "samples", "steps")}
    slowest = rounds.groupby(["experience", "round"])["seconds"].max()
    found = {
        **sums,
        "client_seconds": fsum(rounds["seconds"]),
        "simulated_seconds": fsum(slowest),
        "refused": int((~rounds["admitted"].astype(bool)).sum()),
    }
    if "fault" in rounds:
        found["refused"] -= int(rounds["fault"].isin(LEFT_OUT).sum())
        found |= {f"{name}_share": float((rounds["fault"] == name).mean()) for name in FAULTS}
    if has_simulated_time(rounds):
        found["simulated_time"] = fsum(rounds.groupby(["experience", "round"])["simulated"].max())
    return found


def has_simulated_time(rounds: pd.DataFrame) -> bool:
    """Whether the method had a cost model; results written before there were any have no such column."""
    return "simulated" in rounds and bool((rounds["simulated"] > 0).any())


def cumulative_bytes(rounds: pd.DataFrame) -> pd.Series:
    """Bytes up and down from the start to the end of each (experience, round), in order."""
    per_round = rounds.groupby(["experience", "round"])[["bytes_up", "bytes_down"]].sum()
    return per_round.sum(axis="columns").cumsum().rename("bytes")


def bytes_until(rounds: pd.DataFrame, a: int) -> int:
    """Bytes up and down from the start to the end of experience a."""
    return int(rounds.loc[rounds["experience"] <= a, ["bytes_up", "bytes_down"]].to_numpy().sum())


def bytes_to_accuracy(R: np.ndarray, rounds: pd.DataFrame, target: float) -> int | None:
    """Bytes up and down until `A_a >= target` for the first time; None if never.

    Accuracy is measured when an experience ends, so this counts whole experiences. [ours]
    """
    reached = (a for a in range(len(R)) if average_accuracy(R, a) >= target)
    return next((bytes_until(rounds, a) for a in reached), None)
