"""Parameters that do not fit, and built streams that were changed, are refused in one sentence."""

from __future__ import annotations

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from errors import InputError
from streams import scenario
from streams.deal import deal
from streams.manifest import TEST, TRAIN
from streams.parameters import StreamParameters
from streams.picture import draw
from streams.promises import check
from streams.stream import build, open_stream

DIRICHLET = {"kind": "dirichlet", "alpha": 0.5}


def parameters(**others) -> StreamParameters:
    return StreamParameters(**{"source": "parquet:raw", "clients": 3, "experiences": 2} | others)


@pytest.fixture
def root(tmp_path):
    write_raw(tmp_path)
    return tmp_path


def write_raw(root, shade: int = 0) -> None:
    labels = [row % 4 for row in range(80)]
    (root / "raw").mkdir(exist_ok=True)
    pq.write_table(
        pa.table({"image": [[[shade, row]] for row in range(80)], "label": labels}), root / "raw/train.parquet"
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"source": "digit"}, "'digits', 'parquet:PATH', 'csv:PATH', 'folder:PATH', 'torchvision:NAME' or 'tasks'"),
        ({"source": "parquet:"}, "'torchvision:NAME'"),
        ({"source": "image_folder:raw"}, "'torchvision:NAME'"),
        ({"length": 3}, "greater than or equal to 4"),
        ({"size": 0}, "greater than or equal to 1"),
        ({"clients": 5, "partition": {"min_share": 0.3}}, "it can be at most 1/clients = 0.2"),
        ({"partition": {"alpha": 0}}, "greater than 0"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_parameters_out_of_bounds_are_refused(wrong, said):
    with pytest.raises(ValidationError, match=said.replace("(", r"\(")):
        parameters(**wrong)


def test_every_parameter_is_described():
    for model in (StreamParameters, type(parameters().partition)):
        assert all(field.description for field in model.model_fields.values())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"experiences": 5}, "experiences 5 is more than the 4 classes of parquet:raw; it can be at most 4"),
        ({"partition": DIRICHLET | {"alpha": 0.01, "min_share": 0.3}}, "partition.min_share 0.3 is not reached"),
        ({"clients": 90}, "(and 44 more) is left with no training sample: 64 samples"),
    ],
)
def test_parameters_that_do_not_fit_the_source_are_refused_and_nothing_is_written(root, wrong, said):
    with pytest.raises(InputError) as caught:
        build("wrong", parameters(**wrong), root)
    assert said in str(caught.value)
    assert not (root / "built/streams").exists()


def test_the_manifest_check_names_each_broken_promise():
    labels, options = np.arange(40) % 4, parameters(clients=2, order="own", public=0.2)
    plan = scenario.plan(options, 4)
    good = deal(labels, None, plan, options)
    check(good, labels, plan)
    held = int(np.flatnonzero(good["split"] == TRAIN)[0])
    public = int(np.flatnonzero(good["client"] < 0)[0])

    def broken(column: str, row: int, value: int) -> str:
        bad = good | {column: good[column].copy()}
        bad[column][row] = value
        with pytest.raises(InputError) as caught:
            check(bad, labels, plan)
        return str(caught.value)

    assert broken("sample", 7, 8) == (
        "stream manifest: a sample is given to two clients, experiences or splits (first at row 8)"
    )
    assert broken("sample", 7, 40) == "stream manifest: a sample is outside 0..39 (first at row 7)"
    assert broken("label", 7, 4) == "stream manifest: a label is outside 0..3 (first at row 7)"
    assert broken("label", 7, 2) == "stream manifest: a label is not the source's (first at row 7)"
    assert broken("client", held, 2) == f"stream manifest: a client is outside -1..1 (first at row {held})"
    assert "a public sample belongs to a client" in broken("client", public, 1)
    assert "a public sample belongs to a client" in broken("client", held, -1)
    moved = 1 - good["experience"][held]
    assert "a class is not in the experience where the scenario puts it" in broken("experience", held, moved)
    assert "an experience is outside -1..1" in broken("experience", held, 2)
    with pytest.raises(InputError, match="client 1 is left with no training sample"):
        check(good | {"split": np.where(good["client"] == 1, TEST, good["split"])}, labels, plan)


