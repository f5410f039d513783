"""The section of a multi-task stream: which tasks there are, made from what, and which client has which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from errors import nearest
from streams import task_cifar100, task_digits
from streams.task_kinds import Kind
from validation import Section

SUBJECTS = {"digits": task_digits, "cifar100": task_cifar100}


class MultiTask(Section):
    """source tasks: the tasks, what they are made from, and the patterns in which clients have them."""

    subject: Literal["digits", "cifar100"] = Field(
        "digits", description="what images and sentences are about, which decides what tasks there are"
    )
    images: str | None = Field(
        None, description="source of the images, as for other streams ('digits', 'parquet:PATH', ...); by default none"
    )
    texts: str | None = Field(
        None, description="source of the texts of task topic ('csv:PATH' or another of texts); by default none"
    )
    tasks: tuple[str, ...] = Field(min_length=1, description="names of the tasks; labels are numbered in their order")
    patterns: tuple[tuple[str, ...], ...] = Field(
        min_length=1,
        description="lists of tasks: client i has the tasks of pattern i modulo their number, and where experiences "
        "bring tasks, in the pattern's order",
    )
    per_task: int | None = Field(
        None,
        ge=1,
        description="most training samples of a task, 1 or more; its test samples are thinned alike; by default all",
    )

    @property
    def kinds(self) -> dict[str, Kind]:
        """The tasks by their names, in their order."""
        return {name: SUBJECTS[self.subject].TASKS[name] for name in self.tasks}

    def problem(self, clients: int, experiences: int) -> str | None:
        """What is wrong with its patterns for so many clients and experiences, or None."""
        longest = max(map(len, self.patterns))
        if experiences > longest:
            return (
                f"experiences {experiences} is more than the {longest} tasks of the longest pattern, so that nobody "
                "would have a task in the last"
            )
        if clients < len(self.patterns):
            return f"clients {clients} are fewer than the {len(self.patterns)} patterns; the last would be nobody's"
        return None

    @model_validator(mode="after")
    def _tasks_are_known(self) -> MultiTask:
        known = SUBJECTS[self.subject].TASKS
        for name in self.tasks:
            if name not in known:
                raise ValueError(f"tasks: subject {self.subject!r} has no task {name!r}; {nearest(name, known)}")
        _once(self.tasks, "tasks")
        return self

    @model_validator(mode="after")
    def _something_is_right_or_wrong(self) -> MultiTask:
        if all(kind.target == "image" for kind in self.kinds.values()):
            raise ValueError(f"tasks: {', '.join(self.tasks)} alone has no accuracy; add a task of classes or texts")
        return self

    @model_validator(mode="after")
    def _patterns_fit(self) -> MultiTask:
        for number, pattern in enumerate(self.patterns):
            if not pattern:
                raise ValueError(f"patterns: pattern {number} (from 0) is empty; every client needs a task")
            for name in pattern:
                if name not in self.tasks:
                    raise ValueError(
                        f"patterns: pattern {number} (from 0) has task {name!r}, which is not one of tasks; "
                        f"{nearest(name, self.tasks)}"
                    )
            _once(pattern, f"patterns: pattern {number} (from 0)")
        for name in self.tasks:
            if not any(name in pattern for pattern in self.patterns):
                raise ValueError(f"patterns: no pattern has task {name!r}, so that no client would")
        return self

    @model_validator(mode="after")
    def _material_is_there(self) -> MultiTask:
        images = [name for name, kind in self.kinds.items() if "image" in kind.modalities]
        texts = [name for name, kind in self.kinds.items() if kind.each == "text"]
        for key, given, users in (("images", self.images, images), ("texts", self.texts, texts)):
            if users and given is None:
                raise ValueError(f"{key}: task {users[0]!r} needs {key}, and no source of {key} is set")
            if given is not None and not users:
                raise ValueError(f"{key} {given!r}: none of the tasks {', '.join(self.tasks)} uses it; leave it out")
        return self


def _once(names: Sequence[str], key: str) -> None:
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{key} has task {name!r} {times} times; once is all")
