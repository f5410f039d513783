"""Every stream of randomness has a name, and the name alone decides what it draws."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from randomness import derive, generator, numpy_generator

seeds = st.integers(-(2**63), 2**63)
names = st.lists(st.text(st.characters(codec="utf-8"), max_size=8) | st.integers(), max_size=5).map(tuple)


@given(seeds, names)
def test_derive_is_the_first_63_bits_of_sha256_over_the_json_of_seed_and_names(seed, names):
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).hexdigest()
    assert derive(seed, *names) == int(digest[:16], 16) // 2
    assert 0 <= derive(seed, *names) < 2**63


@given(seeds, names, seeds, names)
def test_other_names_or_another_seed_give_another_stream(seed, these, other, those):
    assert (derive(seed, *these) == derive(other, *those)) == ((seed, these) == (other, those))


@pytest.mark.parametrize(
    ("these", "those"),
    [
        (("client", 1, "round", 2), ("client", 2, "round", 1)),
        (("client", 1), ("client", "1")),
        (("client", 12), ("client", 1, 2)),
        (("ab", "c"), ("a", "bc")),
        (("a", "b"), ("b", "a")),
        (("a",), ("a", "")),
    ],
)
def test_names_cannot_be_mistaken_for_each_other(these, those):
    assert derive(0, *these) != derive(0, *those)
    assert not torch.equal(draw(*these), draw(*those))


def draw(*names: str | int) -> torch.Tensor:
    return torch.rand(8, generator=generator(0, *names))


def test_order_threads_and_global_state_do_not_matter():
    names = [("client", client, "round", round) for client in range(10) for round in range(5)]
    alone = {name: draw(*name) for name in names}
    torch.manual_seed(99)
    with ThreadPoolExecutor(8) as pool:
        backwards = dict(zip(names[::-1], pool.map(lambda name: draw(*name), names[::-1]), strict=True))
    assert all(torch.equal(alone[name], backwards[name]) for name in names)
    assert len({tuple(drawn.tolist()) for drawn in alone.values()}) == len(names)


def test_another_process_draws_the_same(root):
    code = "from randomness import derive, numpy_generator as g; print(derive(0, 'x', 1), g(0, 'x', 1).random())"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(derive(0, "x", 1)), str(numpy_generator(0, "x", 1).random())]


def test_generators_leave_the_global_ones_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    draw("x")
    numpy_generator(0, "x").random(8)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_equal(np.random.get_state()[1:3], numpy_state[1:3])  # noqa: NPY002


def test_numpys_generator_follows_the_same_names():
    assert numpy_generator(1, "a", 2).random() == np.random.default_rng(derive(1, "a", 2)).random()
    assert numpy_generator(1, "a").random() != numpy_generator(1, "b").random() != numpy_generator(2, "b").random()


def test_streams_are_uncorrelated():
    """The mean of products of 64 x 20000 draws around 0 of neighbouring names is 0 within five standard errors."""
    count = 20_000
    drawn = torch.stack([torch.randn(count, generator=generator(0, "client", i)) for i in range(64)])
    products = (drawn[:-1] * drawn[1:]).mean(1)
    assert products.abs().max() < 5 / count**0.5
