"""What a task of a multi-task stream is made from: a function each, which says what is shown and what is asked.

The tasks of every subject are here, those about digits in `task_digits`, those about CIFAR-100 in `task_cifar100`.
All sentences are [ours].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from multitask import Modality, Target

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLUS = (
    "{a} plus {b}",
    "what is {a} plus {b}",
    "add {b} to {a}",
    "{a} and {b} more",
    "the sum of {a} and {b}",
    "{b} more than {a}",
    "put {b} on top of {a}",
    "{a} with {b} added",
)
MINUS = (
    "{a} minus {b}",
    "what is {a} minus {b}",
    "take {b} from {a}",
    "{a} and {b} fewer",
    "the difference of {a} and {b}",
    "{b} less than {a}",
    "{a} without {b}",
    "{a} with {b} removed",
)


@dataclass(frozen=True)
class Material:
    """What samples are made from.

    Attributes:
        labels: (N,) int64, the classes of the images.
        topics: (M,) int64, the classes of the texts.
        generator: the task's own, derived from the stream's seed by the task's name.
    """

    labels: np.ndarray
    topics: np.ndarray
    generator: np.random.Generator


@dataclass(frozen=True)
class Samples:
    """The n samples of a task: one for each image, for each text of the source of texts, or for each of its sentences.

    Attributes:
        labels: (n,) int64 in 0..classes-1.
        classes: 1 where the target is no class.
        texts: n sentences; none where a sample shows an image alone, or a text of the source of texts.
        answers: n sentences; none where the target is no text.
    """

    labels: np.ndarray
    classes: int = 1
    texts: Sequence[str] = field(default=())
    answers: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Kind:
    """A task as it is registered.

    Attributes:
        each: what there is a sample of: an image, a text of the source of texts, or a distinct sentence of its own.
            It decides what is held out for testing.
    """

    modalities: tuple[Modality, ...]
    target: Target
    each: Literal["image", "text", "sentence"]
    make: Callable[[Material], Samples]


def task(table: dict[str, Kind], modalities: tuple[Modality, ...], target: Target, each: str):
    """Register a function Material -> Samples in `table` under its own name."""

    def register(make: Callable[[Material], Samples]) -> Callable[[Material], Samples]:
        table[make.__name__] = Kind(modalities, target, each, make)
        return make

    return register


ANY: dict[str, Kind] = {}  # the tasks of every subject


@task(ANY, ("image",), "image", each="image")
def redraw(material: Material) -> Samples:
    """The image shown."""
    return Samples(np.zeros(len(material.labels), np.int64))


@task(ANY, ("text",), "class", each="sentence")
def value(material: Material) -> Samples:
    """What "three plus four" or "take two from nine" comes to, 0 to 9: 880 sentences, 88 of each value."""
    made = {}
    for a in range(10):
        for b in range(10):
            for phrasings, result in ((PLUS, a + b), (MINUS, a - b)):
                if 0 <= result <= 9:
                    made |= {phrasing.format(a=DIGITS[a], b=DIGITS[b]): result for phrasing in phrasings}
    return Samples(np.array(list(made.values()), np.int64), 10, tuple(made))


@task(ANY, ("text",), "class", each="text")
def topic(material: Material) -> Samples:
    """The class of a text of the source of texts; of AG News: world, sports, business, science and technology."""
    return Samples(material.topics, int(material.topics.max()) + 1)
