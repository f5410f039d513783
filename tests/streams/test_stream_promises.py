"""What a stream promises, for any settings: checked on small random sources."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from errors import InputError
from streams.parameters import StreamParameters
from streams.partition import apportion, shares
from streams.stream import Stream, build, open_stream


@dataclass
class Built:
    stream: Stream
    parameters: StreamParameters
    root: Path

    @property
    def cells(self) -> list[tuple[int, int]]:
        return [(i, t) for i in range(self.stream.clients) for t in range(self.stream.experiences)]


def write_source(folder: Path, labels: list[int], test_labels: list[int] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("train", labels), ("test", test_labels)):
        if values is not None:
            images = [[[label % 256, row % 256]] for row, label in enumerate(values)]
            pq.write_table(pa.table({"image": images, "label": values}), folder / f"{name}.parquet")


def build_or_reject(name: str, parameters: StreamParameters, root: Path) -> Stream:
    """Some draws cannot be: a client is left empty, min_share is out of reach. Errors have tests of their own."""
    try:
        return build(name, parameters, root)
    except InputError:
        reject()


@st.composite
def streams(draw, **fixed) -> Built:
    sizes = draw(st.lists(st.integers(1, 40), min_size=2, max_size=6))
    labels = np.repeat(np.arange(len(sizes)), sizes).tolist()
    labels = draw(st.permutations(labels))
    with_test = draw(st.booleans())
    root = Path(tempfile.mkdtemp(dir=streams.folder))
    write_source(root / "raw", labels, sorted(labels)[::3] if with_test else None)
    clients = draw(st.integers(1, 6))
    settings = {
        "source": "parquet:raw",
        "classes": len(sizes),
        "clients": clients,
        "experiences": draw(st.integers(1, len(sizes))),
        "order": draw(st.sampled_from(["shared", "own"])),
        "partition": {
            "kind": draw(st.sampled_from(["iid", "dirichlet"])),
            "alpha": draw(st.floats(0.2, 10)),
            "min_share": draw(st.floats(0, 0.4)) / clients,
        },
        "public": draw(st.sampled_from([0.0, 0.1, 0.25, 0.5])),
        "test": draw(st.floats(0.05, 0.6)),
        "seed": draw(st.integers(0, 1000)),
    }
    parameters = StreamParameters(**(settings | fixed))
    return Built(build_or_reject("drawn", parameters, root), parameters, root)


@pytest.fixture(autouse=True, scope="module")
def scratch(tmp_path_factory):
    streams.folder = tmp_path_factory.mktemp("streams")


def quick(examples: int) -> settings:
    slow = [HealthCheck.filter_too_much, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=slow)


# One stream is drawn for all promises: to build it takes longer than to look whether it keeps them.
@quick(60)
@given(streams())
def test_a_stream_keeps_its_promises(built):
    every_sample_is_in_exactly_one_place(built)
    lookups_agree_with_the_manifest(built)
    every_class_is_where_the_scenario_puts_it(built)
    each_client_meets_every_class_once_in_parts_of_equal_size(built)
    if built.parameters.order == "shared":
        shared_order_is_one_order(built)
    every_client_trains_and_gets_its_least_share_of_every_class(built)
    public_and_test_samples_are_the_fractions_asked_for(built)


def every_sample_is_in_exactly_one_place(built):
    stream = built.stream
    places = [stream.train(*cell) for cell in built.cells] + [stream.test(*cell) for cell in built.cells]
    samples = np.concatenate([*places, stream.public()])
    assert np.array_equal(np.sort(samples), np.arange(len(stream.labels)))


def lookups_agree_with_the_manifest(built):
    stream = built.stream
    frame = pq.read_table(built.root / "built/streams/drawn/manifest.parquet").to_pandas()

    def rows(split, experiences, clients=range(stream.clients)):
        chosen = (frame["split"] == split) & frame["experience"].isin(experiences) & frame["client"].isin(clients)
        return frame["sample"][chosen].sort_values().tolist()

    for client, experience in built.cells:
        assert stream.train(client, experience).tolist() == rows("train", [experience], [client])
        assert stream.test(client, experience).tolist() == rows("test", [experience], [client])
    for experience in range(stream.experiences):
        assert stream.test(None, experience).tolist() == rows("test", [experience])
        assert stream.all_train(experience).tolist() == rows("train", range(experience + 1))
    assert stream.public().tolist() == rows("public", [-1], [-1])


def every_class_is_where_the_scenario_puts_it(built):
    stream = built.stream
    for client, experience in built.cells:
        held = np.concatenate([stream.train(client, experience), stream.test(client, experience)])
        assert set(stream.labels[held]) <= set(stream.classes_of(client, experience))


def each_client_meets_every_class_once_in_parts_of_equal_size(built):
    stream = built.stream
    for client in range(stream.clients):
        parts = [stream.classes_of(client, experience) for experience in range(stream.experiences)]
        assert sorted(sum(parts, ())) == list(range(stream.classes))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert stream.seen(client, stream.experiences - 1) == tuple(range(stream.classes))
    for experience in range(stream.experiences):
        seen = set().union(*(stream.seen(client, experience) for client in range(stream.clients)))
        assert stream.seen_by_all(experience) == tuple(sorted(seen))


def shared_order_is_one_order(built):
    stream = built.stream
    assert all(stream.classes_of(i, t) == stream.classes_of(0, t) for i, t in built.cells)


def every_client_trains_and_gets_its_least_share_of_every_class(built):
    stream, least = built.stream, built.parameters.partition.min_share
    own = [np.concatenate([stream.train(i, t) for t in range(stream.experiences)]) for i in range(stream.clients)]
    counts = np.stack([np.bincount(stream.labels[samples], minlength=stream.classes) for samples in own])
    assert counts.sum(axis=1).min() > 0
    assert (counts > least * counts.sum(axis=0) - 1).all()


def public_and_test_samples_are_the_fractions_asked_for(built):
    stream, parameters = built.stream, built.parameters
    test = sum(len(stream.test(None, t)) for t in range(stream.experiences))
    brought = (built.root / "raw/test.parquet").exists()
    if not brought:
        assert test == round(parameters.test * len(stream.labels))
    assert len(stream.public()) == round(parameters.public * (len(stream.labels) - test))


@quick(20)
@given(streams())
def test_the_same_parameters_give_the_same_stream(built):
    digest = built.stream.digest
    assert build("again", built.parameters, built.root).digest == digest
    assert open_stream("drawn", built.root).digest == digest
    other = built.parameters.model_copy(update={"seed": built.parameters.seed + 1})
    assert build_or_reject("other", other, built.root).digest != digest


@given(st.integers(0, 500), st.integers(1, 30), st.floats(0.02, 50), st.integers(0, 99))
def test_apportioned_counts_add_up_and_are_off_by_less_than_one(total, clients, alpha, seed):
    generator = np.random.default_rng(seed)
    share = generator.dirichlet(np.full(clients, alpha))
    counts = apportion(total, share, generator)
    assert counts.sum() == total
    assert np.abs(counts - total * share).max() < 1 + 1e-9


def test_large_alpha_is_nearly_iid_and_small_alpha_is_not():
    def spread(alpha: float) -> float:
        partition = {"kind": "dirichlet", "alpha": alpha}
        parameters = StreamParameters(source="digits", clients=10, experiences=1, partition=partition)
        generator = np.random.default_rng(0)
        return float(np.mean([shares(parameters, np.arange(10), generator).max() for _ in range(50)]))

    assert spread(100) < 0.15 < 0.5 < spread(0.1)


def test_the_first_clients_do_not_get_all_the_odd_samples(tmp_path):
    write_source(tmp_path / "raw", [label for label in range(40) for _ in range(6)], test_labels=[0])
    stream = build("odd", StreamParameters(source="parquet:raw", clients=5, experiences=1), tmp_path)
    counts = [len(stream.train(client, 0)) for client in range(5)]  # 6 of each of 40 classes: one is odd in each
    assert sum(counts) == 240 and max(counts) - min(counts) < 20
