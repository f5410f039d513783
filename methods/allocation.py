"""Who trains which of the added blocks: by what the data need and by what the device can do. [ours]"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .cost import Cost
from .training import Batch, minibatches

Rule = Literal["dynamic", "all", "random", "compute", "data"]


class Choice(NamedTuple):
    """A client's blocks and why."""

    blocks: tuple[int, ...]  # S_i, rising
    utility: tuple[float, ...]  # u_ik of each block
    skew: float  # h_i
    time: float  # T(S_i) of one minibatch, in forward passes of one block
    time_budget: float  # what T(S_i) may be
    memory: float  # M(S_i), in numbers
    memory_budget: float
    fits: bool  # within both; if no subset is, it is the top block alone

    def told(self) -> dict[str, Any]:
        """In plain values."""
        return {**self._asdict(), "blocks": list(self.blocks), "utility": list(self.utility)}


def skew(own: Tensor, everyones: Tensor) -> float:
    """h = JS( p_own || p_everyone ) in bits, in [0, 1], of two counts of labels (classes,); 0 where one is empty."""
    if not own.sum() or not everyones.sum():
        return 0.0
    p, q = own.double() / own.sum(), everyones.double() / everyones.sum()
    middle = (p + q) / 2

    def divergence(one: Tensor) -> float:
        there = one > 0
        return float((one[there] * (one[there] / middle[there]).log2()).sum())

    return min(1.0, max(0.0, (divergence(p) + divergence(q)) / 2))


def scores(
    model: nn.Module, blocks: Sequence[nn.Module], loss: Callable[[nn.Module, Batch], Tensor], probes: Sequence[Batch]
) -> Tensor:
    """I_k = || grad_k L ||^2 / |theta_k|, (K,) on the CPU: how much each block would change for these minibatches."""
    sum(loss(model, batch) for batch in probes).div(len(probes)).backward()
    found = []
    for block in blocks:
        squares = sum(each.grad.square().sum() for each in block.parameters() if each.grad is not None)
        found.append(squares / sum(each.numel() for each in block.parameters()))
    return torch.stack(found).cpu()


def norm(scores: Tensor) -> Tensor:
    """Scores as shares of the largest, in [0, 1]; all 0 stays 0."""
    return scores / scores.max().clamp(min=torch.finfo(scores.dtype).tiny)


def utility(own: Tensor, mean: Tensor, h: float, covered: Tensor, eta: float) -> Tensor:
    """u_k = (1 - h) norm(I)_k + h norm(I_i)_k + eta / (1 + cov_k)

    Args:
        own, mean: I_i and I, (K,): the client's scores, and their mean over clients weighted by samples.
        h: the client's skew.
        covered: cov, (K,), samples already assigned to each block in this round.
        eta: weight of coverage.
    """
    return (1 - h) * norm(mean) + h * norm(own) + eta / (1 + covered)


def fits(cost: Cost, lowest: int, size: int, time: float, memory: float) -> bool:
    """T <= time and M <= memory, but for rounding."""
    slack = 1 + 1e-9
    return cost.time(lowest, size) <= time * slack and cost.memory(lowest, size) <= memory * slack


def select(u: Sequence[float], cost: Cost, time: float, memory: float) -> tuple[int, ...] | None:
    """The subset with the largest sum of u among those with T <= time and M <= memory; None where there is none.

    Exact, for any K: T and M depend on a subset's lowest block and its size only, so for each lowest block the best
    subset is that block with the best ones above it, as many as the budgets allow. Of equal sums the first with the
    higher lowest block is taken: it is the cheaper one.

    Args:
        u: utilities >= 0, one a block from the bottom.
        time, memory: budgets of one minibatch, in the units of `Cost`.
    """
    best: tuple[float, tuple[int, ...]] | None = None
    for lowest in reversed(range(len(u))):
        above = sorted(range(lowest + 1, len(u)), key=lambda k: (-u[k], -k))
        for size in range(len(above) + 1, 0, -1):
            if fits(cost, lowest, size, time, memory):
                chosen = (lowest, *sorted(above[: size - 1]))
                total = sum(u[k] for k in chosen)
                if best is None or total > best[0]:
                    best = (total, chosen)
                break
    return best and best[1]


def budgets(
    cost: Cost, samples: Sequence[float], speeds: Sequence[float], batch_size: int, kappa: float
) -> list[float]:
    """What T(S) of one minibatch may be for each client: T* c_i / m_i, with T* = kappa median_i m_i T(all) / c_i.

    Args:
        samples: of each client's data.
        speeds: c_i.
    """
    passes = [minibatches(round(count), batch_size) for count in samples]
    everything, _ = cost.all
    limit = kappa * median(m * everything / c for m, c in zip(passes, speeds, strict=True))
    return [limit * c / m for m, c in zip(passes, speeds, strict=True)]


def choose(rule: Rule, u: Tensor, h: float, cost: Cost, time: float, memory: float, draw: torch.Generator) -> Choice:
    """A client's blocks; where nothing fits the budgets, the top block alone.

    `all` takes all blocks whatever they cost, `data` the better half (K / 2, rounded up) whatever they cost, `random`
    decides by drawn utilities and `compute` by equal ones, under the budgets as `dynamic` does.
    """
    if rule == "random":
        u = torch.rand(len(u), generator=draw)
    if rule == "compute":
        u = torch.ones(len(u))
    values = u.tolist()
    if rule in ("all", "data"):
        best = sorted(range(len(u)), key=lambda k: (-values[k], -k))
        found = tuple(range(len(u))) if rule == "all" else tuple(sorted(best[: (len(u) + 1) // 2]))
    else:
        found = select(values, cost, time, memory)
    blocks = found or (len(u) - 1,)
    lowest, size = blocks[0], len(blocks)
    within = fits(cost, lowest, size, time, memory)
    used = cost.time(lowest, size), time, cost.memory(lowest, size), memory
    return Choice(blocks, tuple(values), h, *used, within)
