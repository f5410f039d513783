"""Texts as arrays: their UTF-8 bytes, padded with zeros. What a word is, is the network's business."""

from __future__ import annotations

import numpy as np

LENGTH = 512  # bytes, by default; raise sources.FORMAT when this changes


def encoded(text: str, length: int | None) -> np.ndarray:
    """(length,) uint8: the text's UTF-8 bytes, cut before the first character that does not fit, then zeros.

    Args:
        text: not empty, without zero characters.
        length: bytes; None is LENGTH.
    Raises:
        ValueError: the text is empty or holds a zero character.
    """
    if not text.strip():
        raise ValueError("empty text")
    if "\0" in text:
        raise ValueError("the text holds a zero character, which stands for its end")
    row = np.zeros(length or LENGTH, np.uint8)
    raw = text[: len(row)].encode()
    end = len(raw)
    if end > len(row):
        end = len(row)
        while raw[end] & 0b1100_0000 == 0b1000_0000:  # a character's second, third or fourth byte
            end -= 1
    row[:end] = np.frombuffer(raw[:end], np.uint8)
    return row
