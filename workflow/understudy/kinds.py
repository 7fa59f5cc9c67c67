"""A config as it was written, made ready for its models: values of the right kinds, short forms in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from understudy.errors import nearest
from understudy.hyperparameters import HYPERPARAMETERS

SCALED = "learning_rate"  # from the proxy to the target


def with_kinds(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Give every value of `space`, `defaults` and `proxy.grid` its hyperparameter's kind.

    Returns the mended copy and the problems, path to text. What has the wrong shape is left to pydantic.
    """
    normal: dict[str, Any] = dict(raw)
    problems: dict[str, str] = {}
    if isinstance(space := raw.get("space"), Mapping):
        normal["space"] = {name: _parameter(f"space.{name}", name, value, problems) for name, value in space.items()}
        normal["space"] = _with_conditions(normal["space"], raw.get("defaults"), problems)
    if isinstance(defaults := raw.get("defaults"), Mapping):
        normal["defaults"] = {
            name: _coerced(f"defaults.{name}", name, value, problems) for name, value in defaults.items()
        }
    proxy = raw.get("proxy")
    if isinstance(proxy, Mapping) and isinstance(grid := proxy.get("grid"), Mapping):
        normal["proxy"] = {**proxy, "grid": _grid(grid, space, problems)}
    return normal, problems


def _parameter(path: str, name: str, value: Any, problems: dict[str, str]) -> Any:
    """One entry of `space` with coerced numbers; a plain list is short for `choices`."""
    listed = path if isinstance(value, list) else f"{path}.choices"
    if isinstance(value, list):
        value = {"choices": value}
    if not isinstance(value, Mapping):
        problems[path] = f"must be a range (`low`, `high`, `log`) or a list of choices, but got {value!r}"
        return {"choices": [0]}
    if "integer" in value:
        problems[f"{path}.integer"] = "unknown key; whether a hyperparameter is a whole number follows from its name"
    if "rest" in value:
        problems[f"{path}.rest"] = (
            "unknown key; where `when` doesn't hold, a hyperparameter has the value of `defaults`"
        )
    coerced = dict(value)
    for key in ("low", "high"):
        if key in value:
            coerced[key] = _coerced(f"{path}.{key}", name, value[key], problems)
    if isinstance(choices := value.get("choices"), list):
        coerced["choices"] = [_coerced(f"{listed}[{i}]", name, choice, problems) for i, choice in enumerate(choices)]
    elif "choices" not in value and name in HYPERPARAMETERS:
        if HYPERPARAMETERS[name].kind in (str, bool):
            problems[path] = "must be a list of choices"
            return {"choices": [0]}
        coerced["integer"] = HYPERPARAMETERS[name].kind is int
    return coerced


def _with_conditions(space: dict[str, Any], defaults: Any, problems: dict[str, str]) -> dict[str, Any]:
    """The space with the values of every `when` in their kinds, and with what a conditional parameter is at rest."""
    conditional: dict[str, Any] = {}
    above: list[str] = []
    for name, parameter in space.items():
        conditional[name] = parameter
        if "when" in parameter:
            conditions = _conditions(
                f"space.{name}.when", name, parameter["when"], {k: space[k] for k in above}, problems
            )
            known = defaults if isinstance(defaults, Mapping) else {}
            rest = known.get(name, HYPERPARAMETERS[name].default if name in HYPERPARAMETERS else 0)
            conditional[name] = {
                **parameter,
                "when": conditions,
                "rest": _coerced(f"defaults.{name}", name, rest, problems),
            }
        above.append(name)
    return conditional


def _conditions(path: str, name: str, when: Any, above: Mapping[str, Any], problems: dict[str, str]) -> dict[str, Any]:
    """A parameter's `when` with coerced values; a single value is short for a list of one."""
    if name == SCALED:
        problems[path] = f"`{SCALED}` can't be conditional: every trial has one"
    if not isinstance(when, Mapping) or not when:
        problems[path] = f"must name searched hyperparameters, each with some of its choices, but got {when!r}"
        return {SCALED: [0]}
    found: dict[str, Any] = {}
    for other, values in when.items():
        choices = above.get(other, {}).get("choices")
        listed = values if isinstance(values, list) else [values]
        found[other] = listed
        if choices is None or other == SCALED:
            able = [each for each, parameter in above.items() if "choices" in parameter and each != SCALED]
            problems[f"{path}.{other}"] = (
                "must be a hyperparameter that stands further up in `space`, with choices"
                f"{nearest(str(other), able)} (those are: {', '.join(able) or 'none'})"
            )
            continue
        found[other] = [_coerced(f"{path}.{other}[{i}]", other, value, problems) for i, value in enumerate(listed)]
        foreign = [value for value in found[other] if value not in choices]
        if foreign or not listed:
            problems.setdefault(f"{path}.{other}", f"must be some of {choices}, but got {listed}")
    return found


def _coerced(path: str, name: str, value: Any, problems: dict[str, str]) -> Any:
    if name not in HYPERPARAMETERS:
        known = ", ".join(HYPERPARAMETERS)
        parent = path.split(".")[0] + "." + name
        problems[parent] = f"unknown hyperparameter{nearest(name, HYPERPARAMETERS)} (known: {known})"
        return value
    try:
        return HYPERPARAMETERS[name].coerce(value)
    except ValueError as error:
        problems[path] = str(error)
        return value if isinstance(value, str | int | float) else str(value)  # pydantic need not complain as well


def _grid(grid: Mapping[str, Any], space: Any, problems: dict[str, str]) -> dict[str, Any]:
    searched = list(space) if isinstance(space, Mapping) else []
    coerced: dict[str, Any] = {}
    for name, values in grid.items():
        path = f"proxy.grid.{name}"
        if searched and name not in searched:  # else it is `space` that has to be mended
            problems[path] = f"not in `space`{nearest(str(name), searched)} (searched: {', '.join(map(str, searched))})"
        if not isinstance(values, list) or not values:
            problems[path] = f"must be a list of at least one value, but got {values!r}"
            coerced[name] = []
            continue
        coerced[name] = [
            _coerced(f"{path}[{i}]", name, value, problems) if name in HYPERPARAMETERS else value
            for i, value in enumerate(values)
        ]
        if len({str(value) for value in coerced[name]}) < len(values):
            problems.setdefault(path, f"must differ from each other, but got {values}")
    return coerced
