"""Data-agnostic consolidation: the rule said again by hand, its closed forms, and what it can neither see nor send."""

from __future__ import annotations

import inspect
import itertools
import math
from dataclasses import fields, replace
from typing import get_type_hints

import pytest
import torch
from torch import Tensor, nn

from errors import InputError
from methods import Moment, Setting, State
from methods.base import Upload
from methods.consolidation import EVERY, Teacher, consolidate, projection, targets
from methods.consolidation_data import DataParameters, Images, Noise, Sampled, images
from methods.consolidation_parameters import ConsolidationParameters, LatentParameters
from methods.surrogate import mask
from methods.training import Client, LocalData, TrainParameters, cross_entropy
from models import Architecture
from models.stages import Latent
from randomness import generator
from tasks.fusion import uploads_of
from tasks.site import prepare_process
from tasks.store import decode, encode
from validation import checked

SHAPE, CLASSES, NAMES = (1, 8, 8), 5, ("consolidation", 1, 0, 0)
BATCHNORM = {"name": "cnn4", "width": 4, "norm": "batch"}
NETWORKS = [{"name": "mlp", "width": 12}, BATCHNORM, {"name": "slim_resnet18", "width": 2, "norm": "batch"}]
SMALL = {"iterations": 3, "batch_size": 8, "weight_decay": 0.0, "hard": 0.0, "normalise": "none", "student": "previous"}
SMALL |= {"batchnorm": "train", "learning_rate": 0.05, "optimizer": "sgd", "momentum": 0.9}
LATENT = SMALL | {"output": 1.0, "latent": 1.0, "projection": "none", "layers": "stages"}
NOISE = Noise(SHAPE, "cpu")


@pytest.fixture(autouse=True, scope="module")
def _as_in_a_worker():
    prepare_process()


def setting(network=NETWORKS[0], **others) -> Setting:
    options = {key: value for key, value in network.items() if key != "name"}
    architecture = Architecture(network["name"], SHAPE, CLASSES, options)
    return Setting((architecture,), TrainParameters(), seed=3, clients=2, experiences=2, **others)


def teacher(where: Setting, number: int, classes) -> Teacher:
    tensors = where.architecture.initial(generator(number))
    return Teacher({name: each * 2 if name == "head.weight" else each for name, each in tensors.items()}, classes)


def known(*classes: int) -> Tensor:
    return mask(classes, CLASSES)


def pair(where: Setting) -> tuple[Teacher, Teacher]:
    """Two teachers, of classes 0, 1, 2 and 2, 3; class 4 is nobody's."""
    return teacher(where, 1, known(0, 1, 2)), teacher(where, 2, known(2, 3))


def student(where: Setting, teachers: tuple[Teacher, Teacher], source: Images = NOISE, **params) -> dict[str, Tensor]:
    about = LatentParameters(**LATENT | params)
    return last(consolidate(*teachers, source, about, where, NAMES)).part("student")


def last(states):
    *_, end = states
    return end


def same(one, other) -> bool:
    return encode(one, {}) == encode(other, {})


