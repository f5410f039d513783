"""What the Prefect UI asks of a person: params.yaml's knobs as JSON schemas, from the pydantic models that check them.

A field that is left alone is not sent, so params.yaml's value holds; its words say which that is. The server refuses
what does not fit the schema when a run is queued; what crosses several keys is checked by `parameters.experiment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

import methods
from methods.training import TrainParameters
from parameters import project_root, read, section
from run_parameters import RunParameters

Schema = dict[str, Any]


class Forms:
    """The schemas of one project: its streams, and its params.yaml's values in the descriptions."""

    def __init__(self) -> None:
        self.params = read(project_root())

    @property
    def method(self) -> Schema:
        return {"type": "string", "enum": methods.names(), "description": "`fcl methods` says what each is"}

    @property
    def stream(self) -> Schema:
        about = "a stream of params.yaml; `fcl streams` says what each is"
        return {"type": "string", "enum": list(self.params["streams"]), "description": about}

    @property
    def train(self) -> Schema:
        about = "Local training. A stream may have values of its own: params.yaml, streams.NAME.train."
        return fields(TrainParameters, self.params["train"]) | {"title": "train", "description": about}

    @property
    def run(self) -> Schema:
        about = "How the work is done; nothing here changes a result."
        return fields(RunParameters, self.params["run"]) | {"title": "run", "description": about}

    @property
    def method_parameters(self) -> Schema:
        """One section of fields for each method that has parameters."""
        known = [name for name in methods.names() if methods.get(name).Params.model_fields]
        several = [
            fields(methods.get(name).Params, section(self.params["methods"], name, "methods.")) | {"title": name}
            for name in known
        ]
        return {"anyOf": several, "description": "The parameters of the method that is chosen above."}


def fields(model: type[BaseModel], values: Mapping[str, Any]) -> Schema:
    """A model's fields as a schema without references, in which nothing is required and nothing has a default.

    Args:
        values: what params.yaml says; a field's description ends with its value, or else with the model's default.
    """
    schema = model.model_json_schema()
    return _plain(schema, schema.get("$defs", {}), values)


def _plain(schema: Schema, definitions: Mapping[str, Schema], values: Any) -> Schema:
    """An object's schema with its fields spelt out."""
    found: Schema = {}
    for name, field in schema.get("properties", {}).items():
        given = isinstance(values, Mapping) and name in values
        value = values[name] if given else field.get("default")
        target = definitions.get(field.get("$ref", "").rpartition("/")[2])
        if target:
            described = {"description": _sentence(field.get("description", ""))}
            found[name] = {**_plain(target, definitions, value or {}), **described, "title": name}
            continue
        field = {key: part for key, part in field.items() if key != "default"}
        branches = [each for each in field.pop("anyOf", []) if value is not None or each.get("type") != "null"]
        field |= {"anyOf": branches} if len(branches) > 1 else branches[0] if branches else {}
        known = "" if value is None and not given else f" Default: {_text(value)}."
        found[name] = {**field, "title": name, "description": _sentence(field.get("description", "")) + known}
    return {"type": "object", "properties": found, "additionalProperties": False}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""


def _text(value: Any) -> str:
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)
