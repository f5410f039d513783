"""torchvision's data sets, from small archives in the real formats that a server on this machine hands out."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from torchvision import datasets

from streams.torchvision_archives import ARCHIVES, known
from streams.torchvision_sets import EMNIST_SPLITS

RANDOM = np.random.default_rng(0)
COUNT = {"train": 20, "test": 10}
GREY = {part: RANDOM.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in COUNT.items()}
COLOUR = {part: RANDOM.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8) for part, n in COUNT.items()}
LABELS = {part: np.arange(n) % 10 for part, n in COUNT.items()}


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


def mnist() -> dict[str, bytes]:
    parts = {"train": "train", "t10k": "test"}
    return {f"{name}-images-idx3-ubyte.gz": idx(GREY[part]) for name, part in parts.items()} | {
        f"{name}-labels-idx1-ubyte.gz": idx(LABELS[part]) for name, part in parts.items()
    }


def emnist() -> dict[str, bytes]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for split, first in (("balanced", 0), ("letters", 1)):
            for part in COUNT:
                stem = f"gzip/emnist-{split}-{part}"
                archive.writestr(f"{stem}-images-idx3-ubyte.gz", idx(GREY[part].transpose(0, 2, 1)))
                archive.writestr(f"{stem}-labels-idx1-ubyte.gz", idx(LABELS[part] + first))
    return {"gzip.zip": file.getvalue()}


def svhn() -> dict[str, bytes]:
    files = {}
    for part in COUNT:
        file = io.BytesIO()
        labels = np.where(LABELS[part] == 0, 10, LABELS[part]).astype(np.uint8)[:, None]
        scipy.io.savemat(file, {"X": COLOUR[part].transpose(2, 3, 1, 0), "y": labels})
        files[f"{part}_32x32.mat"] = file.getvalue()
    return files


def cifar(kind: type[datasets.CIFAR10], key: str) -> tuple[dict[str, bytes], dict[str, str]]:
    """The archive, and the MD5 sums of the pickles in it."""
    members = {}
    for part, names in (("train", kind.train_list), ("test", kind.test_list)):
        for (name, _), rows in zip(names, np.array_split(np.arange(COUNT[part]), len(names)), strict=True):
            content = {"data": COLOUR[part][rows].reshape(len(rows), -1), key: LABELS[part][rows].tolist()}
            members[name] = pickle.dumps(content)
    members[kind.meta["filename"]] = pickle.dumps({kind.meta["key"]: list("abcdefghij")})
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {kind.filename: file.getvalue()}, {name: md5(content) for name, content in members.items()}


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serves small archives of a data set at the address and with the MD5 sums that torchvision believes in."""
    place = tmp_path / "served"
    place.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=place))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"

    def served(name: str) -> Path:
        kind = getattr(datasets, name)
        if name == "EMNIST":
            files = emnist()
            monkeypatch.setattr(kind, "url", f"{address}gzip.zip")
            monkeypatch.setattr(kind, "md5", md5(files["gzip.zip"]))
        elif name == "SVHN":
            files = svhn()
            lists = {
                part: [f"{address}{part}_32x32.mat", f"{part}_32x32.mat", md5(files[f"{part}_32x32.mat"])]
                for part in COUNT
            }
            monkeypatch.setattr(kind, "split_list", lists)
        elif issubclass(kind, datasets.MNIST):
            files = mnist()
            monkeypatch.setattr(kind, "mirrors", [f"http://127.0.0.1:{closed_port()}/", address])
            monkeypatch.setattr(kind, "resources", [(file, md5(files[file])) for file, _ in kind.resources])
        else:
            files, sums = cifar(kind, "labels" if name == "CIFAR10" else "fine_labels")
            monkeypatch.setattr(kind, "url", address + kind.filename)
            monkeypatch.setattr(kind, "tgz_md5", md5(files[kind.filename]))
            for parts in ("train_list", "test_list"):
                monkeypatch.setattr(kind, parts, [[file, sums[file]] for file, _ in getattr(kind, parts)])
            monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums[kind.meta["filename"]]})
        for file, content in files.items():
            (place / file).write_bytes(content)
        return place

    yield served
    server.shutdown()
    server.server_close()


