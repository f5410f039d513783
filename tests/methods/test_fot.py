"""Federated orthogonal training: what stays where it was, and what a sketch keeps."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import methods
from methods import Message, Moment, State
from methods.base import Setting
from methods.fot import extend, project
from methods.layer_inputs import as_columns, columns, joined, layers, parted, width
from methods.state import prefixed
from methods.training import TrainParameters
from models import Architecture
from randomness import generator


def draw(seed: int) -> torch.Generator:
    return generator(seed, "test")


def random_basis(inputs: int, kept: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(inputs, kept, generator=draw(seed)))[0]


# inputs of layers

LAYERS = [
    (nn.Linear(5, 3), (4, 5)),
    (nn.Linear(5, 3, bias=False), (4, 7, 5)),
    (nn.Conv2d(2, 3, 3, padding=1), (4, 2, 6, 5)),
    (nn.Conv2d(2, 3, (2, 3), stride=2, dilation=(1, 2), bias=False), (4, 2, 7, 8)),
    (nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 5, 5)),
    (nn.Conv2d(4, 6, 1, groups=2, stride=2, bias=False), (2, 4, 5, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value))
def test_a_layers_output_is_its_joined_weight_times_its_columns(layer, shape):
    given = torch.randn(shape, generator=draw(0))
    fed, matrix = as_columns(layer, given), joined("l", prefixed("l", layer.state_dict()))
    assert fed.shape[0] == width(layer) == matrix.shape[1]
    output = layer(given)
    groups = getattr(layer, "groups", 1)
    by_group = zip(matrix.chunk(groups), fed.unflatten(1, (groups, -1)).unbind(1), strict=True)
    expected = torch.cat([weight @ inputs for weight, inputs in by_group])  # (outputs, samples x positions)
    ours = output.flatten(0, -2).T if isinstance(layer, nn.Linear) else output.flatten(2).permute(1, 0, 2).flatten(1)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value))
def test_parting_undoes_joining(layer, shape):
    tensors = prefixed("l", layer.state_dict())
    again = parted("l", joined("l", tensors), tensors)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


# the basis


@given(
    inputs=st.integers(1, 12),
    kept=st.integers(0, 12),
    rank=st.integers(0, 12),
    epsilon=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_the_basis_is_orthonormal_keeps_what_it_had_and_the_least_that_has_the_energy(
    inputs, kept, rank, epsilon, seed
):
    before = random_basis(inputs, min(kept, inputs), seed)
    sketch = torch.randn(inputs, rank, generator=draw(seed)).double() @ torch.randn(rank, 9, generator=draw(1)).double()
    after = extend(before, sketch, epsilon).double()
    assert after.dtype == torch.float64
    assert before.shape[1] <= after.shape[1] <= inputs
    torch.testing.assert_close(after.T @ after, torch.eye(after.shape[1]).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(after @ (after.T @ before.double()), before.double(), atol=1e-5, rtol=0)
    total = sketch.square().sum()

    def energy(basis):
        return (basis.T @ sketch).square().sum()

    assert energy(after) >= (epsilon - 1e-5) * total
    added = after.shape[1] - before.shape[1]
    if added:  # one direction fewer would not have done, whichever: the singular values say so
        rest = sketch - before.double() @ (before.double().T @ sketch)
        fewer = torch.linalg.svdvals(rest)[: added - 1].square().sum()
        assert energy(before.double()) + fewer < (epsilon + 1e-5) * total


def test_the_first_basis_is_the_principal_subspace():
    """Energies 16, 4, 1 of 21: a share of 0.7 needs one direction, 0.8 two, 0.96 three."""
    sketch = torch.diag(torch.tensor([4.0, 2.0, 1.0])).double()
    for epsilon, expected in ((0.7, 1), (0.8, 2), (0.96, 3), (0.0, 0)):
        basis = extend(None, sketch, epsilon)
        torch.testing.assert_close(basis @ basis.T, torch.diag((torch.arange(3) < expected).float()))


def test_a_sketch_has_the_energy_and_the_directions_of_what_was_sketched():
    """Why the server may measure on the sketch: E |X Omega|^2 = columns |X|^2."""
    inputs = torch.randn(20, 2, generator=draw(0)) @ torch.randn(2, 400, generator=draw(1))
    omega = torch.randn(400, 2000, generator=draw(2))
    sketch = inputs @ omega
    assert sketch.square().sum() / 2000 == pytest.approx(inputs.square().sum().item(), rel=0.1)
    basis = extend(None, sketch.double(), 0.9999)
    torch.testing.assert_close(basis @ (basis.T @ inputs), inputs, atol=0.05, rtol=0.05)


# the projection


def network(name: str, shape=(1, 8, 8), **options):
    architecture = Architecture(name, shape, 10, options)
    return architecture, architecture.initial(draw(0)), architecture.initial(draw(1))


NETWORKS = {"mlp": {"width": 16}, "cnn": {"width": 4}, "slim_resnet18": {"width": 4, "norm": "batch"}}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_update_is_zero_on_the_stored_subspace_and_untouched_across_it(name):
    architecture, old, new = network(name, **NETWORKS[name])
    known = layers(architecture.load(old))
    basis = {layer: random_basis(width(each), max(1, width(each) // 3), 3) for layer, each in known.items()}
    model = project(old, new, basis, ())
    assert {key: (each.shape, each.dtype) for key, each in model.items()} == {
        key: (each.shape, each.dtype) for key, each in old.items()
    }
    for layer, kept in basis.items():
        update = joined(layer, model) - joined(layer, old)
        wanted = joined(layer, new) - joined(layer, old)
        torch.testing.assert_close(update @ kept, torch.zeros(len(update), kept.shape[1]), atol=1e-5, rtol=0)
        across = torch.eye(len(kept)) - kept @ kept.T
        torch.testing.assert_close(update @ across, wanted @ across, atol=1e-5, rtol=1e-4)
    projected = {f"{layer}.{part}" for layer in known for part in ("weight", "bias")}
    assert all(torch.equal(model[key], old[key]) for key in old if key not in projected)


def test_a_free_layer_takes_its_update_as_it_is():
    _, old, new = network("mlp", width=16)
    model = project(old, new, {"body.1": random_basis(65, 10, 0), "body.3": random_basis(17, 4, 0)}, ("head",))
    assert torch.equal(model["head.weight"], new["head.weight"])
    assert torch.equal(model["head.bias"], new["head.bias"])


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_old_inputs_are_predicted_as_before_when_all_their_energy_is_kept(name):
    """The paper's claim in one: after any update, the network computes what it did for the inputs it keeps."""
    architecture, old, new = network(name, **NETWORKS[name])
    inputs = torch.randn(3, 1, 8, 8, generator=draw(5))
    model = architecture.load(old).eval()
    fed = columns(model, inputs, layers(model))
    basis = {layer: extend(None, each.double(), 1.0) for layer, each in fed.items()}
    after = architecture.load(project(old, new, basis, ())).eval()
    torch.testing.assert_close(after(inputs), model(inputs), atol=1e-4, rtol=1e-4)
    others = torch.randn(3, 1, 8, 8, generator=draw(6))
    assert not torch.allclose(after(others), model(others), atol=1e-2)


