"""TARGET: what the global model knows is in the images that are made from it, and they go down once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from methods.augmentation import Augmentation
from methods.synthesis import Statistics, Synthesis, disagreement, synthesise
from methods.training import Batch, to_float
from models import build, initialise
from models.generator import ImageGenerator
from tasks.store import encode


def model(state) -> bytes:
    return encode(state.part("model"), {})


def payload(lab, ref) -> int:
    """Bytes of a stored payload that are tensors."""
    data = lab.site.store.bytes(ref)
    return ref.size - 8 - int.from_bytes(data[:8], "little")


# identities


def test_without_weight_the_models_are_fedavgs_and_nothing_is_made(played):
    lab, fedavg = played("target", sets=("methods.target.weight=0",)), played("fedavg")
    assert model(lab.server) == model(fedavg.server)
    assert not lab.server.part("synthetic") and not lab.server.part("previous")
    assert [row["accuracy"] for row in lab.rows] == [row["accuracy"] for row in fedavg.rows]


def test_in_the_first_experience_it_is_fedavg_and_then_no_more(laboratory):
    target, fedavg = (laboratory(name).play(until=(1, 0)) for name in ("target", "fedavg"))
    assert model(target.server) == model(fedavg.server)
    assert model(target.play(until=(1, 1)).server) != model(fedavg.play(until=(1, 1)).server)


# synthesis


@pytest.fixture(scope="module")
def taught():
    """A teacher of five digits, what it was tested on, and images made from it alone."""
    from sklearn.datasets import load_digits
    from torch.nn.functional import cross_entropy

    digits = load_digits()
    images = to_float(torch.from_numpy(digits.images * 255 / 16)[:, None]).float()
    labels, classes = torch.from_numpy(digits.target), [1, 3, 4, 7, 8]
    images, labels = images[torch.isin(labels, torch.tensor(classes))], labels[np.isin(digits.target, classes)]
    draw = torch.Generator().manual_seed(0)
    teacher, student = (initialise(build("mlp", (1, 8, 8), 10, width=32), draw) for _ in range(2))
    adam = torch.optim.Adam(teacher.parameters(), 0.003)
    for _ in range(200):
        rows = torch.randint(600, (64,), generator=draw)
        adam.zero_grad()
        cross_entropy(teacher(images[rows]), labels[rows]).backward()
        adam.step()
    parameters = Synthesis(rounds=4, batch=100, student_steps=100)
    made = synthesise(teacher, student, (1, 8, 8), classes, parameters, Augmentation(), draw)
    return teacher, classes, Batch(images[600:], labels[600:]), made


def test_the_generator_lowers_its_loss(taught):
    losses = taught[-1].losses
    assert all(course[-1] < course[0] / 2 for course in losses[:1])
    assert all(min(course) < course[0] for course in losses)


def test_the_teacher_sees_the_drawn_classes_in_the_images(taught):
    teacher, classes, _, made = taught
    assert made.images.shape == (400, 1, 8, 8) and made.images.dtype == torch.uint8
    assert set(made.labels.tolist()) == set(classes)
    seen = teacher(to_float(made.images)).argmax(dim=1)
    assert (seen == made.labels).float().mean() > 0.9


def test_a_student_of_the_images_alone_knows_real_ones(taught):
    teacher, classes, real, made = taught
    accuracy = [
        (network(real.inputs)[:, classes].argmax(dim=1) == torch.searchsorted(torch.tensor(classes), real.labels))
        .float()
        .mean()
        for network in (teacher, made.student)
    ]
    assert accuracy[0] > 0.9
    assert accuracy[1] > 0.7, "chance is 0.2"


def test_synthesis_leaves_the_teacher_as_it_is_and_draws_from_its_generator_only():
    networks = [initialise(build("cnn", (3, 9, 10), 4, width=2), torch.Generator().manual_seed(i)) for i in range(2)]
    before = encode(networks[0].state_dict(), {})

    def make(seed):
        student = initialise(build("cnn", (3, 9, 10), 4, width=2), torch.Generator().manual_seed(1))
        parameters = Synthesis(rounds=2, batch=6, steps=2, width=2, student_steps=2)
        draw = torch.Generator().manual_seed(seed)
        return synthesise(networks[0], student, (3, 9, 10), [0, 2], parameters, Augmentation(crop=1), draw).images

    state = torch.get_rng_state()
    first = make(0)
    assert torch.equal(first, make(0)) and not torch.equal(first, make(1))
    assert first.shape == (12, 3, 9, 10)
    assert torch.equal(state, torch.get_rng_state())
    assert encode(networks[0].state_dict(), {}) == before


@given(st.integers(1, 4), st.integers(4, 20), st.integers(4, 20))
def test_the_generator_makes_images_of_any_shape(channels, height, width):
    generator = initialise(ImageGenerator((channels, height, width), 5, 2), torch.Generator().manual_seed(0))
    images = generator(torch.randn(3, 5, generator=torch.Generator().manual_seed(1)))
    assert images.shape == (3, channels, height, width)
    assert images.abs().max() <= 1


def test_batchnorm_statistics_are_matched_by_hand_and_are_nothing_without_batchnorm():
    network = nn.Sequential(nn.Identity(), nn.BatchNorm2d(2)).eval()
    statistics = Statistics(network)
    maps = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    network(maps)
    values = maps.double().transpose(0, 1).flatten(1)
    expected = values.mean(dim=1).norm() + ((values - values.mean(dim=1, keepdim=True)).square().mean(dim=1) - 1).norm()
    assert float(statistics.distance()) == pytest.approx(float(expected), rel=1e-5)
    network[1].running_mean.copy_(maps.mean(dim=(0, 2, 3)))
    network[1].running_var.copy_(maps.var(dim=(0, 2, 3), correction=0))
    assert float(statistics.distance()) == pytest.approx(0, abs=1e-5)
    plain = Statistics(build("mlp", (1, 8, 8), 3, width=4))
    assert plain.distance() == 0


def test_disagreement_is_between_networks_that_choose_the_same_class():
    teacher = torch.tensor([[2.0, 0.0, 9.0], [2.0, 0.0, 9.0]])
    student = torch.tensor([[1.0, 0.0, -9.0], [0.0, 1.0, -9.0]])  # agrees among the first two, does not
    p, q = teacher[0, :2].softmax(0), student[0, :2].softmax(0)
    expected = (p * (p / q).log()).sum() / 2
    torch.testing.assert_close(disagreement(student, teacher, [0, 1]), expected)
    assert disagreement(teacher, teacher, [0, 1, 2]) == 0


# the lesson


@pytest.mark.parametrize("sampled", ["all", 1])
def test_images_go_down_once_a_client_and_experience(sampled, played):
    sets = ("train.rounds=4", f"train.clients_per_round={sampled}")
    lab, plain = played("target", sets=sets), played("fedavg", sets=sets)
    size, images = payload(plain, plain.rounds[0][1][0].broadcast), 2 * 32 * 64 + 10  # uint8, and a byte a class
    taught, late = set(), Counter()
    for moment, trained, _ in lab.rounds:
        for each in trained:
            first = moment.experience > 0 and (each.client, moment.experience) not in taught
            taught.add((each.client, moment.experience))
            late[first and moment.round > 0] += 1
            assert payload(lab, each.broadcast) == size * (1 + (first and moment.round > 0)) + images * first
            assert payload(lab, each.upload) == size + 10
    assert bool(late[True]) == (sampled == 1)


@pytest.mark.parametrize("stream", ["digits", "late"])
def test_clients_hold_the_lesson_of_the_servers_experience(stream, laboratory):
    lab = laboratory("target", stream, sets=["train.rounds=3"]).play(until=(1, 0))
    before = lab.server
    assert before.part("previous").keys() == before.part("model").keys()
    while lab.moment.experience == 1:
        lab.play_round()
        if lab.moment.experience > 1:
            break
        for each in lab.rounds[-1][1]:
            kept = lab.client(each.client)
            for part in ("previous", "synthetic"):
                assert encode(kept.part(part), {}) == encode(before.part(part), {})


def test_labels_are_drawn_among_the_classes_that_someone_trained_on(laboratory):
    lab = laboratory("target").play(until=(1, 0))
    labels = {int(lab.site.stream.labels[row]) for client in range(3) for row in lab.site.rows(client, 0)}
    assert set(lab.server.tensors["learned"].nonzero().flatten().tolist()) == labels
    assert torch.equal(lab.server.tensors["synthetic.classes"], lab.server.tensors["learned"])


def test_new_classes_learn_that_synthetic_images_are_not_theirs_unless_apart(laboratory, client_of):
    """The gradient of the loss at the new classes' outputs, without that of the client's own samples."""
    found = {}
    for apart in (False, True):
        lab = laboratory("target", sets=[f"methods.target.apart={apart}", "methods.target.weight=1000000"])
        client = client_of(lab.play(until=(1, 0)), 0)
        network = lab.site.method.setting.load(client.received.part("model"))
        lab.site.method.objective(client)(network, client.data.batch(torch.arange(8))).backward()
        found[apart] = network.head.bias.grad[list(client.classes)] / 1e6
    assert (found[False] > 1e-3).all(), "their outputs go down"
    assert found[True].abs().max() < 1e-5


def test_a_stream_of_texts_is_refused(laboratory):
    from errors import InputError

    with pytest.raises(InputError, match="method target makes images and needs a stream of images"):
        laboratory("target", "texts")
