"""The store: files named by their content, the same in a folder and in any other fsspec store."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.files import write_json
from tasks.store import DamagedFile, Ref, Store, decode, encode

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(7), "c": torch.tensor([True, False])}
HEADER = {"values": {"x": 0.1}, "client": 3}


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    if request.param == "folder":
        yield Store(str(tmp_path / "store"))
        return
    store = Store(f"memory://{uuid.uuid4().hex}")
    yield store
    if store.fs.exists(store.path):
        store.fs.rm(store.path, recursive=True)


def listed(store: Store, kind: str) -> set[str]:
    return {path.rpartition("/")[2] for path in store.fs.ls(f"{store.path}/{kind}", detail=False)}


# naming


def test_a_file_is_named_by_the_sha256_of_its_bytes(store):
    ref = store.put("states", TENSORS, HEADER)
    data = store.bytes(ref)
    assert ref == Ref("states", hashlib.sha256(data).hexdigest(), len(data))
    assert store.size(ref) == ref.size
    assert listed(store, "states") == {f"{ref.digest}.safetensors"}


def test_what_is_put_is_what_is_got(store):
    content = store.get(store.put("states", TENSORS, HEADER))
    assert content.header == HEADER
    assert content.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(content.tensors[name], TENSORS[name]) for name in TENSORS)
    assert all(content.tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)


def test_equal_content_is_one_file_and_other_content_another(store):
    first = store.put("states", TENSORS, HEADER)
    assert store.put("states", dict(sorted(TENSORS.items())), dict(reversed(HEADER.items()))) == first
    others = {
        store.put("states", TENSORS, HEADER | {"client": 4}),
        store.put("states", TENSORS | {"a": torch.tensor(8)}, HEADER),
        store.put("states", TENSORS | {"a": torch.tensor(7, dtype=torch.int32)}, HEADER),
        store.put("states", TENSORS | {"b": TENSORS["b"].T}, HEADER),
    }
    assert len(others) == 4
    assert first not in others
    assert len(listed(store, "states")) == 5


def test_a_folder_and_another_store_hold_the_same_bytes(tmp_path):
    memory = Store(f"memory://{uuid.uuid4().hex}")
    assert Store(str(tmp_path)).put("states", TENSORS, HEADER) == memory.put("states", TENSORS, HEADER)
    memory.fs.rm(memory.path, recursive=True)


def test_many_writers_of_one_file_leave_one_whole_file(store):
    with ThreadPoolExecutor(8) as pool:
        refs = set(pool.map(lambda _: store.put("states", TENSORS, HEADER), range(32)))
    (ref,) = refs
    assert listed(store, "states") == {f"{ref.digest}.safetensors"}
    assert store.get(ref).header == HEADER


# damage


def test_a_damaged_file_is_not_read(store):
    ref = store.put("states", TENSORS, HEADER)
    data = bytearray(store.bytes(ref))
    data[-1] ^= 1
    store.fs.pipe_file(f"{store.path}/{ref.name}", bytes(data))
    with pytest.raises(DamagedFile, match=rf"{ref.digest}.*is damaged"):
        store.get(ref)


def test_a_missing_file_is_named(store):
    ref = Ref("states", "0" * 64, 10)
    with pytest.raises(DamagedFile, match=f"states/{'0' * 64}.safetensors is missing"):
        store.get(ref)


@pytest.mark.parametrize("data", [b"", b"12345678", b"\0" * 8, encode({}, {})[:-1], b"\x02" + b"\0" * 7 + b"{}"])
def test_what_is_not_ours_is_not_decoded(data):
    with pytest.raises(DamagedFile, match="not a safetensors file with our header"):
        decode(data)


@given(st.binary(max_size=200))
def test_decoding_random_bytes_raises_nothing_else(data):
    with pytest.raises(DamagedFile):
        decode(data)


# memory


def test_what_is_remembered_is_given_again_and_the_oldest_is_forgotten(tmp_path):
    store = Store(str(tmp_path), remembered=2)
    refs = [store.put("states", {"x": torch.tensor(i)}, {}) for i in range(3)]
    first = store.get(refs[0], remember=True)
    assert store.get(refs[0]) is first
    for ref in refs[1:]:
        store.get(ref, remember=True)
    assert store.get(refs[0]) is not first
    assert store.get(refs[2]) is store.get(refs[2])


def test_nothing_is_remembered_unless_asked(tmp_path):
    store = Store(str(tmp_path))
    ref = store.put("uploads", TENSORS, HEADER)
    assert store.get(ref) is not store.get(ref)


# tidying


def test_keep_only_deletes_everything_else_of_its_kind(store):
    refs = [store.put("states", {"x": torch.tensor(i)}, {}) for i in range(4)]
    upload = store.put("uploads", TENSORS, HEADER)
    store.fs.pipe_file(f"{store.path}/states/half-written.tmp", b"x")
    store.keep_only("states", refs[:2])
    assert listed(store, "states") == {f"{ref.digest}.safetensors" for ref in refs[:2]}
    assert store.get(upload).header == HEADER
    for ref in refs[2:]:
        with pytest.raises(DamagedFile):
            store.get(ref)


def test_keeping_nothing_of_a_kind_that_was_never_written_is_no_error(store):
    store.put("states", {}, {})
    store.keep_only("uploads", ())
    store.keep_only("states", ())
    store.keep_only("states", ())
    store.put("states", TENSORS, HEADER)


def test_clear_leaves_only_what_was_refused(store):
    kinds = ("states", "broadcasts", "uploads", "refused")
    refs = {kind: store.put(kind, TENSORS, HEADER) for kind in kinds}
    store.clear()
    assert store.get(refs["refused"]).header == HEADER
    for kind in kinds[:-1]:
        with pytest.raises(DamagedFile):
            store.get(refs[kind])


def test_a_moved_file_is_of_the_other_kind(store):
    ref = store.put("uploads", TENSORS, HEADER)
    store.move(ref, "refused")
    assert store.get(ref._replace(kind="refused")).header == HEADER
    with pytest.raises(DamagedFile):
        store.get(ref)


def test_an_experiment_has_the_same_result_in_another_store(laboratory, played):
    lab = laboratory("fedlwf")
    store = Store(f"memory://{uuid.uuid4().hex}")
    lab.progress.server = store.write("states", lab.site.store.bytes(lab.progress.server))
    lab.site.store = store
    assert lab.play().digest == played("fedlwf").digest
    store.fs.rm(store.path, recursive=True)


# encoding

ALL_TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", ALL_TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_every_type_and_shape_survives(dtype, shape):
    tensor = torch.ones(shape).to(dtype)
    (back,) = decode(encode({"x": tensor}, {})).tensors.values()
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back, tensor)


def test_bits_survive():
    odd = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-45, 3.4e38])
    back = decode(encode({"x": odd}, {})).tensors["x"]
    assert torch.equal(back.view(torch.int32), odd.view(torch.int32))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda t: t, id="the same tensor"),
        pytest.param(lambda t: t.view(2, 3), id="another shape of it"),
        pytest.param(lambda t: t[:3], id="its beginning"),
        pytest.param(lambda t: t[2:], id="its end"),
        pytest.param(lambda t: t[::2], id="every second number"),
        pytest.param(lambda t: t.view(2, 3).T, id="its transpose"),
        pytest.param(lambda t: t[:1].expand(4), id="an expanded part"),
    ],
)
def test_names_that_share_memory_are_stored_each_for_itself(other):
    tensor = torch.arange(6.0)
    tensors = {"model.x": tensor, "previous.x": other(tensor)}
    back = decode(encode(tensors, {})).tensors
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    assert encode(tensors, {}) == encode(copies, {})
    back["model.x"].fill_(9)
    assert torch.equal(back["previous.x"], copies["previous.x"])


def test_a_slice_is_stored_without_the_tensor_it_is_of():
    large = torch.zeros(100_000)
    assert len(encode({"x": large[5:7]}, {})) < 200


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), plain, max_size=4))
def test_headers_are_read_back_exactly_and_always_written_alike(header):
    data = encode(TENSORS, header)
    assert decode(data).header == header
    assert encode(TENSORS, dict(reversed(header.items()))) == data


@given(st.floats())
def test_floats_in_headers_are_exact(number):
    back = decode(encode({}, {"x": number})).header["x"]
    assert (
        math.isnan(back)
        if math.isnan(number)
        else (back, math.copysign(1, back))
        == (
            number,
            math.copysign(1, number),
        )
    )


def test_json_is_whole_sorted_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"b": 1, "a": [1.5]})
    write_json(path, {"b": 2, "a": [1.5]})
    assert json.loads(path.read_text()) == {"a": [1.5], "b": 2}
    assert path.read_text().index('"a"') < path.read_text().index('"b"')
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
