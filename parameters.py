"""params.yaml, checked at the door: `experiment("fedavg", "digits", seed=0, sets=["train.rounds=1"])`.

The file's keys are the command line's (`--set train.rounds=1`) and DVC's; the pydantic models are the schema. What is
wrong is said in one line that names the key, what was expected and what came.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

import methods
import models
from errors import InputError, nearest
from fault_parameters import FaultParameters
from methods.devices import DeviceParameters
from methods.training import TrainParameters
from models.foundation import FoundationParameters
from run_parameters import RunParameters, run_parameters
from streams.parameters import StreamParameters
from validation import checked

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with libyaml


class Experiment(BaseModel):
    """One experiment: all that determines its result, and (`run`) how it is computed."""

    model_config = ConfigDict(frozen=True)

    method: str
    method_parameters: dict[str, Any]
    stream: str
    stream_parameters: StreamParameters
    models: list[dict[str, Any]]  # client i has the i-th, round-robin
    train: TrainParameters
    foundation: FoundationParameters | None = None  # where the method works with one
    devices: DeviceParameters | None = None  # where the method has a cost model
    faults: FaultParameters | None = None  # where any are simulated
    seed: int
    run: RunParameters
    sets: tuple[str, ...] = ()  # the --set that led here: how to repeat it, no part of what it is

    @property
    def model(self) -> dict[str, Any]:
        """The server's own network, the first."""
        return self.models[0]

    @property
    def title(self) -> str:
        return f"{self.method} on {self.stream}, seed {self.seed}"

    def identity(self) -> dict[str, Any]:
        """All that determines the result, with defaults filled in."""
        without = {name for name in ("foundation", "devices", "faults") if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude={"run", "sets", *without})

    @property
    def digest(self) -> str:
        """SHA-256 over `identity`: two experiments of the same digest have the same result."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def project_root(start: Path | None = None) -> Path:
    """The nearest folder with a params.yaml, from `start` (default: here) upwards."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "params.yaml").is_file():
            return folder
    raise InputError(f"no params.yaml in {start} or above; run fcl inside the project's folder")


# Sections that a stream may override, and their keys that are sections themselves.
DEEPER = {"model": (), "train": ("augmentation",), "foundation": ("network", "pretraining"), "faults": ()}


def read(root: Path, sets: Sequence[str] = ()) -> dict[str, Any]:
    """params.yaml as a dictionary with `--set KEY=VALUE` applied; VALUE is read as YAML."""
    path = root / "params.yaml"
    try:
        params = yaml.load(path.read_text(), LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path.name}{where}: not valid YAML ({getattr(error, 'problem', error)})") from error
    sections = ("streams", "model", "train", "methods", "run")
    optional = ("models", "foundation", "devices", "faults")
    several, *others = (params.pop(name, None) if isinstance(params, dict) else None for name in optional)
    found = ", ".join(map(str, params)) if isinstance(params, dict) else repr(params)
    if not isinstance(params, dict) or set(params) != set(sections):
        raise InputError(f"{path.name}: expected the sections {', '.join(sections)} (got {found})")
    for name in sections:
        section(params, name)
    for name in params["methods"]:
        methods.get(name)  # a misspelt section would be an experiment with defaults
    params["models"] = several or []
    for name, about in zip(optional[1:], others, strict=True):
        params[name] = about or {}
        section(params, name)
    sections = (*sections, *optional[1:])
    touched: set[tuple[str, str]] = set()
    for key, value in map(_assignment, sets):
        if key == ["models"]:
            params["models"] = value
            continue
        if key[0] not in sections:
            raise InputError(f"no key '{'.'.join(key)}'; {nearest(key[0], sections)}")
        if key[0] == "streams" and len(key) > 1:
            known(params, "streams", key[1])
        if key[0] == "methods" and len(key) > 1:
            methods.get(key[1])
        if len(key) < 2 or (key[0] in ("streams", "methods") and len(key) < 3):
            raise InputError(f"--set {'.'.join(key)}: expected a single key, not a whole section")
        if key[0] in ("streams", "methods"):
            touched.add((key[0], key[1]))
        if len(key) > 2 and key[0] in DEEPER and key[1] not in DEEPER[key[0]]:
            raise InputError(f"no key '{'.'.join(key)}': '{key[1]}' has no keys below it")
        # Sets of these sections come after the stream's own, so here they are only checked.
        _put(copy.deepcopy(params) if key[0] in DEEPER else params, key, value)
    for kind, name in sorted(touched):  # also of streams and methods that are not run: nobody sets a key in vain
        if kind == "streams":
            stream_parameters(params, name)
        else:
            checked(methods.get(name).Params, section(params["methods"], name, "methods."), f"methods.{name}")
    return params


