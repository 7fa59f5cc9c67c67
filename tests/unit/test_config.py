"""The config: every problem at once, in the user's words; and what is generated from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from shipped_config import ROOT, problems, schema_for_yaml, shipped
from understudy import config, reference
from understudy.errors import SYNONYMS, ConfigError
from understudy.files import read_json, write_json
from understudy.hyperparameters import HYPERPARAMETERS
from understudy.sections import sections
from understudy.space import Choices

EXAMPLES = [ROOT / "config" / "config.yaml", *sorted((ROOT / "config" / "examples").glob("*.yaml"))]


@pytest.fixture
def raw() -> dict[str, Any]:
    return shipped()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_shipped_configs_are_valid_and_match_the_schema(path: Path) -> None:
    config.parse(yaml.safe_load(path.read_text()), str(path))
    jsonschema.validate(yaml.safe_load(path.read_text()), schema_for_yaml())


def test_a_number_in_scientific_notation_is_a_number(raw: dict[str, Any]) -> None:
    assert isinstance(raw["space"]["learning_rate"]["low"], str)
    assert config.parse(raw).space["learning_rate"].low == 1e-4  # type: ignore[union-attr]


CASES: list[tuple[str, str, Any, str, str]] = [
    # name, path to set, value, path of the problem, words of the message
    ("unknown section", "transferr", {}, "transferr", "did you mean `transfer`?"),
    ("unknown key", "target.trails", 3, "target.trails", "did you mean `trials`?"),
    ("unknown hyperparameter", "space.learning_rat", [1e-3], "space.learning_rat", "did you mean `learning_rate`?"),
    ("unknown range key", "space.weight_decay", {"low": 0, "hig": 1}, "space.weight_decay.hig", "did you mean `high`?"),
    ("wrong type", "seed", "one", "seed", "'one'"),
    ("low above high", "space.weight_decay", {"low": 1, "high": 0.1}, "space.weight_decay", "`low < high` must hold"),
    ("log at 0", "space.weight_decay", {"low": 0, "high": 1, "log": True}, "space.weight_decay", "log scale"),
    ("out of domain", "space.lora_dropout", {"low": 0, "high": 2}, "space.lora_dropout.high", "at most 0.95"),
    ("empty choices", "space.lora_r", [], "space.lora_r", "at least 1"),
    ("a switch for a number", "target.trials", True, "target.trials", "must be a whole number, but got true"),
    ("a switch for a share", "proxy.fidelity", True, "proxy.fidelity", "must be a number, but got true"),
    ("a value of the grid twice", "proxy.grid", {"lora_r": [4, 4.0]}, "proxy.grid.lora_r", "differ from each other"),
    ("choice of the wrong kind", "space.lora_r", [4, "many"], "space.lora_r[1]", "whole number"),
    ("unknown schedule", "space.lr_scheduler_type", ["cosin"], "space.lr_scheduler_type[0]", "did you mean `cosine`?"),
    ("grid over an unknown parameter", "proxy.grid", {"lora_rr": [4]}, "proxy.grid.lora_rr", "did you mean `lora_r`?"),
    ("grid without values", "proxy.grid", {"lora_r": []}, "proxy.grid.lora_r", "at least one value"),
    ("window too wide", "target.window", 5, "target", "at most a quarter"),
    ("two model sources", "models.proxy.model_name_or_path", "x", "models.proxy", "exactly one of"),
    (
        "unknown quantization",
        "models.proxy.quantization",
        "nf5",
        "models.proxy.quantization",
        "'nf4', 'int8' or 'none'",
    ),
    ("files without a file", "data.task", "files", "data", "needs `files`"),
    ("more finalists than trials", "finalists.configurations", 99, "the whole file", "at most `target.trials`"),
    ("fewer than finalists", "space", {"use_rslora": [True, False]}, "the whole file", "`space` has only 1 beside"),
    ("no proxy trials", "proxy", {"random": 0, "sobol": 0, "defaults": False}, "proxy", "at least one of"),
    ("nothing to search", "space", {"lora_r": [4, 8]}, "the whole file", "leaves nothing to search"),
    ("nobody's home", "results", "~nobody.at.all/x", "results", "a home that isn't known"),
    ("nobody's data", "data.files", {"train": "~nobody.at.all/x"}, "data.files.train", "a home that isn't known"),
    ("bad default", "defaults.batch_size", 0, "defaults.batch_size", "at least 1"),
    ("list as a number", "defaults.batch_size", [8], "defaults.batch_size", "must be a whole number"),
    ("modules where PEFT has them", "space.target_modules", [1], "space.target_modules", "mean `lora_target_modules`?"),
    ("no modules", "defaults.lora_target_modules", " ", "defaults.lora_target_modules", "at least one layer's name"),
    ("no modules in a list", "space.lora_target_modules", [[]], "space.lora_target_modules[0]", "at least one"),
    ("a stray comma", "defaults.lora_target_modules", "q_proj,", "defaults.lora_target_modules", "'q_proj,'"),
    ("blanks between modules", "defaults.lora_target_modules", "q v", "defaults.lora_target_modules", "separated by"),
    ("all and one", "defaults.lora_target_modules", "all-linear,q", "defaults.lora_target_modules", "`all-linear`, or"),
    ("modules as numbers", "defaults.lora_target_modules", [1], "defaults.lora_target_modules", "[1]"),
    ("modules in a range", "space.lora_target_modules", {"low": 1, "high": 2}, "space.lora_target_modules", "choices"),
    ("modules twice", "space.lora_target_modules", ["b,a", ["a", "b"]], "space.lora_target_modules", "differ"),
    ("brackets that don't fit a pack", "proxy.halving", {"bracket": 9}, "proxy", "set `pack_size: 18 or 27`"),
    ("a rung for one trial", "proxy.halving", {"rungs": 4}, "proxy", "down to one before the last of 4 rungs"),
    ("a bracket of one", "proxy.halving", {"bracket": 1}, "proxy.halving.bracket", "greater than or equal to 2"),
    ("a factor of one", "proxy.halving", {"reduction_factor": 1}, "proxy.halving.reduction_factor", "equal to 2"),
    ("no rungs", "proxy.halving", {"rungs": 0}, "proxy.halving.rungs", "equal to 1"),
    ("halving: true", "proxy.halving", True, "proxy.halving", "write `halving: {}` to switch it on, but got true"),
    ("halving: false", "proxy.halving", False, "proxy.halving", "leave `halving` out to switch it off"),
    ("early stopping: true", "target.early_stopping", True, "target.early_stopping", "write `early_stopping: {}` to"),
    ("early stopping: false", "target.early_stopping", False, "target.early_stopping", "leave `early_stopping` out to"),
    (
        "a rule that isn't",
        "target.early_stopping",
        {"rule": "mean"},
        "target.early_stopping.rule",
        "'reach' or 'median'",
    ),
    ("no visible trial", "target.early_stopping", {"visible": 0}, "target.early_stopping.visible", "equal to 1"),
    ("a margin below 0", "target.early_stopping", {"margin": -0.1}, "target.early_stopping.margin", "equal to 0"),
    (
        "a margin of the median",
        "target.early_stopping",
        {"rule": "median", "margin": 0.1},
        "target.early_stopping",
        "`margin` goes with `rule: reach`, but the rule is `median`",
    ),
    (
        "trials that are never seen",
        "target.early_stopping",
        {"visible": 10},
        "target",
        "waits for 10 complete trials, and with `trials: 12` and `window: 3` the last proposal sees 9",
    ),
    ("pack trials as a switch", "execution.proxy.pack_trials", True, "execution.proxy.pack_trials", "whole number"),
    ("pack tokens as a switch", "execution.proxy.pack_tokens", False, "execution.proxy.pack_tokens", "whole number"),
    ("an unknown metric", "proxy.halving", {"metric": "loss"}, "proxy.halving.metric", "'eval_loss'"),
    ("an unknown key of halving", "proxy.halving", {"rung": 1}, "proxy.halving.rung", "did you mean `rungs`?"),
    ("packs of the target", "execution.target.pack_trials", 4, "execution.target.pack_trials", "unknown key"),
    ("no pack trials", "execution.proxy.pack_trials", 0, "execution.proxy", "at least 1"),
    (
        "packs without packing",
        "execution.proxy",
        {"packed": False, "pack_tokens": 4096},
        "execution.proxy",
        "goes with `packed: true`",
    ),
    ("packs below an example", "execution.proxy.pack_tokens", 95, "the whole file", "up to 96 tokens"),
    (
        "a condition on what isn't searched",
        "space.weight_decay.when",
        {"adam_beta1": 0.9},
        "space.weight_decay.when",
        "further up",
    ),
    (
        "a condition on what comes later",
        "space.weight_decay.when",
        {"lora_r": 4},
        "space.weight_decay.when",
        "further up",
    ),
    (
        "a condition on a range",
        "space.warmup_ratio.when",
        {"weight_decay": 0},
        "space.warmup_ratio.when",
        "with choices",
    ),
    (
        "a value that isn't a choice",
        "space.weight_decay.when",
        {"batch_size": 5},
        "space.weight_decay.when",
        "must be some of [4",
    ),
    ("an empty condition", "space.weight_decay.when", {}, "space.weight_decay.when", "must name searched"),
    (
        "no value of a condition",
        "space.weight_decay.when",
        {"batch_size": []},
        "space.weight_decay.when",
        "must be some of",
    ),
    (
        "a conditional rate",
        "space.learning_rate.when",
        {"batch_size": 4},
        "space.learning_rate.when",
        "can't be conditional",
    ),
    (
        "what a parameter is at rest",
        "space.weight_decay.rest",
        0.1,
        "space.weight_decay.rest",
        "the value of `defaults`",
    ),
    ("an empty section", "target", None, "target", "is empty; remove it or give it keys"),
    ("an empty section that is needed", "models.proxy", None, "models.proxy", "is empty; give it keys"),
    ("an empty value", "seed", None, "seed", "is empty; remove it or give it a value"),
    ("a number as a section", "target", 5, "target", "must be a section with keys of its own, but got 5"),
    ("an empty space", "space", {}, "space", "must name at least 1 hyperparameter"),
    ("no space", "space", None, "space", "is empty; give it keys"),
    ("choices of nothing", "space.lora_r", {"choices": None}, "space.lora_r.choices", "is empty"),
    (
        "log at 0, as no rate is",
        "space.learning_rate",
        {"low": 0, "high": 1, "log": True},
        "space.learning_rate",
        "than 0",
    ),
    ("OpenAI's format", "data.format", "openai", "data.format", "but got 'openai'; did you mean `messages`?"),
    ("chats in Axolotl's words", "data.format", "ChatML", "data.format", "did you mean `messages`?"),
    ("a GPU, not a CPU", "execution.device", "gpu", "execution.device", "did you mean `cuda`?"),
    ("4bit", "models.proxy.quantization", "4bit", "models.proxy.quantization", "did you mean `nf4`?"),
    ("4", "models.proxy.quantization", 4, "models.proxy.quantization", "but got 4; did you mean `nf4`?"),
    ("a value with a slip", "data.format", "alpacca", "data.format", "did you mean `alpaca`?"),
    ("lr", "space.lr", [1e-3], "space.lr", "did you mean `learning_rate`?"),
    ("the trainer's batch", "defaults.per_device_train_batch_size", 4, "defaults.per", "did you mean `batch_size`?"),
    ("epochs", "defaults.epochs", 1, "defaults.epochs", "did you mean `num_train_epochs`?"),
    (
        "a folder of all",
        "results",
        "/",
        "results",
        "must be a folder of the study's own, such as `results`, but got '/'",
    ),
    ("the folder it runs in", "results", "./", "results", "must be a folder of the study's own"),
    ("the folder above", "results", "../..", "results", "must be a folder of the study's own"),
    ("a file for results", "results", __file__, "results", "is a file; name another one"),
    ("a folder in a file", "results", f"{__file__}/a/b", "results", f"must be a folder, but {__file__} is a file"),
    ("attention dropout of 1", "defaults.attention_dropout", 1, "defaults.attention_dropout", "at most 0.95"),
]


@pytest.mark.parametrize(("path", "value", "where", "words"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_a_mistake_is_named_with_its_key_and_what_is_allowed(
    raw: dict[str, Any], path: str, value: Any, where: str, words: str
) -> None:
    *parents, last = path.split(".")
    section = raw
    for name in parents:
        section = section[name]
    section[last] = value
    if where == "the whole file" and path == "space":
        raw["target"]["method"] = "full"
        raw["proxy"]["grid"] = {}
    found = problems(raw)
    matching = [text for key, text in found.items() if key.startswith(where) and words in text]
    assert matching, found
    assert all(key.startswith((path.rsplit(".", 1)[0], where)) for key in found), found


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_unknown_name_in_a_space_of_lists_is_named(raw: dict[str, Any], method: str) -> None:
    raw["space"] = {"lr": [1e-4, 3e-4], "lora_r": [4, 8]}
    raw["proxy"]["grid"] = {}
    raw["target"]["method"] = method
    found = problems(raw)
    assert "did you mean `learning_rate`?" in found.pop("space.lr")
    assert not found or "leaves nothing to search" in found["the whole file"]


def test_full_fine_tuning_of_a_quantized_target_is_refused_at_once(raw: dict[str, Any]) -> None:
    raw["target"]["method"] = "full"
    config.parse(raw)
    raw["models"]["target"]["quantization"] = "nf4"
    assert "`models.target.quantization: nf4` doesn't leave as they are" in problems(raw)["the whole file"]


def test_a_home_is_where_the_user_lives(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    raw |= {"results": "~/study", "cache": "~/cache"}
    parsed = config.parse(raw)
    assert (parsed.results, parsed.cache) == ("/home/somebody/study", "/home/somebody/cache")


def test_all_mistakes_are_reported_at_once(raw: dict[str, Any]) -> None:
    raw["seed"] = -1
    raw["space"]["lora_r"] = []
    raw["target"]["sampler"] = "bayes"
    raw["proxy"]["grid"]["nonsense"] = [1]
    assert len(problems(raw)) == 4


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_was_written_down_is_read_back(path: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load(path.read_text())
    raw["proxy"] = {"sobol": 4}
    conditions = {"lr_scheduler_type": ["cosine"]}
    raw["space"] = {
        "lr_scheduler_type": ["cosine", "linear"],
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "warmup_ratio": {"low": 0.0, "high": 0.2, "when": conditions},
        "batch_size": {"low": 4, "high": 8, "when": conditions},
        "lora_target_modules": ["all-linear", ["q_proj", "v_proj"]],
    }
    raw["defaults"] |= {"warmup_ratio": 0.05, "batch_size": 8}
    study = config.parse(raw)
    write_json(tmp_path / "study.json", study, sealed=True)
    written = read_json(tmp_path / "study.json")
    assert (written["space"]["warmup_ratio"]["rest"], written["space"]["batch_size"]["rest"]) == (0.05, 8)
    assert config.read_back(written, "study.json") == study


def test_the_layers_of_every_trial_are_looked_for_in_the_model(raw: dict[str, Any]) -> None:
    """Those of the default configuration, too, which needn't be among the choices."""
    raw["space"]["lora_target_modules"] = ["all-linear", "q_proj,v_proj"]
    raw["defaults"]["lora_target_modules"] = ["o_proj"]
    made = sections(config.parse(raw))
    for role in ("proxy", "target"):
        assert made[f"model-{role}"].lora_target_modules == ("o_proj", "q_proj,v_proj")  # type: ignore[attr-defined]


