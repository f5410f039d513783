"""What a run leaves is complete, right and enough to repeat it. The formulas here are the test's own."""

from __future__ import annotations

import hashlib
import json
import subprocess
from statistics import fmean, pstdev

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
from PIL import Image

from tasks.run import LOCK

METHODS = ["fedavg", "local", "joint"]
MAIN = {"fedavg": "global", "local": "personal", "joint": "global"}


@pytest.fixture(scope="module")
def runs(play_run, undisturbed):
    """A finished run of each method."""
    return {"fedavg": undisturbed, "local": play_run("local"), "joint": play_run("joint")}


@pytest.fixture(params=METHODS)
def run(request, runs):
    return runs[request.param]


@pytest.fixture(scope="module")
def stream(workshop):
    from streams.stream import open_stream

    return open_stream("digits", workshop)


# Metrics


def mean_matrix(rows: list[tuple], kind: str) -> dict[tuple[int, int], float]:
    """R[a, b], the plain mean over holders; a = -1 is the untrained model."""
    cells: dict[tuple[int, int], list[float]] = {}
    for model, _, trained, tested, accuracy in rows:
        if model == kind:
            cells.setdefault((trained, tested), []).append(accuracy)
    return {cell: sum(values) / len(values) for cell, values in cells.items()}


def from_the_matrix(R: dict[tuple[int, int], float], T: int) -> dict[str, float]:
    """The formulas of the specification, with experiences counted from 0."""
    average = [sum(R[a, b] for b in range(a + 1)) / (a + 1) for a in range(T)]
    found = {
        "final_average_accuracy": average[T - 1],
        "average_incremental_accuracy": sum(average) / T,
        "forgetting": sum(max(R[a, b] for a in range(b, T - 1)) - R[T - 1, b] for b in range(T - 1)) / (T - 1),
        "backward_transfer": sum(R[T - 1, b] - R[b, b] for b in range(T - 1)) / (T - 1),
        "learning_accuracy": sum(R[b, b] for b in range(T)) / T,
    }
    if (-1, 0) in R:
        found["forward_transfer"] = sum(R[b - 1, b] - R[-1, b] for b in range(1, T)) / (T - 1)
    return found


def client_ratios(
    rows: list[tuple], kinds: tuple[str, str], after: tuple[int, int], before: tuple[int, int], name: str
):
    """Mean over clients of accuracy in the cell `after` over that in the cell `before`, and the denominators."""
    top, bottom = (
        {client: accuracy for model, client, a, b, accuracy in rows if model == kind and (a, b) == cell and client >= 0}
        for kind, cell in zip(kinds, (after, before), strict=True)
    )
    if not bottom:
        return {}
    ratios = [top[client] / bottom[client] for client in bottom if bottom[client] > 0]
    return {
        name: sum(ratios) / len(ratios),
        f"{name}_clients": len(ratios),
        f"{name}_denominator": sum(bottom.values()) / len(bottom),
    }


