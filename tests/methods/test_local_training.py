"""The local optimizer: how its step size rises, and how long its steps may be."""

from __future__ import annotations

import pytest
import torch

from methods.training import TrainParameters


@pytest.mark.parametrize(
    ("rounds", "warmup", "expected"),
    [
        (4, 0.0, [1, 1, 1, 1]),
        (4, 1.0, [0.25, 0.5, 0.75, 1]),
        (10, 0.5, [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1]),
        (2, 0.1, [1, 1]),
    ],
)
def test_the_step_size_rises_and_then_stays(rounds, warmup, expected):
    train = TrainParameters(rounds=rounds, warmup=warmup, learning_rate=0.5)
    weights = [torch.nn.Parameter(torch.zeros(1))]
    sizes = [train.optimizer_for(weights, number).param_groups[0]["lr"] for number in range(rounds)]
    assert sizes == pytest.approx([0.5 * each for each in expected])
    assert train.optimizer_for(weights).param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("method", ["fedavg", "perfedavg", "tap"])
def test_a_clipped_step_of_sgd_is_no_longer_than_rate_times_clip(method, laboratory, client_of):
    lab = laboratory(method, "single", sets=["train.clip=0.01", "train.batch_size=10000", f"train.learning_rate={1.0}"])
    client = client_of(lab, 0)
    update = lab.site.method.train(client)
    before = client.received.part("model")
    moved = sum((each - before[name]).square().sum() for name, each in update.message.part("model").items())
    assert float(moved) ** 0.5 == pytest.approx(0.01, rel=1e-3)


def test_a_warm_up_slows_the_first_round_alone(laboratory):
    short = ["train.rounds=2", "train.learning_rate=0.01"]
    plain, rising = (laboratory("fedavg", "single", sets=[*short, f"train.warmup={share}"]) for share in (0, 1))
    start = plain.server.part("model")
    lengths = []
    for lab in (plain, rising):
        lab.play_round()
        lengths.append(sum(float((each - start[name]).norm()) for name, each in lab.server.part("model").items()))
    assert lengths[1] < 0.7 * lengths[0]
