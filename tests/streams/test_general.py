"""Labels other than the stream's own, and samples of another source in the stream's form."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from errors import InputError
from streams.foreign import foreign
from streams.general import general_labels
from streams.parameters import StreamParameters
from streams.sources import load
from streams.stream import build

FINE = {"train": [0, 1, 2, 3, 0, 1, 2, 3], "test": [3, 2, 1, 0]}
COARSE = {"train": [0, 0, 1, 1, 0, 0, 1, 1], "test": [1, 1, 0, 0]}  # fine // 2
NAMES = [["odd", "even"][fine % 2 == 0] for fine in FINE["train"]], [["odd", "even"][f % 2 == 0] for f in FINE["test"]]


def colour(level: int) -> bytes:
    """A picture of 4 x 4 pixels: red `level`, green 0, blue 90."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 90)).save(file, "PNG")
    return file.getvalue()


def write(folder, name: str, part: str, rows: slice = slice(None)) -> None:
    folder.mkdir(exist_ok=True)
    columns = {
        "img": [{"bytes": colour(10 * fine), "path": None} for fine in FINE[part]],
        "label": FINE[part],
        "coarse": COARSE[part],
        "name": NAMES[part == "test"],
    }
    pq.write_table(pa.table({key: values[rows] for key, values in columns.items()}), folder / name)


def about(source: str, **others) -> StreamParameters:
    return StreamParameters(**{"source": source, "clients": 1, "experiences": 1} | others)


def labels_of(task: str, parameters: StreamParameters, root) -> list[int]:
    return general_labels(task, parameters, load(parameters, root).labels, root).tolist()


# general tasks


def test_digits_are_odd_or_even_and_large_or_small(tmp_path):
    digits = np.arange(10)
    parity, above_four = (general_labels(task, about("digits"), digits, tmp_path) for task in ("parity", "above_four"))
    assert parity.tolist() == [0, 1] * 5
    assert above_four.tolist() == [0] * 5 + [1] * 5
    assert parity.dtype == above_four.dtype == np.int64


@pytest.mark.parametrize("layout", ["one file", "with test", "shards"])
def test_columns_are_in_the_order_of_the_sources_samples(layout, tmp_path):
    """The fine label that a sample has in the source determines both of its general labels."""
    raw = tmp_path / "raw"
    if layout == "shards":
        for shard in range(3):
            write(raw, f"train-{shard:05}-of-00003.parquet", "train", slice(3 * shard, 3 * shard + 3))
        for shard in range(2):
            write(raw, f"test-{shard:05}-of-00002.parquet", "test", slice(2 * shard, 2 * shard + 2))
    else:
        write(raw, "train.parquet", "train")
        if layout == "with test":
            write(raw, "test.parquet", "test")
    parameters = about("parquet:raw", image="img")
    own = load(parameters, tmp_path).labels
    assert len(own) == (8 if layout == "one file" else 12)
    assert labels_of("coarse", parameters, tmp_path) == (own // 2).tolist()
    assert labels_of("name", parameters, tmp_path) == (own % 2).tolist(), "names are numbered as they sort: even, odd"


def test_labels_are_of_the_whole_source_not_of_one_stream(tmp_path):
    write(tmp_path / "raw", "train.parquet", "train")
    one, other = (about("parquet:raw", image="img", public=public, seed=seed) for public, seed in ((0.5, 0), (0.1, 7)))
    assert labels_of("coarse", one, tmp_path) == labels_of("coarse", other, tmp_path) == COARSE["train"]


@pytest.mark.parametrize(
    ("task", "source", "said"),
    [
        ("paritty", "digits", "foundation.general: digits have no task 'paritty'; did you mean parity?"),
        ("digit", "digits", "foundation.general: digits have no task 'digit'; expected one of above_four, parity"),
        ("course", "parquet:raw", "foundation.general: raw/train.parquet has no column 'course'; did you mean coarse?"),
        (
            "img",
            "parquet:raw",
            "foundation.general: raw/train.parquet: 'img' is struct<bytes: binary, path: null>, not a",
        ),
        ("label", "parquet:raw", "foundation.general: 'label' is the column of the stream's own labels; name another"),
        (
            "kind",
            "csv:raw",
            "foundation.general: source csv:raw has no labels but its own (got 'kind'); digits, parquet",
        ),
        ("kind", "folder:raw", "foundation.general: source folder:raw has no labels but its own (got 'kind')"),
    ],
)
def test_a_task_that_is_none_is_named(task, source, said, tmp_path):
    write(tmp_path / "raw", "train.parquet", "train")
    with pytest.raises(InputError) as caught:
        general_labels(task, about(source), np.zeros(8, np.int64), tmp_path)
    assert str(caught.value).startswith(said)


def test_a_test_file_without_the_column_is_named(tmp_path):
    write(tmp_path / "raw", "train.parquet", "train")
    pq.write_table(pa.table({"label": [0], "img": [colour(0)]}), tmp_path / "raw" / "test.parquet")
    with pytest.raises(InputError, match=r"raw/test\.parquet has no column 'coarse'; expected one of img, label"):
        general_labels("coarse", about("parquet:raw"), np.zeros(8, np.int64), tmp_path)


# another source


@pytest.fixture
def stream(tmp_path):
    """Opens a stream in `tmp_path`: digits of `size` pixels, the colours, or texts."""
    write(tmp_path / "raw", "train.parquet", "train")
    write(tmp_path / "raw", "test.parquet", "test")
    texts = {"text": ["one", "two words", "three", "four"] * 2, "label": [0, 1, 0, 1] * 2, "other": [0] * 8}
    pq.write_table(pa.table(texts), tmp_path / "texts.parquet")
    kinds = {
        "digits": {"source": "digits"},
        "large": {"source": "parquet:raw", "image": "img", "experiences": 2, "size": 12},
        "eight": {"source": "parquet:raw", "image": "img", "experiences": 2, "size": 8},
        "colours": {"source": "parquet:raw", "image": "img", "experiences": 2},
        "texts": {"source": "parquet:texts.parquet", "text": "text", "length": 5, "test": 0.5},
    }

    def opened(kind: str):
        return build(kind, about(**kinds[kind]), tmp_path)

    return opened


def test_other_images_take_the_streams_size(stream, tmp_path):
    inputs, labels = foreign("digits", stream("large"), tmp_path)
    assert (inputs.shape, inputs.dtype) == ((1797, 3, 12, 12), np.uint8)
    assert np.bincount(labels).tolist() == np.bincount(load(about("digits"), tmp_path).labels).tolist()
    same, _ = foreign("digits", stream("eight"), tmp_path)
    assert np.array_equal(same[:, :1], load(about("digits"), tmp_path).inputs), "what fits is not touched"


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("digits", "digits"),
        ("colours", "parquet:raw"),
        ("colours", "parquet:raw/train.parquet"),
        ("texts", "csv:./texts.parquet"),
        ("texts", "folder:."),
    ],
)
def test_the_streams_own_source_is_no_other_one(stream, tmp_path, kind, source):
    """Else the clients' samples would come to the server as public ones."""
    with pytest.raises(InputError, match="where the stream's own samples come from"):
        foreign(source, stream(kind), tmp_path)


