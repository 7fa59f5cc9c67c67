"""The reference of the config's keys, in Markdown, from the same models that validate the config."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from understudy.config import StudyConfig
from understudy.hyperparameters import HYPERPARAMETERS

MARKER = "<!-- From here on written by `make schema`. -->"


def markdown() -> str:
    """Tables of all sections and of all hyperparameters."""
    return "\n".join([MARKER, "", "## All keys", "", *_sections(), *_hyperparameters()])


def _sections() -> Iterator[str]:
    """A table for each kind of section; one that stands in several places has them all in its heading."""
    places = _places(StudyConfig)
    for model, paths in places.items():
        yield f"### {_heading(paths)}"
        yield ""
        if model is not StudyConfig and model.__doc__:
            yield model.__doc__.strip().splitlines()[0]
            yield ""
        yield "| key | values | default | meaning |"
        yield "|---|---|---|---|"
        for name, field in model.model_fields.items():
            inner = _model_in(field.annotation)
            values = f"[section](#{_anchor(_heading(places[inner]))})" if inner else _values(field)
            yield f"| `{name}` | {values} | {'' if inner else _default(field)} | {field.description or ''} |"
        yield ""


def _places(model: type[BaseModel], path: str = "") -> dict[type[BaseModel], list[str]]:
    """The section and those within it, in the order in which they are first found, each with where it stands."""
    found = {model: [path]}
    for name, field in model.model_fields.items():
        if inner := _model_in(field.annotation):
            for each, paths in _places(inner, f"{path}.{name}" if path else name).items():
                found.setdefault(each, []).extend(paths)
    return found


def _heading(paths: list[str]) -> str:
    return ", ".join(f"`{path}`" for path in paths if path) or "Top level"


def _anchor(heading: str) -> str:
    """What a heading's link is called where Markdown is shown, as GitHub does it."""
    return "".join(letter for letter in heading.lower() if letter.isalnum() or letter in " -_").replace(" ", "-")


def _hyperparameters() -> Iterator[str]:
    yield "### Hyperparameters"
    yield ""
    yield "What `space`, `defaults` and `proxy.grid` may name. The default counts where `defaults` doesn't name it."
    yield ""
    yield "| name | values | default | meaning |"
    yield "|---|---|---|---|"
    for name, item in HYPERPARAMETERS.items():
        values = ", ".join(f"`{choice}`" for choice in item.choices) or item.bounds_text() or item.kind.__name__
        note = " (LoRA only)" if item.lora_only else ""
        default = "the published rule's" if name == "learning_rate" else f"`{_plain(item.default)}`"
        yield f"| `{name}` | {values} | {default} | {item.description}{note} |"
    yield ""


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one."""
    options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _values(field: FieldInfo) -> str:
    bounds = [text for limit in field.metadata for text in _bound(limit)]
    return " ".join([_type(field.annotation), *bounds])


def _bound(limit: Any) -> Iterator[str]:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    yield from (f"{sign} {getattr(limit, name):g}" for name, sign in signs.items() if hasattr(limit, name))


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is dict:
        return "mapping"
    if origin is tuple:
        return "list"
    if _is_union(annotation):
        return " or ".join(_type(option) for option in arguments if option is not type(None))
    return {int: "whole number", float: "number", str: "text", bool: "true, false"}.get(annotation, "list")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if value is None or value == {} else f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
