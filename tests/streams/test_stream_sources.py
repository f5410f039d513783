"""Sources decode every layout to the same arrays, and say in one sentence what is wrong with a file."""

from __future__ import annotations

import gzip
import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from streams.parameters import StreamParameters
from streams.sources import load

COLOUR = np.random.default_rng(0).integers(0, 256, (12, 4, 6, 3), dtype=np.uint8)  # N, H, W, C
GREY = COLOUR[..., 0]
LABELS = [row % 3 for row in range(12)]
INTEGERS = pa.list_(pa.list_(pa.uint8()))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def structs(images) -> list[dict]:
    return [{"bytes": image if isinstance(image, bytes) else png(image), "path": "a.png"} for image in images]


def parameters(source: str = "parquet:raw", **others) -> StreamParameters:
    return StreamParameters(**{"source": source, "clients": 1, "experiences": 1} | others)


@pytest.fixture
def write(tmp_path):
    def write(images, labels=LABELS, name: str = "train", **columns):
        path = tmp_path / "raw" / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"img": images, "label": labels, **columns}), path)
        return path

    return write


LAYOUTS = {
    "struct": structs(COLOUR),
    "binary": [png(image) for image in COLOUR],
    "lists": COLOUR.tolist(),
    "fixed lists": pa.FixedSizeListArray.from_arrays(
        pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(COLOUR.ravel(), 3), 6), 4
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pixels(write, tmp_path, layout):
    write(LAYOUTS[layout])
    source = load(parameters(), tmp_path)
    assert np.array_equal(source.inputs, COLOUR.transpose(0, 3, 1, 2))
    assert source.inputs.dtype == np.uint8 and isinstance(source.inputs, np.memmap)
    assert source.labels.tolist() == LABELS and source.labels.dtype == np.int64
    assert source.classes == 3 and source.is_test is None


@pytest.mark.parametrize("images", [structs(GREY), GREY.tolist()], ids=["struct", "lists"])
def test_grey_images_keep_one_channel(write, tmp_path, images):
    write(images)
    assert np.array_equal(load(parameters(), tmp_path).inputs, GREY[:, None])


def test_a_test_file_is_the_sources_own_test_split(write, tmp_path):
    write(structs(COLOUR))
    write(structs(COLOUR[:5]), LABELS[:5], name="test")
    source = load(parameters(), tmp_path)
    assert source.is_test.tolist() == [False] * 12 + [True] * 5
    assert load(parameters("parquet:raw/train.parquet"), tmp_path).is_test is None


def test_the_digest_names_content_and_options(write, tmp_path):
    write(structs(COLOUR), fine=LABELS)
    first = load(parameters(), tmp_path).digest
    assert load(parameters(seed=5, clients=9), tmp_path).digest == first
    assert load(parameters(label="fine"), tmp_path).digest != first
    shutil.copytree(tmp_path / "raw", tmp_path / "moved")
    assert load(parameters("parquet:moved"), tmp_path).digest == first
    write(structs(COLOUR[::-1].copy()))
    assert load(parameters(), tmp_path).digest != first


def test_digits_are_scikit_learns(tmp_path):
    from sklearn.datasets import load_digits

    source, wanted = load(parameters("digits"), tmp_path), load_digits()
    assert source.inputs.shape == (1797, 1, 8, 8) and source.inputs.max() == 255 and source.classes == 10
    assert np.array_equal(np.rint(source.inputs[:, 0] * (16 / 255)), wanted.images)
    assert np.array_equal(source.labels, wanted.target)
    assert (tmp_path / "data/digits/digits.csv.gz").is_file()


def test_damaged_digits_are_refused(tmp_path, refused):
    path = tmp_path / "data/digits/digits.csv.gz"
    path.parent.mkdir(parents=True)
    for damaged in (b"no gzip", gzip.compress(b"1,2,3\n"), gzip.compress(b"a,b\n"), gzip.compress(bytes(9999))[:-9]):
        path.write_bytes(damaged)
        assert "data/digits/digits.csv.gz: " in refused(source="digits")


def test_a_class_too_many_in_digits_is_refused(refused):
    assert refused(source="digits", classes=9) == "data/digits/digits.csv.gz, row 9: label 9 is outside 0..8"


def test_a_missing_file_is_named(write, refused, tmp_path):
    assert refused().startswith("raw: no such file")
    write(structs(COLOUR)).rename(tmp_path / "raw" / "test.parquet")
    assert refused().startswith("raw/train.parquet: no such file")


@pytest.mark.parametrize("keep", [0, 3, 200, -300])
def test_a_truncated_file_is_refused(write, refused, keep):
    path = write(structs(COLOUR))
    path.write_bytes(path.read_bytes()[:keep])
    assert refused().startswith("raw/train.parquet: not a whole Parquet file")


def test_damaged_pages_are_refused(write, refused):
    path = write(structs(COLOUR))
    content = bytearray(path.read_bytes())
    content[4:1500] = bytes(1496)
    path.write_bytes(content)
    assert refused().startswith("raw/train.parquet: damaged Parquet file")


def test_an_unknown_column_is_answered_with_the_nearest(write, refused):
    write(structs(COLOUR), fine_label=LABELS)
    assert refused(label="fine_lable") == (
        "raw/train.parquet: no column 'fine_lable' (label); did you mean fine_label or label?"
    )
    assert refused(image="imgs") == "raw/train.parquet: no column 'imgs' (image); did you mean img?"


def test_a_column_of_the_wrong_kind_is_refused(write, refused):
    write(structs(COLOUR), words=["a"] * 12)
    assert refused(label="img") == (
        "raw/train.parquet: label 'img' is struct<bytes: binary, path: string>, not a column of integers or names; "
        "label would be"
    )
    assert refused(image="label") == "raw/train.parquet: image 'label' is int64, not a column of images; img would be"


def test_without_a_column_called_label_the_integer_columns_are_listed(write, refused, tmp_path):
    path = tmp_path / "raw" / "train.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"img": structs(COLOUR), "fine": LABELS, "coarse": LABELS}), path)
    assert refused() == "raw/train.parquet: no column 'label'; set label to one of fine, coarse"
    pq.write_table(pa.table({"words": ["a"], "label": [1]}), path)
    assert refused() == "raw/train.parquet: no column of images among words, label; set text to use words"


@pytest.mark.parametrize(("wrong", "classes", "said"), [(3, 3, "3 is outside 0..2"), (-1, None, "-1 is outside")])
def test_a_label_out_of_range_is_named_with_its_row(write, refused, wrong, classes, said):
    write(structs(COLOUR), [*LABELS[:7], wrong, *LABELS[8:]])
    assert refused(classes=classes).startswith(f"raw/train.parquet, row 7: label {said}")


def test_a_wrong_label_in_the_test_file_is_named_there(write, refused):
    write(structs(COLOUR))
    write(structs(COLOUR), [*LABELS[:4], 9, *LABELS[5:]], name="test")
    assert refused(classes=3) == "raw/test.parquet, row 4: label 9 is outside 0..2"


def test_a_missing_label_is_named_with_its_row(write, refused):
    write(structs(COLOUR), [*LABELS[:7], None, *LABELS[8:]])
    assert refused() == "raw/train.parquet, row 7: no label"


CUT = png(np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8))[:60]
BAD_IMAGES = {
    "no image file": [*structs(COLOUR[:7]), {"bytes": b"hello", "path": ""}],
    "cut off": [*structs(COLOUR[:7]), {"bytes": CUT, "path": ""}],
    "no bytes": [*structs(COLOUR[:7]), {"bytes": None, "path": "there.png"}],
    "null": [*structs(COLOUR[:7]), None],
    "too bright": [*GREY[:7].tolist(), [[256] * 6] * 4],
    "ragged": [*GREY[:7].tolist(), [[1] * 6] * 3 + [[1]]],
    "null list": [*GREY[:7].tolist(), None],
    "empty list": [*GREY[:7].tolist(), []],
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_an_undecodable_image_is_named_with_its_row(write, refused, kind):
    write(BAD_IMAGES[kind], LABELS[:8])
    assert refused().startswith("raw/train.parquet, row 7: undecodable image (")


def test_an_image_of_another_size_is_named_with_its_row(write, refused, tmp_path):
    write(structs([*COLOUR[:7], COLOUR[7, :3]]), LABELS[:8])
    assert refused() == (
        "raw/train.parquet, row 7: image is 3 x 6 with 3 channels, the first is 4 x 6 with 3 channels; "
        "set size to scale them all"
    )
    assert load(parameters(size=5), tmp_path).inputs.shape == (8, 3, 5, 5)
    write(structs(COLOUR))
    write(structs([COLOUR[0], GREY[1]]), LABELS[:2], name="test")
    assert refused().startswith("raw/test.parquet, row 1: image is 4 x 6 with 1 channel, the first")


def test_a_file_without_rows_is_refused(write, refused):
    write(pa.array([], pa.binary()), pa.array([], pa.int64()))
    assert refused() == "raw/train.parquet: holds no rows"
