"""A client's memory: within its budget, a fair sample, balanced, herded."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from methods import State
from methods.memory import Memory, balanced, groups, herding, replayed_cross_entropy, reservoir


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(start: int, end: int, labels=None, experience: int = 0) -> Memory:
    """Samples with the numbers start..end-1, kept as `number`."""
    numbers = torch.arange(start, end)
    return Memory(
        {
            "inputs": numbers.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2),
            "labels": numbers % 3 if labels is None else torch.as_tensor(labels),
            "experiences": torch.full_like(numbers, experience),
            "number": numbers,
        }
    )


def passed(sizes, budget: int, seed: int = 0) -> Memory:
    memory, seen = Memory({}), 0
    for size in sizes:
        memory = reservoir(memory, seen, samples(seen, seen + size), budget, generator(1000 * seed + seen))
        seen += size
    return memory


@given(st.lists(st.integers(0, 12), max_size=6), st.integers(0, 15), st.integers(0, 100))
def test_a_reservoir_holds_different_samples_within_its_budget(sizes, budget, seed):
    memory = passed(sizes, budget, seed)
    numbers = memory["number"].tolist() if len(memory) else []
    assert len(numbers) == len(set(numbers)) == min(sum(sizes), budget)
    assert set(numbers) <= set(range(sum(sizes)))
    for number, label in zip(numbers, memory["labels"].tolist() if numbers else [], strict=True):
        assert label == number % 3, "a sample's rows stay together"


def test_a_reservoir_is_a_uniform_sample_of_all_that_passed():
    """Each of 12 samples is kept with probability 5/12: 4 sigma over 3,000 streams."""
    kept = Counter(number for seed in range(3000) for number in passed((3, 1, 8), 5, seed)["number"].tolist())
    expected = 3000 * 5 / 12
    spread = (3000 * 5 / 12 * 7 / 12) ** 0.5
    assert set(kept) == set(range(12))
    assert all(abs(count - expected) < 4 * spread for count in kept.values()), kept


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 40))
def test_a_balanced_memory_gives_all_groups_equal_shares(labels, budget):
    memory = samples(0, len(labels), sorted(labels)) + samples(100, 103, [0, 0, 9], experience=1)
    before, after = groups(memory), balanced(memory, budget)
    assert len(after) <= budget
    assert len(before) == len(set(labels)) + 2
    kept = set(after["number"].tolist() if len(after) else [])
    for number, rows in enumerate(before):
        share = budget // len(before) + (number < budget % len(before))
        own = memory["number"][rows].tolist()
        assert set(own[:share]) <= kept
        assert not kept & set(own[share:])


def test_herding_by_hand():
    """The mean is 2: 1 is nearest; then 3.5 makes (1 + 3.5)/2 = 2.25; then 0.5 makes (4.5 + 0.5)/3 = 1.67."""
    features = torch.tensor([[0.0], [1.0], [3.5], [5.0], [0.5]])
    assert features.mean().item() == 2
    assert herding(features, 3).tolist() == [1, 2, 4]
    assert herding(features, 2).tolist() == [1, 2]
    assert sorted(herding(features, 99).tolist()) == [0, 1, 2, 3, 4]


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 50))
def test_herding_takes_each_row_once_and_begins_nearest_to_the_mean(count, wanted, seed):
    features = torch.randn(count, 4, generator=generator(seed), dtype=torch.float64)
    chosen = herding(features, wanted)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, wanted)
    distances = (features - features.mean(dim=0)).norm(dim=1)
    assert distances[chosen[0]] == distances.min()


def test_a_memory_comes_back_from_a_state():
    memory = samples(3, 8)
    again = Memory.of(State(memory.tensors()))
    assert again.rows.keys() == memory.rows.keys()
    assert all(torch.equal(again[name], memory[name]) for name in memory.rows)
    assert not len(Memory.of(State()))
    assert Memory({}).tensors() == {}
    assert len(memory + Memory({})) == len(Memory({}) + memory) == 5


@given(st.integers(1, 20), st.integers(0, 30))
def test_a_draw_is_of_different_samples(size, count):
    drawn = samples(0, size).draw(count, generator(count))["number"].tolist()
    assert len(drawn) == len(set(drawn)) == min(size, count)


def test_replayed_samples_compete_in_their_own_experience():
    logits = torch.randn(3, 4, generator=generator())
    kept = samples(0, 2, [0, 1]) + samples(2, 3, [3], experience=1)
    mask = torch.tensor([[True, True, False, False], [False, False, True, True]])
    by_hand = -(F.log_softmax(logits[:2, :2], 1)[[0, 1], [0, 1]].sum() + F.log_softmax(logits[2, 2:], 0)[1]) / 3
    assert replayed_cross_entropy(logits, kept, mask).item() == pytest.approx(by_hand.item(), rel=1e-5)