def closed_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_data_set_is_downloaded_and_decoded(served, opened, tmp_path, name):
    place = served(name)
    source = opened(f"torchvision:{name}")
    images = COLOUR if name in ("CIFAR10", "CIFAR100", "SVHN") else {part: GREY[part][:, None] for part in GREY}
    assert np.array_equal(source.inputs, np.concatenate([images["train"], images["test"]]))
    assert source.labels.tolist() == [*LABELS["train"], *LABELS["test"]] and source.labels.dtype == np.int64
    assert source.is_test.tolist() == [False] * 20 + [True] * 10 and source.classes == 10
    raw = tmp_path / "data/torchvision" / name
    assert sorted(path.name for path in raw.iterdir()) == sorted(ARCHIVES[name])
    assert all(path.read_bytes() == (place / path.name).read_bytes() for path in raw.iterdir())
    (cached,) = (tmp_path / "built/sources").iterdir()
    assert sorted(path.name for path in cached.iterdir()) == ["inputs.npy", "labels.npy", "split.npy"]


def test_an_archive_that_is_there_is_not_downloaded(served, opened, tmp_path, capsys):
    served("CIFAR10").rename(tmp_path / "brought")
    (tmp_path / "data/torchvision").mkdir(parents=True)
    (tmp_path / "brought").rename(tmp_path / "data/torchvision/CIFAR10")
    assert opened("torchvision:CIFAR10").inputs.shape == (30, 3, 32, 32)
    assert "downloading" not in capsys.readouterr().err


def test_letters_of_emnist_count_from_0(served, opened):
    served("EMNIST")
    letters = opened("torchvision:EMNIST/letters")
    assert letters.labels.tolist() == [*LABELS["train"], *LABELS["test"]]
    assert letters.digest != opened("torchvision:EMNIST").digest


def test_size_and_classes_are_options(served, opened, refused):
    served("MNIST")
    assert opened("torchvision:MNIST", size=8).inputs.shape == (30, 1, 8, 8)
    assert refused("torchvision:MNIST", classes=9) == "torchvision:MNIST train, row 9: label 9 is outside 0..8"


def test_without_a_network_it_is_said_what_to_bring(served, refused, monkeypatch, tmp_path):
    address = f"http://127.0.0.1:{closed_port()}/"
    monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
    said = refused("torchvision:MNIST")
    assert said.startswith(
        f"source torchvision:MNIST: cannot download train-images-idx3-ubyte.gz ({address}train-images-idx3-ubyte.gz: "
    )
    assert said.endswith(
        "; where there is no network, put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
        "t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz into data/torchvision/MNIST/ and run the same command "
        "again"
    )
    assert not (tmp_path / "data").exists()


def test_another_file_at_the_address_is_not_kept(served, refused, tmp_path):
    place = served("MNIST")
    (place / "t10k-labels-idx1-ubyte.gz").write_bytes(b"Please log in")
    said = refused("torchvision:MNIST")
    assert "what came is not the file that torchvision knows" in said
    assert "put t10k-labels-idx1-ubyte.gz into data/torchvision/MNIST/" in said
    assert len(list((tmp_path / "data/torchvision/MNIST").iterdir())) == 3  # those that are whole


def test_a_damaged_archive_is_refused_before_it_is_unpickled(served, opened, refused, tmp_path):
    served("CIFAR10")
    opened("torchvision:CIFAR10")
    path = tmp_path / "data/torchvision/CIFAR10/cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:-1])
    assert refused("torchvision:CIFAR10").startswith(
        "data/torchvision/CIFAR10/cifar-10-python.tar.gz: not the whole file that torchvision knows (MD5 "
    )


def test_an_unknown_name_is_answered_with_the_nearest(refused):
    assert refused("torchvision:cifar10").endswith("no data set 'cifar10' among torchvision's; did you mean CIFAR10?")
    assert "did you mean MNIST" in refused("torchvision:MNISTT")
    assert "expected one of CIFAR10, CIFAR100, EMNIST," in refused("torchvision:xyz")
    assert refused("torchvision:EMNIST/leters").endswith("EMNIST has no split 'leters'; did you mean letters?")
    assert refused("torchvision:MNIST/digits").endswith("write torchvision:MNIST")


def test_the_names_of_the_archives_are_torchvisions():
    for name, archives in ARCHIVES.items():
        assert sorted(known(name)) == sorted(archives)
    assert sorted(EMNIST_SPLITS) == sorted(datasets.EMNIST.splits)


def test_streams_are_opened_without_torch(served, opened, tmp_path):
    served("MNIST")
    opened("torchvision:MNIST")
    code = f"""
import sys
from pathlib import Path
import streams.stream
from streams.parameters import StreamParameters
from streams.sources import load
load(StreamParameters(source="torchvision:MNIST", clients=1, experiences=1), Path({str(tmp_path)!r}))
print("torch" in sys.modules)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
