"""The study's config: one YAML file, validated as a whole, with every problem reported at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from understudy.errors import ConfigError, nearest
from understudy.hyperparameters import HYPERPARAMETERS, Value
from understudy.kinds import with_kinds
from understudy.packing import SITES, foreign_modules
from understudy.settings import (
    DataSettings,
    DecodeSettings,
    FinalistSettings,
    ModelsSettings,
    ResourcesSettings,
    Section,
    StudyExecution,
    TestSettings,
    TrainingSettings,
    expanded,
)
from understudy.space import Choices, Parameter, Range
from understudy.stages import ProxySettings, TargetSettings, TransferSettings

KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}  # pydantic's, in words
SEXAGESIMAL = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")  # what YAML 1.1 may write to the base of 60
MERGE = "<<"  # YAML's key for another mapping's keys


class StudyConfig(Section):
    """A whole study."""

    seed: int = Field(default=1, ge=0, description="the root of all randomness")
    results: str = Field(default="results", description="folder that everything of the study is written to")
    cache: str = Field(default=".cache", description="folder of built-in models and data, shared between studies")
    data: DataSettings = Field(default=DataSettings(), description="what the models are tuned on")
    models: ModelsSettings = Field(description="the small model and the full-size one")
    space: dict[str, Parameter] = Field(min_length=1, description="hyperparameters to search, each a range or choices")
    defaults: dict[str, Value] = Field(
        default_factory=dict,
        description="values of what is not searched, and the default configuration that the winner has to beat; "
        "without a `learning_rate` it takes the published rule's",
    )
    training: TrainingSettings = Field(default=TrainingSettings(), description="what all trials have in common")
    proxy: ProxySettings = Field(default=ProxySettings(), description="the search on the small model")
    transfer: TransferSettings = Field(default=TransferSettings(), description="from the proxy to the target")
    target: TargetSettings = Field(default=TargetSettings(), description="the refinement at full size")
    finalists: FinalistSettings = Field(default=FinalistSettings(), description="the repeat over several seeds")
    test: TestSettings = Field(default=TestSettings(), description="the evaluation on the held-out split")
    decode: DecodeSettings = Field(default=DecodeSettings(), description="the search for decoding hyperparameters")
    execution: StudyExecution = Field(default=StudyExecution(), description="where and how trials run")
    resources: ResourcesSettings = Field(
        default=ResourcesSettings(), description="what a scheduler such as SLURM is asked for"
    )

    @field_validator("results", "cache")
    @classmethod
    def _at_home(cls, value: str) -> str:
        return expanded(value)

    @field_validator("results")
    @classmethod
    def _results_can_be_a_folder(cls, value: str) -> str:
        path = Path(value)
        if all(part in ("/", "//", "..") for part in path.parts):
            raise ValueError(f"must be a folder of the study's own, such as `results`, but got {value!r}")
        with suppress(OSError):  # what can't be looked at is reported when it is written
            if file := next((each for each in (path, *path.parents) if each.is_file()), None):
                raise ValueError(f"must be a folder, but {file} is a file; name another one")
        return value

    @model_validator(mode="after")
    def _sections_fit_each_other(self) -> StudyConfig:
        if self.finalists.configurations > self.target.trials:
            raise ValueError(
                f"`finalists.configurations` may be at most `target.trials` ({self.target.trials}), "
                f"but got {self.finalists.configurations}"
            )
        others = self._beside_the_default()
        if self.finalists.configurations > others:
            raise ValueError(
                f"`finalists.configurations` is {self.finalists.configurations}, but `space` has only {others} "
                "beside the default; lower the one, or search more"
            )
        if self.target.early_stopping is not None and self.training.evaluations == 1:
            raise ValueError(
                "`target.early_stopping` judges trials by evaluations before their end, but `training.evaluations` is "
                "1; raise it to at least 2, or leave `early_stopping` out"
            )
        return self

    @model_validator(mode="after")
    def _full_fine_tuning_is_possible(self) -> StudyConfig:
        if self.target.method != "full":
            return self
        if (quantization := self.models.target.quantization) != "none":
            raise ValueError(
                f"`target.method: full` trains the weights themselves, which `models.target.quantization: "
                f"{quantization}` doesn't leave as they are; set it to `none`, or train with `target.method: lora`"
            )
        known = [HYPERPARAMETERS[name] for name in self.space if name in HYPERPARAMETERS]  # others are told elsewhere
        if known and all(hyperparameter.lora_only for hyperparameter in known):
            raise ValueError(
                f"`target.method: full` leaves nothing to search: `space` holds only LoRA's {', '.join(self.space)}"
            )
        return self

    @model_validator(mode="after")
    def _packs_fit(self) -> StudyConfig:
        how = self.execution.proxy
        if self.proxy.halving is not None and (alone := self._all_alone()) is not None:
            raise ValueError(
                f"`proxy.halving` compares trials that train at the same time, but {alone}; leave one of the two out"
            )
        if how.pack_tokens != "auto" and how.pack_tokens < self.data.max_length:
            raise ValueError(
                f"`execution.proxy.pack_tokens` must hold an example, which has up to {self.data.max_length} tokens "
                f"(`data.max_length`), but got {how.pack_tokens}"
            )
        return self

    def _all_alone(self) -> str | None:
        """Why every proxy trial would train alone, as far as the config shows; `packing` decides trial by trial."""
        how = self.execution.proxy
        if not how.packed:
            return "`execution.proxy.packed` is false"
        if how.gradient_checkpointing:
            return "with `execution.proxy.gradient_checkpointing` they train one after the other"
        if self.execution.device == "cpu" and how.dtype == "bfloat16":
            return "on CPUs such trials compute in float32, and `execution.proxy.dtype` is bfloat16"
        if all(float(value) > 0 for value in self.values_of("attention_dropout")):
            return "trials with `attention_dropout` above 0 train alone, and it is in all of them"
        if all(foreign_modules(value) for value in self.values_of("lora_target_modules")):
            return f"such trials have adapters on {', '.join(SITES)} only, and all `lora_target_modules` name others"
        return None

    def _beside_the_default(self) -> float:
        """How many configurations the target can have at most beside the default; infinite for ranges.

        Rescaled and fixed rates come to what is searched of the learning rate, so that is as good as a range.
        """
        if not self.space.keys() <= HYPERPARAMETERS.keys():  # told elsewhere
            return math.inf
        if "learning_rate" in self.space or any(isinstance(parameter, Range) for parameter in self.space.values()):
            return math.inf
        values = {name: set(self.values_of(name)) for name in self.space}
        default = {name: self.defaults.get(name, HYPERPARAMETERS[name].default) for name in values}
        return math.prod(map(len, values.values())) - all(default[name] in each for name, each in values.items())

    def values_of(self, name: str) -> list[Value]:
        """The values that a hyperparameter has in proxy trials, a range's least one for all of it."""
        searched, default = self.space.get(name), self.defaults.get(name, HYPERPARAMETERS[name].default)
        if searched is None:
            return [default]
        grid = self.proxy.grid.get(name, (default,)) if self.proxy.grid else ()
        resting = [searched.rest] if searched.rest is not None else []
        return [*(searched.choices if isinstance(searched, Choices) else (searched.low,)), *grid, *resting]


