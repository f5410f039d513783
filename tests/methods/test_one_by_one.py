"""One-by-one distillation: who teaches with which weight in which order, and what a visit to a teacher does."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from methods.enrichment import enrich
from methods.one_by_one import (
    DistillationParameters,
    Lesson,
    View,
    at_once,
    learn,
    lessons,
    pack,
    similarities,
    unpack,
)
from methods.state import State
from methods.training import LocalData, distillation
from models.adapted import Adapted
from models.backbones import untrained
from models.foundation import Foundation, FoundationParameters
from randomness import generator
from tasks.site import prepare_process

CLASSES = 4


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As a worker computes: these tensors are tiny, threads would only wait for each other."""
    prepare_process()


def view(seed: int, classes, samples: int = 12) -> View:
    """What somebody who has met `classes` says at random."""
    known = torch.zeros(CLASSES, dtype=torch.bool)
    known[list(classes)] = True
    return View(3 * torch.randn(samples, CLASSES, generator=generator(seed, "view")), known)


def surrogate(samples: int = 12, labels=None) -> LocalData:
    draw = np.random.default_rng(0)
    labels = np.arange(samples) % CLASSES if labels is None else np.asarray(labels)
    return LocalData(draw.integers(0, 256, (samples, 1, 2, 2), dtype=np.uint8), labels.astype(np.int64))


def draw() -> torch.Generator:
    return generator(0, "draw")


def weights_of(student: View, teachers, kind: str = "similarity", order: str = "similar_first") -> list[float]:
    return [each.weight for each in lessons(student, teachers, kind, order, draw())]


views = st.builds(view, st.integers(0, 10_000), st.sets(st.integers(0, CLASSES - 1), min_size=1))


# views


@given(views)
def test_mean_probabilities_sum_to_one_over_the_classes_met(one):
    mean = one.mean_probability()
    assert not mean[~one.classes].any()
    torch.testing.assert_close(mean.sum(), torch.tensor(1.0))


def test_the_mean_probability_by_hand():
    one = View(torch.tensor([[math.log(3), 0.0, 99.0], [0.0, 0.0, -99.0]]), torch.tensor([True, True, False]))
    torch.testing.assert_close(one.mean_probability(), torch.tensor([(3 / 4 + 1 / 2) / 2, (1 / 4 + 1 / 2) / 2, 0.0]))
    assert one.index == [0, 1]


@given(views, st.floats(-50, 50))
def test_logits_of_classes_not_met_say_nothing(one, shift):
    other = View(torch.where(one.classes, one.logits, one.logits + shift), one.classes)
    assert torch.equal(one.mean_probability(), other.mean_probability())


# the weights


def test_weights_by_similarity_are_a_soft_max_of_cosines():
    student, teachers = view(0, [0, 1, 2, 3]), [view(seed, [0, 1, 2, 3]) for seed in (1, 2, 3)]
    u, *others = ([row.tolist() for row in each.logits.softmax(dim=1)] for each in (student, *teachers))
    u, *others = ([sum(column) / 12 for column in zip(*rows, strict=True)] for rows in (u, *others))
    cosines = [
        sum(a * b for a, b in zip(u, other, strict=True)) / (math.hypot(*u) * math.hypot(*other)) for other in others
    ]
    raised = [math.exp(each / 0.1) for each in cosines]
    expected = sorted((each / sum(raised) for each in raised), reverse=True)
    assert weights_of(student, teachers) == pytest.approx([each for each in expected if each >= 0.05], rel=1e-4)


@given(views, st.lists(views, min_size=1, max_size=30), st.sampled_from(["similarity", "uniform", "overlap"]))
def test_who_is_left_out_is_less_alike_than_all_who_are_heard_and_has_little_weight(student, teachers, kind):
    found = lessons(student, teachers, kind, "similar_first", draw())
    alike = similarities(student, teachers, kind).tolist()
    among = [any(one.logits is each.logits for one in found) for each in teachers]
    heard, left_out = ([value for value, one in zip(alike, among, strict=True) if one == is_] for is_ in (True, False))
    assert heard and (not left_out or min(heard) > max(left_out))
    weight = sum(each.weight for each in found)
    assert weight <= 1 + 1e-9
    assert 1 - weight <= min(0.5, 0.05 * len(left_out)) + 1e-9
    if kind == "uniform":
        assert not left_out


