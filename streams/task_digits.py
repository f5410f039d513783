"""Tasks about digits: images of the ten, and sentences about them. All sentences are [ours]."""

from __future__ import annotations

import numpy as np

from streams.task_kinds import ANY, DIGITS, Kind, Material, Samples, task

CLASSES = 10  # of the images
TASKS: dict[str, Kind] = dict(ANY)

LARGER, SMALLER = (3, 4, 5), (4, 5, 6)  # about the middle, so that yes and no are about equally often right
ASKING = ("", "what is ", "name ", "describe ", "tell me about ", "say what you know of ")


@task(TASKS, ("image",), "class", each="image")
def digit(material: Material) -> Samples:
    """Which digit the image shows."""
    return Samples(material.labels, CLASSES)


@task(TASKS, ("image", "text"), "text", each="image")
def answer(material: Material) -> Samples:
    """Says "yes it is even" to "is it even", or "no it is not larger" to "is it larger than five".

    Every image has one of eight questions, by lot. To each question yes is right for four to six of the ten digits.
    """
    questions = ["is it even", "is it odd"]
    questions += [f"is it larger than {DIGITS[bound]}" for bound in LARGER]
    questions += [f"is it smaller than {DIGITS[bound]}" for bound in SMALLER]
    asked = material.generator.integers(len(questions), size=len(material.labels))
    replies = [_replies(digit) for digit in range(CLASSES)]
    return Samples(
        np.zeros(len(asked), np.int64),
        texts=[questions[number] for number in asked],
        answers=[replies[digit][number] for digit, number in zip(material.labels, asked, strict=True)],
    )


def _replies(digit: int) -> list[str]:
    """To all questions, in their order."""
    replies = ["no it is odd", "yes it is odd"] if digit % 2 else ["yes it is even", "no it is even"]
    replies += ["yes it is larger" if digit > bound else "no it is not larger" for bound in LARGER]
    return replies + ["yes it is smaller" if digit < bound else "no it is not smaller" for bound in SMALLER]


@task(TASKS, ("text",), "text", each="sentence")
def phrase(material: Material) -> Samples:
    """Says "seven is odd and large" to "the digit after six"; large is above four.

    Clues to a digit in six ways of asking each.
    """
    clues = {}
    for n, name in enumerate(DIGITS):
        clues[f"the digit {name}"] = n
        for away, word in ((1, ""), (2, "two "), (3, "three ")):
            clues |= {f"the digit {word}after {name}": n + away, f"the digit {word}before {name}": n - away}
        clues[f"twice {name}"] = 2 * n
        if n % 2 == 0:
            clues[f"half of {name}"] = n // 2
    clues = {clue: n for clue, n in clues.items() if 0 <= n <= 9}
    made = {asking + clue: n for asking in ASKING for clue, n in clues.items()}
    said = [f"{DIGITS[n]} is {'odd' if n % 2 else 'even'} and {'large' if n > 4 else 'small'}" for n in made.values()]
    return Samples(np.zeros(len(made), np.int64), texts=tuple(made), answers=said)