# the rule


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network["name"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_two_identical_teachers_leave_the_student_as_it_was(network, optimizer):
    """The loss is 0: without projections, from the previous model and with its BatchNorm statistics."""
    where = setting(network)
    one = teacher(where, 1, known(0, 1, 2))
    other = replace(one, classes=known(2, 3))
    found = student(where, (one, other), iterations=20, optimizer=optimizer, batchnorm="eval")
    for name, each in found.items():
        torch.testing.assert_close(each, one.tensors[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("start", ["previous", "initial"])
def test_the_student_reproduces_two_identical_teachers_through_linear_projections(start):
    where = setting()
    one = teacher(where, 1, known(0, 1, 2))
    teachers = (one, replace(one, classes=known(2, 3, 4)))
    learned = {"optimizer": "adam", "learning_rate": 0.01, "projection": "linear", "batch_size": 64, "student": start}
    few, many = (student(where, teachers, iterations=count, **learned) for count in (20, 800))
    inputs = NOISE.draw(300, generator(9))
    truth, early, late = (where.load(tensors)(inputs).detach() for tensors in (one.tensors, few, many))
    gaps = [(each - truth).square().mean() / truth.square().mean() for each in (early, late)]
    assert gaps[1] < 0.01 and gaps[1] <= gaps[0] / 10
    agreed = (late.argmax(dim=1) == truth.argmax(dim=1)).double().mean()
    assert agreed > 0.95


def by_hand(where: Setting, teachers: tuple[Teacher, Teacher], about: LatentParameters) -> nn.Module:
    """The student after `about.iterations` steps, written from the specification."""
    which, union = about.layers, [0, 1, 2, 3]
    old, new = (Latent(where.load(each.tensors).eval(), which) for each in teachers)
    model = Latent(where.load(teachers[0].tensors), which).train()
    widths = [each.shape[1] for each in old(NOISE.draw(2, generator(0)))[0]]
    made = {
        (layer, whose): projection(about.projection, width, generator(3, *NAMES, "projection", layer, whose))
        for layer, width in enumerate(widths)
        for whose in ("previous", "expert")
    }
    learns = [*model.model.parameters(), *(p for each in made.values() for p in each.parameters())]
    rate, kinds = about.learning_rate, {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    momentum = {"momentum": about.momentum} if about.optimizer == "sgd" else {}
    optimizer = kinds[about.optimizer](learns, lr=rate, weight_decay=about.weight_decay, **momentum)
    for step in range(about.iterations):
        x = NOISE.draw(about.batch_size, generator(3, *NAMES, "images", step))
        (z_old, s_old), (z_new, s_new), (z, s) = old(x), new(x), model(x)
        y = torch.cat([s_old[:, :2], (s_old[:, 2:3] + s_new[:, 2:3]) / 2, s_new[:, 3:4]], dim=1).detach()
        loss = about.output * (s[:, union] - y).square().sum(dim=1).mean() / len(union)
        loss = loss + about.hard * cross_entropy(s, y.argmax(dim=1), union)
        for layer, width in enumerate(widths):
            for whose, z_teacher in (("previous", z_old), ("expert", z_new)):
                far = made[layer, whose](z[layer]) - z_teacher[layer].detach()
                loss = loss + about.latent * far.square().sum(dim=1).mean() / width
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / about.iterations)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.model


@pytest.mark.parametrize(
    ("network", "others"),
    [
        (NETWORKS[0], {}),
        (NETWORKS[0], {"projection": "linear", "optimizer": "adam", "weight_decay": 0.01}),
        (NETWORKS[1], {"projection": "mlp", "hard": 0.7, "latent": 0.3, "weight_decay": 0.01}),
        (NETWORKS[1], {"projection": "linear", "output": 0.0, "momentum": 0.0}),
        (NETWORKS[2], {"layers": "penultimate", "latent": 2.0, "output": 0.5, "learning_rate": 0.01}),
    ],
)
def test_a_few_steps_are_those_of_the_rule(network, others):
    where = setting(network)
    teachers, about = pair(where), LatentParameters(**LATENT | others)
    expected = by_hand(where, teachers, about).state_dict()
    found = student(where, teachers, **others)
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each, rtol=1e-4, atol=1e-5)
    first = next(name for name in found if name.endswith("weight"))
    assert not torch.allclose(found[first], teachers[0].tensors[first], atol=1e-4)


def test_what_the_teachers_are_is_not_changed_and_what_nobody_knows_is_not_taught():
    where = setting()
    teachers = pair(where)
    before = [encode(each.tensors, {}) for each in teachers]
    found = student(where, teachers, projection="linear")
    assert [encode(each.tensors, {}) for each in teachers] == before
    for name in ("head.weight", "head.bias"):
        moved = (found[name] != teachers[0].tensors[name]).reshape(CLASSES, -1).any(dim=1)
        assert moved.tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("start", ["previous", "expert", "mean", "initial"])
def test_where_the_student_starts(start):
    where = setting(BATCHNORM)
    previous, expert = pair(where)
    counter = "body.0.1.num_batches_tracked"
    expert = replace(expert, tensors={**expert.tensors, counter: torch.tensor(7)})
    found = student(where, (previous, expert), iterations=0, student=start)
    assert found[counter] == (7 if start in ("expert", "mean") else 0)
    for name, each in found.items():
        one, other = previous.tensors[name], expert.tensors[name]
        expected = {"previous": one, "expert": other, "initial": where.initial_model()[name]}
        if start == "mean" and each.is_floating_point():
            torch.testing.assert_close(each, (one + other) / 2)
        elif start != "mean":
            assert torch.equal(each, expected[start])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batchnorm_of_the_student_follows_its_batches_or_stays(mode):
    where = setting(BATCHNORM)
    teachers = pair(where)
    found = student(where, teachers, batchnorm=mode, projection="linear")
    statistics = [name for name in found if "running" in name or "tracked" in name]
    assert len(statistics) == 12
    for name in statistics:
        assert torch.equal(found[name], teachers[0].tensors[name]) == (mode == "eval")
    assert mode == "eval" or found["body.0.1.num_batches_tracked"] == 3
    assert not torch.equal(found["body.0.0.weight"], teachers[0].tensors["body.0.0.weight"])


# targets


def test_classes_of_one_teacher_have_its_logits_and_shared_ones_the_mean():
    one, other = torch.randn(6, CLASSES, generator=generator(1)), torch.randn(6, CLASSES, generator=generator(2))
    apart = targets((one, other), (known(0, 1), known(2, 4)), "none")
    expected = torch.zeros(6, CLASSES)
    expected[:, :2], expected[:, 2], expected[:, 4] = one[:, :2], other[:, 2], other[:, 4]
    assert torch.equal(apart, expected)
    shared = targets((one, other), (known(0, 1), known(1, 4)), "none")
    assert torch.equal(shared[:, 1], (one[:, 1] + other[:, 1]) / 2)
    assert torch.equal(shared[:, 0], one[:, 0]) and torch.equal(shared[:, 4], other[:, 4])


def test_normalisation_makes_teachers_equally_loud():
    draw = generator(4)
    one = 3 + 2 * torch.randn(8, CLASSES, generator=draw) * torch.linspace(0.1, 3, 8)[:, None]
    other = 100 * torch.randn(8, CLASSES, generator=draw) - 40
    sides = (known(0, 1, 2), known(3, 4))
    for how in ("mean", "scaled", "standard"):
        y = targets((one, other), sides, how)
        for logits, classes in ((one, sides[0]), (other, sides[1])):
            own, centred = y[:, classes], logits[:, classes] - logits[:, classes].mean(dim=1, keepdim=True)
            torch.testing.assert_close(own.mean(dim=1), torch.zeros(8), rtol=0, atol=1e-4)
            if how == "mean":
                torch.testing.assert_close(own, centred)
            if how == "scaled":
                torch.testing.assert_close(own.square().mean(), torch.tensor(1.0))
                torch.testing.assert_close(own * centred.square().mean().sqrt(), centred)
            if how == "standard":
                torch.testing.assert_close(own.square().mean(dim=1), torch.ones(8))
                torch.testing.assert_close(own * centred.square().mean(dim=1, keepdim=True).sqrt(), centred)


@pytest.mark.parametrize("how", ["mean", "scaled", "standard"])
def test_a_teacher_of_a_single_class_has_a_finite_target(how):
    y = targets((torch.randn(4, CLASSES), torch.randn(4, CLASSES)), (known(0, 1), known(3)), how)
    assert torch.equal(y[:, 3], torch.zeros(4)) and torch.isfinite(y).all()


# identities of whole experiments


@pytest.mark.parametrize("method", ["dac", "dmc", "naive", "averaging"])
def test_the_first_expert_is_the_model_to_the_last_bit(method, laboratory):
    lab = laboratory(method, "devices", sets=["train.rounds=1"])
    (first,) = lab.train()
    upload = lab.site.store.get(first.upload)
    lab.advance([first], verdicts := lab.admit(lab.claims([first])), lab.fuse(verdicts))
    assert same(lab.server.part("model"), State(upload.tensors).part("model"))
    assert not same(lab.server.part("model"), lab.site.method.setting.initial_model())
    lab.play_round()
    assert lab.server.values["added"] == 2


def alike(laboratory, *sets: str) -> list[str]:
    """`--set`s with which dac has all the parameters of dmc."""
    theirs = laboratory("dmc", "devices").experiment.method_parameters
    flat = {f"consolidation.{key}": value for key, value in theirs["consolidation"].items()}
    flat |= {key: theirs[key] for key in ("stale", "transfer")} | {"data.source": theirs["data"]["source"]}
    return [*(f"methods.dac.{key}={value}" for key, value in flat.items()), *sets]


@pytest.mark.parametrize("network", [[], ["model.name=cnn4", "model.width=4", "model.norm=batch"]])
def test_without_latent_distillation_it_is_dmc_to_the_last_bit(network, laboratory, played):
    dmc = played("dmc", "devices", sets=tuple(network)).digest
    for kind, layers in (("none", "penultimate"), ("mlp", "stages")):
        about = [f"methods.dac.consolidation.projection={kind}", f"methods.dac.consolidation.layers={layers}"]
        sets = alike(laboratory, *network, *about)
        assert laboratory("dac", "devices", sets=[*sets, "methods.dac.consolidation.latent=0"]).play().digest == dmc
    assert laboratory("dac", "devices", sets=[*sets, "methods.dac.consolidation.latent=1"]).play().digest != dmc


# no device data


def test_consolidation_can_be_given_no_data_of_a_device_by_its_type():
    hints = get_type_hints(consolidate)
    allowed = {Teacher, Images, ConsolidationParameters, Setting, tuple[str | int, ...], State | None}
    names = list(inspect.signature(consolidate).parameters)
    assert {hints[name] for name in names} == allowed
    assert not allowed & {LocalData, Client, Upload}
    assert {each.name for each in fields(Teacher)} == {"tensors", "classes"}
    assert {name for name in vars(Images) if not name.startswith("_")} == {"draw"}
    assert get_type_hints(Images.draw) == {"count": int, "draw": torch.Generator, "return": Tensor}


def test_consolidation_asks_the_setting_for_no_data():
    def closed(*_):
        raise AssertionError("somebody asked for data")

    plain = setting()
    shut = replace(plain, public=closed, outside=closed, picture=closed, oracle=closed, foundation=closed)
    assert same(student(plain, pair(plain)), student(shut, pair(plain)))


@pytest.fixture
def at_the_centre(laboratory, monkeypatch):
    """(laboratory, verdicts): a second expert has arrived; from now on only the public split can be read."""

    def open_one(*sets: str, method: str = "dac"):
        lab = laboratory(method, "devices", sets=["train.rounds=1", *sets]).play(until=(1, 0))
        verdicts = lab.admit(lab.claims(lab.train()))
        undisturbed = lab.fuse(verdicts).digest
        public, load = set(lab.site.stream.public().tolist()), lab.site.stream.load

        def guarded(rows):
            assert public.issuperset(rows.tolist()), "a device's data are read at the centre"
            return load(rows)

        monkeypatch.setattr(lab.site.stream, "load", guarded)
        return lab, verdicts, undisturbed

    return open_one


@pytest.mark.parametrize("source", ["public", "noise", "image:china.jpg"])
def test_the_centre_reads_nothing_that_a_device_has(source, at_the_centre):
    lab, verdicts, undisturbed = at_the_centre(f"methods.dac.data.source={source}")
    assert lab.site.method.setting.oracle is None
    assert lab.fuse(verdicts).digest == undisturbed


def test_the_oracle_is_an_oracle(at_the_centre):
    """The guard of the test above notices."""
    lab, verdicts, _ = at_the_centre("methods.dac.data.source=original", "methods.dac.data.allow_oracle=true")
    with pytest.raises(AssertionError, match="a device's data are read at the centre"):
        lab.fuse(verdicts)


def test_the_devices_own_data_are_refused_unless_the_oracle_is_allowed(laboratory):
    with pytest.raises(InputError, match=r"data\.source: original is the devices' own data.*allow_oracle=true"):
        laboratory("dac", "devices", sets=["methods.dac.data.source=original"])
    alone = laboratory("dac", "devices", sets=["methods.dac.data.allow_oracle=true"])
    assert alone.site.method.setting.oracle is None
    both = ["methods.dac.data.source=original", "methods.dac.data.allow_oracle=true"]
    site = laboratory("dac", "devices", sets=both).site
    assert [len(site.method.setting.oracle(t)) for t in range(3)] == [len(site.stream.all_train(t)) for t in range(3)]


def test_no_other_method_is_given_the_oracle(laboratory):
    assert all(laboratory(name, "devices").site.method.setting.oracle is None for name in ("naive", "feddf", "fedavg"))


def test_projections_are_neither_sent_nor_kept(laboratory):
    about = ["methods.dac.consolidation.projection=mlp", "methods.dac.consolidation.layers=stages"]
    lab = laboratory("dac", "devices", sets=[*about, "train.rounds=1"])
    model = {f"model.{name}" for name in lab.site.method.setting.initial_model()}
    while not lab.over:
        trained = lab.train()
        for each in trained:
            up, down = lab.site.store.get(each.upload), lab.site.store.get(each.broadcast)
            assert (set(up.tensors), set(down.tensors)) == (model | {"classes"}, model)
        lab.advance(trained, verdicts := lab.admit(lab.claims(trained)), lab.fuse(verdicts))
        assert set(lab.server.tensors) == model | {"seen"}
        assert lab.server.values.keys() == {"added"} and not lab.progress.clients


# what it is consolidated on


def test_noise_is_uniform_over_all_grey_levels():
    drawn = NOISE.draw(400, generator(1))
    assert drawn.shape == (400, *SHAPE) and drawn.dtype == torch.float32
    levels = ((drawn + 1) * 127.5).round().long().flatten()
    counts = torch.bincount(levels, minlength=256)
    assert len(counts) == 256 and counts.min() > 50 and counts.max() < 160
    assert torch.equal(drawn, NOISE.draw(400, generator(1)))


def test_a_limited_set_is_the_same_in_every_consolidation():
    data = LocalData(torch.arange(100, dtype=torch.uint8).reshape(100, 1, 1, 1).numpy(), torch.arange(100).numpy())
    where = replace(setting(), public=lambda: data)

    def drawn(limit, experience):
        source = images(DataParameters(samples=limit), where, experience)
        assert isinstance(source, Sampled)
        return {round((each.item() + 1) * 127.5) for each in source.draw(2000, generator(experience)).flatten()}

    assert drawn(7, 0) == drawn(7, 5) and len(drawn(7, 0)) == 7
    assert drawn(None, 0) == set(range(100))


def test_a_limited_number_of_crops_is_a_set(laboratory):
    where = laboratory("dac", "devices").site.method.setting
    few = images(DataParameters(source="image:flower.jpg", samples=5), where, 0).draw(100, generator(1))
    many = images(DataParameters(source="image:flower.jpg"), where, 0).draw(100, generator(1))
    assert len(few.unique(dim=0)) == 5 < 50 < len(many.unique(dim=0)), "some crops of dark corners are plainly black"
    assert few.abs().max() <= 1


def test_an_empty_public_split_is_refused():
    empty = LocalData(torch.zeros(0, *SHAPE, dtype=torch.uint8).numpy(), torch.zeros(0, dtype=torch.int64).numpy())
    with pytest.raises(InputError, match=r"source: public holds no samples; streams\.\*\.public is the fraction"):
        images(DataParameters(), replace(setting(), public=lambda: empty), 0)


@pytest.mark.parametrize("source", ["publik", "image:", "image: ", ""])
def test_a_source_that_is_none_is_refused(source):
    with pytest.raises(InputError, match=r"data\.source must be public, noise, original, image:PATH or another"):
        checked(DataParameters, {"source": source}, "methods.dac.data")


def test_texts_are_consolidated_on_texts_only(laboratory, played):
    lab = played("dac", "texts")
    assert lab.server.values["added"] == sum(len(verdicts) for _, _, verdicts in lab.rounds) > 2
    for source in ("noise", "image:china.jpg"):
        with pytest.raises(InputError, match=rf"data\.source: {source} is for images \(the stream has texts\)"):
            laboratory("dac", "texts", sets=[f"methods.dac.data.source={source}"])


# a consolidation that is interrupted


@pytest.mark.parametrize(
    ("network", "others"),
    [
        (NETWORKS[0], {"optimizer": "adam", "projection": "linear"}),
        (NETWORKS[0], {"momentum": 0.0, "latent": 0.0}),
        (BATCHNORM, {"momentum": 0.9, "projection": "mlp", "learning_rate": 0.01}),
    ],
)
def test_a_consolidation_goes_on_from_every_state_that_it_yields(network, others):
    where, about = setting(network), LatentParameters(**LATENT | {"iterations": 2 * EVERY + 20} | others)

    def course(begun=None):
        return list(consolidate(*pair(where), NOISE, about, where, NAMES, begun))

    states = course()
    assert [each.values["iteration"] for each in states] == [EVERY, 2 * EVERY, 2 * EVERY + 20]
    for done, state in enumerate(states[:-1], 1):
        read = decode(encode(state.tensors, {"values": dict(state.values)}))
        rest = course(State(read.tensors, read.header["values"]))
        assert len(rest) == len(states) - done
        assert all(same(one.tensors, other.tensors) for one, other in zip(rest, states[done:], strict=True))


def test_a_fusion_of_several_experts_goes_on_from_every_state_that_it_yields(laboratory):
    about = [f"methods.dac.consolidation.{key}" for key in (f"iterations={2 * EVERY + 20}", "projection=linear")]
    lab = laboratory("dac", "digits", sets=[*about, "methods.dac.stale=2"])
    uploads = uploads_of(lab.site, lab.admit(lab.claims(lab.train())))
    method, moment = lab.site.method, Moment(0, 0)
    states = list(method.fuse_on("all", lab.server, uploads, moment, None))
    arrived = [each.values.get("arrived") for each in states]
    assert arrived == [1, 1, 1, 2, 2, 2, None], "after the first expert, twice in the work on each other, after that"
    assert {"past-1", "past-2"} <= {name.partition(".")[0] for name in states[-1].tensors}
    for done, state in enumerate(states[:-1], 1):
        read = decode(encode(state.tensors, {"values": dict(state.values)}))
        rest = list(method.fuse_on("all", lab.server, uploads, moment, State(read.tensors, read.header["values"])))
        assert len(rest) == len(states) - done
        for one, other in itertools.zip_longest(rest, states[done:]):
            assert same(one.tensors, other.tensors) and one.values == other.values
