"""Streams whose clients have tasks and modalities of their own: what they promise, and what their samples say."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from errors import InputError
from streams import promises, task_cifar100
from streams.deal import deal
from streams.manifest import TRAIN
from streams.parameters import StreamParameters
from streams.pattern import Patterns
from streams.picture import draw
from streams.plan import NEVER
from streams.sources import load
from streams.stream import Stream, build, open_stream
from streams.task_kinds import DIGITS
from validation import checked

SHARED = Path(__file__).parents[3] / "shared" / "data"
if not SHARED.is_dir():  # a second checkout has its data in its own folder
    SHARED = Path(__file__).parents[2] / "data"
SKEWED = {"kind": "dirichlet", "alpha": 0.001}
TASKS = ("digit", "redraw", "value", "answer", "phrase")


def about(tasks=TASKS, patterns=None, multitask=None, **others) -> StreamParameters:
    """Digits and sentences; by default a client for each task."""
    section = {"images": "digits", "tasks": list(tasks), "patterns": patterns or [[task] for task in tasks]}
    given = {"source": "tasks", "scenario": "multi-task", "clients": len(section["patterns"]), "experiences": 1}
    return checked(StreamParameters, given | {"multitask": section | (multitask or {})} | others, "streams.s")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("multitask")


@pytest.fixture(scope="module")
def stream(root) -> Stream:
    return build("digits", about(), root)


def rows_of(stream: Stream, split: str) -> np.ndarray:
    answer = stream.train if split == "train" else stream.test
    cells = [(client, experience) for client in range(stream.clients) for experience in range(stream.experiences)]
    return np.concatenate([answer(*cell) for cell in cells])


def told(stream: Stream, task: str) -> list[tuple[str, str, int]]:
    """Text, answer and label (counted from 0) of all samples of a task."""
    layout, known = stream.layout, stream.layout.named(task)
    found = []
    for row, label in zip(stream.inputs, stream.labels.tolist(), strict=True):
        if layout.tasks[row[0]].name == task:
            text = row[layout.part("text")].tobytes().rstrip(b"\0").decode()
            found.append((text, layout.sentence(row[layout.part("answer")].tolist()), label - known.first))
    return found


@st.composite
def patterns(draw) -> dict:
    """Parameters over any tasks, in patterns that have each of them."""
    tasks = draw(
        st.lists(st.sampled_from(TASKS), min_size=1, max_size=5, unique=True).filter(lambda t: t != ["redraw"])
    )
    lists = st.lists(st.sampled_from(tasks), min_size=1, unique=True).map(list)
    drawn = draw(st.lists(lists, max_size=4))
    missing = [task for task in tasks if not any(task in pattern for pattern in drawn)]
    drawn += [missing] if missing else []
    images = "digits" if {"digit", "redraw", "answer"} & set(tasks) else None
    return {
        "tasks": tasks,
        "patterns": drawn,
        "multitask": {"images": images, "per_task": 200},
        "clients": len(drawn) + draw(st.integers(0, 5)),
        "experiences": draw(st.integers(1, max(map(len, drawn)))),
        "seed": draw(st.integers(0, 2)),
    }


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=patterns())
def test_clients_have_the_tasks_of_their_patterns_one_after_another_in_even_shares(drawn, root):
    parameters = about(**drawn)
    stream = build("drawn", parameters, root)
    frame = pq.read_table(root / "built/streams/drawn/manifest.parquet").to_pandas()
    assert sorted(frame["sample"]) == list(range(len(stream.inputs)))
    assert [stream.layout.tasks[place].name for place in stream.inputs[frame["sample"], 0]] == frame["task"].tolist()
    for client in range(stream.clients):
        pattern = drawn["patterns"][client % len(drawn["patterns"])]
        assert stream.tasks_of(client) == tuple(task for task in drawn["tasks"] if task in pattern)
        for experience, part in enumerate(np.array_split(np.array(pattern), stream.experiences)):
            there = frame[(frame["client"] == client) & (frame["experience"] == experience)]
            assert set(there["task"][there["split"] == "train"]) == set(part)
            assert set(there["task"]) == set(part)
            labels = {label for task in part.tolist() for label in stream.layout.named(task).labels}
            assert set(stream.classes_of(client, experience)) == labels
    held = frame.groupby(["split", "task", "label", "client"], observed=True).size()
    for _, counts in held.groupby(["split", "task", "label"], observed=True):
        holders = sum(stream.tasks_of(client).count(counts.index[0][1]) for client in range(stream.clients))
        assert counts.max() <= -(-counts.sum() // holders)


def test_an_image_is_a_sample_of_every_task_with_images_and_on_one_side_of_the_split_in_all(stream, root):
    images = load(StreamParameters(source="digits", clients=1, experiences=1), root).inputs.reshape(1797, -1)
    sides, times = defaultdict(set), defaultdict(int)
    for split in ("train", "test"):
        for row in stream.load(rows_of(stream, split))[0]:
            if {"digit", "redraw", "answer"} & {stream.layout.tasks[row[0]].name}:
                image = row[stream.layout.part("image")].tobytes()
                sides[image].add(split)
                times[image] += 1
    assert set(sides) == {image.tobytes() for image in images}
    assert set(times.values()) == {3}
    assert {len(found) for found in sides.values()} == {1}
    assert sum(found == {"test"} for found in sides.values()) == round(0.2 * 1797)


def test_a_public_image_or_sentence_is_public_in_all_tasks(root):
    stream = build("open", about(public=0.25), root)
    sides = defaultdict(set)
    for split, rows in (
        ("held", rows_of(stream, "train")),
        ("test", rows_of(stream, "test")),
        ("public", stream.public()),
    ):
        for row in stream.load(rows)[0]:
            task = stream.layout.tasks[row[0]]
            image = "image" in task.modalities
            unit = row[stream.layout.part("image")] if image else row[stream.layout.part("text")]
            sides["image" if image else task.name, unit.tobytes()].add(split)
    assert {len(found) for found in sides.values()} == {1}
    for kind, several in (("image", 1797), ("value", 880), ("phrase", 408)):
        own = [found for (what, _), found in sides.items() if what == kind]
        tested, public = (sum(found == {side} for found in own) for side in ("test", "public"))
        assert (len(own), tested) == (several, round(0.2 * several))
        assert abs(public - 0.25 * (several - tested)) < 1
    plain = build("closed", about(), root)
    assert not len(plain.public())
    assert np.array_equal(plain.inputs[rows_of(plain, "test")], stream.inputs[rows_of(stream, "test")])


def test_no_sentence_of_a_task_of_texts_is_learned_and_tested(stream):
    for task, several in (("value", 880), ("phrase", 408)):
        sentences = [text for text, _, _ in told(stream, task)]
        assert len(set(sentences)) == len(sentences) == several
        tested = sum(stream.layout.tasks[row[0]].name == task for row in stream.load(rows_of(stream, "test"))[0])
        assert tested == round(0.2 * several)


def test_images_keep_the_test_split_that_they_bring(root):
    images = [[[label, row]] for row in range(4) for label in range(10)]
    for part, rows in (("train", slice(0, 30)), ("test", slice(30, 40))):
        table = {"image": images[rows], "label": [image[0][0] for image in images[rows]]}
        (root / "raw").mkdir(exist_ok=True)
        pq.write_table(pa.table(table), root / "raw" / f"{part}.parquet")
    tasks = ("digit", "redraw")
    stream = build("brought", about(tasks, multitask={"images": "parquet:raw"}), root)
    part = stream.layout.part("image")
    assert stream.layout.shape == (1, 1, 2) and len(stream.inputs) == 80
    assert {row[part][1] for row in stream.load(rows_of(stream, "train"))[0]} == {0, 1, 2}
    assert {row[part][1] for row in stream.load(rows_of(stream, "test"))[0]} == {3}


def test_the_records_say_what_is_true_of_their_images(stream, root):
    source = load(StreamParameters(source="digits", clients=1, experiences=1), root)
    digit_of = {image.tobytes(): int(label) for image, label in zip(source.inputs, source.labels, strict=True)}
    layout, said = stream.layout, defaultdict(set)
    for row, label in zip(stream.inputs, stream.labels.tolist(), strict=True):
        task = layout.tasks[row[0]]
        if "image" not in task.modalities:
            assert not row[layout.part("image")].any()
            continue
        digit = digit_of[row[layout.part("image")].tobytes()]
        text = row[layout.part("text")].tobytes().rstrip(b"\0").decode()
        answer = layout.sentence(row[layout.part("answer")].tolist())
        assert (text != "") == (answer != "") == (task.name == "answer")
        if task.name == "digit":
            assert label == digit
        elif task.name == "answer":
            bound = DIGITS.index(text.split()[-1]) if "than" in text else None
            asked = text.split()[2]
            true = {
                "even": digit % 2 == 0,
                "odd": digit % 2 == 1,
                "larger": bound is not None and digit > bound,
                "smaller": bound is not None and digit < bound,
            }[asked]
            assert answer.split()[0] == ("yes" if true else "no")
            assert answer.split()[-1] == (asked if bound is not None else ("odd" if digit % 2 else "even"))
            said[text].add(answer)
    assert len(said) == 8 and all(len(answers) == 2 for answers in said.values())


def test_values_are_what_the_sums_come_to(stream):
    counted = defaultdict(int)
    for text, answer, result in told(stream, "value"):
        first, second = (DIGITS.index(word) for word in re.findall("|".join(DIGITS), text))
        less = re.search(r"minus|take|fewer|difference|less|without|removed", text)
        # "two less than nine", "take two from nine": the larger is what is taken from
        assert result == (abs(first - second) if less else first + second), text
        assert answer == ""
        counted[result] += 1
    assert counted == dict.fromkeys(range(10), 88)


def test_phrases_say_what_is_true_of_the_digit_meant(stream):
    said = {text: answer for text, answer, _ in told(stream, "phrase")}
    assert said["the digit after six"] == "seven is odd and large"
    assert said["tell me about the digit three before four"] == "one is odd and small"
    assert said["describe half of eight"] == "four is even and small"
    assert said["what is twice zero"] == "zero is even and small"
    for answer in set(said.values()):
        name, _, parity, _, size = answer.split()
        digit = DIGITS.index(name)
        assert (parity == "odd", size == "large") == (digit % 2 == 1, digit > 4)
    assert len(set(said.values())) == 10


def test_per_task_thins_training_and_test_samples_alike_and_every_class_in_proportion(root):
    stream = build("thin", about(multitask={"per_task": 300}), root)
    for client, task in enumerate(TASKS):
        train, test = len(stream.train(client, 0)), len(stream.test(client, 0))
        assert train == 300, task
        assert abs(test - 75) <= 1, task
    digits = np.bincount(stream.labels[stream.samples_of(stream.train(0, 0))])
    assert digits.min() >= 28 and digits.max() <= 32


def test_who_has_which_task_decodes_nothing_anew_and_everything_else_does(root, tmp_path):
    build("one", about(), tmp_path)

    def decoded() -> int:
        return len(list((tmp_path / "built/sources").iterdir()))

    before = decoded()
    build("other", about(patterns=[["digit", "redraw"], ["value", "answer", "phrase"]]), tmp_path)
    assert decoded() == before
    for more, change in enumerate(
        ({"seed": 1}, {"test": 0.3}, {"multitask": {"per_task": 9}}, {"length": 60}, {"tasks": TASKS[::-1]}), 1
    ):
        build("changed", about(**change), tmp_path)
        assert decoded() == before + more


def test_a_built_stream_is_found_again_and_travels_by_name(stream, root):
    assert build("digits", about(), root).digest == build("again", about(), root).digest == stream.digest
    for other in (open_stream("digits", root), pickle.loads(pickle.dumps(stream))):
        assert other.layout == stream.layout and other.digest == stream.digest
        assert (other.modality, other.shape, other.classes) == ("record", (stream.layout.width,), 23)
        assert other.tasks_of(3) == ("answer",)


def test_a_stream_in_words_and_in_a_picture_names_the_tasks(root, tmp_path):
    stream = build("late", about(patterns=[["digit", "redraw"], ["value"], ["answer", "phrase"]], experiences=2), root)
    table = stream.describe().reset_index()
    assert [tuple(row) for row in table[["client", "experience", "task"]].to_numpy()] == [
        (0, 0, "digit"), (0, 1, "redraw"), (1, 0, "value"), (1, 1, "none"), (2, 0, "answer"), (2, 1, "phrase"),
    ]  # fmt: skip
    assert table["train"].sum() + table["test"].sum() == len(stream.inputs)
    assert stream.summary()["tasks"].tolist() == [3, 2]
    draw(stream, tmp_path / "late.png")
    assert (tmp_path / "late.png").read_bytes().startswith(b"\x89PNG")


def test_the_digest_of_an_ordinary_stream_knows_nothing_of_tasks(root):
    """Written down anew, so that no change of the code here changes what was built before."""
    parameters = StreamParameters(source="digits", clients=2, experiences=2)
    stream = build("ordinary", parameters, root)
    assert stream.layout is None and stream.modality == "image" and stream.tasks_of(1) == ("classify",)
    record = json.loads((root / "built/streams/ordinary/stream.json").read_text())
    assert "multitask" not in record["parameters"]
    frame = pq.read_table(root / "built/streams/ordinary/manifest.parquet").to_pandas()
    total = hashlib.sha256()
    words = {"task": ("classify",), "split": ("train", "test", "public")}
    for name in ("sample", "label", "task", "client", "experience", "split", "domain"):
        values = [words[name].index(word) for word in frame[name]] if name in words else frame[name]
        total.update(f"{name} 1797 {words.get(name)}\n".encode() + np.array(values, "<i8").tobytes())
    rest = {key: value for key, value in record.items() if key not in ("name", "digest")}
    text = json.dumps(rest | {"manifest": total.hexdigest()}, sort_keys=True)
    assert stream.digest == hashlib.sha256(text.encode()).hexdigest()


def test_the_manifest_check_names_a_wrong_task_and_a_client_without_it(stream):
    parameters = about()
    of = Patterns.of(parameters, stream.layout, stream.classes)
    good = deal(stream.labels, None, stream.plan, parameters, tasks=of.of_label)
    promises.check(good, stream.labels, stream.plan, patterns=of)
    row = int(np.flatnonzero((good["client"] == 0) & (good["split"] == TRAIN))[0])

    def broken(**changed) -> str:
        bad = {name: values.copy() for name, values in good.items()}
        for name, (rows, value) in changed.items():
            bad[name][rows] = value
        with pytest.raises(InputError) as caught:
            promises.check(bad, stream.labels, stream.plan, patterns=of)
        return str(caught.value)

    assert broken(task=(row, 1)) == f"stream manifest: a task is not the one whose label it is (first at row {row})"
    expected = f"stream manifest: a client holds a sample of a task that its pattern has not (first at row {row})"
    assert broken(client=(row, 1)) == expected
    own = (good["client"] == 0) & (good["split"] == TRAIN)
    assert "client 0 is left with no training sample" in broken(split=(own, 1))
    assert set(of.held.sum(axis=1)) == {1} and (stream.plan.home == NEVER).any()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tasks": ["digits"]}, "subject 'digits' has no task 'digits'; did you mean digit?"),
        ({"tasks": ["fine"]}, "subject 'digits' has no task 'fine'; "),
        ({"tasks": ["digit", "digit"]}, "tasks has task 'digit' 2 times"),
        ({"multitask": {"tasks": []}}, "streams.s.multitask.tasks"),
        ({"patterns": [["digit"], []]}, "pattern 1 (from 0) is empty"),
        ({"multitask": {"patterns": []}}, "streams.s.multitask.patterns"),
        ({"tasks": ["digit", "value"], "patterns": [["digit"], ["vale"]]}, "task 'vale', which is not one of tasks"),
        ({"tasks": ["digit"], "patterns": [["digit", "digit"]]}, "pattern 0 (from 0) has task 'digit' 2 times"),
        ({"tasks": ["digit", "value"], "patterns": [["digit"]]}, "no pattern has task 'value'"),
        ({"multitask": {"images": None}}, "images: task 'digit' needs images, and no source of images is set"),
        ({"tasks": ["digit", "topic"]}, "texts: task 'topic' needs texts, and no source of texts is set"),
        ({"tasks": ["value"]}, "images 'digits': none of the tasks value uses it"),
        ({"multitask": {"texts": "csv:raw"}}, "texts 'csv:raw': none of the tasks"),
        (
            {"multitask": {"images": "numbers"}},
            "images must be 'digits', 'parquet:PATH', 'csv:PATH', 'folder:PATH' or ",
        ),
        ({"multitask": {"images": "tasks"}}, "multitask.images must be 'digits', "),
        ({"experiences": 2}, "experiences 2 is more than the 1 tasks of the longest pattern"),
        ({"clients": 4}, "clients 4 are fewer than the 5 patterns"),
        (
            {"scenario": "class-incremental"},
            "source 'tasks' and the section multitask go with scenario 'multi-task' only",
        ),
        ({"source": "digits"}, "scenario 'multi-task' and the section multitask go with source 'tasks' only"),
        (
            {"tasks": ["redraw"], "patterns": [["redraw"]]},
            "redraw alone has no accuracy; add a task of classes or texts",
        ),
        ({"classes": 23}, "classes 23 does not go with scenario 'multi-task': the tasks say how many labels"),
        ({"order": "own"}, "order own does not go with"),
        ({"private": 1}, "private 1 does not go with"),
        (
            {"growth": {"leave": 1}},
            "does not go with scenario 'multi-task': a task would come to a client that is abse",
        ),
        ({"partition": {"kind": "natural"}}, "partition natural does not go with"),
        ({"partition": {"kind": "classes", "per_client": 2}}, "partition classes does not go with"),
        ({"domain": {"kind": "rotation"}}, "domain is for scenario 'domain-incremental' only"),
        ({"arrival": "random"}, "arrival random is for scenario 'self-centred' only"),
    ],
)
def test_what_cannot_be_is_refused(wrong, said):
    with pytest.raises(InputError) as caught:
        about(**wrong)
    assert str(caught.value).startswith("streams.s") and said in str(caught.value)


def test_source_and_scenario_need_the_section():
    alone = {"source": "tasks", "scenario": "multi-task", "clients": 1, "experiences": 1}
    with pytest.raises(InputError, match="source 'tasks' and scenario 'multi-task' go with the section multitask only"):
        checked(StreamParameters, alone, "streams.s")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"length": 20}, "length 20 would cut the tasks' sentences; the longest has"),
        ({"tasks": ["digit"], "length": 20}, "length is set, but no task shows a text (tasks digit)"),
        ({"tasks": ["value"], "multitask": {"images": None}, "size": 4}, "size is set, but multitask.images is not"),
        ({"label": "fine"}, "label is set, but source 'digits' takes only classes, size"),
        ({"text": "text"}, "text is set, but source 'tasks' takes only image, label, length, size"),
        (
            {"tasks": ["digit"], "multitask": {"images": "csv:texts.csv"}},
            "multitask.images: source csv:texts.csv has n",
        ),
        (
            {"tasks": ["topic"], "multitask": {"images": None, "texts": "folder:raw"}},
            "multitask.texts: source folder:ra",
        ),
        (
            {"tasks": ["digit", "redraw"], "patterns": [["digit", "redraw"]], "clients": 3, "partition": SKEWED},
            "client 0 is left with no training sample of its task redraw; use fewer clients, more samples, a larger",
        ),
        (
            {"tasks": ["value"], "multitask": {"images": None}, "test": 0.002, "clients": 4},
            "is left with no test sample of its task value; use",
        ),
    ],
)
def test_what_does_not_fit_the_images_and_texts_is_refused(wrong, said, tmp_path):
    (tmp_path / "raw/train/one").mkdir(parents=True)
    Image.new("L", (2, 2)).save(tmp_path / "raw/train/one/0.png")
    (tmp_path / "texts.csv").write_text("text,label\n" + "".join(f"word {n},{n % 10}\n" for n in range(20)))
    with pytest.raises(InputError) as caught:
        build("wrong", about(**wrong), tmp_path)
    assert said in str(caught.value)
    assert not (tmp_path / "built/streams").exists()


@pytest.mark.skipif(not (SHARED / "cifar100").is_dir(), reason="no CIFAR-100 in ../shared/data or data")
def test_the_table_of_cifar100s_classes_is_the_data_sets(tmp_path):
    for part in ("train", "test"):
        table = pq.read_table(SHARED / "cifar100" / f"{part}.parquet", columns=["fine_label", "coarse_label"])
        fine, coarse = (table.column(name).to_numpy() for name in ("fine_label", "coarse_label"))
        assert np.array_equal(task_cifar100.COARSE_OF[fine], coarse)


@pytest.mark.skipif(
    not (SHARED / "cifar100").is_dir() or not (SHARED / "ag_news").is_dir(),
    reason="no CIFAR-100 or no AG News in ../shared/data or data",
)
def test_cifar100_and_ag_news_in_six_tasks(tmp_path):
    tasks = ("fine", "coarse", "redraw", "topic", "answer", "phrase")
    section = {
        "subject": "cifar100",
        "images": f"parquet:{SHARED / 'cifar100' / 'test.parquet'}",
        "texts": f"csv:{SHARED / 'ag_news' / 'test.csv'}",
        "per_task": 400,
    }
    stream = build("cifar", about(tasks, multitask=section, label="fine_label", length=200), tmp_path)
    assert [task.classes for task in stream.layout.tasks] == [100, 20, 1, 4, 1, 1]
    assert stream.layout.shape == (3, 32, 32) and stream.layout.length == 200
    assert [len(stream.train(client, 0)) for client in range(6)] == [400] * 6
    table = pq.read_table(SHARED / "cifar100" / "test.parquet", columns=["fine_label"]).column(0).to_numpy()
    source = load(
        StreamParameters(source=section["images"], label="fine_label", classes=100, clients=1, experiences=1),
        tmp_path,
    )
    fine_of = defaultdict(set)  # CIFAR-100 has an image or two with two labels
    for image, label in zip(source.inputs, table.tolist(), strict=True):
        fine_of[image.tobytes()].add(label)
    part, yes = stream.layout.part("image"), []
    sides = defaultdict(set)
    is_test = np.zeros(len(stream.inputs), bool)
    is_test[stream.samples_of(rows_of(stream, "test"))] = True
    for row, label, tested in zip(stream.inputs, stream.labels.tolist(), is_test.tolist(), strict=True):
        task = stream.layout.tasks[row[0]]
        if "image" not in task.modalities:
            continue
        sides[row[part].tobytes()].add(tested)
        fine = fine_of[row[part].tobytes()]
        coarse = {int(task_cifar100.COARSE_OF[label]) for label in fine}
        if task.target == "class":
            assert label - task.first in {"fine": fine, "coarse": coarse}[task.name]
        elif task.name == "answer":
            asked = row[stream.layout.part("text")].tobytes().rstrip(b"\0").decode().removeprefix("is it ")
            right = asked in {task_cifar100.SAID[label] for label in coarse}
            answer = stream.layout.sentence(row[stream.layout.part("answer")].tolist())
            assert answer == (f"yes it is {asked}" if right else f"no it is not {asked}")
            yes.append(right)
    assert {len(found) for found in sides.values()} == {1}
    assert 0.4 < np.mean(yes) < 0.6
    news = {text: label for text, _, label in told(stream, "topic")}
    sports = [label for text, label in news.items() if "Olympic" in text]
    assert len(sports) > 5 and np.bincount(sports).argmax() == 1  # world, sports, business, science
    said = {text: answer for text, answer, _ in told(stream, "phrase")}
    assert len(said) == 500
    for text, answer in said.items():
        name, _, kind = answer.partition(" is ")
        assert name in text
        fine = task_cifar100.FINE.index(re.sub("^an? ", "", name).replace(" ", "_"))
        assert kind == task_cifar100.SAID[task_cifar100.COARSE_OF[fine]]
