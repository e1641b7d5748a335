"""dvc.yaml tells the truth: what a stage imports and reads is what DVC watches for it."""

import ast
import itertools
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from tests.pipelines.sources import (
    ROOT,
    files_beside,
    imported_files,
    pipeline_files,
    says_nothing,
)

import schema

CONF = ROOT / "conf"

# What a group's file leaves to the user.
_NEEDED = {
    "folder": ["corpus.source.path=texts", "corpus.source.licence=mit"],
    "dataset": ["corpus.source.name=json", "corpus.source.licence=mit"],
    "files": ["instructions.files=[a.json]", "instructions.form=chat", "instructions.licence=mit"],
    "hub": ["instructions.name=a/b", "instructions.form=pair", "instructions.licence=mit"],
    "imported": ["tokenizer.from_file=tokenizer.model", "tokenizer.vocab_size=512"],
}


class Stage(NamedTuple):
    """One stage of dvc.yaml, its matrix resolved."""

    name: str
    cmd: str
    deps: list[str]
    params: list[str]
    outs: list[str]

    @property
    def script(self) -> Path:
        """The program it runs."""
        return ROOT / next(word for word in self.cmd.split() if word.endswith(".py"))


def load_stages() -> Iterator[Stage]:
    """Read dvc.yaml."""
    for name, entry in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        matrix = entry.pop("matrix", {})
        for values in itertools.product(*matrix.values()):
            text = json.dumps(entry)
            for key, value in zip(matrix, values, strict=True):
                text = text.replace(f"${{item.{key}}}", value)
            yield _stage("-".join([name, *values]), json.loads(text))


def _stage(name: str, entry: dict[str, Any]) -> Stage:
    params: list[str] = []
    for param in entry.get("params", []):
        params += param["reports/config.yaml"] if isinstance(param, dict) else []
    outs = [
        next(iter(out)) if isinstance(out, dict) else out
        for key in ("outs", "metrics", "plots")
        for out in entry.get(key, [])
    ]
    return Stage(name, entry["cmd"], entry["deps"], params, outs)


STAGES = list(load_stages())
each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


@each_stage
def test_every_imported_file_is_a_dependency(stage: Stage) -> None:
    imported = imported_files(stage.script)
    speaking = {path for path in imported if not says_nothing(ROOT / path)}
    needed = speaking | files_beside(imported)
    missing = sorted(path for path in needed if not _covered(path, stage.deps))
    assert not missing, f"stage {stage.name} imports {missing}; name them in its deps"


@each_stage
def test_every_dependency_on_code_is_imported(stage: Stage) -> None:
    imported = imported_files(stage.script)
    for dep in stage.deps:
        if dep.startswith(("src/", "pipelines/")):
            files = [ROOT / dep] if dep.endswith(".py") else (ROOT / dep).rglob("*.py")
            unused = sorted({path.relative_to(ROOT).as_posix() for path in files} - imported)
            assert not unused, f"stage {stage.name} does not import {unused}; be more precise"


@each_stage
def test_every_section_that_a_stage_reads_is_a_parameter(stage: Stage) -> None:
    read = {key for path in pipeline_files(stage.script) for key in sections_read(path)}
    given = {word.split("=")[0] for word in stage.cmd.split() if "=" in word}
    missing = {key for key in read - given if not any(_nested(key, p) for p in stage.params)}
    assert not missing, f"stage {stage.name} reads {missing}; name them in its params"
    unread = {p for p in stage.params if not any(_nested(key, p) for key in read)}
    assert not unread, f"stage {stage.name} does not read {unread}"


@each_stage
def test_every_parameter_exists(stage: Stage) -> None:
    config = composed()
    for key in stage.params:
        assert OmegaConf.select(config, key, default="absent") != "absent", key


def test_a_stage_by_hand_reads_what_the_pipeline_made() -> None:
    outs = {out for stage in STAGES for out in stage.outs}
    for name, place in composed().inputs.items():
        made = {out for out in outs if out == place or out.startswith(f"{place}/")}
        assert made, f"inputs.{name}={place} is no output in dvc.yaml"


@pytest.mark.slow
def test_every_choice_of_every_group_fits_the_schema() -> None:
    groups = {path.parent.name for path in CONF.glob("*/*.yaml")}
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert set(params) - {"seed", "overrides"} == groups - {"recipe"}
    for path in sorted(CONF.glob("*/*.yaml")):
        group, choice = path.parent.name, path.stem
        if path.name in ("gates.yaml", "shared.yaml"):
            continue  # the part that all choices of a group share
        if group == "recipe":
            # A recipe with a dense phase is for a model on a grid.
            twin = "ternary" if "ternary" in choice else "dense"
            choices = [f"recipe@pretrain.{twin}.recipe={choice}"]
        else:
            choices = [f"{group}={choice}", *_NEEDED.get(choice, [])]
        content = OmegaConf.to_container(composed(*choices), resolve=True)
        schema.check(content)
        if group == "model":
            assert content["model"]["name"] == choice  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    ("choices", "key"),
    [
        (["corpus=folder"], r"corpus\.source\.licence"),
        (["corpus=dataset"], r"corpus\.source\.licence"),
        (["instructions=files"], r"instructions\.form"),
        (["instructions=hub"], r"instructions\.form"),
        (["tokenizer=imported", "tokenizer.vocab_size=512"], r"tokenizer\.from_file"),
    ],
    ids=str,
)
def test_a_value_that_only_the_user_knows_is_asked_for(choices: list[str], key: str) -> None:
    content = OmegaConf.to_container(composed(*choices), resolve=True)
    with pytest.raises(ValueError, match=rf"{key} has no value"):
        schema.check(content)


@cache
def composed(*choices: str) -> DictConfig:
    """The whole configuration, with these choices in front of those of params.yaml."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    given = {choice.split("=")[0] for choice in choices}
    kept = [f"{k}={v}" for k, v in params.items() if k != "overrides" and k not in given]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        places = ["out_dir=out", "metrics_dir=metrics"]
        return compose("config", overrides=[*kept, *choices, *places])


def sections_read(path: Path) -> Iterator[str]:
    """Keys of the configuration that a script asks its stage for."""
    if path.name == "stage.py":
        return
    tree = ast.parse(path.read_text())
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
    for node in ast.walk(tree):
        match node:
            case ast.Call(ast.Attribute(ast.Name("stage"), "section"), [ast.Constant(key), *_]):
                yield key
            case ast.Attribute(ast.Name("stage"), "seed"):
                yield "seed"
            case ast.Subscript() if id(node) not in inner:
                keys = _keys_of_config(node)
                if keys:
                    yield ".".join(keys)


def _keys_of_config(node: ast.expr) -> list[str]:
    """["a", "b"] for stage.config["a"]["b"], [] for anything else."""
    match node:
        case ast.Subscript(ast.Attribute(ast.Name("stage"), "config"), ast.Constant(key)):
            return [key]
        case ast.Subscript(inside, ast.Constant(key)):
            keys = _keys_of_config(inside)
            return [*keys, key] if keys else []
    return []


def _covered(path: str, deps: list[str]) -> bool:
    return any(path == dep or path.startswith(f"{dep}/") for dep in deps)


def _nested(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
