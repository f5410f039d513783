"""Bytes of texts -> numbers of words, in integer arithmetic on any device.

A word is a longest run of ASCII letters, digits and bytes above 127 (the characters of UTF-8 beyond ASCII); every ASCII
punctuation mark is a word of its own; everything else, zero bytes included, separates. ASCII letters are lower-cased,
others stay
as they are. A word's number is its fingerprint modulo the size of the vocabulary: feature hashing.

[ours] A learnt vocabulary would have to see somebody's private texts, or be agreed on by sending words around; a hash
function sees none, and every client has the same one before the first round. The price: words share numbers by chance.

Source: Weinberger et al. 2009, arXiv 0902.2206 (hashing); Karp & Rabin 1987 (fingerprint)
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

PRIME = 2**31 - 1
BASE = 16807  # a primitive root of PRIME (Park & Miller 1988): its powers run through all residues


@cache
def powers(length: int) -> tuple[int, ...]:
    """BASE ** 0, ..., BASE ** (length - 1), modulo PRIME."""
    found = [1]
    while len(found) < length:
        found.append(found[-1] * BASE % PRIME)
    return tuple(found)


def words(texts: Tensor, vocabulary: int, tokens: int) -> tuple[Tensor, Tensor]:
    """The numbers of the first `tokens` words of every text.

    The bytes b_0, b_1, ... of a word make the fingerprint (sum of b_j BASE^j mod PRIME) mod PRIME. Sums over words are
    differences of one running sum over the text; integers, so the order of summation does not matter, and below
    2^31 times the length, so nothing overflows.

    Args:
        texts: (batch, length) uint8, UTF-8, zeros after the end.
        vocabulary: how many numbers there are.
        tokens: how many words are kept.
    Returns:
        numbers (batch, tokens), int64 in 0..vocabulary-1, and `present` (batch, tokens), False where the text has no
        such word (the number there is 0).
    Raises:
        TypeError: texts that are no bytes.
    """
    if texts.dtype != torch.uint8:
        raise TypeError(f"texts are bytes of type torch.uint8 (got {texts.dtype})")
    batch, length = texts.shape
    bytes_ = texts.long()
    upper = (bytes_ >= ord("A")) & (bytes_ <= ord("Z"))
    bytes_ = torch.where(upper, bytes_ + 32, bytes_)
    digit = (bytes_ >= ord("0")) & (bytes_ <= ord("9"))
    letter = (bytes_ >= ord("a")) & (bytes_ <= ord("z")) | (bytes_ > 127) | digit
    mark = (bytes_ > 32) & (bytes_ < 127) & ~letter

    before = torch.cat([torch.zeros_like(letter[:, :1]), letter[:, :-1]], dim=1)
    starts = mark | letter & ~before
    place = torch.arange(length, device=texts.device)
    inside = place - torch.where(starts, place, 0).cummax(dim=1).values  # how far into its word a byte is
    power = torch.tensor(powers(length), device=texts.device)
    terms = torch.where(letter | mark, bytes_ * power[inside] % PRIME, 0)
    running = torch.cat([terms.new_zeros(batch, 1), terms.cumsum(dim=1)], dim=1)

    # where words 1, 2, ..., tokens + 1 begin; `length` if there are fewer. Word k's bytes lie before word k + 1.
    wanted = torch.arange(1, tokens + 2, device=texts.device).expand(batch, -1).contiguous()
    begin = torch.searchsorted(starts.cumsum(dim=1), wanted)
    at = running.gather(1, begin)
    numbers = (at[:, 1:] - at[:, :-1]) % PRIME % vocabulary
    return numbers, begin[:, :-1] < length