def test_of_many_teachers_who_are_nearly_alike_most_are_heard():
    """40 teachers of about 1/40 each; one who is quite unlike them is still left out."""
    student, base = view(0, range(CLASSES)), view(1, range(CLASSES))
    teachers = [View(base.logits + 0.2 * view(seed, [0]).logits, base.classes) for seed in range(2, 42)]
    stranger = View(base.logits - 30 * torch.eye(CLASSES)[student.mean_probability().argmax()], base.classes)
    found = lessons(student, [stranger, *teachers], "similarity", "similar_first", draw())
    assert len(found) > 30
    assert max(each.weight for each in found) < 0.05
    assert all(each.logits is not stranger.logits for each in found)


def test_uniform_weights_are_equal():
    student, teachers = view(0, [0, 1]), [view(seed, [seed % CLASSES]) for seed in range(1, 6)]
    assert weights_of(student, teachers, "uniform") == pytest.approx([1 / 5] * 5)


def test_weights_by_overlap_are_of_shared_classes():
    """|both| / |either|: 1, 1/3 and 0, and so exp(10), exp(10/3) and 1, of which the latter two are left out."""
    student, teachers = view(0, [0, 1]), [view(1, [0, 1]), view(2, [1, 2]), view(3, [2, 3])]
    assert similarities(student, teachers, "overlap").tolist() == pytest.approx([1, 1 / 3, 0])
    total = math.exp(10) + math.exp(10 / 3) + 1
    assert weights_of(student, teachers, "overlap") == pytest.approx([math.exp(10) / total])
    equal = [view(seed, [1, 2]) for seed in (4, 5)]
    assert weights_of(student, equal, "overlap") == pytest.approx([0.5, 0.5])


def test_teachers_below_a_twentieth_are_skipped():
    """Cosines 1 and 0: weights 1 / (1 + exp(-10)) and 5e-5."""
    student, like, unlike = view(0, [0]), view(1, [0]), view(2, [1])
    (only,) = lessons(student, [unlike, like], "similarity", "similar_first", draw())
    assert torch.equal(only.logits, like.logits)
    assert only.weight == pytest.approx(1 / (1 + math.exp(-10)), rel=1e-6)


def test_of_many_equal_teachers_all_are_heard():
    """30 teachers of 1/30 each lie below the bound, and nobody would be heard."""
    student, teachers = view(0, [0, 1]), [view(seed, [0, 1]) for seed in range(1, 31)]
    assert weights_of(student, teachers, "uniform") == pytest.approx([1 / 30] * 30)


def test_without_teachers_there_are_no_lessons():
    assert lessons(view(0, [0]), [], "similarity", "similar_first", draw()) == []


# the order


def test_similar_first_and_similar_last():
    student, teachers = view(0, range(CLASSES)), [view(seed, range(CLASSES)) for seed in range(1, 6)]
    alike = similarities(student, teachers, "similarity")
    for order, sign in (("similar_first", -1), ("similar_last", 1)):
        found = lessons(student, teachers, "similarity", order, draw())
        places = [next(j for j, each in enumerate(teachers) if each.logits is one.logits) for one in found]
        assert len(places) > 2
        assert places == sorted(places, key=lambda j: sign * alike[j])
        by_weight = [one.weight for one in found]
        assert by_weight == sorted(by_weight, reverse=order == "similar_first")


def test_a_random_order_is_the_generators_and_has_the_same_lessons():
    student, teachers = view(0, range(CLASSES)), [view(seed, range(CLASSES)) for seed in range(1, 7)]

    def order(seed: int) -> list[int]:
        found = lessons(student, teachers, "uniform", "random", generator(seed, "order"))
        return [next(j for j, each in enumerate(teachers) if each.logits is one.logits) for one in found]

    orders = [order(seed) for seed in range(4)]
    assert orders == [order(seed) for seed in range(4)]
    assert all(sorted(each) == list(range(6)) for each in orders)
    assert len({tuple(each) for each in orders}) > 1


# all at once


