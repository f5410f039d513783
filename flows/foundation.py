"""A foundation model, made and made known: `fcl foundation STREAM`, a DVC stage of its own.

MLflow has one run for every foundation model, with its accuracy in the general tasks, and a registered model
`foundation-FOLDER`, after the model's folder in built/foundations: STREAM, or STREAM-DIGEST where `--set` changed it.

    model = mlflow.pyfunc.load_model("models:/foundation-digits/latest")
    features = model.predict(images)        # uint8 (n, channels, height, width) -> float32 (n, width)
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

from rich.console import Console
from rich.table import Table

from errors import InputError
from models.foundation import FoundationParameters
from parameters import foundation_parameters, read, stream_parameters
from run_parameters import run_parameters
from streams.stream import build
from tasks.delivery import tracking_uri, without_credentials
from tasks.files import write_json
from tasks.foundation import Built
from tasks.foundation import build as make
from tasks.results import read_json
from tasks.run import built_name, foundation_name
from tasks.site import resolve_device


def prepare(stream: str, root: Path, console: Console, sets: Sequence[str] = ()) -> None:
    """Makes the stream's foundation model if need be, tells MLflow of it, and describes it.

    Args:
        sets: `KEY=VALUE` strings of the sections `foundation` and `streams`; `fcl run` with the same ones finds the
            model that they make.
    Raises:
        InputError: a key of another section, or what `read` and the builders refuse.
    """
    params = read(root, sets)
    for each in sets:
        if each.partition(".")[0] not in ("foundation", "streams"):
            raise InputError(f"--set {each}: fcl foundation takes keys of the sections foundation and streams")
    about, parameters = stream_parameters(params, stream), foundation_parameters(params, stream, sets)
    place = built_name(stream, about, root)
    built_stream = build(place, about, root)
    device = resolve_device(run_parameters(params["run"]).device)
    built = make(foundation_name(stream, place, parameters, root), parameters, built_stream, root, device)
    describe(built, parameters, console)
    # Who was told of this very model. Streams that differ in their clients alone have the same one.
    known = root / "runs" / "foundations" / f"{built.folder.name}-{built.record['digest']}.json"
    uri = without_credentials(tracking_uri(root))
    told = read_json(known) if known.exists() else {}
    if told.get("uri") != uri or "version" not in told:
        try:
            told = {"uri": uri, **log(built, stream, parameters, root)}
        except Exception as error:  # whatever keeps the tracking server from answering: the model is made
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            console.print(f"[yellow]note:[/] MLflow was not told ({reason}); repeat the command to tell it")
            return
        write_json(known, told)
    console.print(
        f"registered in MLflow: models:/{told['model']}/{told['version']}",
        highlight=False,
        soft_wrap=True,
    )


def describe(built: Built, parameters: FoundationParameters, console: Console) -> None:
    record = built.record
    console.print(
        f"[bold]{parameters.source}[/]: {record['weights']:,} frozen weights, features of {record['width']} numbers, "
        f"in {built.folder}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("general task", "classes", "test accuracy")
    for task in parameters.general:
        table.add_row(task, str(record["general"][task]), f"{100 * record['accuracy'][task]:.1f} %")
    if record["general"]:
        console.print(table)


def log(built: Built, stream: str, parameters: FoundationParameters, root: Path) -> dict[str, str]:
    """Logs and registers the model in MLflow; the registered `model`, its `version` and the `run_id`."""
    import mlflow.pyfunc
    import numpy as np
    from mlflow.exceptions import MlflowException
    from mlflow.models import infer_signature
    from mlflow.tracking import MlflowClient

    from .description import flat

    experiment, name, record = f"foundation-{stream}", f"foundation-{built.folder.name}", built.record
    with chdir(root), tempfile.TemporaryDirectory() as place:  # a local database's artifacts lie under this folder
        client = MlflowClient(tracking_uri=tracking_uri(root))
        found = client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else client.create_experiment(experiment)
        run = client.create_run(where, run_name=parameters.source, tags={"stream": stream, "digest": record["digest"]})
        run_id = run.info.run_id
        for key, value in flat(parameters.model_dump(mode="json")).items():
            client.log_param(run_id, key, str(value))
        for task, accuracy in record["accuracy"].items():
            client.log_metric(run_id, f"general/{task}", accuracy)
        folder = Path(place) / "model"
        example = np.zeros((1, *record["shape"]), dtype=np.uint8)
        mlflow.pyfunc.save_model(
            folder,
            loader_module="tasks.serving_foundation",
            data_path=str(built.folder),
            signature=infer_signature(example, np.zeros((1, record["width"]), dtype=np.float32)),
            input_example=example,
            pip_requirements=[str(root / "requirements.lock")] if (root / "requirements.lock").exists() else ["fcl"],
        )
        client.log_artifacts(run_id, str(folder), "model")
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        version = client.create_model_version(name, source, run_id).version
        client.set_terminated(run_id)
    return {"model": name, "version": str(version), "run_id": run_id}
