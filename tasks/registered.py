"""Registered models: one for each method (or variant) on a stream, a version for each finished run.

    model = mlflow.pyfunc.load_model("models:/digits.fedavg@best")

Aliases: `best`, the version of the highest final average accuracy among those of the newest version's very stream (the
older one of equals), and `newest`. MLflow keeps the alias `latest` for itself: `models:/digits.fedavg/latest` is the
version of the highest number, which `newest` is, too, and shows in the UI.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from .tracked_runs import every

ATTEMPTS = 20  # see tasks/summary_run.py: aliases are kept in the same way
MEASURE = "final_average_accuracy"


def register(client: MlflowClient, run_id: str, model_id: str, tags: Mapping[str, str]) -> None:
    """Makes a run's logged model a version of its registered model, and sets the aliases. Said again, nothing changes.

    Args:
        tags: of the version, with `stream`, `variant`, `stream_digest` and where there is one `final_average_accuracy`.
    """
    name = model_name(tags["stream"], tags["variant"])
    about = description(name, tags["stream"], tags["variant"])
    try:
        client.create_registered_model(name, {key: tags[key] for key in ("stream", "variant")}, about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = [each for each in _versions(client, name) if each.run_id == run_id]
    if not versions:
        # Not models:/ID, which MLflow would look up at the process's own tracking address, wherever `client` is.
        source = client.get_logged_model(model_id).artifact_location
        versions = [client.create_model_version(name, source, run_id, dict(tags), model_id=model_id)]
    # The UI finds the version of a run's model by this tag, which mlflow.register_model sets alike.
    told = json.dumps([{"name": name, "version": versions[0].version}])
    client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: told})
    set_aliases(client, name)


def model_name(stream: str, variant: str) -> str:
    """`digits.fedavg`. MLflow's names have no slash and no colon, which a stream's key in params.yaml may have."""
    return f"{re.sub('[/:]', '-', stream)}.{variant}"


def description(name: str, stream: str, variant: str) -> str:
    """What the UI says of a registered model."""
    return (
        f"The main models of `{variant}` on `{stream}`, a version for each finished run. `best`: the highest "
        "final average accuracy on the newest version's stream; `newest`: the version of the highest number.\n\n"
        f'```\nmodel = mlflow.pyfunc.load_model("models:/{name}@best")\n'
        "probabilities = model.predict(inputs)  # uint8, as the stream has them\n```"
    )


def set_aliases(client: MlflowClient, name: str) -> None:
    """Points `best` and `newest` to the versions that are; looks again until nothing is left to change.

    Raises:
        RuntimeError: others have changed them 20 times in a row.
    """
    for _ in range(ATTEMPTS):
        wanted = aliases(_versions(client, name))
        known = {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
        if all(known.get(alias) == version for alias, version in wanted.items()):
            return
        for alias, version in wanted.items():
            if known.get(alias) != version:
                client.set_registered_model_alias(name, alias, version)
    raise RuntimeError(f"the aliases of {name} in MLflow are changed by others all the time")


def aliases(versions: Sequence[ModelVersion]) -> dict[str, str]:
    """The version of each alias."""
    if not versions:
        return {}
    newest = max(versions, key=lambda each: int(each.version))
    stream = newest.tags.get("stream_digest")
    able = [each for each in versions if MEASURE in each.tags and each.tags.get("stream_digest") == stream]
    found = {"newest": str(newest.version)}
    if able:
        found["best"] = str(max(able, key=lambda each: (float(each.tags[MEASURE]), -int(each.version))).version)
    return found


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    return list(every(client.search_model_versions, f"name = '{name}'"))
