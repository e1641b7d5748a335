"""Real checkpoints, packed with a float32 embedding, against published text (MEASURED.json)."""

import json
from pathlib import Path

import pytest

from trilith.imports import open_source
from trilith.packed import PackConfig, drawn_proof_tokens, pack_checkpoint
from trilith.runtime import Engine, GenerateConfig, SamplingConfig
from trilith.tokens import Tokenizer

MODELS = Path(__file__).parents[3] / "shared/data/models"
TOKENIZER = MODELS / "stories260K/tok512.bin"
pytestmark = pytest.mark.skipif(
    not (MODELS / "MEASURED.json").is_file(), reason="the shared models are not here"
)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize(
    ("name", "file"),
    [("bitllama-1M", "bitllama-1M/bit_model.bin"), ("stories260K", "stories260K/stories260K.bin")],
)
def test_the_engine_writes_the_published_text(
    name: str, file: str, kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRILITH_KERNELS", kernels)
    source = open_source(MODELS / file, tokenizer=TOKENIZER)
    assert source.tokenizer is not None
    measured = json.loads((MODELS / "MEASURED.json").read_text())["models"][name]
    path = tmp_path / "packed.safetensors"
    pack_checkpoint(
        source.load(),
        path=path,
        config=PackConfig("smallest", "f32"),
        tokenizer=Tokenizer.from_bytes(source.tokenizer),
        proof_tokens=drawn_proof_tokens(source.model),
    )
    greedy = GenerateConfig(48, (), SamplingConfig(0.0, None, None, 1.0, 0))
    found = list(Engine.load(path).generate(measured["prompt_ids"], config=greedy))
    assert found == measured["greedy_ids_48"]
