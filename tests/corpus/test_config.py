"""The yaml files make valid settings, and every wrong or idle option is refused."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from trilith.corpus import CorpusConfig, DuplicateConfig, GateConfig, SourceConfig, SplitConfig

CONF = Path(__file__).parents[2] / "conf"


def load(name: str, *overrides: str) -> CorpusConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(overrides=[f"+corpus={name}", *overrides])
    content = OmegaConf.to_container(composed.corpus, resolve=True, throw_on_missing=True)
    return build(CorpusConfig, content)


def build(kind: type, content: Any) -> Any:
    hints = get_type_hints(kind)
    names = {field.name for field in fields(kind)}
    assert set(content) <= names, set(content) - names
    return kind(
        **{
            key: build(hints[key], value) if is_dataclass(hints[key]) else value
            for key, value in content.items()
        }
    )


def test_the_standard_library_is_complete_as_shipped() -> None:
    config = load("stdlib")
    assert config.source.kind == "stdlib"
    assert config.source.licence in config.gates.licences


def test_a_folder_needs_only_path_and_licence() -> None:
    config = load("folder", "corpus.source.path=here", "corpus.source.licence=mit")
    assert config.source.path == "here"
    with pytest.raises(MissingMandatoryValue, match=r"source\.licence"):
        load("folder", "corpus.source.path=here")


def test_a_dataset_needs_only_name_and_licence_and_takes_stories_on_one_line() -> None:
    config = load("dataset", "corpus.source.name=json", "corpus.source.licence=mit")
    assert config.gates.min_lines == 1
    assert config.gates.max_bytes == load("stdlib").gates.max_bytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "web"}, r"corpus\.source\.kind='web'"),
        ({"licence": ""}, r"corpus\.source\.licence is empty"),
        ({"max_documents": 0}, r"max_documents=0"),
        ({"suffixes": ".py"}, r"suffixes='\.py' is a string"),
        ({"suffixes": ()}, r"corpus\.source\.suffixes is not set"),
        ({"path": "here"}, r"corpus\.source\.path='here' has no effect with kind='stdlib'"),
        ({"streaming": True}, r"corpus\.source\.streaming=True has no effect"),
        ({"kind": "folder"}, r"corpus\.source\.path is not set"),
    ],
)
def test_a_wrong_or_idle_source_option_is_an_error(changes: dict[str, Any], message: str) -> None:
    source = SourceConfig(kind="stdlib", licence="psf-2.0", suffixes=(".py",))
    with pytest.raises(ValueError, match=message):
        replace(source, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_bytes": 0}, r"gates\.max_bytes=0"),
        ({"max_lines": 5}, r"max_lines=5 is below min_lines=10"),
        ({"min_letter_share": 25}, r"min_letter_share=25 is not a share"),
        ({"licences": ()}, r"licences is empty"),
        ({"licences": "mit"}, r"licences='mit' is a string"),
    ],
)
def test_a_wrong_threshold_is_an_error(
    gates: GateConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(gates, **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DuplicateConfig(ngram=0), r"duplicates\.ngram=0"),
        (lambda: DuplicateConfig(threshold=80), r"duplicates\.threshold=80"),
        (lambda: DuplicateConfig(num_bands=30), r"num_permutations=128 is not a multiple"),
        (lambda: DuplicateConfig(num_bands=0), r"must be at least 1"),
        (lambda: DuplicateConfig(seed=-1), r"seed=-1"),
        (lambda: SplitConfig(train=0.9, validation=0.1, test=0.1), r"sums to 1\.1"),
        (lambda: SplitConfig(train=1.0, validation=0.0, test=0.0), r"split\.train=1\.0"),
    ],
)
def test_a_wrong_duplicate_or_split_option_is_an_error(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()
