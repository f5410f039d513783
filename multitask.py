"""What is asked of a sample where clients have different tasks and modalities, and how such a sample is laid out.

Streams make records of this layout, networks read them; both know tasks by this table alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Literal

Modality = Literal["image", "text"]
Target = Literal["class", "image", "text"]


@dataclass(frozen=True)
class Task:
    """One task: what is shown, what is to be said of it.

    Attributes:
        name: letters and digits, such as "digit".
        modalities: what a sample of it shows: ("image",), ("text",) or ("image", "text").
        target: "class" (cross-entropy over `classes`; accuracy), "image" (the image shown; mean squared error) or
            "text" (cross-entropy over the words of the answer; token accuracy, METEOR).
        first, classes: the task's labels are first..first + classes - 1 of the stream's label space; a task whose
            target is no class has one label, which says no more than that the sample is its own.
    """

    name: str
    modalities: tuple[Modality, ...]
    target: Target
    first: int
    classes: int = 1

    @property
    def labels(self) -> range:
        return range(self.first, self.first + self.classes)


@dataclass(frozen=True)
class Layout:
    """A sample as one row of bytes: its task, an image, a text, and the answer; what a task has not is zero.

        [ task (1) | image (C H W) | text (length, UTF-8) | answer (words, numbers of words) ]

    The answer is what a text task is to say; a network reads it for its loss only, never for what it says.

    Attributes:
        tasks: a row's first byte is a place in it.
        shape: (C, H, W) of the image.
        length: bytes of a text.
        words: length of an answer in words.
        vocabulary: words of the answers; number 0 is no word, it fills up the answer after its end.
    """

    tasks: tuple[Task, ...]
    shape: tuple[int, int, int]
    length: int
    words: int
    vocabulary: tuple[str, ...]

    @property
    def classes(self) -> int:
        """Size of the label space of all tasks together."""
        return max(task.first + task.classes for task in self.tasks)

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return self._cuts[-1]

    def part(self, name: Literal["task", "image", "text", "answer"]) -> slice:
        """Where in a row a part of it lies."""
        place = ("task", "image", "text", "answer").index(name)
        return slice(self._cuts[place], self._cuts[place + 1])

    @property
    def _cuts(self) -> list[int]:
        channels, height, width = self.shape
        return list(accumulate((1, channels * height * width, self.length, self.words), initial=0))

    def named(self, name: str) -> Task:
        (found,) = (task for task in self.tasks if task.name == name)
        return found

    def sentence(self, numbers: Sequence[int]) -> str:
        """The words of an answer; it ends at the first 0."""
        kept = []
        for number in numbers:
            if number == 0:
                break
            kept.append(self.vocabulary[number])
        return " ".join(kept)

    def to_record(self) -> dict[str, Any]:
        """As plain JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Layout:
        tasks = tuple(Task(**{**task, "modalities": tuple(task["modalities"])}) for task in record["tasks"])
        shape, vocabulary = tuple(record["shape"]), tuple(record["vocabulary"])
        return cls(tasks, shape, record["length"], record["words"], vocabulary)
