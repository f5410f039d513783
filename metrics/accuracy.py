"""What the accuracy matrix says about learning and forgetting.

`R[a, b]` is the accuracy on experience b after training experience a, both counted from 0, as the plain mean over
clients. `R` has one row per experience trained so far, so `T = len(R)` and `R[:a + 1]` is the matrix as it stood after
experience a; columns beyond T hold zero-shot accuracy only. A cell nobody measured is NaN, and a metric that needs
such a cell, or that does not exist for this T, is NaN too.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pandas as pd

from errors import nearest

UNTRAINED = -1


def matrix(frame: pd.DataFrame, model: str) -> np.ndarray:
    """`R` of one kind of model, (experiences trained, experiences known), each cell in [0, 1] or NaN.

    T is that of the whole frame: a kind of model that was not measured after the last experience shows NaN there,
    never an earlier experience's accuracy as if it were final.

    Raises:
        ValueError: the frame has no such kind of model.
    """
    if model not in (kinds := set(frame["model"])):
        raise ValueError(f"no model '{model}' in the accuracy matrix; {nearest(model, kinds)}")
    return _means(frame, model, range(experiences(frame)))


def untrained(frame: pd.DataFrame, model: str) -> np.ndarray:
    """`r_b`: the accuracy on each experience before any training, in [0, 1] or NaN."""
    return _means(frame, model, range(UNTRAINED, 0))[0]


def experiences(frame: pd.DataFrame) -> int:
    """T, the number of experiences trained so far."""
    return max(frame["trained"], default=UNTRAINED) + 1


def _means(frame: pd.DataFrame, model: str, trained: range) -> np.ndarray:
    known = max(experiences(frame), max(frame["tested"], default=-1) + 1)
    # fmean rounds once, so the order of the rows, which is the order in which clients finished, cannot show.
    cells = frame[frame["model"] == model].groupby(["trained", "tested"])["accuracy"].agg(fmean).unstack()
    return cells.reindex(index=trained, columns=range(known)).to_numpy(dtype=float)


def average_accuracy(R: np.ndarray, a: int) -> float:
    """`A_a = mean_{b<=a} R[a,b]`, in [0, 1]. [field: Lopez-Paz and Ranzato, NeurIPS 2017]"""
    return _mean(R[a, : a + 1])


def final_average_accuracy(R: np.ndarray) -> float:
    """`A_T`, after the last experience, in [0, 1]. [field: Lopez-Paz and Ranzato, NeurIPS 2017]"""
    return average_accuracy(R, len(R) - 1)


def average_incremental_accuracy(R: np.ndarray) -> float:
    """`1/T sum_a A_a`, in [0, 1]. [field: Rebuffi et al., iCaRL, CVPR 2017]"""
    return _mean([average_accuracy(R, a) for a in range(len(R))])


def forgetting(R: np.ndarray) -> float:
    """`1/(T-1) sum_{b<T} ( max_{b<=a<T} R[a,b] - R[T,b] )`, in [-1, 1]; NaN for T = 1.

    The maximum leaves out the last row, so an experience that still improves counts as negative forgetting.
    [field: Chaudhry et al., Riemannian Walk, ECCV 2018]
    """
    return _mean([R[b:-1, b].max() - R[-1, b] for b in range(len(R) - 1)])


def backward_transfer(R: np.ndarray) -> float:
    """`1/(T-1) sum_{b<T} ( R[T,b] - R[b,b] )`, in [-1, 1]; NaN for T = 1. [field: Lopez-Paz and Ranzato, 2017]"""
    return _mean([R[-1, b] - R[b, b] for b in range(len(R) - 1)])


def forward_transfer(R: np.ndarray, untrained: np.ndarray) -> float:
    """`1/(T-1) sum_{b>=2} ( R[b-1,b] - r_b )`, in [-1, 1]; NaN for T = 1. [field: Lopez-Paz and Ranzato, 2017]"""
    return _mean([R[b - 1, b] - untrained[b] for b in range(1, len(R))])


def learning_accuracy(R: np.ndarray) -> float:
    """`mean_b R[b,b]`, the plasticity, in [0, 1]. [field: Riemer et al., Meta-Experience Replay, ICLR 2019]"""
    return _mean(R.diagonal())


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean; NaN of nothing."""
    return fmean(values) if len(values) else float("nan")
