"""Is one method better than another, or were the seeds kind to it? A paired t-test over the seeds that both have.

Seeds pair runs: with the same seed two methods begin with the same network and draw alike where they can.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan

import numpy as np
import pandas as pd
from scipy import stats

FEWEST_SEEDS = 3  # with two the test has one degree of freedom: p says next to nothing
ROUNDING = 1e-12  # relative: differences that are further apart differ by more than the order of a sum


@dataclass(frozen=True)
class Paired:
    """Method a against method b on a stream.

    Attributes:
        difference: mean over seeds of a minus b, in the metric's unit; NaN where no seed has both.
        std: standard deviation of the differences over seeds (ddof 1); NaN with fewer than two seeds.
        p: two-sided p of the paired t-test, not corrected for the number of comparisons; None with fewer than
            `FEWEST_SEEDS` seeds, or where the difference is the same with every seed, which no t-test can judge.
        seeds: how many seeds have both.
    """

    difference: float
    std: float
    p: float | None
    seeds: int

    @property
    def identical(self) -> bool:
        """Whether a and b have the same value with every seed."""
        return self.seeds > 0 and self.difference == 0 and not self.std > 0  # NaN with one seed

    @property
    def words(self) -> str:
        """What the test says, or why there is none: `p = 0.031, 3 seeds`."""
        count = f"{self.seeds} seed{'s' * (self.seeds != 1)}"
        if not self.seeds:
            return "no seed in common"
        if self.identical:
            return f"identical, {count}"
        if self.p is not None:
            return f"p {'< 0.001' if self.p < 0.001 else f'= {self.p:.3f}'}, {count}"
        return f"{count}: too few for a test" if self.seeds < FEWEST_SEEDS else f"constant difference, {count}"


def paired(frame: pd.DataFrame, stream: str, metric: str, a: str, b: str) -> Paired:
    """Method `a` minus method `b` in `metric` on `stream`, over the seeds that have both.

    Args:
        frame: `metrics.comparison.collect`, one row a run.
        metric: a name in metrics.json; in a frame that has no such metric no seed has both.
    """
    own = frame[frame["stream"] == stream]
    both = [
        own[own["method"] == method].set_index("seed")[metric] if metric in own else pd.Series(dtype=float)
        for method in (a, b)
    ]
    table = pd.concat(both, axis="columns", keys=["a", "b"], join="inner").dropna().sort_index()
    first, second = table["a"].to_numpy(dtype=float), table["b"].to_numpy(dtype=float)
    if not len(table):
        return Paired(nan, nan, None, 0)
    differences = first - second
    scale = max(np.abs(first).max(), np.abs(second).max())
    mean, std = float(differences.mean()), float(differences.std(ddof=1)) if len(table) > 1 else nan
    if abs(mean) <= ROUNDING * scale:
        mean = 0.0
    if np.ptp(differences) <= ROUNDING * scale:  # also of one seed
        return Paired(mean, std if isnan(std) else 0.0, None, len(table))
    enough = len(table) >= FEWEST_SEEDS
    return Paired(mean, std, float(stats.ttest_rel(first, second).pvalue) if enough else None, len(table))
