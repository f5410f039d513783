"""Sections of params.yaml as pydantic models, and pydantic's errors as sentences for a person."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from errors import InputError, nearest

Checked = TypeVar("Checked", bound=BaseModel)


class Section(BaseModel):
    """A section of params.yaml: every key known, numbers finite, `true` no number, unchangeable once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, info: Any) -> Any:
        wanted = str(cls.model_fields[info.field_name].annotation)
        if isinstance(value, bool) and "bool" not in wanted:
            raise PydanticCustomError("int_type" if "int" in wanted else "float_type", "not a number")
        return value


def checked(model: type[Checked], values: Any, prefix: str) -> Checked:
    """`values` as a `model`, or an InputError about the first thing that is wrong."""
    if not isinstance(values, dict):
        raise InputError(f"{prefix}: expected a section of keys (got {values!r})")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first, *others = error.errors()
        branches = [other for other in others if other["loc"][:-1] == first["loc"][:-1] and len(first["loc"]) > 1]
        raise InputError(sentence(first, model, prefix, branches)) from None


_BOUNDS = {
    "greater_than": ("must be greater than {:g}", "gt"),
    "greater_than_equal": ("must be at least {:g}", "ge"),
    "less_than": ("must be less than {:g}", "lt"),
    "less_than_equal": ("must be at most {:g}", "le"),
    "literal_error": ("must be {}", "expected"),
}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text", "tuple": "a list"}


def sentence(
    error: Mapping[str, Any], model: type[BaseModel], prefix: str, branches: Sequence[Mapping[str, Any]] = ()
) -> str:
    """A pydantic error as a sentence: the key, what was expected, what came, what the key is.

    Args:
        error: one of pydantic's error dictionaries.
        model: the model that was to be made.
        prefix: where in params.yaml the section stands.
        branches: the errors of a union's other branches.
    """
    fields: Mapping[str, FieldInfo] = model.model_fields
    field, names = None, []
    for part in map(str, error["loc"]):
        if not fields and field is not None:
            break  # a branch of a union: pydantic's own wording, not a key
        names.append(part)
        if part not in fields:
            break
        field = fields[part]
        inner = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
        sections = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        fields = sections[0].model_fields if len(inner) == 1 and sections else {}
    key = ".".join([prefix, *names])
    if error["type"] == "extra_forbidden":
        return f"no key '{key}'; {nearest(names[-1], fields) if fields else f'{prefix} has no keys'}"
    said = _expected(error)
    if error["type"] == "value_error" and re.split(r"\W", said)[0] in fields:  # a section's own check of its keys
        return f"{key}.{said}"
    meaning = f"; {field.description}" if field and field.description else ""
    if error["type"] == "missing":
        return f"{key} is missing{f' ({field.description})' if meaning else ''}"
    if field and len(error["loc"]) > len(names):  # a union: any of its branches would do
        said = " or ".join([said, *(_expected(branch).removeprefix("must be ") for branch in branches)])
    came = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"
    return f"{key} {said}{came}{meaning}"


def _expected(error: Mapping[str, Any]) -> str:
    context, kind = error.get("ctx", {}), error["type"].partition("_")[0]
    if error["type"] in _BOUNDS:
        text, bound = _BOUNDS[error["type"]]
        return text.format(context[bound])
    if error["type"] in ("model_type", "model_attributes_type"):
        return "must be a section of keys"
    if error["type"] == "finite_number":
        return "must be a finite number"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}"
    return str(context.get("error", error["msg"]))
