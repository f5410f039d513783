"""How much of a client's knowledge outlives time (later experiences) and space (the fusion with other clients)."""

from __future__ import annotations

from statistics import fmean

import pandas as pd

from metrics.accuracy import experiences


def retention(frame: pd.DataFrame, main: str) -> dict[str, float]:
    """Temporal and spatial knowledge retention, each with its clients and its mean denominator.

        KR_t = 1/N sum_i Acc(theta_i^T; T_i^1) / Acc(theta_i^1; T_i^1)    the first experience, now and when learnt
        KR_s = 1/N sum_i Acc(theta_g^T; T_i^T) / Acc(theta_i^T; T_i^T)    the last one, after fusion and just before

    Both are >= 0, and 1 when nothing is lost. theta_i is the kind `trained`, theta_g the kind `received`, or `small`
    where the clients' small models are what is fused. Where a kind is missing the main model stands for it: a client's
    personal model is what it has after fusion, and without fusion KR_s = 1. No key where no client was measured.
    [group: Yang et al., Federated Continual Learning via Knowledge Fusion, arXiv 2312.16475]
    """
    kinds = set(frame["model"])
    trained = "trained" if "trained" in kinds else main
    received = next((kind for kind in ("received", "small") if kind in kinds), main)
    last = experiences(frame) - 1
    return {
        **_ratio("temporal_retention", _clients(frame, trained, last, 0), _clients(frame, trained, 0, 0)),
        **_ratio("spatial_retention", _clients(frame, received, last, last), _clients(frame, trained, last, last)),
    }


def _clients(frame: pd.DataFrame, model: str, trained: int, tested: int) -> pd.Series:
    """The accuracy of each client in one cell of the matrix; a global model (client -1) is nobody's."""
    cell = (frame["model"] == model) & (frame["trained"] == trained) & (frame["tested"] == tested)
    return frame[cell & (frame["client"] >= 0)].set_index("client")["accuracy"]


def _ratio(name: str, after: pd.Series, before: pd.Series) -> dict[str, float]:
    """The mean over clients of after / before. [ours] A client that knew nothing before has nothing to retain: it is
    left out of the ratio, yet not of the denominator, whose mean tells how much there was to lose.
    """
    if before.empty:
        return {}
    ratios = (after / before[before > 0]).dropna()
    found = {f"{name}_clients": len(ratios), f"{name}_denominator": fmean(before)}
    return {name: fmean(ratios), **found} if len(ratios) else found


def general_retention(frame: pd.DataFrame) -> dict[str, float]:
    """How much of its general tasks a foundation model still does: mean_g Acc_g(after) / Acc_g(before), at least 0.

    Before is before any training (row -1), after is after the last experience; with both accuracies of each task g. A
    task that it could not do at all before is left out of the mean. No key where there are no general tasks.
    """
    found, ratios = {}, []
    for task, rows in frame.groupby("task"):
        course = rows.set_index("trained")["accuracy"].sort_index()
        before, after = float(course.iloc[0]), float(course.iloc[-1])
        found |= {f"general.{task}.before": before, f"general.{task}.after": after}
        ratios += [after / before] if before else []
    return found | ({"general_retention": fmean(ratios)} if ratios else {})
