"""Sections of params.yaml as pydantic models, and pydantic's errors as sentences for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

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
        raise InputError(sentence(error.errors()[0], model, prefix)) from None


_BOUNDS = {
    "greater_than": ("must be greater than {:g}", "gt"),
    "greater_than_equal": ("must be at least {:g}", "ge"),
    "less_than": ("must be less than {:g}", "lt"),
    "less_than_equal": ("must be at most {:g}", "le"),
    "literal_error": ("must be {}", "expected"),
}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text"}


def sentence(error: Mapping[str, Any], model: type[BaseModel], prefix: str) -> str:
    """A pydantic error as a sentence: the key, what was expected, what came, what the key is."""
    fields: Mapping[str, FieldInfo] = model.model_fields
    field, names = None, []
    for part in map(str, error["loc"]):
        if not fields and field is not None:
            break  # a branch of a union: pydantic's own wording, not a key
        names.append(part)
        if part not in fields:
            break
        field = fields[part]
        inner = field.annotation
        fields = inner.model_fields if isinstance(inner, type) and issubclass(inner, BaseModel) else {}
    key = ".".join([prefix, *names])
    if error["type"] == "extra_forbidden":
        return f"no key '{key}'; {nearest(names[-1], fields) if fields else f'{prefix} has no keys'}"
    meaning = f"; {field.description}" if field and field.description else ""
    if error["type"] == "missing":
        return f"{key} is missing{f' ({field.description})' if meaning else ''}"
    context, kind = error.get("ctx", {}), error["type"].partition("_")[0]
    if error["type"] in _BOUNDS:
        text, bound = _BOUNDS[error["type"]]
        expected = text.format(context[bound])
    elif error["type"] == "finite_number":
        expected = "must be a finite number"
    elif kind in _KINDS:
        expected = f"must be {_KINDS[kind]}"
    else:
        expected = str(context.get("error", error["msg"]))
    came = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"
    return f"{key} {expected}{came}{meaning}"