def test_at_once_by_hand():
    one, two = (
        Lesson(torch.tensor([[4.0, 8.0, 99.0]]), torch.tensor([True, True, False]), 0.25),
        Lesson(torch.tensor([[-99.0, 4.0, 2.0]]), torch.tensor([False, True, True]), 0.75),
    )
    (both,) = at_once([one, two])
    assert both.logits.tolist() == [[4.0, 0.25 * 8 + 0.75 * 4, 2.0]]
    assert both.classes.tolist() == [True, True, True]
    assert (both.weight, both.visits) == (1.0, 2)


def test_at_once_of_one_or_none():
    known = torch.tensor([True, False, True, True])
    (one,) = at_once([Lesson(view(0, [0]).logits, known, 0.3)])
    torch.testing.assert_close(one.logits[:, known], view(0, [0]).logits[:, known])
    assert (one.weight, one.visits) == (1.0, 1)
    assert at_once([]) == []


def test_packed_lessons_are_the_same_lessons():
    found = [Lesson(view(n, [n]).logits, view(n, [n]).classes, 0.1 * n, n) for n in (1, 2, 3)]
    about = {"lessons": [[each.weight, each.visits] for each in found]}
    again = unpack(State(pack(found), about), "cpu")
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.classes, other.classes)
        assert (one.weight, one.visits) == (other.weight, other.visits)


# a visit


class Table(nn.Module):
    """A student that knows one thing: the same logits for every sample. Counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.5, -0.5, 1.0, 0.0]))
        self.asked: list[list[int]] = []

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.asked.append(rows.tolist())
        return self.logits.expand(len(rows), -1)


def constant(logits, classes, samples: int = 12) -> View:
    known = torch.zeros(CLASSES, dtype=torch.bool)
    known[list(classes)] = True
    return View(torch.tensor(logits).expand(samples, -1), known)


def visit(found, anchor: View, data=None, by_class=False, labels=False, **parameters) -> Table:
    student, settings = Table(), DistillationParameters(**{"batch_size": 12, "learning_rate": 0.02} | parameters)
    data = surrogate() if data is None else data
    learn(student, list(student.parameters()), data, found, lambda: anchor, settings, draw(), by_class, labels)
    return student


def lesson(one: View, weight: float = 1.0, visits: int = 1) -> Lesson:
    return Lesson(one.logits, one.classes, weight, visits)


NOBODY = constant([0.0] * CLASSES, [])


def test_without_teachers_nothing_changes():
    student = visit([], constant([9.0, 0.0, 0.0, 0.0], range(CLASSES)))
    assert torch.equal(student.logits, Table().logits)
    assert student.asked == []


def test_without_an_anchor_the_student_becomes_its_teacher_where_that_knows_something():
    teacher = constant([2.0, -1.0, 77.0, 0.0], [0, 1, 3])
    student = visit([lesson(teacher)], constant([0.0] * CLASSES, range(CLASSES)), epochs=600, mu=0.0)
    known = teacher.classes
    torch.testing.assert_close(
        student.logits[known].softmax(dim=0), torch.tensor([2.0, -1.0, 0.0]).softmax(dim=0), atol=1e-3, rtol=0
    )
    assert student.logits[2] == Table().logits[2]  # no gradient, no step


@pytest.mark.parametrize(("weight", "mu"), [(1.0, 1.0), (0.5, 1.0), (0.25, 3.0)])
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_between_teacher_and_anchor_the_student_ends_at_their_weighted_mean(weight, mu, tau):
    """argmin_p  w KL( p_T || p ) + mu KL( p_A || p )  =  (w p_T + mu p_A) / (w + mu), softened alike."""
    teacher, anchor = constant([2.0, -1.0, 0.0, 1.0], range(CLASSES)), constant([0.0, 1.0, 0.0, -2.0], range(CLASSES))
    student = visit([lesson(teacher, weight)], anchor, epochs=800, mu=mu, temperature=tau)
    p, q = ((each.logits[0] / tau).softmax(dim=0) for each in (teacher, anchor))
    mean = (weight * p + mu * q) / (weight + mu)
    torch.testing.assert_close((student.logits / tau).softmax(dim=0), mean, atol=2e-3, rtol=0)


def test_the_anchor_holds_what_the_student_knows_only():
    """Teacher on classes 2 and 3, anchor on 0 and 1: both are followed, neither is in the other's way."""
    teacher, anchor = constant([9.0, -9.0, 1.0, -1.0], [2, 3]), constant([-1.5, 1.5, 9.0, -9.0], [0, 1])
    student = visit([lesson(teacher)], anchor, epochs=600)
    torch.testing.assert_close(
        student.logits[:2].softmax(dim=0), torch.tensor([-1.5, 1.5]).softmax(0), atol=2e-3, rtol=0
    )
    torch.testing.assert_close(
        student.logits[2:].softmax(dim=0), torch.tensor([1.0, -1.0]).softmax(0), atol=2e-3, rtol=0
    )


