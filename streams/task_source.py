"""Source 'tasks': records of several tasks (`multitask.Layout`), made from one source of images and one of texts.

Every image is a sample of every task that shows images. What is held out for testing is an image, a text or a
sentence, so that none is learned from in one task and tested on in another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from errors import InputError
from multitask import Layout, Task
from randomness import numpy_generator
from streams.arrays import Rows
from streams.parameters import StreamParameters
from streams.partition import apportion
from streams.task_kinds import Material, Samples
from streams.task_section import SUBJECTS
from validation import checked

IMAGES = ("image", "label", "size")  # options of the source of images
OPTIONS = {*IMAGES, "length"}
FORMAT = 1  # part of the digest: raise it when tasks make other samples of the same images and texts
MOST = 256  # a task, a word are a byte


def parts(parameters: StreamParameters) -> dict[str, StreamParameters]:
    """The sources that this one is made from, 'images' and 'texts', those that are set.

    Raises:
        InputError: an option is set that belongs to a source that is not.
    """
    about, found = parameters.multitask, {}
    wanted = {
        "images": {"classes": SUBJECTS[about.subject].CLASSES} | {key: getattr(parameters, key) for key in IMAGES},
        "texts": {"length": parameters.length},
    }
    for name, options in wanted.items():
        source = getattr(about, name)
        options = {key: value for key, value in options.items() if value is not None}
        if source is None:
            for key in sorted(options.keys() & {*IMAGES}):
                raise InputError(f"{key} is set, but multitask.{name} is not")
            continue
        found[name] = checked(
            StreamParameters, {"source": source, "clients": 1, "experiences": 1} | options, f"multitask.{name}"
        )
    if parameters.length is not None and not any("text" in kind.modalities for kind in about.kinds.values()):
        raise InputError(f"length is set, but no task shows a text (tasks {', '.join(about.tasks)})")
    return found


def identity(parameters: StreamParameters) -> dict[str, Any]:
    """What changes the arrays, besides the parts; who has which task does not."""
    about = parameters.multitask.model_dump(mode="json", include={"subject", "tasks", "per_task"})
    return about | {"format": FORMAT, "seed": parameters.seed, "test": parameters.test, "length": parameters.length}


def decode(parameters: StreamParameters, folder: Path, sources: Mapping[str, Any]) -> None:
    """Write inputs.npy (N, layout.width) uint8, labels.npy (N,) int64, split.npy (N,) bool and layout.json.

    Args:
        sources: the decoded `parts`.
    Raises:
        InputError: texts where images are wanted, or the other way round; or `length` would cut a sentence.
    """
    for name, source in sources.items():
        if source.inputs.ndim != (4 if name == "images" else 2):
            raise InputError(f"multitask.{name}: source {source.name} has no {name}")
    labels = {name: source.labels for name, source in sources.items()}
    nothing = np.zeros(0, np.int64)
    made: dict[str, Samples] = {}
    for name, kind in parameters.multitask.kinds.items():
        drawn = numpy_generator(parameters.seed, "tasks", name, "samples")
        made[name] = kind.make(Material(labels.get("images", nothing), labels.get("texts", nothing), drawn))
    layout = _layout(parameters, made, sources)
    held_out = {name: _held_out(source, parameters, name) for name, source in sources.items()}
    numbers = {word: number for number, word in enumerate(layout.vocabulary)}
    all_labels, split = [], []
    with Rows(folder / "inputs.npy") as inputs:
        for place, (task, samples) in enumerate(zip(layout.tasks, made.values(), strict=True)):
            kind = parameters.multitask.kinds[task.name]
            if kind.each == "sentence":
                is_test = _drawn(samples.labels, parameters.test, parameters.seed, "split", task.name)
            else:
                is_test = held_out[f"{kind.each}s"]
            chosen = _thinned(samples.labels, is_test, parameters, task.name)
            for sample in chosen:
                row = np.zeros(layout.width, np.uint8)
                row[0] = place
                if "image" in task.modalities:
                    row[layout.part("image")] = sources["images"].inputs[sample].reshape(-1)
                if samples.texts:
                    _fill(row[layout.part("text")], samples.texts[sample].encode())
                elif kind.each == "text":
                    _fill(row[layout.part("text")], sources["texts"].inputs[sample].tobytes())
                if samples.answers:
                    _fill(row[layout.part("answer")], [numbers[word] for word in samples.answers[sample].split()])
                inputs.append(row)
            all_labels.append(task.first + samples.labels[chosen])
            split.append(is_test[chosen])
    np.save(folder / "labels.npy", np.concatenate(all_labels))
    np.save(folder / "split.npy", np.concatenate(split))
    (folder / "layout.json").write_text(json.dumps(layout.to_record()) + "\n")


def _layout(parameters: StreamParameters, made: Mapping[str, Samples], sources: Mapping[str, Any]) -> Layout:
    tasks, first = [], 0
    for name, kind in parameters.multitask.kinds.items():
        tasks.append(Task(name, kind.modalities, kind.target, first, made[name].classes))
        first += made[name].classes
    longest = max((len(text) for samples in made.values() for text in samples.texts), default=0)  # they are ASCII
    if parameters.length is not None and longest > parameters.length:
        raise InputError(f"length {parameters.length} would cut the tasks' sentences; the longest has {longest} bytes")
    if "texts" in sources:
        longest = max(longest, sources["texts"].inputs.shape[1])
    answers = [answer.split() for samples in made.values() for answer in dict.fromkeys(samples.answers)]
    vocabulary = ("", *sorted({word for answer in answers for word in answer}))
    if max(len(vocabulary), len(tasks)) > MOST:
        raise ValueError(f"{len(vocabulary) - 1} words of answers and {len(tasks)} tasks do not fit into bytes")
    shape = tuple(sources["images"].inputs.shape[1:]) if "images" in sources else (0, 0, 0)
    length = parameters.length or longest
    return Layout(tuple(tasks), shape, length, max(map(len, answers), default=0), vocabulary)


def _fill(part: np.ndarray, values: bytes | list[int]) -> None:
    part[: len(values)] = list(values)


def _held_out(source: Any, parameters: StreamParameters, name: str) -> np.ndarray:
    """(N,) bool: the source's own test samples, or `test` of every class; samples of equal content stay together."""
    if source.is_test is not None:
        return source.is_test
    number: dict[bytes, int] = {}
    same = np.array(
        [number.setdefault(sha256(row.tobytes()).digest(), place) for place, row in enumerate(source.inputs)]
    )
    return _drawn(source.labels, parameters.test, parameters.seed, "split", name)[same]


def _thinned(labels: np.ndarray, is_test: np.ndarray, parameters: StreamParameters, name: str) -> np.ndarray:
    """Sorted places of the samples that are kept: `per_task` for training, and for testing in the same proportion."""
    most, train = parameters.multitask.per_task, np.flatnonzero(~is_test)
    if most is None or most >= len(train):
        return np.arange(len(labels))
    kept = np.zeros(len(labels), bool)
    for part, rows in (("train", train), ("test", np.flatnonzero(is_test))):
        kept[rows] = _drawn(labels[rows], most / len(train), parameters.seed, "tasks", name, part)
    return np.flatnonzero(kept)


def _drawn(labels: np.ndarray, fraction: float, seed: int, *names: str) -> np.ndarray:
    """(n,) bool: `fraction` of all, of every class in proportion, by lot from the generator called `names`."""
    generator, taken = numpy_generator(seed, *names), np.zeros(len(labels), bool)
    sizes = np.bincount(labels)
    for label, count in enumerate(apportion(round(fraction * len(labels)), sizes / sizes.sum(), generator)):
        taken[generator.permutation(np.flatnonzero(labels == label))[:count]] = True
    return taken
