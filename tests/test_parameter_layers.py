"""Sections that are lists or hold sections: several networks, augmentation."""

from __future__ import annotations

import pytest
import yaml

from errors import InputError
from parameters import experiment

# several networks


def several(project, *sets, method="local"):
    return experiment(method, "digits", sets=list(sets), root=project)


def test_clients_may_have_networks_of_their_own(project):
    models = several(project, "models=[cnn, {name: mlp, width: 8}]").models
    assert models == [{"name": "cnn", "width": 32} | models[0], {"name": "mlp", "width": 8, "depth": 2} | models[1]]
    assert several(project).models == [several(project).model], "without `models` all have `model`"


def test_a_stream_may_bring_the_networks_and_the_command_line_wins(project):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["streams"]["digits"]["models"] = ["cnn", "mlp"]
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert [each["name"] for each in several(project).models] == ["cnn", "mlp"]
    assert [each["name"] for each in several(project, "models=[mlp]").models] == ["mlp"]
    assert len(several(project, "models=[]").models) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[cnn, cnnn]", r"no model 'cnnn'; did you mean cnn"),
        ("[{width: 3}]", r"models\.0\.name: expected the name of a network \(got None\)"),
        ("[cnn, {name: mlp, widht: 3}]", r"models\.1\.widht: model 'mlp' has no option 'widht'; did you mean width"),
        ("[3]", r"models\.0\.name: expected the name of a network \(got 3\)"),
        ("cnn", r"models: expected a list of networks, for example \[cnn, cnn4\] \(got 'cnn'\)"),
    ],
)
def test_networks_that_are_none_are_refused(project, value, message):
    with pytest.raises(InputError, match=message):
        several(project, f"models={value}")


def test_a_method_that_averages_takes_one_network(project):
    with pytest.raises(InputError, match=r"models: fedavg needs one network for all clients \(got 2\).* local"):
        several(project, "models=[cnn, mlp]", method="fedavg")


# augmentation


def test_augmentation_is_a_section_of_train_that_layers_key_by_key(project):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["streams"]["digits"]["train"] = {"augmentation": {"crop": 1}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    about = several(project, "train.augmentation.flip=true").train.augmentation
    assert (about.crop, about.flip, about.cutout) == (1, True, 0)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.augmentation=1", r"train\.augmentation must be a section of keys \(got 1\)"),
        ("train.augmentation.crop=-1", r"train\.augmentation\.crop must be at least 0 \(got -1\)"),
        ("train.augmentation.flop=1", r"no key 'train\.augmentation\.flop'; did you mean flip"),
        (
            "train.augmentation.crop.x=1",
            r"'crop' has no keys below it|train\.augmentation\.crop must be a whole number",
        ),
        ("train.rounds.x=1", r"'rounds' has no keys below it"),
    ],
)
def test_bad_augmentation_is_refused(project, key, message):
    with pytest.raises(InputError, match=message):
        several(project, key)


# the foundation model


def founded(project, *sets, method="large_small", stream="digits"):
    return experiment(method, stream, sets=list(sets), root=project)


def foundation(project, *sets, stream="digits"):
    return founded(project, *sets, stream=stream).foundation


