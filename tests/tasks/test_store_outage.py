"""A remote store whose server is away: a real S3 server, stopped and started again on the same port."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from tasks.patience import StoreFailed
from tasks.store import Store

pytest.importorskip("moto.server", reason="the S3 server of these tests (moto) is not installed")
pytest.importorskip("s3fs", reason="the S3 client is not installed")


class Bucket:
    """An S3 server on a port of its own that can be stopped and started; it keeps what it has."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()
        _, self.port = self.server.get_host_and_port()

    def stop(self) -> None:
        self.server.stop()


@pytest.fixture
def bucket(monkeypatch):
    import s3fs

    bucket = Bucket()
    variables = {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{bucket.port}",
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield bucket
    bucket.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_remote_store_is_waited_for(bucket):
    store = Store("s3://bucket/runs", patience=0)
    before = store.put("states", {"x": torch.zeros(3)}, {})
    bucket.stop()
    began = time.monotonic()
    with pytest.raises(StoreFailed, match=r"s3://bucket/runs has failed for .*run.store_patience is 0 \(.*--resume"):
        store.get(before)
    store.patience = 60
    back = threading.Timer(time.monotonic() - began + 1, bucket.start)  # later than the client's own tries
    back.start()
    after = store.put("states", {"x": torch.ones(3)}, {})
    back.join()
    assert store.get(before).tensors["x"].sum() == 0
    assert store.get(after).tensors["x"].sum() == 3
    assert store.intact(after) and not store.intact(after._replace(size=1))