def parse(raw: Any, source: str = "the config") -> StudyConfig:
    """Validate a config that is already a mapping; raise `ConfigError` with all problems at once."""
    if not isinstance(raw, Mapping):
        raise ConfigError(source, ["must be a mapping of sections"])
    normal, problems = with_kinds(raw)
    try:
        config = StudyConfig.model_validate(normal)
    except ValidationError as error:
        ends = {path.rsplit(".", 1)[0] for path in problems if path.endswith((".low", ".high"))}  # told already
        found = {path: text for path, text in _validation_problems(error).items() if path not in ends}
        problems = {**found, **problems}
    if problems:
        raise ConfigError(source, [f"{path}: {text}" for path, text in sorted(problems.items())])
    return config


def refuse_misread(path: Path) -> None:
    """Raise `ConfigError` for what YAML changes without a word.

    Of a key that stands twice it takes the last one; `24:00:00` it takes for a number with digits to the base of 60.
    """
    with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):  # told where the file is read
        problems = list(_misread(yaml.compose(path.read_text(encoding="utf-8")), ""))
        if problems:
            raise ConfigError(str(path), problems)


def _misread(node: yaml.Node | None, path: str) -> Iterator[str]:
    if isinstance(node, yaml.ScalarNode) and node.tag in SEXAGESIMAL and ":" in node.value:
        taken = yaml.safe_load(node.value)
        yield f"{path}: YAML takes {node.value} for {taken}; give one number, or put it into quotes"
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        inner = f"{path}.{name}" if path else name
        if name in lines and name != MERGE:
            yield f"{inner}: stands twice, in lines {lines[name]} and {line}; keep one"
        lines[name] = line
        yield from _misread(value, inner)


