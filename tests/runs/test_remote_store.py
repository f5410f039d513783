"""States and uploads in an object store: the same result, and credentials that nothing ever records."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from errors import InputError
from run_parameters import refuse_secrets

pytest.importorskip("s3fs", reason="the extra 'cluster' is not installed")
pytest.importorskip("moto", reason="the extra 'dev' is not installed")

KEY, SECRET = "AKIAFCLTESTACCESSKEY", "fcl/test+secret+that+must+not+be+written"


@pytest.fixture(scope="module")
def bucket():
    """A bucket of an S3 server, with what finds and opens it in the environment: (its name, its client)."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="states")
        yield "states", client
    server.stop()


def objects(bucket) -> list[str]:
    name, client = bucket
    return [each["Key"] for each in client.list_objects_v2(Bucket=name).get("Contents", ())]


def holders(text: str, *folders: Path) -> list[str]:
    """The files below `folders` in which `text` stands."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if text.encode() in path.read_bytes()]


def test_states_in_s3_give_the_same_result_and_no_file_holds_the_secret(
    bucket, play_run, undisturbed, assert_same, workshop, capfd
):
    """With worker processes, which reach the store by themselves, and MLflow, which is told all parameters."""
    seen: list[list[str]] = []

    def during(run):
        def at(done, total, what):
            seen.append(objects(bucket))
            assert holders(SECRET, run.folder.path) == []

        return at

    store = f"s3://{bucket[0]}/fcl"
    run = play_run("fedavg", f"run.store={store}", runner="processes", workers=2, track=True, during=during)
    assert_same(run, undisturbed)
    assert all(any("/states/" in key for key in keys) for keys in seen), "every checkpoint's states were there"
    assert objects(bucket) == [], "and nothing stays"
    for text in (SECRET, KEY):
        assert holders(text, workshop, Path(os.environ["PREFECT_HOME"])) == []
        assert text not in "".join(capfd.readouterr())
    assert holders(store, workshop) != [], "the search would have found it: MLflow knows the URL"


def test_a_run_in_s3_is_interrupted_and_goes_on(bucket, play_run, undisturbed, new_out, assert_same):
    def during(run):
        def at(done, total, what):
            if done == 4:
                raise KeyboardInterrupt

        return at

    out, store = new_out(), f"run.store=s3://{bucket[0]}/fcl"
    with pytest.raises(KeyboardInterrupt):
        play_run("fedavg", store, out=out, during=during)
    assert objects(bucket)
    assert_same(play_run("fedavg", store, out=out, resume=True), undisturbed)
    assert objects(bucket) == []


def test_a_bucket_that_is_not_there_is_said_before_anything_is_written(bucket, play_run, new_out):
    out = new_out()
    with pytest.raises(InputError, match=r"run.store: 's3://nowhere/.*cannot be written to"):
        play_run("fedavg", "run.store=s3://nowhere", out=out)
    assert not out.exists()


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{KEY}:{SECRET}@bucket/folder",
        f"s3://{KEY}@bucket",
        f"simplecache::s3://{KEY}:{SECRET}@bucket",
        f"https://host/folder?token={SECRET}",
        f"s3://bucket?X-Amz-Signature={SECRET}",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url, fcl, new_out, workshop):
    status, said, error = fcl("run", "fedavg", "--stream", "digits", "--set", f"run.store={url}", "--out", new_out())
    assert status == 2
    assert "run.store" in error and "AWS_SECRET_ACCESS_KEY" in error
    assert SECRET not in said + error and KEY not in said + error
    assert holders(SECRET, workshop) == []


@pytest.mark.parametrize("url", ["runs", "s3://bucket/folder", "/srv/runs", "s3://bucket/a@b", "gs://bucket?version=3"])
def test_other_urls_are_not_refused(url):
    refuse_secrets(url)


def test_without_s3fs_the_extra_is_named():
    code = "import sys; sys.modules['s3fs'] = None; from tasks.store import Store; Store('s3://bucket')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "InputError: run.store: 's3://bucket' cannot be used" in done.stderr and "fcl[cluster]" in done.stderr
