"""What MLflow is told of a run when it starts: its name, its tags, its parameters, and what its stream is."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

from metrics.comparison import same_but_seed
from parameters import Experiment
from tasks.files import file_digest
from tasks.results import main_kind
from tasks.run import LOCK, Run


def variant(spec: Experiment, out: Path) -> str:
    """A run's row in the comparison: NAME where its results go to STREAM/NAME/seed-N, wherever that lies.

    Elsewhere it is a try of its own: the method, then the folder's name (`fedlwf-try-1`). Only letters, digits and _.-
    """
    if out.parts[-3:-2] + out.parts[-1:] == (spec.stream, f"seed-{spec.seed}"):
        name = out.parts[-2]
    else:
        folder = out.parent if out.name == f"seed-{spec.seed}" else out
        name = f"{spec.method}-{folder.name}"
    return re.sub(r"[^\w.-]+", "-", name)


def command(spec: Experiment, out: Path, root: Path) -> str:
    """The command that runs it again. Without what changes no result (`run.*`), which may hold an address."""
    words = ["fcl", "run", spec.method, "--stream", spec.stream, "--seed", str(spec.seed)]
    for each in spec.sets:
        words += ["--set", each] if not each.startswith("run.") else []
    if out != root / "results" / spec.stream / spec.method / f"seed-{spec.seed}":
        words += ["--out", str(out.relative_to(root) if out.is_relative_to(root) else out)]
    return shlex.join(words)


def digest_but_seed(identity: dict[str, Any], stream_digest: str) -> str:
    """Equal for experiments over whose seeds a mean makes sense (`metrics.comparison.same_but_seed`)."""
    what = same_but_seed({"experiment": identity, "stream_digest": stream_digest})
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def tracking_description(run: Run) -> dict:
    """What MLflow is told when a run starts."""
    spec, stream = run.experiment, run.site.stream
    name, repeat, commit = variant(spec, run.out), command(spec, run.out, run.root), run.source["git_commit"]
    parameters = spec.identity() | {"run": spec.run.model_dump(mode="json")}
    networks = parameters.pop("models")
    parameters |= {"model": networks[0]} if len(networks) == 1 else {"models": dict(enumerate(networks))}
    return {
        "run_name": f"{name}/seed-{spec.seed}",
        "rounds": spec.train.rounds,
        "patience": spec.run.tracking_patience,
        "journal": run.progress.journal,  # bytes of the journal that a resumed run goes on from
        "main_model": main_kind(run),
        "parameters": flat(parameters),
        "tags": {
            "method": spec.method,
            "variant": name,
            "stream": spec.stream,
            "seed": str(spec.seed),
            "command": repeat,
            "git_commit": commit or "",
            "experiment_digest": digest_but_seed(spec.identity(), stream.digest),
            "parameter_digest": spec.digest,
            "stream_digest": stream.digest,
            "lock_digest": file_digest(LOCK) or "",
            "mlflow.source.name": "fcl",
            "mlflow.source.type": "LOCAL",
            "mlflow.note.content": f"```\n{repeat}\n```",
            **({"mlflow.source.git.commit": commit} if commit else {}),
        },
        "stream": {
            "name": spec.stream,
            "digest": stream.digest,
            "source": spec.stream_parameters.source,
            "clients": stream.clients,
            "experiences": stream.experiences,
            "classes": stream.classes,
            "shape": list(stream.shape),
            "samples": len(stream.labels),
        },
    }


def flat(tree: dict, prefix: str = "") -> dict[str, object]:
    """{"train": {"rounds": 3}} -> {"train.rounds": 3}"""
    pairs: dict[str, object] = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else key
        pairs |= flat(value, name) if isinstance(value, dict) and value else {name: value}
    return pairs
