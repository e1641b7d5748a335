"""The yaml files make valid settings, and wrong ones are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from trilith.tokens import TokenizerConfig

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (CONF / "tokenizer").glob("bpe*.yaml"))
)
def test_each_yaml_file_makes_a_tokenizer_of_the_size_it_names(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(overrides=[f"+tokenizer={name}"])
    config = TokenizerConfig(**OmegaConf.to_container(composed.tokenizer))  # type: ignore[arg-type]
    assert name == f"bpe{config.vocab_size}"
    assert config.fixed_pieces is not None and "\n    " in config.fixed_pieces


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 267}, r"tokenizer\.vocab_size=267 leaves no piece .* take 267"),
        ({"character_coverage": 99.9}, r"character_coverage=99\.9 is not a share"),
        ({"max_piece_length": 0}, r"max_piece_length=0"),
        ({"training_bytes": 0}, r"training_bytes=0"),
        ({"num_threads": 0}, r"num_threads=0"),
        ({"fixed_pieces": "abc"}, r"fixed_pieces='abc' is a string"),
        ({"fixed_pieces": ("a", "a")}, r"fixed_pieces repeats itself"),
        ({"fixed_pieces": ("",)}, r"fixed_pieces holds ''"),
        ({"fixed_pieces": ("<|user|>",)}, r"fixed_pieces holds '<\|user\|>'"),
        ({"fixed_pieces": ("\u2581",)}, r"fixed_pieces holds"),
        ({"from_file": "tokenizer.model"}, r"character_coverage=0\.999 with .* must be null"),
        ({"training_bytes": None}, r"training_bytes=None with tokenizer\.from_file=None"),
    ],
)
def test_a_wrong_setting_is_an_error(
    config: TokenizerConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)
