"""Every scenario x partition x growth, with random settings: the manifest's promises, said again without the plan."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from streams.parameters import StreamParameters
from streams.stream import Stream, build, open_stream

SCENARIOS = ["class-incremental", "task-incremental", "domain-incremental", "blurry", "self-centred"]
PARTITIONS = ["iid", "dirichlet", "classes", "quantity", "natural"]
DOMAINS = [
    {"kind": "rotation", "angle": 180},
    {"kind": "permutation"},
    *({"kind": "corruption", "corruption": kind} for kind in ("noise", "blur", "contrast", "pixelate")),
]


@dataclass
class Drawn:
    stream: Stream
    frame: pandas.DataFrame  # the manifest as written
    labels: np.ndarray  # of the source
    owner: np.ndarray  # by nature
    is_test: np.ndarray | None

    @property
    def settings(self) -> StreamParameters:
        return self.stream.parameters

    @property
    def held(self) -> pandas.DataFrame:
        return self.frame[self.frame.split != "public"]


def write_source(folder: Path, labels: np.ndarray, owner: np.ndarray, is_test: np.ndarray | None, seed: int) -> None:
    folder.mkdir()
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 6, 5)).tolist()
    table = pa.table({"image": images, "label": labels, "who": owner})
    for name, chosen in {"train": ~is_test, "test": is_test}.items() if is_test is not None else [("train", None)]:
        pq.write_table(table if chosen is None else table.filter(pa.array(chosen)), folder / f"{name}.parquet")


@st.composite
def streams(draw, scenario: str, partition: str, growing: bool) -> Drawn:
    clients = draw(st.integers(2, 5))
    sizes = draw(st.lists(st.integers(12, 40), min_size=3, max_size=12))
    experiences = draw(st.integers(1, 5 if scenario == "domain-incremental" else min(5, len(sizes))))
    seed = draw(st.integers(0, 10**6))
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    owner = generator.integers(0, clients, len(labels))
    is_test = None
    if draw(st.booleans()):  # the source's own test split comes last, as in its files
        is_test = np.arange(len(labels)) >= 0.7 * len(labels)
    root = Path(tempfile.mkdtemp(dir=streams.folder))
    write_source(root / "raw", labels, owner, is_test, seed)
    options = {
        "source": "parquet:raw",
        "client": "who" if partition == "natural" else None,
        "classes": len(sizes),
        "scenario": scenario,
        "clients": clients,
        "experiences": experiences,
        "order": draw(st.sampled_from(["shared", "own"])),
        "partition": {
            "kind": partition,
            "alpha": draw(st.floats(0.3, 10)),
            "min_share": draw(st.sampled_from([0.0, 0.05])),
            "per_client": draw(st.integers(1, 4)),
            "sigma": draw(st.floats(0, 1)),
        },
        "public": draw(st.sampled_from([0.0, 0.2])),
        "test": draw(st.floats(0.2, 0.5)),
        "lag": draw(st.floats(0, 1)),
        "seed": draw(st.integers(0, 1000)),
    }
    if scenario == "domain-incremental":
        options |= {"domain": draw(st.sampled_from(DOMAINS)), "overlap": draw(st.booleans())}
    if scenario == "blurry":
        options["blurry"] = {"disjoint": draw(st.floats(0, 1)), "blur": draw(st.floats(0.01, 0.9))}
    if scenario in ("class-incremental", "self-centred") and partition != "natural":
        options["private"] = draw(st.integers(0, len(sizes) // clients))
    if growing:
        initial = draw(st.integers(1, clients))
        join = 0
        if initial < clients:
            assume(experiences > 1)
            join = draw(st.integers(-(-(clients - initial) // (experiences - 1)), clients))
        options["growth"] = {"initial": initial, "join": join, "leave": draw(st.integers(0, 2))}
    try:
        stream = build("drawn", StreamParameters(**options), root)
    except ValueError as error:  # some draws cannot be; each refusal has a test of its own
        known = ("is left with no training", "has no test sample", "held by no client", "min_share", "more than the")
        known += ("too few for", "needs order own", "can be private", "has the samples of")
        assert any(part in str(error) for part in known), error
        assume(False)
    frame = pq.read_table(root / "built/streams/drawn/manifest.parquet").to_pandas()
    return Drawn(stream, frame, labels, owner, is_test)


@pytest.fixture(autouse=True, scope="module")
def scratch(tmp_path_factory):
    streams.folder = tmp_path_factory.mktemp("scenarios")


@pytest.mark.parametrize("growing", [False, True], ids=["steady", "growing"])
@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_manifest_keeps_its_promises(scenario, partition, growing):
    if partition == "natural" and scenario == "self-centred":
        pytest.skip("refused: the source says who holds a class")
    checked = 0

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
    @given(streams(scenario, partition, growing))
    def check(drawn: Drawn) -> None:
        nonlocal checked
        checked += 1
        every_sample_is_in_one_place(drawn)
        train_and_test_are_the_ones_asked_for(drawn)
        clients_join_and_leave_once(drawn)
        domains_are_as_said(drawn)
        if scenario != "domain-incremental":
            classes_have_one_home(drawn)
            private_classes_are_private(drawn)
        PROMISES_OF_PARTITION[partition](drawn)
        lookups_agree(drawn)

    check()
    assert checked >= 3, "nearly all draws were refused"


def every_sample_is_in_one_place(drawn: Drawn) -> None:
    frame = drawn.frame
    assert sorted(frame["sample"].unique()) == list(range(len(drawn.labels)))
    assert not frame.duplicated(["sample", "experience"]).any()
    assert drawn.settings.overlap or frame["sample"].tolist() == list(range(len(drawn.labels)))  # row = sample
    assert (frame.groupby("sample")[["client", "split"]].nunique() == 1).all().all()
    assert (frame["label"] == drawn.labels[frame["sample"]]).all()
    public = frame["split"] == "public"
    assert (frame[public][["client", "experience"]] == -1).all().all() and (frame[public]["domain"] == 0).all()
    assert frame[~public]["client"].between(0, drawn.stream.clients - 1).all()
    assert frame[~public]["experience"].between(0, drawn.stream.experiences - 1).all()


def train_and_test_are_the_ones_asked_for(drawn: Drawn) -> None:
    frame = drawn.frame.drop_duplicates("sample")
    tested = (frame["split"] == "test").to_numpy()
    if drawn.is_test is not None:
        assert np.array_equal(tested, drawn.is_test)
    else:
        assert tested.sum() == round(drawn.settings.test * len(frame))
    assert (frame["split"] == "public").sum() == round(drawn.settings.public * (~tested).sum())
    assert set(drawn.held[drawn.held.split == "train"]["client"]) == set(range(drawn.stream.clients))
    assert set(drawn.held[drawn.held.split == "test"]["experience"]) == set(range(drawn.stream.experiences))


def clients_join_and_leave_once(drawn: Drawn) -> None:
    stream, growth = drawn.stream, drawn.settings.growth
    there = np.array(
        [[stream.present(i, t) for t in range(stream.experiences)] for i in range(stream.clients)], dtype=int
    )
    assert there.any(axis=0).all() and there.any(axis=1).all()
    change = np.diff(there, axis=1)
    if growth is None:
        assert there.all()
    else:
        assert there[:, 0].sum() == growth.initial
        assert ((change == 1).sum(axis=0) <= growth.join).all() and ((change == -1).sum(axis=0) <= growth.leave).all()
        assert not ((change == 1).any(axis=1) & (there[:, 0] == 1)).any(), "a client came back"
        assert ((change == 1).sum(axis=1) <= 1).all()
        waiting = stream.clients - growth.initial
        for joined in (change == 1).sum(axis=0):
            assert joined == min(growth.join, waiting)
            waiting -= joined
    assert there[drawn.held["client"], drawn.held["experience"]].all()
    lags = [stream.lag(client) for client in range(stream.clients)]
    assert min(lags) == 0 and max(lags) <= drawn.settings.lag


def domains_are_as_said(drawn: Drawn) -> None:
    held, stream = drawn.held, drawn.stream
    if drawn.settings.domain is None:
        assert (held["domain"] == 0).all()
        return
    assert (held.groupby(["client", "experience"])["domain"].nunique() == 1).all()
    assert (held.groupby(["client", "domain"])["experience"].nunique() == 1).all()
    if drawn.settings.order == "shared":
        assert (held["domain"] == held["experience"]).all()
    if drawn.settings.overlap:
        for client, own in held.groupby("client"):
            stay = sum(stream.present(client, t) for t in range(stream.experiences))
            assert (own.groupby("sample").size() == stay).all()


def classes_have_one_home(drawn: Drawn) -> None:
    held, blurry, stream = drawn.held, drawn.settings.blurry, drawn.stream
    tests, trains = held[held.split == "test"], held[held.split == "train"]
    still = tests if blurry else held
    assert (still.groupby(["client", "label"])["experience"].nunique() == 1).all()
    if drawn.settings.order == "shared" and not private_of(drawn):
        assert (still.groupby("label")["experience"].nunique() == 1).all()
    if blurry is None:
        return
    home = tests.groupby(["client", "label"])["experience"].first()
    if drawn.settings.order == "shared":
        first = tests.groupby("label")["experience"].first()
        home = pandas.Series({(i, k): first[k] for i in range(stream.clients) for k in first.index})
    away: dict[int, int] = defaultdict(int)
    for (client, label), own in trains.groupby(["client", "label"]):
        if (client, label) in home.index:
            outside = (own["experience"] != home[client, label]).sum()
            away[label] += outside
            if drawn.settings.growth is None and outside and stream.experiences > 1:
                assert abs(outside - blurry.blur * len(own)) < 1 + 1e-6
    sharp = round(blurry.disjoint * stream.classes)
    assert sum(count > 0 for count in away.values()) <= stream.classes - sharp


def private_of(drawn: Drawn) -> int:
    if drawn.settings.scenario == "self-centred" and not drawn.settings.private:
        return drawn.stream.classes // drawn.stream.clients
    return drawn.settings.private


def private_classes_are_private(drawn: Drawn) -> None:
    stream, private = drawn.stream, private_of(drawn)
    if not private or drawn.settings.partition.kind == "classes":
        return
    met = [set(stream.seen(client, stream.experiences - 1)) for client in range(stream.clients)]
    public = set.intersection(*met)
    assert len(public) == stream.classes - private * stream.clients
    assert all(len(own - public) == private for own in met)
    assert len(set().union(*met)) == stream.classes
    holders = drawn.held.groupby("label")["client"].agg(set)
    assert all(holders[label] == {client} for client, own in enumerate(met) for label in own - public)


def counts_of(drawn: Drawn) -> np.ndarray:
    """(clients, classes) training samples."""
    trains = drawn.held[drawn.held.split == "train"].drop_duplicates("sample")
    return np.histogram2d(
        trains["client"], trains["label"], [np.arange(drawn.stream.clients + 1), np.arange(drawn.stream.classes + 1)]
    )[0]


def holds(drawn: Drawn) -> np.ndarray:
    """(clients, classes) bool: the client may hold the class."""
    last = drawn.stream.experiences - 1
    seen = [drawn.stream.seen(client, last) for client in range(drawn.stream.clients)]
    return np.array([[label in own for label in range(drawn.stream.classes)] for own in seen])


def alike(drawn: Drawn) -> bool:
    """Whether all holders of a class are there whenever it is shared out."""
    return drawn.settings.growth is None or drawn.settings.scenario not in ("blurry", "domain-incremental")


def equal_shares(drawn: Drawn) -> None:
    if alike(drawn):
        counts, may = counts_of(drawn), holds(drawn)
        assert (counts[~may] == 0).all()
        for label in range(drawn.stream.classes):
            own = counts[may[:, label], label]
            assert own.max() - own.min() <= 1


def few_classes(drawn: Drawn) -> None:
    equal_shares(drawn)
    most = drawn.settings.partition.per_client
    domains = drawn.settings.scenario == "domain-incremental"
    for client in range(drawn.stream.clients):
        own = drawn.held[drawn.held.client == client]
        own = own[own.split == "test"] if drawn.settings.blurry else own
        assert (
            own["label"].nunique() <= most if domains else (own.groupby("experience")["label"].nunique() <= most).all()
        )
    assert holds(drawn).any(axis=0).all()


def least_shares(drawn: Drawn) -> None:
    least = drawn.settings.partition.min_share
    if alike(drawn):
        counts, may = counts_of(drawn), holds(drawn)
        assert (counts[may] > np.broadcast_to(least * counts.sum(axis=0), counts.shape)[may] - 1).all()


def weighted_shares(drawn: Drawn) -> None:
    if alike(drawn):
        counts, may = counts_of(drawn), holds(drawn)
        whole = np.flatnonzero(may.all(axis=0))  # for these, the same shares
        parts, room = counts[:, whole] / counts[:, whole].sum(axis=0), 1 / counts[:, whole].sum(axis=0)
        for one, other in zip(range(len(whole)), range(1, len(whole)), strict=False):
            assert (np.abs(parts[:, one] - parts[:, other]) <= room[one] + room[other] + 1e-9).all()


def natural_owners(drawn: Drawn) -> None:
    assert (drawn.held["client"] == drawn.owner[drawn.held["sample"]]).all()


PROMISES_OF_PARTITION = {
    "iid": equal_shares,
    "dirichlet": least_shares,
    "classes": few_classes,
    "quantity": weighted_shares,
    "natural": natural_owners,
}


def lookups_agree(drawn: Drawn) -> None:
    stream = drawn.stream
    frame = {name: drawn.frame[name].to_numpy() for name in ("experience", "client", "label", "domain", "sample")}
    is_split = {name: (drawn.frame["split"] == name).to_numpy() for name in ("train", "test", "public")}
    again = open_stream("drawn", stream._root)
    assert again.digest == stream.digest
    for experience in range(stream.experiences):
        now = frame["experience"] == experience
        so_far: set[int] = set()
        for client in range(stream.clients):
            own = frame["client"] == client
            for split, rows in {
                "train": stream.train(client, experience),
                "test": stream.test(client, experience),
            }.items():
                assert rows.tolist() == np.flatnonzero(now & own & is_split[split]).tolist()
                assert np.array_equal(stream.labels_of(rows), frame["label"][rows])
                assert set(stream.labels_of(rows)) <= set(stream.classes_of(client, experience))
                assert again.train(client, experience).tolist() == stream.train(client, experience).tolist()
            so_far |= set(stream.seen(client, experience))
            met = [set(stream.classes_of(client, t)) for t in range(experience + 1)]
            assert set(stream.seen(client, experience)) == set().union(*met)
        assert set(stream.seen_by_all(experience)) == so_far
        everyone = [set(stream.classes_of(client, experience)) for client in range(stream.clients)]
        assert set(stream.classes_in(experience)) == set().union(*everyone)
        assert stream.test(None, experience).tolist() == np.flatnonzero(now & is_split["test"]).tolist()
        before = (frame["experience"] >= 0) & (frame["experience"] <= experience) & is_split["train"]
        assert stream.all_train(experience).tolist() == np.flatnonzero(before).tolist()
    assert stream.public().tolist() == np.flatnonzero(is_split["public"]).tolist()
    rows = np.arange(len(drawn.frame))[:: max(1, len(drawn.frame) // 20)]
    inputs, labels = stream.load(rows)
    assert inputs.dtype == np.uint8 and inputs.shape[1:] == stream.shape
    assert np.array_equal(labels, frame["label"][rows])
    for row, image in zip(rows, inputs, strict=True):
        assert np.array_equal(stream.load(np.array([row]))[0][0], image)  # whatever it is loaded with
        if frame["domain"][row] == 0:
            assert np.array_equal(image, stream.inputs[frame["sample"][row]])
