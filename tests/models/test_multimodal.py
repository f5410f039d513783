"""The network of several tasks: its parts are the component table's, and it says nothing it was told in the answer."""

from __future__ import annotations

import json

import pytest
import torch

from errors import InputError
from models import Architecture
from models.components import of, replaced, table, used_by
from multitask import Layout, Task
from randomness import generator

TASKS = (
    Task("digit", ("image",), "class", 0, 10),
    Task("redraw", ("image",), "image", 10),
    Task("value", ("text",), "class", 11, 7),
    Task("answer", ("image", "text"), "text", 18),
    Task("phrase", ("text",), "text", 19),
)
LAYOUT = Layout(TASKS, (1, 8, 8), 24, 4, ("", "yes", "no", "even", "odd"))
TEXTS = ("is it even", "three plus four", "a")
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


def architecture(*tasks: str) -> Architecture:
    options = {"layout": LAYOUT.to_record(), "width": 16, "heads": 2} | ({"tasks": list(tasks)} if tasks else {})
    return Architecture("multimodal", (LAYOUT.width,), LAYOUT.classes, options)


def records(task: Task, count: int = 6) -> torch.Tensor:
    draw = generator(0, "records", task.name)
    rows = torch.zeros(count, LAYOUT.width, dtype=torch.uint8)
    rows[:, 0] = TASKS.index(task)
    if "image" in task.modalities:
        rows[:, LAYOUT.part("image")] = torch.randint(256, (count, 64), generator=draw).to(torch.uint8)
    for row, text in zip(rows, TEXTS * count, strict=False):
        if "text" in task.modalities:
            row[LAYOUT.part("text")][: len(text)] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    if task.target == "text":
        rows[:, LAYOUT.part("answer")] = torch.randint(1, 5, (count, 4), generator=draw).to(torch.uint8)
    return rows


@pytest.fixture(scope="module")
def initial():
    return architecture().initial(generator(0, "model"))


@pytest.fixture(scope="module")
def network(initial):
    return architecture().load(initial).eval()


def test_a_layout_survives_json():
    assert Layout.from_record(json.loads(json.dumps(LAYOUT.to_record()))) == LAYOUT


def test_every_tensor_is_of_one_component(initial):
    components = table(LAYOUT)
    for name in initial:
        assert len([each for each in components if name.startswith(f"{each}.")]) == 1, name


@pytest.mark.parametrize("tasks", [("digit",), ("value", "phrase"), ("redraw", "answer"), tuple(t.name for t in TASKS)])
def test_a_network_of_some_tasks_has_the_components_that_these_use(tasks, initial):
    assert set(architecture(*tasks).names) == set(of(initial, table(LAYOUT, tasks)))


@every_task
def test_a_task_moves_the_components_that_it_uses_and_no_other(task, initial):
    network = architecture().load(initial)
    network.say(task, records(task)).square().sum().backward()
    moved = {name for name, weight in network.named_parameters() if weight.grad is not None}
    assert moved == set(of(initial, used_by(task)))


@every_task
def test_a_part_of_the_network_says_what_the_whole_says(task, initial, network):
    part = architecture(task.name)
    small = part.load({name: initial[name] for name in part.names}).eval()
    with torch.no_grad():
        assert torch.equal(small.say(task, records(task)), network.say(task, records(task)))


@every_task
def test_what_is_said_does_not_depend_on_the_answer(task, network):
    rows = records(task)
    other = rows.clone()
    other[:, LAYOUT.part("answer")] = 3
    with torch.no_grad():
        assert torch.equal(network.say(task, rows), network.say(task, other))


@every_task
def test_a_sample_does_not_depend_on_those_beside_it(task, network):
    rows = records(task)
    with torch.no_grad():
        together = network.say(task, rows)
        alone = torch.cat([network.say(task, row[None]) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_logits_are_of_the_task_that_is_asked(network):
    rows = torch.cat([records(task, 3) for task in TASKS])[torch.randperm(15, generator=generator(0, "mix"))]
    with torch.no_grad():
        said = network(rows).argmax(dim=1)
    for row, label in zip(rows, said.tolist(), strict=True):
        assert label in TASKS[row[0]].labels


def test_a_replacement_changes_the_named_components_alone(initial):
    other = architecture().initial(generator(1, "model"))
    for task in TASKS:
        changed = replaced(initial, other, used_by(task))
        theirs = set(of(initial, used_by(task)))
        for name in initial:
            assert changed[name] is (other if name in theirs else initial)[name]


def test_a_network_is_not_asked_what_it_is_not_for(initial):
    part = architecture("digit")
    small = part.load({name: initial[name] for name in part.names})
    with pytest.raises(ValueError, match="a sample of task value for a network of digit"):
        small(records(TASKS[2]))


def test_it_is_for_streams_of_several_tasks():
    with pytest.raises(InputError, match="multimodal is for streams of several tasks"):
        Architecture("multimodal", (30,), 4)


def test_it_has_no_options_for_a_single_head():
    with pytest.raises(InputError, match=r"model\.adapter: model 'multimodal' has no option 'adapter'"):
        Architecture("multimodal", (30,), 4, {"adapter": 3})
