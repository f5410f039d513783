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
