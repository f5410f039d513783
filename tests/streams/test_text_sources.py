"""Texts keep their bytes, from CSV as from Parquet; what is wrong with a table is said with its row and line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.text import encoded

AG_NEWS = Path(__file__).parents[3] / "shared" / "data" / "ag_news" / "test.csv"
ROWS = [("3", "Wall St.", "Short-sellers, again"), ("1", 'A "quote"', "two\nlines"), ("2", "Grüße", "aus 東京")]


def texts(source) -> list[str]:
    return [bytes(row).rstrip(b"\0").decode() for row in source.inputs]


@pytest.fixture
def write(tmp_path):
    def write(*rows, name: str = "raw.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
        return path

    return write


@given(st.text().filter(lambda text: text.strip() and "\0" not in text), st.integers(4, 40))
def test_a_text_is_its_bytes_cut_between_characters(text, length):
    row = encoded(text, length)
    kept = bytes(row).rstrip(b"\0").decode()  # would fail inside a character
    assert row.shape == (length,) and text.startswith(kept)
    left = text[len(kept) :]
    assert not left or len((kept + left[0]).encode()) > length


def test_ag_news_counts_from_1_and_joins_title_and_description(write, opened):
    write(*ROWS)
    source = opened("csv:raw.csv")
    assert texts(source) == ["Wall St. Short-sellers, again", 'A "quote" two\nlines', "Grüße aus 東京"]
    assert source.labels.tolist() == [2, 0, 1] and source.classes == 3
    assert source.inputs.shape == (3, 512) and source.inputs.dtype == np.uint8
    assert isinstance(source.inputs, np.memmap)
    assert source.is_test is None and source.natural_clients is None
    assert texts(opened("csv:raw.csv", length=7)) == ["Wall St", 'A "quot', "Grüße"]


@pytest.mark.skipif(not AG_NEWS.is_file(), reason="no AG News in ../shared/data/ag_news")
def test_the_real_ag_news(opened):
    source = opened(f"csv:{AG_NEWS}", classes=4)
    assert np.array_equal(np.bincount(source.labels), np.full(4, 1900))
    assert texts(source)[0].startswith("Fears for T N pension after talks Unions representing workers at Turner")
    assert source.labels[0] == 2


def test_a_header_names_the_columns(write, opened):
    write(("who", "body", "kind"), ("b", "first", "spam"), ("a", "second", "ham"), ("b", "third", "ham"))
    source = opened("csv:raw.csv", text="body", label="kind", client="who")
    assert texts(source) == ["first", "second", "third"]
    assert source.labels.tolist() == [1, 0, 0]  # ham, spam
    assert source.natural_clients.tolist() == [1, 0, 1] and source.natural_clients.dtype == np.int64


def test_text_and_label_are_found_without_being_named(write, opened):
    write(("label", "text"), ("0", "no"), ("1", "yes"))
    assert texts(opened("csv:raw.csv")) == ["no", "yes"]


def test_a_folder_may_bring_a_test_part(write, opened):
    write(("label", "text", "user"), ("b", "1", "10"), ("a", "2", "9"), name="raw/train.csv")
    write(("text", "user", "label"), ("3", "11", "b"), name="raw/test.csv")
    source = opened("csv:raw", client="user")
    assert source.is_test.tolist() == [False, False, True]
    assert source.labels.tolist() == [1, 0, 1] and texts(source) == ["1", "2", "3"]
    assert source.natural_clients.tolist() == [1, 0, 2]  # integers are sorted as such: 9, 10, 11


def test_a_byte_order_mark_and_empty_lines_do_not_matter(tmp_path, opened):
    (tmp_path / "raw.csv").write_bytes("﻿text,label\r\n\r\na,0\r\nb,1\r\n\r\n".encode())
    assert texts(opened("csv:raw.csv")) == ["a", "b"]


def test_parquet_texts_are_those_of_csv(write, opened, tmp_path):
    write(("text", "label", "user"), ("a", "0", "u"), ("Grüße", "1", "v"))
    (tmp_path / "raw").mkdir()
    pq.write_table(
        pa.table({"words": ["a", "Grüße"], "label": [0, 1], "user": ["u", "v"]}), tmp_path / "raw/train.parquet"
    )
    first = opened("csv:raw.csv", client="user")
    second = opened("parquet:raw", text="words", client="user")
    assert np.array_equal(first.inputs, second.inputs) and np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.natural_clients, second.natural_clients)


def test_only_what_is_used_is_part_of_the_digest(write, opened):
    write(("text", "label", "user"), ("a", "0", "u"), ("b", "1", "v"))
    assert opened("csv:raw.csv", seed=5).digest == opened("csv:raw.csv").digest
    assert opened("csv:raw.csv", text="text").digest != opened("csv:raw.csv").digest
    assert len({opened("csv:raw.csv", **one).digest for one in ({}, {"client": "user"}, {"length": 99})}) == 3


HEAD = ("text", "label", "user")
WRONG = {
    "a missing label": ([HEAD, ("a", "0", "u"), ("b", "", "u")], "raw.csv, row 1 (line 3): no label"),
    "a missing client": ([HEAD, ("a", "0", " "), ("b", "1", "u")], "raw.csv, row 0 (line 2): no client"),
    "a name among integers": (
        [HEAD, ("a", "0", "u"), ("b", "1O", "u")],
        "raw.csv, row 1 (line 3): label '1O' is not an integer, as the first row's is (0)",
    ),
    "a label out of range": (
        [HEAD, ("a\nb", "0", "u"), ("b", "4", "u")],
        "raw.csv, row 1 (line 4): label 4 is outside 0..2",
    ),
    "a negative label": (
        [HEAD, ("a", "0", "u"), ("b", "-1", "u")],
        "raw.csv, row 1 (line 3): label -1 is outside 0..2",
    ),
    "too few columns": ([HEAD, ("a", "0", "u"), ("b",)], "raw.csv, row 1 (line 3): 1 columns, the first line has 3"),
    "too many names": (
        [HEAD, *((name, name, "u") for name in "abcd")],
        "raw.csv: 4 names of classes, but classes is 3",
    ),
    "an empty text": ([HEAD, ("a", "0", "u"), (" ", "1", "u")], "raw.csv, row 1 (line 3): empty text"),
    "a zero character": (
        [HEAD, ("a\0b", "0", "u")],
        "raw.csv, row 0 (line 2): the text holds a zero character, which stands for its end",
    ),
    "only a header": ([HEAD], "raw.csv: holds no rows, only a header"),
    "no such column": (
        [("text", "labels", "user"), ("a", "0", "u")],
        "raw.csv: no column 'label' (label) in the header; did you mean labels?",
    ),
    "a column twice": (
        [("text", "label", "user", "label"), ("a", "0", "u", "1")],
        "raw.csv: 2 columns 'label' (label) in the header",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_row_is_named(write, refused, kind):
    rows, said = WRONG[kind]
    write(*rows)
    assert refused("csv:raw.csv", client="user", classes=3) == said


def test_a_gap_in_the_labels_is_refused_unless_classes_are_said(write, refused, opened):
    write(HEAD, ("a", "1", "u"), ("b", "2", "u"))
    assert refused("csv:raw.csv") == (
        "raw.csv: label 0 has no training sample, and the largest label is 2; labels count from 0 without a gap, "
        "unless classes says how many there are"
    )
    assert opened("csv:raw.csv", classes=3).labels.tolist() == [1, 2]
    write(*ROWS[:2])
    assert refused("csv:raw.csv").startswith("raw.csv: label 2 has no training sample, and the largest label is 3")


def test_a_wrong_ag_news_label_is_named_as_it_is_written(write, refused):
    write(*ROWS, ("0", "a", "b"))
    assert refused("csv:raw.csv") == "raw.csv, row 3 (line 5): label 0 is outside 1..100000"
    write(*ROWS, ("5", "a", "b"))
    assert refused("csv:raw.csv", classes=4) == "raw.csv, row 3 (line 5): label 5 is outside 1..4"


def test_a_label_that_only_the_test_part_has_is_refused(write, refused):
    write(("label", "text"), ("ham", "a"), ("spam", "b"), name="raw/train.csv")
    write(("label", "text"), ("ham", "a"), ("spamm", "b"), name="raw/test.csv")
    assert refused("csv:raw") == (
        "raw/test.csv, row 1 (line 3): label 'spamm' has no training sample; did you mean spam or ham?"
    )
    write(("label", "text"), ("0", "a"), name="raw/test.csv")
    assert refused("csv:raw") == "raw/test.csv: its labels are integers, those of raw/train.csv are names"


def test_what_is_no_table_is_refused(tmp_path, refused):
    path = tmp_path / "raw.csv"
    path.write_bytes(b"")
    assert refused("csv:raw.csv") == "raw.csv: holds no rows"
    path.write_bytes(b"text,label\na,0\nb,\xff1\n")
    assert refused("csv:raw.csv").startswith("raw.csv, row 1 (line 3): not UTF-8 (")
    path.write_bytes(b'text,label\na,0\n"b" c,1\n')
    assert refused("csv:raw.csv").startswith("raw.csv, row 1 (line 3): not comma-separated values (")
    path.write_bytes(b'text,label\na,0\n"b,1\n')
    assert refused("csv:raw.csv").startswith("raw.csv, row 1 (line 3): not comma-separated values (")
    path.write_bytes(b"one,two,three,four\n" * 3)
    assert refused("csv:raw.csv") == (
        "raw.csv: begins neither with a header that has 'text' and 'label' nor with a row of class, title, description "
        "(got one, two, three, four); set text and label to columns of its header"
    )


def test_a_missing_table_is_named(write, refused):
    assert refused("csv:raw.csv") == "raw.csv: no such file (wanted by source 'csv:raw.csv')"
    write(*ROWS, name="raw/test.csv")
    assert refused("csv:raw") == (
        "raw/train.csv: no such file (wanted by source 'csv:raw'); to use test.csv alone, name the file"
    )


def test_wrong_parquet_texts_are_named(tmp_path, refused):
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw/train.parquet"
    pq.write_table(pa.table({"text": ["a", None], "label": [0, 1], "user": ["u", None]}), path)
    assert refused(text="text") == "raw/train.parquet, row 1: unusable text (no text)"
    assert refused(text="text", client="user") == "raw/train.parquet, row 1: no client"
    assert (
        refused(text="label") == "raw/train.parquet: text 'label' is int64, not a column of texts; text, user would be"
    )
    assert refused(text="txt") == "raw/train.parquet: no column 'txt' (text); did you mean text?"
    assert refused(text="text", image="img") == "image and text are both set ('img', 'text'); leave one out"
    assert refused(text="text", size=8) == "size is set, but parquet:raw is a source of texts"
    assert refused(length=8) == "length is set, but parquet:raw is a source of images"


def test_an_option_that_a_source_does_not_have_is_refused(write, refused):
    write(*ROWS)
    assert refused("csv:raw.csv", image="img") == (
        "image is set, but source 'csv:raw.csv' takes only classes, client, label, length, text"
    )
    assert refused("digits", client="user") == "client is set, but source 'digits' takes only classes, size"