def test_a_time_that_yaml_takes_for_a_number_is_named(tmp_path: Path) -> None:
    """`runtime` would be sixty days."""
    path = tmp_path / "study.yaml"
    path.write_text("seed: 1\nresources:\n  target: {runtime: 24:00:00, mem_mb: 2000}\n")
    with pytest.raises(ConfigError) as caught:
        config.refuse_misread(path)
    assert "resources.target.runtime: YAML takes 24:00:00 for 86400;" in str(caught.value)
    path.write_text("resources:\n  target: {runtime: '24:00:00'}\ncache: a:b\n")
    config.refuse_misread(path)


def test_a_key_that_stands_twice_is_named_with_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("seed: 1\nbase: &base {trials: 1}\ntarget:\n  trials: 4\n  <<: *base\n  trials: 8\nseed: 2\n")
    with pytest.raises(ConfigError) as raised:
        config.refuse_misread(path)
    assert raised.value.problems == (
        "target.trials: stands twice, in lines 4 and 6; keep one",
        "seed: stands twice, in lines 1 and 7; keep one",
    )


@pytest.mark.parametrize("text", ["", "[1, 2]", "seed: 1\nother: {seed: 1}", "\tseed: 1"])
def test_what_has_no_repeats_is_left_to_its_readers(text: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(text)
    config.refuse_misread(tmp_path / "study.yaml")
    config.refuse_misread(tmp_path / "nowhere.yaml")
    (tmp_path / "study.yaml").write_bytes("é: 1".encode("latin-1"))
    config.refuse_misread(tmp_path / "study.yaml")


def test_numbers_of_trials_are_in_no_slice(raw: dict[str, Any]) -> None:
    before = sections(config.parse(raw))
    raw["proxy"]["random"] += 5
    raw["proxy"]["sobol"] += 5
    raw["target"]["trials"] += 5
    after = sections(config.parse(raw))
    assert [name for name in before if before[name] != after[name]] == ["study"]


def test_transfer_settings_leave_the_proxy_alone(raw: dict[str, Any]) -> None:
    before = sections(config.parse(raw))
    raw["transfer"]["padding"] = 0.3
    after = sections(config.parse(raw))
    assert [name for name in before if before[name] != after[name]] == ["study", "transfer"]


def test_modules_have_one_spelling_as_text_or_list(raw: dict[str, Any]) -> None:
    raw["defaults"]["lora_target_modules"] = ["v_proj", "q_proj", "v_proj"]
    raw["space"]["lora_target_modules"] = ["all-linear", ["v_proj", "q_proj"], " self_attn.o_proj ,down_proj", "q_proj"]
    raw["proxy"]["grid"]["lora_target_modules"] = ["all-linear", ["up_proj", "gate_proj"]]
    jsonschema.validate(raw, schema_for_yaml())
    study = config.parse(raw)
    assert study.defaults["lora_target_modules"] == "q_proj,v_proj"
    assert study.space["lora_target_modules"] == Choices(
        choices=("all-linear", "q_proj,v_proj", "down_proj,self_attn.o_proj", "q_proj")
    )
    assert study.proxy.grid["lora_target_modules"] == ("all-linear", "gate_proj,up_proj")


@pytest.mark.parametrize(
    "space",
    [
        {},
        None,
        {"learning_rate": {"low": 0, "high": 1, "log": True}, "lora_r": [4, 8]},
        {"learning_rate": [1e-3], "lora_r": {"choices": None}},
    ],
)
def test_one_cause_is_one_problem(raw: dict[str, Any], space: Any) -> None:
    assert len(problems(raw | {"space": space})) == 1


def test_what_a_synonym_stands_for_exists() -> None:
    text = json.dumps(config.schema())
    for word, name in SYNONYMS.items():
        assert name in HYPERPARAMETERS or f'"{name}"' in text
        assert word == word.lower()
        assert word not in HYPERPARAMETERS


@pytest.mark.parametrize("results", ["results", "/nowhere/at/all", "../beside", "a/../b", ".hidden"])
def test_results_may_be_any_folder(raw: dict[str, Any], results: str) -> None:
    assert config.parse(raw | {"results": results}).results == results


def test_schema_and_reference_are_up_to_date() -> None:
    mend = "run `make schema`"
    assert json.loads((ROOT / "workflow/schemas/config.schema.json").read_text()) == config.schema(), mend
    written = (ROOT / "config" / "README.md").read_text()
    assert written[written.index(reference.MARKER) :].strip() == reference.markdown().strip(), mend


def test_few_trials_need_no_word_about_starts(raw: dict[str, Any]) -> None:
    """Their default number is for more; a number that was given has to fit."""
    raw["target"] = {"sampler": "tpe", "trials": 4, "window": 1}
    study = config.parse(raw)
    assert config.read_back(json.loads(study.model_dump_json()), "the study's own copy") == study
    raw["target"]["starts"] = 5
    assert "`starts` may be at most `trials` (4), but got 5" in str(problems(raw))
