"""What MLflow keeps of a run's results as files: copies of them as they were published, and the model.

Only the tracking process imports this: it brings MLflow.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow.entities import LoggedModelOutput
from mlflow.models import Model, infer_signature
from mlflow.tracking import MlflowClient

from .files import file_digest

RELINK = 2.0  # seconds; DVC, saving a stage's outs, takes each file away for a moment


def fetch(results: Path, files: dict[str, str] | None, place: Path) -> bool:
    """Copies files with their digests from a folder of results; False: it does not hold them (any more)."""
    place.mkdir()
    deadline = time.monotonic() + RELINK
    for name, digest in (files or {}).items():
        copy = place / Path(name).name
        while True:
            with suppress(FileNotFoundError):
                shutil.copyfile(results / name, copy)
            if file_digest(copy) == digest:
                break
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    return True


def log_model(client: MlflowClient, run_id: str, file: Path, description: dict[str, Any]) -> str:
    """A model of ours as an MLflow model with signature and input example; its id. Done again, it is the same model.

    Step by step, since `mlflow.pyfunc.log_model` would load the model and predict: seconds for what our tests check.
    """
    run, stream = client.get_run(run_id), description["stream"]
    where, outputs = run.info.experiment_id, run.outputs
    model = next(iter(client.search_logged_models([where], f"source_run_id = '{run_id}'")), None)
    if model is None:
        parameters = {key: str(value) for key, value in description["parameters"].items()}
        model = client.create_logged_model(where, "model", run_id, params=parameters)
    if not outputs or not outputs.model_outputs:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    example = np.zeros((1, *stream["shape"]), dtype=np.uint8)
    lock = Path(description["root"]) / "requirements.lock"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        mlflow.pyfunc.save_model(
            folder,
            loader_module="tasks.serving",
            data_path=str(file),
            mlflow_model=Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id),
            signature=infer_signature(example, np.zeros((1, stream["classes"]), dtype=np.float32)),
            input_example=example,
            pip_requirements=str(lock) if lock.exists() else ["fcl"],
        )
        client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id