def own_data(rows: list[tuple], T: int) -> dict[str, float]:
    """What each client's model does on its own test data at the end, over the experiences it has data of."""
    kinds = {row[0] for row in rows}
    kind = "personal" if "personal" in kinds else "received"
    accuracies: dict[int, list[float]] = {}
    for model, client, trained, _, accuracy in rows:
        if model == kind and trained == T - 1:
            accuracies.setdefault(client, []).append(accuracy)
    own = sorted(fmean(values) for values in accuracies.values())
    if not own:
        return {}
    worst = own[: max(1, -(-len(own) // 10))]
    return {
        "personalisation_mean": fmean(own),
        "personalisation_std": pstdev(own),
        "personalisation_worst_decile": fmean(worst),
    }


def expected_metrics(matrix: pd.DataFrame, rounds: pd.DataFrame, main: str) -> dict[str, float]:
    rows = list(matrix[["model", "client", "trained", "tested", "accuracy"]].itertuples(index=False, name=None))
    T = int(matrix.trained.max()) + 1
    found = {}
    for kind in sorted({row[0] for row in rows}):
        prefix = "" if kind == main else f"{kind}."
        found |= {prefix + name: value for name, value in from_the_matrix(mean_matrix(rows, kind), T).items()}
    just_before = "trained" if "trained" in set(matrix.model) else main
    after_fusion = "received" if "received" in set(matrix.model) else main
    last = (T - 1, T - 1)
    found |= client_ratios(rows, (just_before, just_before), (T - 1, 0), (0, 0), "temporal_retention")
    found |= client_ratios(rows, (after_fusion, just_before), last, last, "spatial_retention")
    found |= own_data(rows, T)
    cells = {row[:4]: row[4] for row in rows}
    gaps = [
        cells["trained", client, t, t] - cells["received", client, t, t]
        for kind, client, t, tested in cells
        if kind == "trained" and t == tested and ("received", client, t, t) in cells
    ]
    found |= {"consolidation_gap": sum(gaps) / len(gaps)} if gaps else {}
    work = rounds.to_dict("records")
    slowest: dict[tuple[int, int], float] = {}
    for row in work:
        key = (row["experience"], row["round"])
        slowest[key] = max(slowest.get(key, 0), row["seconds"])
    sums = {name: sum(row[name] for row in work) for name in ("bytes_up", "bytes_down", "samples", "steps")}
    return found | {
        **sums,
        "client_seconds": sum(row["seconds"] for row in work),
        "simulated_seconds": sum(slowest.values()),
        "refused": sum(not row["admitted"] for row in work),
    }


@pytest.mark.parametrize("method", METHODS)
def test_metrics_are_those_of_the_matrix(runs, method):
    run = runs[method]
    expected = expected_metrics(run.matrix, run.rounds, MAIN[method])
    assert run.metrics == pytest.approx(expected, rel=1e-9, abs=1e-12)


# Tables


def test_tables_have_fixed_columns_and_types(run):
    assert {name: str(kind) for name, kind in run.matrix.dtypes.items()} in [
        {"model": text, "client": "int64", "trained": "int64", "tested": "int64"}
        | {"accuracy": "float64", "samples": "int64"}
        for text in ("str", "string", "object")
    ]
    whole, real = dict.fromkeys(["experience", "round", "client", "samples", "steps"], "int64"), "float64"
    assert {name: str(kind) for name, kind in run.rounds.dtypes.items()} in [
        whole
        | {
            "loss": real,
            "bytes_up": "int64",
            "bytes_down": "int64",
            "seconds": real,
            "simulated": real,
            "admitted": "bool",
            "reason": text,
        }
        for text in ("str", "string", "object")
    ]


def test_every_cell_of_the_matrix_is_there_once(runs, stream):
    """Each model on each experience after each; client by client only where the client has test data."""
    matrix = runs["fedavg"].matrix
    assert not matrix.duplicated(["model", "client", "trained", "tested"]).any()
    cells = {(a, b) for a in range(-1, stream.experiences) for b in range(stream.experiences)}
    everyones = matrix[matrix.model == "global"]
    assert set(zip(everyones.trained, everyones.tested, strict=True)) == cells
    assert set(everyones.client) == {-1}
    for b, samples in zip(everyones.tested, everyones.samples, strict=True):
        assert samples == len(stream.test(None, b))
    for client in range(stream.clients):
        own = matrix[(matrix.model == "received") & (matrix.client == client)]
        wanted = {(a, b) for a, b in cells if len(stream.test(client, b))}
        assert set(zip(own.trained, own.tested, strict=True)) == wanted


def test_what_clients_receive_adds_up_to_what_the_server_holds(runs):
    """In a shared order the clients' test data are a partition of everyone's: weighted by samples, accuracies agree."""
    matrix = runs["fedavg"].matrix
    everyones = matrix[matrix.model == "global"].set_index(["trained", "tested"])
    received = matrix[matrix.model == "received"].assign(hits=lambda rows: rows.accuracy * rows.samples)
    sums = received.groupby(["trained", "tested"])[["hits", "samples"]].sum()
    pd.testing.assert_series_equal(
        sums.hits / sums.samples, everyones.accuracy.sort_index(), check_names=False, rtol=1e-12
    )


def test_rounds_say_what_clients_did(runs, stream):
    rounds = runs["fedavg"].rounds
    for row in rounds.itertuples():
        assert row.samples == len(stream.train(row.client, row.experience))
        assert row.steps in (row.samples // 16, -(-row.samples // 16)) or row.samples < 16  # one epoch, batches of 16
    assert rounds.admitted.all()
    assert np.isfinite(rounds.loss).all()
    assert (rounds.seconds > 0).all()


# Communication


def test_bytes_are_those_of_the_files_that_were_written(play_run, undisturbed, monkeypatch):
    """Counted where files are written, round after round, and in closed form: the model and a header for each."""
    from tasks.store import Store

    written: list[tuple[str, int]] = []
    write = Store.write

    def note(store, kind, data):
        written.append((kind, len(data)))
        return write(store, kind, data)

    monkeypatch.setattr(Store, "write", note)
    run = play_run("fedavg")
    assert sum(size for kind, size in written if kind == "uploads") == run.metrics["bytes_up"]
    clients = run.rounds.client.nunique()
    assert sum(size for kind, size in written if kind == "broadcasts") * clients == run.metrics["bytes_down"]
    assert run.rounds.bytes_up.sum() == run.metrics["bytes_up"]


def test_fedavg_sends_one_model_for_each_client_and_round(runs):
    run = runs["fedavg"]
    tensors = {f"model.{name}": tensor for name, tensor in run.models()["global"].items()}
    rows = run.rounds
    assert len(rows) == 3 * 2 * 3, "clients x rounds x experiences"
    for row in rows.itertuples():
        header = {"method": "fedavg", "parent": "0" * 64, "values": {}, "experience": row.experience}
        up = header | {"client": row.client, "round": row.round, "samples": row.samples}
        down = header | {"client": -1, "round": row.round, "samples": 0}
        assert (row.bytes_up, row.bytes_down) == (payload_size(tensors, up), payload_size(tensors, down))


def payload_size(tensors: dict, header: dict) -> int:
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    return len(safetensors.torch.save(tensors, {"header": text}))


@pytest.mark.parametrize("method", ["local", "joint"])
def test_methods_without_fusion_send_nothing(runs, method):
    assert (runs[method].metrics["bytes_up"], runs[method].metrics["bytes_down"]) == (0, 0)


# Models


def accuracy(predictor, stream, samples, seen) -> float:
    probabilities = predictor.predict(stream.inputs[samples])
    assert probabilities.shape == (len(samples), stream.classes)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    unseen = sorted(set(range(stream.classes)) - set(seen))
    assert not probabilities[:, unseen].any()
    return float((probabilities.argmax(axis=1) == stream.labels[samples]).mean())


@pytest.mark.parametrize("method", METHODS)
def test_final_models_reproduce_the_last_row_of_the_matrix(runs, stream, method):
    from tasks.serving import Predictor

    run, kind, last = runs[method], MAIN[method], stream.experiences - 1
    rows = run.matrix[(run.matrix.model == kind) & (run.matrix.trained == last)]
    assert len(rows)
    for row in rows.itertuples():
        name = f"{kind}-{row.client}" if row.client >= 0 else kind
        samples = stream.test(row.client if row.client >= 0 else None, row.tested)
        seen = stream.seen(row.client, last) if row.client >= 0 else stream.seen_by_all(last)
        predictor = Predictor(run.out / "models" / f"{name}.safetensors")
        assert accuracy(predictor, stream, samples, seen) == pytest.approx(row.accuracy, abs=1e-12)


def test_there_is_a_model_file_for_everyone_who_holds_one(runs):
    assert set(runs["fedavg"].models()) == set(runs["joint"].models()) == {"global"}
    assert set(runs["local"].models()) == {"personal-0", "personal-1", "personal-2"}


# run.json and figures


def test_run_json_tells_all_that_a_repetition_needs(runs, workshop, stream):
    run = runs["fedavg"]
    told = run.json("run.json")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=workshop, capture_output=True, text=True, check=True)
    assert told["git_commit"] == commit.stdout.strip()
    assert told["git_clean"] is True
    assert (told["method"], told["stream"], told["seed"]) == ("fedavg", "digits", 0)
    identity = json.dumps(told["experiment"], sort_keys=True)
    assert told["parameter_digest"] == hashlib.sha256(identity.encode()).hexdigest()
    assert told["experiment"]["train"]["batch_size"] == 16
    assert told["stream_digest"] == stream.digest
    assert told["lock_digest"] == hashlib.sha256(LOCK.read_bytes()).hexdigest(), (
        "that of the code, wherever the project lies"
    )
    assert told.get("mlflow_run") is None, "this run was not tracked"
    assert len(told["digest"]) == 64
    assert len(told["prefect_flow_run"]) == 36
    assert (told["runner"], told["workers"], told["device"]) == ("threads", 2, "cpu")
    assert set(told["versions"]) >= {"torch", "prefect", "mlflow", "dvc"}
    assert told["failures"] == []


def test_a_tree_with_changes_is_not_clean(workshop, play_run):
    note = workshop / "note.txt"
    note.write_text("new")
    try:
        told = play_run("fedavg", "train.rounds=1").json("run.json")
    finally:
        note.unlink()
    assert told["git_clean"] is False


def test_figures_are_pictures(run):
    for name in ("accuracy.png", "matrix.png"):
        with Image.open(run.out / name) as image:
            image.verify()
        with Image.open(run.out / name) as image:
            assert image.format == "PNG" and min(image.size) >= 200
            assert len(image.convert("RGB").getcolors(2**24)) > 2, "an empty canvas"


# fcl verify


def test_verify_repeats_a_run_and_leaves_nothing(runs, fcl, workshop):
    out = runs["local"].out
    before = sorted((workshop / "runs").iterdir())
    status, said, error = fcl("verify", out)
    assert (status, error) == (0, "")
    assert runs["local"].digest in said.replace("\n", "")
    assert sorted((workshop / "runs").iterdir()) == before


def test_verify_tells_a_result_that_is_not_reproduced(runs, fcl, tmp_path):
    told = runs["fedavg"].json("run.json")
    (tmp_path / "run.json").write_text(json.dumps(told | {"digest": "0" * 64}))
    status, _, error = fcl("verify", tmp_path)
    assert status == 1
    (line,) = error.splitlines()
    assert line.startswith("error: ")
    assert "0" * 64 in line and told["digest"] in line


def test_verify_repeats_what_was_run_not_what_params_yaml_says_now(play_run, fcl):
    """Parameters of the method's training and of the stream, which others have built since, come from run.json."""
    run = play_run("local", "streams.digits.clients=2", "train.rounds=1", "train.learning_rate=0.25", seed=3)
    play_run("local", "train.rounds=1")
    assert fcl("verify", run.out)[0] == 0
