"""Settings of scenarios, partitions and growth that cannot be are refused in one sentence; named streams can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from errors import InputError
from parameters import read, stream_parameters
from streams.deal import deal
from streams.parameters import StreamParameters
from streams.partition import apportion_rows
from streams.picture import draw
from streams.plan import EVERY, Plan
from streams.promises import check
from streams.scenario import plan
from streams.stream import build
from validation import checked

ROOT = Path(__file__).resolve().parents[2]
ROTATION = {"scenario": "domain-incremental", "domain": {"kind": "rotation"}}
NATURAL = {"kind": "natural"}

SETTINGS = [
    ({"scenario": "data-incremental"}, "s.scenario must be 'class-incremental', 'task-incremental'"),
    ({"scenario": "domain-incremental"}, "needs the section domain"),
    ({"scenario": "domain-incremental", "domain": {}}, "s.domain.kind is missing (rotation: turned further"),
    (
        {"scenario": "domain-incremental", "domain": {"kind": "shear"}},
        "s.domain.kind must be 'rotation', 'permutation'",
    ),
    ({"scenario": "domain-incremental", "domain": {"kind": "rotation", "angel": 3}}, "did you mean angle?"),
    (
        {"scenario": "domain-incremental", "domain": {"kind": "rotation", "angle": 361}},
        "s.domain.angle must be at most",
    ),
    ({"scenario": "domain-incremental", "domain": {"kind": "corruption", "severity": 0}}, "must be greater than 0"),
    ({"domain": {"kind": "rotation"}}, "domain is for scenario 'domain-incremental' only (scenario is 'class-incre"),
    ({"overlap": True}, "overlap is for scenario 'domain-incremental' only"),
    ({"overlap": 2} | ROTATION, "s.overlap must be true or false"),
    ({"blurry": {"blur": 0.1}}, "blurry is for scenario 'blurry' only"),
    ({"scenario": "blurry", "blurry": {"blur": 1}}, "s.blurry.blur must be less than 1"),
    ({"scenario": "blurry", "blurry": {"disjoint": 1.1}}, "s.blurry.disjoint must be at most 1"),
    ({"private": 1} | ROTATION, "private classes need a scenario whose experiences bring classes"),
    ({"private": -1}, "s.private must be at least 0"),
    ({"lag": 1.5}, "s.lag must be at most 1 (got 1.5)"),
    ({"lag": True}, "s.lag must be a number"),
    ({"growth": {"initial": 0}}, "s.growth.initial must be 'all' or at least 1 (got 0)"),
    ({"growth": {"initial": 4}}, "growth.initial 4 is more than the 3 clients"),
    ({"growth": {"join": 1}}, "growth.join 1: all 3 clients are there from the beginning; lower growth.initial"),
    ({"growth": {"initial": 1, "join": 1}}, "growth: only 2 of 3 clients ever join"),
    ({"growth": {"leave": -1}}, "s.growth.leave must be at least 0"),
    ({"partition": {"kind": "classes"}}, "needs per_client, the classes of each experience that a client holds"),
    ({"partition": {"kind": "classes", "per_client": 0}}, "s.partition.per_client must be at least 1"),
    ({"partition": {"kind": "quantity", "sigma": -1}}, "s.partition.sigma must be at least 0"),
    ({"partition": NATURAL, "private": 1}, "partition natural: the source says who holds a class"),
    ({"partition": NATURAL, "scenario": "self-centred"}, "partition natural: the source says who holds a class"),
    ({"partition": NATURAL, "growth": {"leave": 1}}, "partition natural with growth needs order own"),
]


@pytest.mark.parametrize(("wrong", "said"), SETTINGS, ids=[said[:40] for _, said in SETTINGS])
def test_settings_that_cannot_be_are_refused_in_one_sentence(wrong, said):
    with pytest.raises(InputError) as caught:
        checked(StreamParameters, {"source": "digits", "clients": 3, "experiences": 2} | wrong, "s")
    assert said in str(caught.value) and "\n" not in str(caught.value)


UNFIT = [
    (
        {"private": 3},
        "private 3 classes for each of 3 clients are more than the 8 classes of parquet:raw; it can be at",
    ),
    ({"private": 2, "experiences": 5}, "experiences 5 is more than the 4 classes that a client meets"),
    ({"scenario": "self-centred", "clients": 9}, "8 classes are too few for 9 clients to have one each"),
    ({"scenario": "blurry", "experiences": 9}, "experiences 9 is more than the 8 classes"),
    (
        {"partition": {"kind": "classes", "per_client": 1}},
        "is held by no client: 3 clients hold partition.per_client 1",
    ),
    ({"partition": NATURAL}, "partition natural: parquet:raw does not say whose a sample is; set client"),
    ({"partition": NATURAL, "client": "who", "clients": 3}, "clients 3: parquet:raw has the samples of 4 clients"),
]


@pytest.mark.parametrize(("wrong", "said"), UNFIT, ids=[said[:40] for _, said in UNFIT])
def test_settings_that_do_not_fit_the_source_are_refused_and_nothing_is_written(tmp_path, wrong, said):
    (tmp_path / "raw").mkdir()
    columns = {
        "image": [[[row]] for row in range(80)],
        "label": [row % 8 for row in range(80)],
        "who": [0, 1, 2, 3] * 20,
    }
    pq.write_table(pa.table(columns), tmp_path / "raw/train.parquet")
    with pytest.raises(InputError) as caught:
        build("s", StreamParameters(**({"source": "parquet:raw", "clients": 3, "experiences": 2} | wrong)), tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "built/streams").exists()


def test_texts_have_no_domains(tmp_path):
    rows = "\n".join(f'"{1 + row % 2}","title {row}","words"' for row in range(40))
    (tmp_path / "news.csv").write_text(rows + "\n")
    with pytest.raises(InputError, match=r"domain-incremental changes images, and csv:news\.csv has none"):
        build("s", StreamParameters(source="csv:news.csv", clients=1, experiences=2, **ROTATION), tmp_path)
    stream = build("t", StreamParameters(source="csv:news.csv", clients=1, experiences=2, length=16), tmp_path)
    assert stream.modality == "text" and stream.load(stream.train(0, 0))[0].shape[1:] == (16,)


def broken(change: dict, **others) -> str:
    """What the check says of a manifest over 8 classes of 40 samples in which one row is changed as told."""
    options = StreamParameters(**({"source": "digits", "clients": 4, "experiences": 3, "public": 0.1} | others))
    labels = np.arange(320) % 8
    groups = (np.arange(320) // 8) % 4 if options.partition.kind == "natural" else None
    made = plan(options, 8)
    good = deal(labels, None, made, options, groups)
    check(good, labels, made, options.overlap, groups)
    (row,) = np.flatnonzero(change.pop("where")(good, made))[:1]
    bad = {name: values.copy() for name, values in good.items()}
    for name, value in change.items():
        bad[name][row] = value(good, row, made) if callable(value) else value
    with pytest.raises(InputError) as caught:
        check(bad, labels, made, options.overlap, groups)
    assert "(first at row " in str(caught.value)
    return str(caught.value)


def training(good: dict, made: Plan) -> np.ndarray:
    return good["split"] == 0


def another(good: dict, row: int, made: Plan) -> int:
    return (good["client"][row] + 1) % made.clients


def test_the_manifest_check_knows_every_scenarios_promises():
    permuted = {"scenario": "domain-incremental", "domain": {"kind": "permutation"}}
    said = broken({"where": training, "domain": lambda good, row, made: (good["domain"][row] + 1) % 3}, **permuted)
    assert said.startswith("stream manifest: a domain is not the one of its client and experience")
    said = broken({"where": lambda good, made: good["split"] == 2, "domain": 1}, **permuted)
    assert "a domain is not the one of its client and experience" in said
    said = broken({"where": training, "split": 1}, **permuted, overlap=True)
    assert "a sample is given to two clients or splits" in said
    said = broken({"where": training, "client": another}, **permuted, overlap=True)
    assert "a sample is given to two clients or splits" in said
    said = broken({"where": training, "experience": 2}, **permuted, overlap=True)
    assert "a sample is given to two clients, experiences or splits" in said

    def tested_and_blurred(good: dict, made: Plan) -> np.ndarray:
        return (good["split"] == 1) & (made.blur[good["label"]] > 0)

    elsewhere = {"experience": lambda good, row, made: (good["experience"][row] + 1) % 3}
    said = broken({"where": tested_and_blurred} | elsewhere, scenario="blurry")
    assert "a class is not in the experience where the scenario puts it" in said
    said = broken({"where": training} | elsewhere, scenario="blurry", blurry={"disjoint": 1.0})
    assert "a class is not in the experience where the scenario puts it" in said
    said = broken({"where": training, "client": another}, scenario="self-centred", experiences=2)
    assert "a class is held by a client that never meets it" in said
    growth = {"growth": {"initial": 1, "join": 1}, "clients": 3}

    def first(good: dict, made: Plan) -> np.ndarray:
        return training(good, made) & (good["experience"] == 0)

    late = {"client": lambda good, row, made: int(np.flatnonzero(made.first == 2)[0])}
    assert "a client holds a sample of an experience when it is absent" in broken({"where": first} | late, **growth)
    said = broken({"where": training, "client": another}, partition=NATURAL)
    assert "a sample is not with the client it belongs to" in said


def test_a_sample_that_nobody_has_is_missed():
    options = StreamParameters(source="digits", clients=2, experiences=2)
    labels = np.arange(80) % 4
    made = plan(options, 4)
    good = deal(labels, None, made, options)
    with pytest.raises(InputError, match="stream manifest: sample 7 is given to nobody"):
        check({name: np.delete(values, 7) for name, values in good.items()}, labels, made)


def test_blur_reaches_clients_with_a_single_sample():
    counts = apportion_rows(np.ones(1000, np.int64), np.tile([0.7, 0.2, 0.1], (1000, 1)), np.random.default_rng(0))
    assert (counts.sum(axis=1) == 1).all()
    assert np.abs(counts.sum(axis=0) - [700, 200, 100]).max() <= 1


def test_a_joining_client_of_an_own_order_meets_all_its_classes_in_its_stay():
    options = StreamParameters(
        source="digits", clients=4, experiences=4, order="own", growth={"initial": 1, "join": 1, "leave": 0}
    )
    made = plan(options, 10)
    for client in range(4):
        assert set(made.home[client]) == set(range(made.first[client], 4))
    shared = plan(options.model_copy(update={"order": "shared"}), 10)
    assert len(shared.home) == 1 and not shared.met(int(np.argmax(shared.first)), 3).all()


def test_equal_rows_are_kept_once_whatever_the_number_of_clients():
    for scenario in ({}, ROTATION, {"scenario": "blurry"}):
        made = plan(StreamParameters(source="digits", clients=5000, experiences=4, **scenario), 10)
        assert made.home.shape == (1, 10) and made.domain.shape == (1, 4)
    assert (plan(StreamParameters(source="digits", clients=2, experiences=4, **ROTATION), 10).home == EVERY).all()


PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
CLIENTS = {"digits-single": 1, "digits-tuning": 20, "digits-tuning-single": 20}
CLIENTS |= dict.fromkeys((f"digits-tasks{kind}" for kind in ("", "-small", "-even", "-foundation", "-stream")), 10)
CLIENTS |= {"digits-tasks-30": 30} | {f"digits-pairs-{count}": 2 * tasks for count, tasks in ((2, 2), (4, 4), (6, 5))}
NAMED = [name for name in PARAMS["streams"] if name.startswith("digits")]


@pytest.mark.parametrize("name", NAMED)
def test_the_named_digits_streams_are_built_and_drawn(tmp_path, name):
    stream = build(name, stream_parameters(PARAMS, name), tmp_path)
    assert stream.clients == CLIENTS.get(name, 5)
    assert stream.task_aware == (name in ("digits-task", "digits-tuning"))
    assert stream.summary()["train"].sum() == stream.describe()["train"].sum()
    draw(stream, tmp_path / "stream.png")
    assert (tmp_path / "stream.png").read_bytes().startswith(b"\x89PNG")


def test_the_large_small_protocol_is_the_one_of_the_paper():
    given = stream_parameters(read(ROOT), "cifar100-large-small")
    made = plan(given, 100)
    assert given.clients == 5 and (given.partition.alpha, given.partition.min_share) == (1.0, 0.1)
    holders = (made.home >= 0).sum(axis=0)
    assert (holders == 1).sum() == 5 * 15 and (holders == 5).sum() == 25
    for client in range(5):
        assert [int(made.within(client, experience).sum()) for experience in range(5)] == [8] * 5
        assert (made.home[client][holders == 1] >= 0).sum() == 15
    assert len(np.unique(made.home[:, holders == 5], axis=0)) == 5  # each in an order of its own


def test_the_samples_of_an_experience_are_shared_among_those_that_are_there(tmp_path):
    growth = {"initial": 2, "join": 1, "leave": 0}
    partition = {"kind": "quantity", "sigma": 0.7}
    given = StreamParameters(source="digits", clients=4, experiences=4, partition=partition, growth=growth, **ROTATION)
    table = build("s", given, tmp_path).describe()["train"].unstack()
    total = table.sum(axis=0)
    assert total.max() - total.min() < 0.15 * total.mean()  # as many samples for two clients as for four
    steady = build("steady", given.model_copy(update={"growth": None}), tmp_path).describe()["train"]
    weights = steady.groupby("client").sum() / steady.sum()
    assert weights.max() > 2 * weights.min()
    for experience in range(4):
        there = table[experience] > 0
        assert there.sum() == min(4, 2 + experience)
        wanted = weights[there] / weights[there].sum()
        assert np.abs(table[experience][there] / total[experience] - wanted).max() < 0.05
