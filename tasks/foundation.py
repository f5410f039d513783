"""Foundation models on disk: made once for a stream, opened by every worker, the same for all clients and the server.

built/foundations/NAME/foundation.safetensors     backbone and heads of the general tasks
built/foundations/NAME/foundation.json            parameters, structure, accuracies and digests
built/foundations/NAME/tokenizer.json             where the backbone reads texts by a tokenizer
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from filelock import FileLock
from torch import nn

from errors import InputError
from methods.pretraining import general_accuracy, pretrain, pretrain_tasks, with_heads
from methods.training import LocalData
from models import backbones
from models.foundation import Foundation, FoundationParameters
from streams.atomic import written_whole
from streams.general import general_labels
from streams.stream import Stream

from .answers import answers, by_task
from .files import file_digest, write_json

WEIGHTS = "foundation.safetensors"
FORMAT = 1  # raise it when the same parameters would give another model


@dataclass(frozen=True)
class Built:
    """A foundation model on disk: its folder and what foundation.json says."""

    folder: Path
    record: Mapping[str, Any]
    new: bool = False  # whether it was made just now

    @property
    def general(self) -> tuple[str, ...]:
        return tuple(self.record["general"])


def build(name: str, parameters: FoundationParameters, stream: Stream, root: Path, device: str = "cpu") -> Built:
    """Makes the foundation model, unless it is there with the same parameters and for the same stream.

    Raises:
        InputError: the public split is empty, the general tasks are not the source's, or weights are missing.
    """
    folder = place(name, root)
    identity = {"format": FORMAT, "parameters": parameters.model_dump(mode="json"), "stream": stream.digest}
    lock = root / "runs" / "locks" / f"foundation-{name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # of two runs that need it, one makes it
        known = read(folder)
        if known and {key: known.get(key) for key in identity} == identity:
            return Built(folder, known)
        for left in folder.parent.glob(f".{name}.*"):  # by a build that was killed; this one holds the lock
            shutil.rmtree(left, ignore_errors=True)
        with written_whole(folder, replace=True) as temporary:
            foundation, labels = make(parameters, stream, root, temporary, device)
            safetensors.torch.save_file(
                {key: each.contiguous().cpu() for key, each in foundation.state_dict().items()},
                temporary / WEIGHTS,
            )
            record = {
                **identity,
                "general": {task: head.out_features for task, head in foundation.general.items()},
                "accuracy": accuracies(foundation, stream, labels, device),
                "backbone": foundation.backbone.description(),
                "modality": foundation.backbone.modality,
                "width": foundation.width,
                "shape": list(stream.shape),
                "weights": sum(each.numel() for each in foundation.backbone.parameters()),
                "digest": file_digest(temporary / WEIGHTS),
                "beside": {path.name: file_digest(path) for path in temporary.iterdir() if path.name != WEIGHTS},
            }
            write_json(temporary / "foundation.json", record)
    return Built(folder, record, new=True)


def make(
    parameters: FoundationParameters, stream: Stream, root: Path, folder: Path, device: str
) -> tuple[Foundation, dict[str, np.ndarray]]:
    """The foundation model, and the general labels of all samples of the source."""
    from .site import prepare_process

    prepare_process()
    labels = {task: general_labels(task, stream.parameters, stream.labels, root) for task in parameters.general}
    public = stream.public()
    own = parameters.source == "pretrain"
    if not len(public) and (own or labels):
        raise InputError(
            f"streams.{stream.name}.public must be greater than 0 (got 0): foundation.source {parameters.source} "
            f"{'is trained on' if own else 'has its general tasks fitted to'} samples that no client holds"
        )
    data = LocalData(*stream.load(public), device)
    targets = {task: torch.from_numpy(each[stream.samples_of(public)]).to(device) for task, each in labels.items()}
    if not own:
        from models import released

        backbone = released.load(parameters, stream.shape, root, folder).to(device)
        return with_heads(backbone, data, targets, parameters.probe, parameters.seed), labels
    layout = stream.layout.to_record() if stream.layout else None
    backbone = backbones.untrained(parameters, stream.shape, layout).to(device)
    if isinstance(backbone, backbones.SeveralTasks):
        return pretrain_tasks(backbone, data, parameters.pretraining, parameters.seed), labels
    if not targets and (backbone.modality == "text" or not parameters.pretraining.reconstruction):
        raise InputError(
            "foundation.general names no task, so that foundation.source pretrain has nothing to learn"
            " (texts cannot be reconstructed); name one, or choose hf:PATH_OR_NAME"
        )
    return pretrain(backbone, data, targets, parameters.pretraining, parameters.seed), labels


def test_rows(stream: Stream) -> np.ndarray:
    """All test samples of the stream, as rows."""
    return np.concatenate([stream.test(None, experience) for experience in range(stream.experiences)])


def accuracies(
    foundation: Foundation, stream: Stream, labels: Mapping[str, np.ndarray], device: str
) -> dict[str, float]:
    """Test accuracy of each general task, in [0, 1]; of a network of several tasks the measures of each task."""
    rows = test_rows(stream)
    data, samples = LocalData(*stream.load(rows), device), stream.samples_of(rows)
    if stream.layout:
        network = foundation.backbone.network
        measured = by_task(network.layout.tasks, answers(network, data, range(stream.classes)))
        return {f"{row['task']} {row['measure']}": row["value"] for row in measured}
    return {
        task: general_accuracy(
            nn.Sequential(foundation.backbone, foundation.general[task]),
            data,
            torch.from_numpy(each[samples]).to(device),
        )
        for task, each in labels.items()
    }


def place(name: str, root: Path) -> Path:
    return root / "built" / "foundations" / name


def read(folder: Path) -> dict[str, Any] | None:
    """What foundation.json says; None where there is none, or none of a whole model."""
    try:
        record = json.loads((folder / "foundation.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(record, dict) or not {"digest", "beside"} <= record.keys():
        return None
    files = {WEIGHTS: record["digest"], **record["beside"]}
    return record if all(file_digest(folder / file) == digest for file, digest in files.items()) else None


def open_foundation(folder: Path, device: str = "cpu") -> Foundation:
    """The model that was built in `folder`, frozen.

    Raises:
        InputError: there is none, or its files are damaged.
    """
    record = read(folder)
    if record is None:
        raise InputError(f"built/foundations/{folder.name}: missing or damaged; make it with: fcl foundation STREAM")
    return restore(record, safetensors.torch.load_file(folder / WEIGHTS), folder, device)


def restore(record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], folder: Path, device: str) -> Foundation:
    """The model that a record describes, with the given tensors."""
    foundation = Foundation(backbones.rebuild(record["backbone"], folder), record["general"])
    foundation.load_state_dict(tensors, strict=True)
    return foundation.requires_grad_(False).to(device)