def test_a_changed_manifest_is_noticed_and_can_be_rebuilt(root):
    digest = build("one", parameters(), root).digest
    path = root / "built/streams/one/manifest.parquet"
    table = pq.read_table(path)
    client = table.column("client").to_numpy().copy()
    client[3] = (client[3] + 1) % 3
    pq.write_table(table.set_column(3, "client", pa.array(client)), path)
    with pytest.raises(InputError, match=r"^built/streams/one/manifest.parquet: not the content.*: fcl stream one$"):
        open_stream("one", root)
    assert build("one", parameters(), root).digest == digest == open_stream("one", root).digest


def test_damaged_files_are_named(root):
    build("one", parameters(), root)
    folder = root / "built/streams/one"
    (folder / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"one/manifest.parquet: missing or damaged; rebuild it with: fcl stream one"):
        open_stream("one", root)
    (folder / "stream.json").write_text("{")
    with pytest.raises(InputError, match=r"one/stream.json: damaged; rebuild it with: fcl stream one"):
        open_stream("one", root)
    with pytest.raises(InputError, match=r"built/streams/onne: no such stream; did you mean one\? or build it with"):
        open_stream("onne", root)
    with pytest.raises(InputError, match=r"stream name '\.\./one'"):
        open_stream("../one", root)
    assert build("one", parameters(), root)


def test_edited_parameters_in_the_record_are_noticed(root):
    build("one", parameters(), root)
    path = root / "built/streams/one/stream.json"
    record = json.loads(path.read_text())
    record["parameters"]["seed"] = 5
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="rebuild it with: fcl stream one"):
        open_stream("one", root)


def test_a_source_that_changed_is_noticed_and_built_anew(root):
    digest = build("one", parameters(), root).digest
    write_raw(root, shade=9)
    assert open_stream("one", root).digest == digest  # its own arrays are still in the cache
    shutil.rmtree(root / "built/sources")
    with pytest.raises(InputError, match="source parquet:raw has changed since it was built"):
        open_stream("one", root)
    assert build("one", parameters(), root).digest != digest


def test_building_again_leaves_the_files_alone_until_a_parameter_changes(root):
    build("one", parameters(), root)
    path = root / "built/streams/one/stream.json"
    before = path.stat().st_mtime_ns
    build("one", parameters(), root)
    assert path.stat().st_mtime_ns == before
    build("one", parameters(seed=3), root)
    assert json.loads(path.read_text())["parameters"]["seed"] == 3
    assert sorted(found.name for found in path.parent.parent.iterdir()) == ["one"]


def test_many_may_build_one_stream_at_once(root):
    with ThreadPoolExecutor(8) as pool:
        built = list(pool.map(lambda seed: build("one", parameters(seed=seed), root), [0, 1] * 8))
    assert len({stream.digest for stream in built[::2]}) == 1
    assert open_stream("one", root).digest in {stream.digest for stream in built[:2]}
    assert [found.name for found in (root / "built/streams").iterdir()] == ["one"]
    assert len(list((root / "built/sources").iterdir())) == 1


def test_a_stream_travels_between_processes_as_its_name(root):
    stream = build("one", parameters(), root)
    sent = pickle.dumps(stream)
    assert len(sent) < 1000
    assert pickle.loads(sent).digest == stream.digest


def test_what_a_stream_shows(root):
    stream = build("one", parameters(order="own", partition=DIRICHLET), root)
    table = stream.describe()
    assert table.shape == (6, 3) and table["train"].sum() + table["test"].sum() == 80
    assert stream.shape == (1, 1, 2) and stream.classes == 4
    with pytest.raises(IndexError):
        stream.train(3, 0)
    with pytest.raises(ValueError, match="read-only"):
        stream.train(0, 0)[:] = 0
    draw(stream, root / "out" / "one.png")
    assert (root / "out/one.png").read_bytes().startswith(b"\x89PNG")
