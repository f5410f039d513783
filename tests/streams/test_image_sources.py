"""Images in folders and in many Parquet files; what does not belong is refused, not left out."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]


@pytest.fixture
def save(tmp_path):
    def save(name: str, pixels: np.ndarray, **how) -> None:
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **how)

    return save


@pytest.fixture
def animals(save):
    """Two classes, with a test part that lacks one of them."""
    for name, pixels in zip(("train/dog/1.png", "train/cat/b.PNG", "train/cat/a.png"), COLOUR, strict=False):
        save(name, pixels)
    save("test/dog/1.png", COLOUR[3])


def test_classes_are_the_sorted_folders(animals, opened):
    source = opened("folder:raw")
    assert np.array_equal(source.inputs, COLOUR[[2, 1, 0, 3]].transpose(0, 3, 1, 2))
    assert source.inputs.dtype == np.uint8 and isinstance(source.inputs, np.memmap)
    assert source.labels.tolist() == [0, 0, 1, 1] and source.classes == 2
    assert source.is_test.tolist() == [False, False, False, True] and source.natural_clients is None


def test_without_a_test_folder_there_is_no_split(animals, opened, tmp_path):
    shutil.rmtree(tmp_path / "raw/test")
    assert opened("folder:raw").is_test is None


def test_jpegs_are_what_pillow_makes_of_them(save, opened, tmp_path):
    save("train/cat/a.jpg", COLOUR[0])
    save("train/dog/a.JPEG", COLOUR[1])
    wanted = [np.asarray(Image.open(tmp_path / "raw/train" / name)) for name in ("cat/a.jpg", "dog/a.JPEG")]
    assert np.array_equal(opened("folder:raw").inputs, np.stack(wanted).transpose(0, 3, 1, 2))


def test_grey_images_keep_one_channel_unless_one_has_colours(save, opened):
    for row, name in enumerate(("train/a/1.png", "train/b/1.png")):
        save(name, GREY[row])
    assert np.array_equal(opened("folder:raw").inputs, GREY[:2, None])
    save("test/b/1.png", COLOUR[2])
    inputs = opened("folder:raw").inputs
    assert inputs.shape == (3, 3, 4, 5)
    assert np.array_equal(inputs[:2], np.repeat(GREY[:2, None], 3, axis=1))


def test_size_scales_every_image(animals, save, opened):
    save("train/cat/big.png", np.full((40, 30, 3), 7, np.uint8))
    inputs = opened("folder:raw", size=8).inputs
    assert inputs.shape == (5, 3, 8, 8) and (inputs[2] == 7).all()
    wanted = Image.fromarray(COLOUR[2]).resize((8, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(inputs[0], np.asarray(wanted).transpose(2, 0, 1))


def test_the_digest_names_bytes_and_names(animals, opened, tmp_path):
    first = opened("folder:raw").digest
    shutil.copytree(tmp_path / "raw", tmp_path / "moved")
    (tmp_path / "moved/train/cat/.DS_Store").write_bytes(b"no matter")
    assert opened("folder:moved").digest == first
    (tmp_path / "moved/train/cat").rename(tmp_path / "moved/train/eel")
    assert opened("folder:moved").digest != first


def test_what_does_not_belong_in_a_folder_is_refused(animals, save, refused, tmp_path):
    raw = tmp_path / "raw"
    assert refused("folder:rau") == "rau/train: no such folder (wanted by source 'folder:rau')"
    assert refused("folder:raw", classes=2, label="x").startswith("label is set, but source 'folder:raw' takes only")
    (raw / "train/cat/notes.txt").touch()
    assert refused("folder:raw") == "raw/train/cat/notes.txt: expected a file that ends in .png, .jpg, .jpeg"
    (raw / "train/cat/notes.txt").unlink()
    (raw / "train/eel").mkdir()
    assert refused("folder:raw") == "raw/train/eel: holds no images"
    (raw / "train/eel").rmdir()
    (raw / "train/1.png").touch()
    assert refused("folder:raw") == "raw/train/1.png: a file where only folders, one for each class, are expected"
    (raw / "train/1.png").unlink()
    save("test/dogs/1.png", COLOUR[0])
    assert refused("folder:raw") == "raw/test/dogs: no such class in train; did you mean dog?"
    shutil.rmtree(raw / "test/dogs")
    save("train/eel/1.png", COLOUR[0])
    assert refused("folder:raw", classes=2) == "raw/train: holds 3 classes, but classes is 2"
    shutil.rmtree(raw / "train")
    (raw / "train").mkdir()
    assert refused("folder:raw") == "raw/train: holds no classes; expected a folder of images for each"


@pytest.mark.parametrize("name", ["train/dog/1.png", "test/dog/1.png", "train/dog/2.jpg"])
def test_a_cut_off_image_is_named(animals, save, refused, tmp_path, name):
    save(name, RANDOM.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    path = tmp_path / "raw" / name
    whole = path.read_bytes()
    for kept in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:kept])
        assert refused("folder:raw", size=4).startswith(f"raw/{name}: undecodable image (")


def test_an_image_of_another_size_is_named_with_both_sizes(animals, save, refused):
    save("train/dog/2.png", COLOUR[0, :3])
    assert refused("folder:raw") == (
        "raw/train/dog/2.png: image is 3 x 5 with 3 channels, the first is 4 x 5 with 3 channels; "
        "set size to scale them all"
    )


def test_sixteen_bits_are_refused_rather_than_clipped(animals, save, refused):
    save("train/dog/2.png", np.full((4, 5), 40_000, np.uint16))
    assert refused("folder:raw") == ("raw/train/dog/2.png: undecodable image (mode I;16, expected 8 bits in a channel)")


@pytest.fixture
def shard(tmp_path):
    """Writes two rows of grey images to a Parquet file of `tmp_path / raw`."""

    def shard(file: str, first: int, **columns) -> None:
        (tmp_path / "raw").mkdir(exist_ok=True)
        labels = columns.pop("label", [0, 1])
        table = pa.table({"image": GREY[first : first + 2].tolist(), "label": labels, **columns})
        pq.write_table(table, tmp_path / "raw" / file)

    return shard


def test_shards_are_read_in_their_order(shard, opened):
    shard("train-00001-of-00002.parquet", 2)
    shard("train-00000-of-00002.parquet", 0)
    shard("validation-00000-of-00001.parquet", 0)
    assert np.array_equal(opened().inputs, GREY[:4, None]) and opened().is_test is None
    shard("test-00000-of-00001.parquet", 4)
    source = opened()
    assert np.array_equal(source.inputs, GREY[:, None])
    assert source.is_test.tolist() == [False] * 4 + [True] * 2 and source.labels.tolist() == [0, 1] * 3


def test_files_of_any_name_are_all_for_training(shard, opened):
    shard("b.parquet", 2)
    shard("a.parquet", 0)
    source = opened()
    assert np.array_equal(source.inputs, GREY[:4, None]) and source.is_test is None


def test_the_same_bytes_in_other_parts_are_another_source(shard, opened, tmp_path):
    shard("train.parquet", 0)
    shard("test.parquet", 2)
    first = opened()
    (tmp_path / "raw").rename(tmp_path / "pair")
    shard("a.parquet", 0)
    shard("b.parquet", 2)
    assert opened().digest != first.digest and opened().is_test is None


def test_owners_may_be_integers_or_names(shard, opened):
    shard("train-00000-of-00002.parquet", 0, who=[30, 7], name=["b", "c"])
    shard("train-00001-of-00002.parquet", 2, who=[7, 100], name=["a", "b"])
    assert opened(client="who").natural_clients.tolist() == [1, 0, 0, 2]
    assert opened(client="name").natural_clients.tolist() == [1, 2, 0, 1]
    assert opened().natural_clients is None


def test_labels_may_be_names(shard, opened, refused):
    shard("train.parquet", 0, label=pa.array(["dog", "cat"]).dictionary_encode())
    shard("test.parquet", 2, label=["cat", "dog"])
    assert opened().labels.tolist() == [1, 0, 0, 1]
    shard("test.parquet", 2, label=["cat", "eel"])
    assert refused().startswith("raw/test.parquet, row 1: label 'eel' has no training sample; ")


def test_unclear_sets_of_files_are_refused(shard, refused, tmp_path):
    shard("train-00000-of-00003.parquet", 0)
    shard("train-00002-of-00003.parquet", 0)
    assert refused() == "raw: train shard 00001 of 00003 is missing"
    shard("train.parquet", 0)
    assert refused() == "raw: holds more than one set of train files; keep one, or name a file"
    shutil.rmtree(tmp_path / "raw")
    shard("a.parquet", 0)
    shard("Test_a.parquet", 0)
    assert refused().startswith("raw/Test_a.parquet: by its name not for training; call the files for training")


def test_every_shard_must_have_the_columns_of_the_first(shard, refused):
    shard("train-00000-of-00002.parquet", 0, who=[1, 2])
    shard("train-00001-of-00002.parquet", 2)
    assert refused(client="who").startswith("raw/train-00001-of-00002.parquet: no column 'who' (client); ")
