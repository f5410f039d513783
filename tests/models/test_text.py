"""The tokenizer against plain Python, and what padding, empty texts and other types do to the text network."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import Architecture
from models.tokenizer import BASE, PRIME, words
from randomness import generator

LENGTH = 24


def padded(texts: list[bytes], length: int = LENGTH) -> torch.Tensor:
    return torch.tensor([list(text[:length].ljust(length, b"\0")) for text in texts], dtype=torch.uint8)


def cut(text: bytes) -> list[bytes]:
    return [word.lower() for word in re.findall(rb"[0-9A-Za-z\x80-\xff]+|[!-/:-@\[-`{-~]", text)]


def number(word: bytes, vocabulary: int) -> int:
    fingerprint = 0
    for byte in reversed(word):  # Horner's rule
        fingerprint = (fingerprint * BASE + byte) % PRIME
    return fingerprint % vocabulary


def as_lists(texts: list[bytes], vocabulary: int, tokens: int, length: int = LENGTH) -> list[list[int]]:
    numbers, present = words(padded(texts, length), vocabulary, tokens)
    assert numbers.shape == present.shape == (len(texts), tokens)
    assert (numbers[~present] == 0).all()
    assert not (present[:, 1:] & ~present[:, :-1]).any(), "words come first, padding last"
    return [row[there].tolist() for row, there in zip(numbers, present, strict=True)]


anything = st.one_of(
    st.binary(max_size=LENGTH),
    st.text(max_size=LENGTH).map(str.encode),
    st.text("aAbBzZ09 .,'\n", max_size=LENGTH).map(str.encode),
).map(lambda text: text[:LENGTH])


@given(st.lists(anything, min_size=1, max_size=4), st.integers(1, 10_000), st.integers(1, 30))
@settings(deadline=None)
def test_words_are_those_of_plain_python(texts, vocabulary, tokens):
    expected = [[number(word, vocabulary) for word in cut(text)[:tokens]] for text in texts]
    assert as_lists(texts, vocabulary, tokens) == expected


def test_case_place_and_white_space_do_not_matter():
    first, second, third = as_lists([b"The cat, the CAT", b"  the\tCat ,\nTHE cat ", b"thecat"], 8192, 8)
    assert first == second
    assert first[:2] == first[3:]
    assert len({*first, *third}) == 4  # the, cat, comma, thecat


def test_letters_beyond_ascii_belong_to_words():
    assert len(as_lists(["Gödel, naïve".encode()], 8192, 8)[0]) == 3


def test_a_long_text_does_not_overflow():
    text = b"\xff" * 100_000
    assert as_lists([text], 8192, 2, len(text)) == [[number(text, 8192)]]


def test_numbers_spread_over_the_vocabulary():
    """As balls thrown at random: of 5,000 words in 8,192 boxes 3,743 boxes are expected, with a deviation below 28."""
    names = [b"%s%d" % (stem, i) for stem in (b"a", b"word", b"thing", b"x-") for i in range(1250)]
    found = {number(name, 8192) for name in names}
    assert abs(len(found) - 8192 * (1 - (1 - 1 / 8192) ** 5000)) < 5 * 28


# the network


def network(**options):
    architecture = Architecture("text_transformer", (LENGTH,), 4, {"vocabulary": 64, "tokens": 6, "width": 8} | options)
    return architecture.load(architecture.initial(generator(0, "model")))


@pytest.mark.parametrize("text", [b"", b"  \n "])
def test_a_text_without_words_has_the_features_zero(text):
    model = network()
    texts = padded([text, b"some words"])
    assert (model.features(texts)[0] == 0).all()
    assert torch.equal(model(texts)[0], model.head.bias)
    model(texts[:1]).sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_padding_changes_nothing():
    """Neither longer texts' zeros nor room for more words."""
    model = network()
    short, long = padded([b"one two"], 7), padded([b"one two"], 20)
    assert torch.equal(model(short), model(long))
    narrow = network(tokens=2)
    state = model.state_dict()
    state["positions.weight"] = state["positions.weight"][:2]
    narrow.load_state_dict(state)
    torch.testing.assert_close(narrow(short), model(short))


def test_words_beyond_the_last_token_are_not_read():
    model = network(tokens=3)
    assert torch.equal(model(padded([b"a b c d e"])), model(padded([b"a b c x"])))
    assert not torch.equal(model(padded([b"a b c"])), model(padded([b"a b x"])))


def test_the_order_of_words_matters():
    model = network()
    assert not torch.allclose(model(padded([b"dog bites man"])), model(padded([b"man bites dog"])), atol=1e-6)


def test_both_lookups_have_the_same_values_and_gradients():
    """The one of CUDA is indexing."""
    layer, numbers = network().words, torch.tensor([[3, 3, 5]])
    looked_up = layer(numbers)
    indexed = layer.weight[numbers]
    assert torch.equal(looked_up, indexed)
    gradients = [torch.autograd.grad(each.square().sum(), layer.weight)[0] for each in (looked_up, indexed)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_texts_that_are_no_bytes_are_refused(dtype):
    with pytest.raises(TypeError, match=r"texts are bytes of type torch\.uint8 \(got torch\."):
        network()(torch.zeros(1, LENGTH, dtype=dtype))