def section(tree: dict[str, Any], name: str, prefix: str = "") -> dict[str, Any]:
    """A section below `tree`, which must be one; an empty one stands for its defaults."""
    if tree.get(name) is None:
        tree[name] = {}
    if not isinstance(tree[name], dict):
        raise InputError(f"{prefix}{name}: expected a section of keys (got {tree[name]!r})")
    return tree[name]


def known(params: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    if name not in params[kind]:
        raise InputError(f"no stream '{name}'; {nearest(name, params[kind])} (fcl streams lists all)")
    return section(params[kind], name, f"{kind}.")


def stream_parameters(params: Mapping[str, Any], name: str) -> StreamParameters:
    overrides = (*DEEPER, "models")
    own = {key: value for key, value in known(params, "streams", name).items() if key not in overrides}
    return checked(StreamParameters, own, f"streams.{name}")


def experiment(
    method: str, stream: str, seed: int = 0, sets: Sequence[str] = (), root: Path | None = None, **run: Any
) -> Experiment:
    """The checked experiment that params.yaml, the stream's own overrides and `sets` (in this order) describe.

    Args:
        method: a registered method.
        stream: a key of the section `streams`.
        seed: the experiment seed, from which all randomness is derived.
        sets: `KEY=VALUE` strings with dotted keys.
        run: values of the section `run` that win over all others (None: not given).
    Raises:
        InputError: anything unknown, out of range or of the wrong type.
    """
    root = root or project_root()
    kind = methods.get(method)
    params = read(root, sets)
    own = known(params, "streams", stream)
    chosen = {name: _chosen(name, sets) for name in ("model", "train")}
    model: dict[str, Any] = {}
    for layer in (params["model"], section(own, "model", f"streams.{stream}."), chosen["model"]):
        if layer.get("name", model.get("name")) != model.get("name"):
            model = {}  # another network's options are not this one's
        model = model | layer
    train = layered(params["train"], section(own, "train", f"streams.{stream}."), chosen["train"])
    several = params["models"] if any(key == ["models"] for key, _ in map(_assignment, sets)) else None
    several = several if several is not None else own.get("models", params["models"])
    networks = zoo(several) if several else [network(model, "model")]
    if len(networks) > 1 and not kind.heterogeneous:
        able = [each for each in methods.names() if methods.get(each).heterogeneous]
        raise InputError(
            f"models: {method} needs one network for all clients (got {len(networks)}); "
            f"clients may have different ones with {', '.join(able)}"
        )
    about = section(params["methods"], method, "methods.")
    needed = kind.needs_foundation or any(each.get("rank") is not None for each in networks)
    wanted = needed or _chosen("foundation", sets)  # a key that is set is checked, needed or not
    founded = foundation_parameters(params, stream, sets) if wanted else None
    devices = checked(DeviceParameters, params["devices"], "devices")
    own_faults = section(own, "faults", f"streams.{stream}.")
    faults = checked(FaultParameters, params["faults"] | own_faults | _chosen("faults", sets), "faults")
    given = {**params["run"], **{key: value for key, value in run.items() if value is not None}}
    result = Experiment(
        method=method,
        method_parameters=checked(kind.Params, about, f"methods.{method}").model_dump(mode="json"),
        stream=stream,
        stream_parameters=stream_parameters(params, stream),
        models=networks,
        train=checked(TrainParameters, train, "train"),
        foundation=founded if needed else None,
        devices=devices if kind.needs_devices else None,
        faults=faults if faults.active else None,
        seed=seed,
        run=run_parameters(given),
        sets=tuple(sets),
    )
    if result.stream_parameters.source == "tasks" and not kind.multitask:
        able = ", ".join(each for each in methods.names() if methods.get(each).multitask)
        raise InputError(f"clients of stream {stream} have different tasks, which {method} does not know; do: {able}")
    if kind.needs_public and not result.stream_parameters.public:
        raise InputError(
            f"streams.{stream}.public must be greater than 0 for {method} (got 0): its server learns from samples "
            "that no client holds"
        )
    clients = result.train.clients_per_round
    if clients != "all" and not 1 <= clients <= result.stream_parameters.clients:
        raise InputError(
            f"train.clients_per_round must be 'all' or between 1 and streams.{stream}.clients = "
            f"{result.stream_parameters.clients} (got {clients})"
        )
    return result


def foundation_parameters(params: Mapping[str, Any], stream: str, sets: Sequence[str] = ()) -> FoundationParameters:
    """The section `foundation`, the stream's own overrides and `sets`, in this order; checked."""
    own = section(known(params, "streams", stream), "foundation", f"streams.{stream}.")
    layers = (params["foundation"], own, _chosen("foundation", sets))
    reader: dict[str, Any] = {}
    for layer in layers:
        about = section(dict(layer), "network", "foundation.")
        if about.get("name", reader.get("name")) != reader.get("name"):
            reader = {}  # another network's options are not this one's
        reader = reader | about
    found = layered(*layers) | ({"network": reader} if reader else {})
    result = checked(FoundationParameters, found, "foundation")
    return result.model_copy(update={"network": network(result.network, "foundation.network")})


def _chosen(name: str, sets: Sequence[str]) -> dict[str, Any]:
    """What `sets` say about the section `name`."""
    found: dict[str, Any] = {}
    for key, value in map(_assignment, sets):
        if key[0] == name:
            _put(found, key[1:], value)
    return found


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Sections laid over each other, the last one wins; sections inside are laid over each other alike."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = layered(result[key], value) if both else value
    return result


def zoo(several: Any) -> list[dict[str, Any]]:
    """The section `models`: names of networks, or sections like `model`."""
    if not isinstance(several, list):
        raise InputError(f"models: expected a list of networks, for example [cnn, cnn4] (got {several!r})")
    return [network({"name": each} if isinstance(each, str) else each, f"models.{i}") for i, each in enumerate(several)]


def network(about: Any, key: str) -> dict[str, Any]:
    """A section `model` with its options checked and defaults filled in."""
    if not isinstance(about, dict) or not isinstance(about.get("name"), str):
        got = about.get("name") if isinstance(about, dict) else about
        raise InputError(f"{key}.name: expected the name of a network (got {got!r})")
    options = {option: value for option, value in about.items() if option != "name"}
    try:
        return {"name": about["name"], **models.check(about["name"], options)}
    except InputError as error:  # it speaks of the section `model`
        raise InputError(str(error).replace("model.", f"{key}.", 1)) from None


def _assignment(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(f"--set {text}: expected KEY=VALUE, for example train.local_epochs=1")
    try:
        return key.split("."), yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {text}: the value is not valid YAML") from None


def _put(tree: dict[str, Any], key: Sequence[str], value: Any) -> None:
    for part in key[:-1]:
        if tree.get(part) is None:
            tree[part] = {}
        if not isinstance(tree[part], dict):
            raise InputError(f"no key '{'.'.join(key)}': '{part}' has no keys below it")
        tree[part] = dict(tree[part])  # YAML's aliases and merge keys let sections share it
        tree = tree[part]
    tree[key[-1]] = value