def test_the_last_teacher_has_the_last_word():
    one, two = constant([3.0, 0.0, 0.0, 0.0], range(CLASSES)), constant([0.0, 0.0, 0.0, 3.0], range(CLASSES))
    for pair in ((one, two), (two, one)):
        student = visit([lesson(each) for each in pair], NOBODY, epochs=400, mu=0.0)
        torch.testing.assert_close(student.logits.softmax(dim=0), pair[1].logits[0].softmax(dim=0), atol=2e-3, rtol=0)


def test_each_visit_passes_over_all_samples_epochs_times():
    found = [lesson(view(seed, range(CLASSES))) for seed in range(3)]
    student = visit(found, NOBODY, epochs=2, batch_size=5)
    assert [len(rows) for rows in student.asked] == [5, 5, 2] * 6
    for start in range(0, 18, 3):
        assert sorted(chain(*student.asked[start : start + 3])) == list(range(12))
    together = visit(at_once(found), NOBODY, epochs=2, batch_size=5)
    assert [len(rows) for rows in together.asked] == [len(rows) for rows in student.asked]  # as much work


def test_where_labels_are_known_a_teacher_is_heard_about_its_classes_only():
    labels = [0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 0, 0]
    student = visit([lesson(view(0, [0, 2]))], NOBODY, surrogate(labels=labels), by_class=True)
    assert sorted(student.asked[0]) == [row for row, label in enumerate(labels) if label in (0, 2)]


@pytest.mark.parametrize(
    ("samples", "size", "batches"), [(13, 4, [4, 4, 5]), (12, 4, [4, 4, 4]), (14, 4, [4, 4, 4, 2]), (3, 2, [3])]
)
def test_no_batch_is_of_a_single_sample(samples, size, batches):
    """Batch normalisation cannot use one."""
    student = visit([lesson(view(0, range(CLASSES), samples))], NOBODY, surrogate(samples), batch_size=size)
    assert [len(rows) for rows in student.asked] == batches
    assert sorted(chain(*student.asked)) == list(range(samples))


@pytest.mark.parametrize("labels", [[0] * 11 + [1], [0] * 12], ids=["one sample", "none"])
def test_a_teacher_who_could_speak_of_one_sample_or_none_is_passed_over(labels):
    """The others are visited."""
    data = surrogate(labels=labels)
    alone, other = (lesson(view(seed, [label])) for seed, label in ((1, 1), (2, 0)))
    assert torch.equal(visit([alone], NOBODY, data, by_class=True).logits, Table().logits)
    student = visit([alone, other], NOBODY, data, by_class=True)
    assert sorted(chain(*student.asked)) == [row for row, label in enumerate(labels) if label == 0]


def test_labels_are_learnt_when_they_are_to_be():
    teacher = constant([0.0] * CLASSES, range(CLASSES))
    data = surrogate(labels=[1] * 12)
    without, with_labels = (
        visit([lesson(teacher)], NOBODY, data, labels=labels, epochs=300, mu=0.0).logits.detach().softmax(dim=0)
        for labels in (False, True)
    )
    torch.testing.assert_close(without, torch.full((CLASSES,), 1 / CLASSES), atol=1e-3, rtol=0)
    assert with_labels[1] > 0.5


def test_the_anchor_is_asked_before_each_teacher():
    student, asked = Table(), []

    def anchor() -> View:
        asked.append(len(student.asked))
        return NOBODY

    found = [lesson(view(seed, range(CLASSES))) for seed in range(3)]
    settings = DistillationParameters(batch_size=4)
    learn(student, list(student.parameters()), surrogate(), found, anchor, settings, draw())
    assert asked == [0, 3, 6]