def read_back(raw: Mapping[str, Any], source: str) -> StudyConfig:
    """A config as it was written to `settings/study.json`, where conditional hyperparameters have a `rest`."""
    space = raw.get("space", {})
    known = {name: parameter for name, parameter in space.items() if isinstance(parameter, Mapping)}
    without = {name: {key: each[key] for key in each if key != "rest"} for name, each in known.items()}
    return parse({**raw, "space": {**space, **without}}, source)


def schema() -> dict[str, Any]:
    """The JSON schema of `config.yaml`, for editors."""
    made = StudyConfig.model_json_schema()
    made["title"] = "understudy study"
    made["$defs"]["Range"]["properties"].pop("integer")
    for shape in ("Range", "Choices"):
        made["$defs"][shape]["properties"].pop("rest")
    values = made["$defs"]["Choices"]["properties"]["choices"]
    grid = made["$defs"]["ProxySettings"]["properties"]["grid"]["additionalProperties"]
    for value in (values["items"], grid["items"], made["properties"]["defaults"]["additionalProperties"]):
        value["anyOf"].append({"type": "array", "items": {"type": "string"}, "minItems": 1})  # names of layers
    made["properties"]["space"]["additionalProperties"]["oneOf"].append({**values, "title": "Choices, in short"})
    return made


def _validation_problems(error: ValidationError) -> dict[str, str]:
    """Path to text for every pydantic error, in the project's words."""
    problems: dict[str, str] = {}
    for item in error.errors():
        path = _path(item["loc"])
        if item["type"] == "extra_forbidden":
            valid = list(_keys_at(item["loc"][:-1]))
            problems[path] = f"unknown key{nearest(str(item['loc'][-1]), valid)} (known here: {', '.join(valid)})"
        elif item["type"] == "missing":
            problems[path] = "is missing"
        elif item["type"] == "value_error":
            problems[path] = str(item["ctx"]["error"])
        elif kind := _kind(str(item["loc"][-1]), item["type"]):
            path = _path(item["loc"][:-1])
            others = problems.get(path, "").partition(", but got")[0].removeprefix("must be ")
            problems[path] = f"must be {' or '.join(filter(None, (others, kind)))}, but got {item['input']!r}"
        else:
            problems[path] = _problem(path, item["type"], item["input"], item["msg"])
    return problems


def _kind(last: str, problem: str) -> str:
    """What a value may be whose location ends with one kind of a union, such as `int | Literal["auto"]`; else empty."""
    if not problem.endswith(("_type", "_parsing", "_from_float", "literal_error")):
        return ""
    return " or ".join(f"`{name}`" for name in re.findall(r"'([^']*)'", last)) or KINDS.get(last, "")


def _problem(path: str, kind: str, given: Any, message: str) -> str:
    """What is wrong with a value of the wrong type, or out of its range."""
    section = kind in ("model_type", "model_attributes_type", "dict_type")
    if given is None and section:
        needed = path in ("models", "models.proxy", "models.target", "space")
        return "is empty; give it keys" if needed else "is empty; remove it or give it keys"
    if given is None:
        return "is empty; remove it or give it a value"
    if section:
        return f"must be a section with keys of its own, but got {given!r}"
    if kind == "too_short":
        return "must name at least 1 hyperparameter" if path == "space" else "must have at least 1 value"
    hint = nearest(str(given), re.findall(r"'([^']*)'", message)) if kind == "literal_error" else ""
    return f"{message[0].lower()}{message[1:]}, but got {given!r}{hint}"


def _path(location: tuple[int | str, ...]) -> str:
    parts = [part for part in location if part not in ("range", "choices-tag")]
    if len(parts) >= 3 and parts[0] == "space" and parts[2] == "choices":
        parts = parts[:2] + parts[3:]
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "the whole file"


def _keys_at(location: tuple[int | str, ...]) -> Iterator[str]:
    """The valid keys of the model at a location of the config."""
    if location and location[0] == "space":
        yield from (name for name in Range.model_fields if name not in ("integer", "rest"))
        yield "choices"
        return
    model: type[BaseModel] = StudyConfig
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    yield from model.model_fields