def test_colours_become_grey_by_their_mean_and_grey_is_repeated(stream, tmp_path):
    inputs, labels = foreign("parquet:raw", stream("digits"), tmp_path)
    assert inputs.shape == (8, 1, 8, 8), "the source's own test samples are left out"
    assert labels.tolist() == FINE["train"]
    for picture, fine in zip(inputs, labels, strict=True):
        assert (picture == round((10 * fine + 0 + 90) / 3)).all()
    repeated, _ = foreign("digits", stream("colours"), tmp_path)
    assert repeated.shape == (1797, 3, 4, 4)
    assert (repeated == repeated[:, :1]).all()
    assert repeated.any()


def test_other_texts_are_cut_to_the_streams_length(stream, tmp_path):
    pq.write_table(pa.table({"topic": [2, 0, 1], "words": ["abcdefgh", "ä", "xy"]}), tmp_path / "more.parquet")
    inputs, labels = foreign("parquet:more.parquet", stream("texts"), tmp_path)
    assert [bytes(row).rstrip(b"\0") for row in inputs] == [b"abcde", "ä".encode(), b"xy"]
    assert labels.tolist() == [2, 0, 1], "the first column of integers stands for the labels"


@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        ("digits", "texts", "source digits: the stream has texts, and these are none"),
        ("csv:texts.csv", "digits", "source csv:texts.csv: the stream has images, and these are none"),
        ("parquet:texts.parquet", "digits", "texts.parquet: no column of images among text, label, other"),
        ("parquet:nowhere", "digits", "nowhere: no such file"),
        ("digit", "digits", "must be 'digits', 'parquet:PATH', 'csv:PATH', "),
    ],
)
def test_a_source_that_does_not_fit_is_named(source, kind, said, stream, tmp_path):
    opened = stream(kind)
    with pytest.raises(InputError) as caught:
        foreign(source, opened, tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_agency_of_a_news_story_is_the_first_that_it_names(tmp_path):
    """AG News' layout: class, title, description."""
    stories = [
        "Oil up (Reuters),Reuters - said the AP",
        "Film,a new one",
        "Rain (AP),heavy",
        "Vote,AFP - Paris reports",
    ]
    (tmp_path / "news.csv").write_text("".join(f"{1 + i % 2},{story}\n" for i, story in enumerate(stories)))
    parameters = about("csv:news.csv")
    labels = np.array([0, 1, 0, 1])
    assert general_labels("agency", parameters, labels, tmp_path).tolist() == [2, 0, 1, 3]
