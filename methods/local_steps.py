"""What a client's SGD steps amount to: how often each gradient counts in what the client has moved."""

from __future__ import annotations

from errors import InputError

from .training import TrainParameters


def accumulation(steps: int, momentum: float = 0.0) -> float:
    """||a||_1 of `steps` steps of SGD: start - end = learning_rate * sum_k a_k g_k.

        a_k = (1 - m^(steps - k)) / (1 - m),   k = 0, ..., steps - 1

    since with momentum m the k-th gradient also moves the model in all later steps; without momentum a_k = 1 and the
    sum is the number of steps.

    Source: Wang et al., NeurIPS 2020, the vector a of SGD with momentum
    """
    if momentum == 0:
        return float(steps)
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


def require_sgd(train: TrainParameters, method: str) -> None:
    """Refuses what `accumulation` does not describe.

    Raises:
        InputError: an adaptive optimizer, whose steps are no linear combination of gradients.
    """
    if train.optimizer != "sgd":
        raise InputError(
            f"train.optimizer must be sgd for {method} (got {train.optimizer}): "
            "it reads gradients off what a client has moved"
        )
