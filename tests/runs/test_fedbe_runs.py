"""fedbe as a user runs it: results and Prefect say who trained what, and the saved model is the blocks alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from methods.training import LocalData
from streams.stream import open_stream
from tasks.serving import Predictor

SETS = [f"foundation.network.{key}" for key in ("name=vit_tiny", "width=16", "depth=2", "heads=2", "patch=4")]
SETS += ["train.optimizer=adamw", "train.learning_rate=0.005"]


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def live():
    return {}


@pytest.fixture(scope="module")
def finished(play_run, live):
    def during(run):
        def at(done, total, what):
            if done == total:
                live["model"] = run.site.method.predictor("global", run.site.read(run.progress.server), run.site, -1)

        return at

    return play_run("fedbe", *SETS, during=during)


def test_the_results_say_who_trained_what_and_why(finished):
    table = pd.read_parquet(finished.out / "allocation.parquet")
    assert list(table)[:5] == ["experience", "round", "client", "block", "trains"]
    assert len(table) == 3 * 2 * 3 * 2  # experiences, rounds, clients, blocks
    assert table["trains"].any()
    assert (finished.out / "allocation.png").read_bytes().startswith(b"\x89PNG")
    assert finished.metrics["general_retention"] > 0
    slowest = finished.rounds.groupby(["experience", "round"])["simulated"].max()
    assert finished.metrics["simulated_time"] == pytest.approx(slowest.sum())


def test_prefect_has_the_allocation(finished, server):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["allocation"])))
    assert any("fedbe on digits, seed 0" in each.description for each in found)


def test_the_saved_model_is_the_added_blocks_and_the_classifier_and_predicts_the_same(finished, live, workshop):
    path = finished.out / "models" / "global.safetensors"
    saved = Predictor(path)
    sent = set(live["model"].psi())
    assert set(load_file(path)) == sent
    assert all(".block." in name or name.startswith("head.") for name in sent)
    stream = open_stream("digits", workshop)
    inputs = np.ascontiguousarray(stream.inputs[stream.test(None, 0)])
    data = LocalData(inputs, np.zeros(len(inputs), dtype=np.int64))
    with torch.no_grad():
        own = live["model"](data.batch(torch.arange(len(data))).inputs)[:, saved.seen].softmax(dim=1).numpy()
    assert np.array_equal(saved.predict(inputs)[:, saved.seen], own)


def test_it_is_the_same_in_processes_and_after_an_interruption(finished, play_run, new_out):
    assert play_run("fedbe", *SETS, runner="processes", workers=1).digest == finished.digest

    def during(run):
        def at(done, total, what):
            if done == 4:
                raise Interrupted

        return at

    out = new_out()
    with pytest.raises(Interrupted):
        play_run("fedbe", *SETS, out=out, during=during)
    again = play_run("fedbe", *SETS, out=out, resume=True)
    assert again.digest == finished.digest
    tables = [pd.read_parquet(each.out / "allocation.parquet") for each in (again, finished)]
    pd.testing.assert_frame_equal(*tables)