# small models enhance the foundation model


@pytest.fixture
def tiny():
    """(adapted, public, foundation before): an untrained foundation model for the surrogate's images."""
    from methods.assistance import Public
    from methods.pretraining import all_features

    def build(part: str = "adapter"):
        network = {"name": "mlp", "width": 8, "depth": 1}
        foundation = Foundation(untrained(FoundationParameters(network=network), (1, 2, 2)), {})
        data = surrogate()
        return Adapted(foundation, CLASSES, part, 0, rank=2), Public(data, all_features(foundation, data))

    return build


def taught(tiny, teachers, known=(), part="adapter", labelled=False, seed=0, **parameters):
    adapted, public = tiny(part)
    start = torch.zeros(CLASSES, dtype=torch.bool)
    start[list(known)] = True
    settings = DistillationParameters(**{"epochs": 20, "learning_rate": 0.02} | parameters)
    known = enrich(adapted, public, teachers, start, settings, labelled, generator(seed, "r1"))
    return adapted, public, known


@pytest.mark.parametrize("part", ["head", "adapter", "lora"])
def test_psi_learns_what_its_teachers_know_and_remembers_who_taught_it(part, tiny):
    teachers = [view(1, [0, 1]), view(2, [1, 2])]
    before, public = tiny(part)
    frozen = {key: each.clone() for key, each in before.foundation.state_dict().items() if "lora" not in key}
    inputs = public.data.batch(torch.arange(12)).inputs
    for teacher in teachers:
        adapted, _, known = taught(tiny, [teacher], part=part)
        assert torch.equal(known, teacher.classes)
        gaps = [distillation(model(inputs), teacher.logits, teacher.index, 1.0).item() for model in (before, adapted)]
        assert gaps[1] < 0.8 * gaps[0]
    adapted, _, known = taught(tiny, teachers, part=part)
    assert known.tolist() == [True, True, True, False]
    after = adapted.foundation.state_dict()
    assert frozen and all(torch.equal(each, after[key]) for key, each in frozen.items())


def test_a_teacher_who_is_not_heard_teaches_psi_no_class(tiny):
    """Without samples of its classes, or with one class alone, over which every distribution is the same."""
    _, _, known = taught(tiny, [view(1, [0, 1]), view(2, [3])])
    assert known.tolist() == [True, True, False, False]
    adapted, public = tiny()
    public.data.labels[:] = 0
    settings = DistillationParameters()
    nothing = torch.zeros(CLASSES, dtype=torch.bool)
    known = enrich(adapted, public, [view(1, [0]), view(2, [2, 3])], nothing, settings, True, generator(0, "r1"))
    assert known.tolist() == [True, False, False, False]


def test_what_psi_was_taught_before_is_held_by_the_anchor(tiny):
    """One teacher after psi knows all classes: the stronger the anchor, the less psi moves."""
    moved, inputs = [], surrogate().batch(torch.arange(12)).inputs
    for mu in (0.0, 1.0, 20.0):
        adapted, _, known = taught(tiny, [view(1, [0, 1])], known=range(CLASSES), mu=mu)
        moved.append(distillation(adapted(inputs), tiny()[0](inputs), range(CLASSES), 1.0).item())
        assert known.all()
    assert moved[0] > 1.2 * moved[1] > 1.2 * moved[2]


def test_psi_visits_its_teachers_in_an_order_drawn_anew(tiny):
    teachers = [view(seed, range(CLASSES)) for seed in range(4)]
    ends = [taught(tiny, teachers, seed=seed)[0].head.bias for seed in (0, 0, 1)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_with_labels_psi_learns_them_too(tiny):
    """Teachers who know nothing about a class's samples: without labels psi knows as little."""
    teacher = constant([0.0] * CLASSES, range(CLASSES))
    fits = []
    for labelled in (False, True):
        adapted, public, _ = taught(tiny, [teacher], labelled=labelled, epochs=150, mu=0.0)
        logits = adapted(public.data.batch(torch.arange(12)).inputs)
        fits.append((logits.argmax(dim=1) == public.data.labels).double().mean().item())
    assert fits[1] > 0.9 > fits[0]