# the method


def test_threshold_zero_is_fedavg_to_the_last_bit(laboratory):
    without, fedavg = laboratory("fot", sets=["methods.fot.threshold=0"]).play(), laboratory("fedavg").play()
    assert without.digest == fedavg.digest
    assert [row["accuracy"] for row in without.rows] == [row["accuracy"] for row in fedavg.rows]


def test_the_first_experience_is_fedavg_to_the_last_bit(laboratory):
    ours, fedavg = laboratory("fot").play(until=(1, 0)), laboratory("fedavg").play(until=(1, 0))
    fused = fedavg.server.part("model")
    assert all(torch.equal(each, fused[name]) for name, each in ours.server.part("model").items())
    assert ours.server.part("basis")


def test_later_experiences_do_not_move_the_stored_subspace(laboratory):
    lab = laboratory("fot").play(until=(1, 0))
    before = lab.server
    after = lab.play(until=(2, 0)).server
    moved = 0.0
    for layer, basis in before.part("basis").items():
        update = joined(layer, after.part("model")) - joined(layer, before.part("model"))
        moved += update.square().sum().item()
        torch.testing.assert_close(update @ basis, torch.zeros(len(update), basis.shape[1]), atol=1e-5, rtol=0)
        assert after.part("basis")[layer].shape[1] >= basis.shape[1]
    assert moved > 0


def test_sketches_are_asked_for_in_an_experiences_last_round_if_another_follows(played):
    lab = played("fot")
    for moment, trained, _ in lab.rounds:
        asked = moment.round == lab.experiment.train.rounds - 1 and moment.experience < 2
        for each in trained:
            names = lab.site.store.get(each.upload).tensors
            assert any(name.startswith("sketch.") for name in names) == asked


@pytest.mark.parametrize("fraction", [0.1, 1.0, 2.5])
def test_a_sketch_costs_its_columns(fraction, laboratory):
    """4 bytes for each of inputs x ceil(fraction x inputs), and the names, however many samples there are."""
    rounds = ["train.rounds=1", f"methods.fot.sketch={fraction}"]
    with_sketch = laboratory("fot", sets=rounds).play(until=(1, 0))
    without = laboratory("fedavg", sets=rounds[:1]).play(until=(1, 0))
    numbers = sum(inputs * math.ceil(fraction * inputs) for inputs in (65, 17, 17))
    more = (with_sketch.bytes[0] - without.bytes[0]) / 3 - 4 * numbers
    assert 0 <= more < 400


def build(task_aware: bool):
    setting = Setting(
        (Architecture("mlp", (1, 8, 8), 10, {"width": 16}),), TrainParameters(), 0, 2, 3, task_aware=task_aware
    )
    kind = methods.get("fot")
    return kind(kind.Params(), setting)


def test_heads_of_task_incremental_streams_are_free():
    assert set(build(task_aware=True).widths) == {"body.1", "body.3"}
    assert set(build(task_aware=False).widths) == {"body.1", "body.3", "head"}


def test_the_server_adds_the_sketches_whoever_sent_them():
    """The basis is that of all inputs together: two clients of one direction each make two directions."""
    method, moment = build(task_aware=False), Moment(0, 2)
    server = method.start()
    sketches = []
    for one in range(2):
        parts = {name: torch.zeros(shape) for name, shape in method.shapes().items()}
        for part in parts.values():
            part[one, one] = 1 + one
        sketches.append(parts)
    uploads = [
        SimpleNamespace(client=i, samples=i + 1, message=Message({**server.tensors, **prefixed("sketch", parts)}))
        for i, parts in enumerate(sketches)
    ]
    after = method.fuse("all", server, uploads, moment)
    for basis in after.part("basis").values():
        torch.testing.assert_close(basis @ basis.T, torch.diag((torch.arange(len(basis)) < 2).float()))
    again = method.fuse("all", State({**after.tensors}, after.values), uploads[::-1], Moment(1, 2))
    assert all(torch.equal(each, after.part("basis")[name]) for name, each in again.part("basis").items())
