"""What becomes of a device's expert, and what its start is worth."""

from __future__ import annotations

from statistics import fmean

import pandas as pd


def consolidation_gap(frame: pd.DataFrame) -> dict[str, float]:
    """What an expert loses when it is consolidated: mean over clients i and experiences t, both on T_i^t.

        gap = mean_{i,t} ( Acc(e_i^t; T_i^t) - Acc(f_t; T_i^t) )

    e_i^t is the kind `trained`, f_t the kind `received`: the global model at the end of the experience. Both predict
    among the classes that client i has met: its own task's where it comes once, so that streams in which clients come
    once and streams in which they return are not to be compared. Above 0 is a loss. No key where either was not
    measured. [paper: what is reported; ours: over all experts]
    """
    own = frame[frame["trained"] == frame["tested"]]
    place = ["client", "trained"]
    expert, after = (own[own["model"] == kind].set_index(place)["accuracy"] for kind in ("trained", "received"))
    both = (expert - after).dropna()
    return {"consolidation_gap": fmean(both)} if len(both) else {}


def transfer(curves: pd.DataFrame) -> dict[str, float]:
    """What the start from the consolidated model is worth against one from scratch, at equal budget. [paper]

        transfer = mean ( Acc(e from f_{t-1}) - Acc(e from scratch) )      at the end of the training: `_final`
        and the same of the means over the epochs 0, 1, ...                the area under the learning curve: `_area`

    Both predict among the classes of the experience, and are measured in its first round: later ones start from a model
    that has seen the device's data.

    Args:
        curves: columns client, experience, round, training (`consolidated` and `scratch`), epoch, accuracy.
    """
    place = ["client", "experience", "round"]
    found: dict[str, pd.Series] = {}
    for training, rows in curves.groupby("training"):
        course = rows.sort_values("epoch").groupby(place)["accuracy"]
        found[f"{training}_final"], found[f"{training}_area"] = course.last(), course.mean()
    result = {}
    for what in ("final", "area"):
        if {f"consolidated_{what}", f"scratch_{what}"} <= found.keys():
            difference = (found[f"consolidated_{what}"] - found[f"scratch_{what}"]).dropna()
            result |= {f"transfer_{what}": fmean(difference)} if len(difference) else {}
    return result
