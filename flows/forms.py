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
KINDS = {"integer": "number", "number": "number", "string": "text", "array": "list", "null": "none"}
TABS = 6  # in a row, so that a row is not wider than the page


class Forms:
    """The schemas of one project: its streams, and its params.yaml's values in the descriptions."""

    def __init__(self) -> None:
        self.params = read(project_root())

    @property
    def method(self) -> Schema:
        return {"type": "string", "enum": methods.names(), "description": "what runs; fcl methods says what each is"}

    @property
    def stream(self) -> Schema:
        about = "a stream of params.yaml; fcl streams says what each is"
        return {"type": "string", "enum": list(self.params["streams"]), "description": about}

    @property
    def train(self) -> Schema:
        about = "local training; a stream may have defaults of its own, in params.yaml below streams.NAME.train"
        return fields(TrainParameters, self.params["train"]) | {"title": "train", "description": about}

    @property
    def run(self) -> Schema:
        about = "how the work is done; nothing here changes a result"
        return fields(RunParameters, self.params["run"]) | {"title": "run", "description": about}

    @property
    def method_parameters(self) -> Schema:
        """The fields of each method that has parameters: a row of tabs for parts of the alphabet, in them a tab each.

        The UI shows a choice of several schemas as one row of tabs, however many they are.
        """
        known = [name for name in methods.names() if methods.get(name).Params.model_fields]
        parts = [known[start : start + TABS] for start in range(0, len(known), TABS)]
        choices = [
            {"title": f"{part[0]} to {part[-1]}", "anyOf": [self._of_method(name) for name in part]} for part in parts
        ]
        return {"anyOf": choices, "description": "the method's own parameters: look for its name"}

    def _of_method(self, name: str) -> Schema:
        values = section(self.params["methods"], name, "methods.")
        return fields(methods.get(name).Params, values) | {"title": name}


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
            about = {"title": name, "description": field.get("description", "")}
            found[name] = _plain(target, definitions, value or {}) | about
            continue
        field = {key: part for key, part in field.items() if key != "default"}
        branches = [_branch(each) for each in field.pop("anyOf", []) if value is not None or each["type"] != "null"]
        field |= {"anyOf": branches} if len(branches) > 1 else branches[0] if branches else {}
        words = [field.get("description", "")] + [f"default: {_text(value)}"] * (given or value is not None)
        found[name] = field | {"title": name, "description": "; ".join(words)}
    return {"type": "object", "properties": found, "additionalProperties": False}


def _branch(schema: Schema) -> Schema:
    """One of several kinds of value, with a word for its tab; a word that stands for itself is picked, not typed."""
    if "const" in schema:
        return {"type": schema["type"], "enum": [schema["const"]], "title": str(schema["const"])}
    return schema | {"title": KINDS.get(schema["type"], schema["type"])}


def _text(value: Any) -> str:
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)