def test_foundation_layers_file_stream_and_command_line(project):
    about = founded(project, "foundation.pretraining.crop=0", "foundation.seed=3").foundation
    assert (about.general, about.seed) == (("parity", "above_four"), 3), "the stream's own, and the command line's"
    assert (about.pretraining.crop, about.pretraining.epochs) == (0, 10), "sections inside are layered key by key"
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["streams"]["digits"]["foundation"] |= {"seed": 2, "pretraining": {"epochs": 4}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    about = founded(project).foundation
    assert (about.seed, about.pretraining.epochs, about.pretraining.learning_rate) == (2, 4, 0.005)
    assert founded(project, "foundation.pretraining.epochs=5").foundation.pretraining.epochs == 5


def test_another_network_of_the_foundation_model_drops_the_options_of_the_first(project):
    assert founded(project).foundation.network == {"name": "mlp", "width": 40, "depth": 1}
    assert founded(project, "foundation.network.depth=3").foundation.network["width"] == 40
    assert founded(project, "foundation.network.name=cnn").foundation.network == {"name": "cnn", "width": 32}


def test_a_method_without_a_foundation_model_has_none(project):
    plain = founded(project, method="fedavg")
    assert plain.foundation is None
    assert "foundation" not in plain.identity()
    assert plain.digest == founded(project, "foundation.seed=3", method="fedavg").digest
    assert founded(project).digest != founded(project, "foundation.seed=3").digest


def test_foundation_layers_at_every_depth(project):
    """The section, the stream's own, and `--set`; the network's options go with the network."""
    plain = foundation(project)
    assert (plain.general, plain.seed, plain.pretraining.epochs) == (("parity", "above_four"), 0, 10)
    assert plain.network == {"name": "mlp", "width": 40, "depth": 1}
    mine = foundation(project, "foundation.seed=3", "foundation.pretraining.epochs=4", "foundation.network.width=9")
    assert (mine.seed, mine.pretraining.epochs, mine.pretraining.learning_rate) == (3, 4, 0.005)
    assert (mine.network["width"], mine.network["depth"], mine.general) == (9, 1, plain.general)
    own = ("streams.digits.foundation.pretraining.epochs=5", "streams.digits.foundation.seed=6")
    assert (foundation(project, *own).pretraining.epochs, foundation(project, *own).seed) == (5, 6)
    assert foundation(project, *own).pretraining.learning_rate == 0.005
    assert foundation(project, *own, stream="own") == plain, "another stream's"
    assert foundation(project, *own, "foundation.seed=7").seed == 7, "--set foundation wins"
    assert foundation(project, "foundation.network.name=cnn").network["name"] == "cnn"
    assert "depth" not in foundation(project, "foundation.network.name=cnn").network
    assert foundation(project, "foundation.general=[]").general == ()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("foundation=1", r"--set foundation: expected a single key, not a whole section"),
        ("foundation.sources=1", r"no key 'foundation\.sources'; did you mean source"),
        ("foundation.seed=-1", r"foundation\.seed must be at least 0 \(got -1\)"),
        ("foundation.seed.x=1", r"no key 'foundation\.seed\.x': 'seed' has no keys below it"),
        ("foundation.size=7", r"foundation\.size must be at least 8 \(got 7\)"),
        ("foundation.source=keras:vgg", r"foundation\.source must be 'pretrain', .*\(got 'keras:vgg'\)"),
        ("foundation.source=timm", r"must be 'pretrain', 'timm:NAME', 'torchvision:NAME' or 'hf:PATH_OR_NAME' \(got"),
        ("foundation.source='timm:'", r"foundation\.source must be 'pretrain', .*\(got 'timm:'\)"),
        ("foundation.general=parity", r"foundation\.general must be a list \(got 'parity'\)"),
        ("foundation.general=[1]", r"foundation\.general must be a text \(got 1\)"),
        ("foundation.general=[a, a]", r"foundation\.general must name each task once, and has 'a' again"),
        ("foundation.general=[type]", r"foundation\.general cannot have a task 'type': PyTorch keeps this name"),
        ("foundation.general=[a.b]", r"foundation\.general cannot have a task 'a\.b'"),
        ("foundation.network=cnn", r"foundation\.network: expected a section of keys \(got 'cnn'\)"),
        ("foundation.network.name=cnnn", r"foundation\.network\.name: no model 'cnnn'; did you mean cnn"),
        ("foundation.network.name=3", r"foundation\.network\.name: expected the name of a network \(got 3\)"),
        ("foundation.network.widht=3", r"foundation\.network\.widht: model 'mlp' has no option 'widht'; did you mean"),
        ("foundation.network.width=0", r"foundation\.network\.width must be at least 1 \(got 0\)"),
        ("foundation.network.width.x=1", r"'width' has no keys below it"),
        ("foundation.pretraining=1", r"foundation\.pretraining must be a section of keys \(got 1\)"),
        ("foundation.pretraining.epoch=1", r"no key 'foundation\.pretraining\.epoch'; did you mean epochs"),
        ("foundation.pretraining.epochs=0", r"foundation\.pretraining\.epochs must be at least 1 \(got 0\)"),
        ("foundation.pretraining.epochs.x=1", r"'epochs' has no keys below it"),
        ("streams.digits.foundation.network.widht=3", r"foundation\.network\.widht: .*did you mean width"),
        ("streams.digits.foundation.sed=3", r"no key '.*foundation\.sed'; did you mean seed"),
        ("streams.digits.public=0", r"streams\.digits\.public must be greater than 0 for large_small \(got 0\)"),
        ("streams.digits.foundation=3", r"streams\.digits\.foundation: expected a section of keys \(got 3\)"),
    ],
)
def test_a_bad_foundation_is_refused(project, key, message):
    for method in ("large_small", *["fedavg"] * key.startswith("foundation")):  # set in vain, and still checked
        with pytest.raises(InputError, match=message) as caught:
            founded(project, key, method=method)
    assert "\n" not in str(caught.value)


def test_the_network_is_checked_where_a_released_one_takes_its_place(project):
    """Nobody sets a key in vain."""
    with pytest.raises(InputError, match=r"foundation\.network\.widht"):
        founded(project, "foundation.source=timm:test_vit", "foundation.network.widht=3")
