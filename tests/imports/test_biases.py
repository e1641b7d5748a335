"""Models with biases and a tokenizer.json, from transformers to a packed file that generates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.imports.making_json import END, TURN, byte_level, write_model, write_tokenizer

from trilith.cli import main
from trilith.exports.gguf_file import write_gguf
from trilith.exports.huggingface import write_huggingface
from trilith.imports import open_source
from trilith.model import load_checkpoint
from trilith.packed import load_model, read_packed
from trilith.runtime import Engine, GenerateConfig, SamplingConfig, stream_text
from trilith.tokens import StreamDecoder, Tokenizer

transformers = pytest.importorskip("transformers", reason="needs the extra `export`")
IDS = [290, 70, 5, 293, 33, 260, 260, 7]
# float32 sums in another order, of logits of about 10.
CLOSE = 1e-4
LLAMA_3: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
QWEN_2: dict[str, Any] = {
    "tie_word_embeddings": True,
    "sliding_window": 32,
    "max_window_layers": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("Qwen2", QWEN_2),
    ("Llama", LLAMA_3),
    ("Llama", LLAMA_3 | {"attention_bias": True, "tie_word_embeddings": True}),
    ("Qwen3", {"attention_bias": True, "head_dim": 4}),
]


def written(folder: Path, kind: str, **changes: Any) -> Any:
    """Write a model and its tokenizer; return the model."""
    model = write_model(folder, kind, **changes)
    write_tokenizer(folder, byte_level(), eos_token=TURN, bos_token=END)
    return model


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """A folder as Qwen 2's, packed."""
    written(tmp_path / "qwen", "Qwen2", **QWEN_2)
    assert main(["pack", str(tmp_path / "qwen"), "--out", str(tmp_path / "q.safetensors")]) == 0
    return tmp_path / "q.safetensors"


@pytest.mark.parametrize(("kind", "changes"), KINDS, ids=str)
def test_logits_are_those_of_transformers(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    model = written(tmp_path / "small", kind, **changes)
    source = open_source(tmp_path / "small")
    has_biases = any(name.endswith("q_proj.bias") for name in model.state_dict())
    assert source.model.qkv_bias == has_biases == (kind == "Qwen2" or "attention_bias" in changes)
    with torch.no_grad():
        found = source.load().model(torch.tensor([IDS, IDS[::-1]]))
        expected = model(torch.tensor([IDS, IDS[::-1]])).logits
    assert (found - expected).abs().max() < CLOSE
    assert expected.abs().max() > 1


@pytest.mark.parametrize("name", ["o_proj", "q_proj"])
def test_a_bias_on_the_output_of_attention_is_refused_and_a_missing_one_too(
    tmp_path: Path, name: str
) -> None:
    written(tmp_path / "small", "Llama", attention_bias=True)
    path = tmp_path / "small/model.safetensors"
    tensors = load_file(path)
    if name == "o_proj":
        tensors["model.layers.1.self_attn.o_proj.bias"][3] = 0.5
        text = r"holds model\.layers\.1\.self_attn\.o_proj\.bias, and our attention has no bias"
    else:
        del tensors["model.layers.1.self_attn.q_proj.bias"]
        text = r"lacks the tensors model\.layers\.1\.self_attn\.q_proj\.bias"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=text):
        open_source(tmp_path / "small")


def test_an_imported_checkpoint_is_whole_and_can_be_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = written(tmp_path / "small", "Qwen2", **QWEN_2)
    assert main(["import", str(tmp_path / "small"), "--out", str(tmp_path / "ours")]) == 0
    assert "qkv_bias: True" in capsys.readouterr().out
    checkpoint = load_checkpoint(tmp_path / "ours", made_by="import")
    with torch.no_grad():
        found = checkpoint.model(torch.tensor([IDS]))
        assert (found - model(torch.tensor([IDS])).logits).abs().max() < CLOSE
    out = tmp_path / "ours.safetensors"
    assert main(["pack", str(tmp_path / "ours"), "--out", str(out)]) == 0
    again = open_source(out).load().model
    state = checkpoint.model.state_dict()
    assert all(torch.equal(again.state_dict()[name], state[name]) for name in state)


def test_a_packed_model_goes_on_as_transformers_does(tmp_path: Path, qwen: Path) -> None:
    engine = Engine.load(qwen)
    tokenizer = Tokenizer.from_bytes(engine.file.tokenizer_bytes)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "qwen")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "qwen")
    prompt = "One day, a caf\u00e9 \U0001f600"
    expected = [tokenizer.bos_id, *theirs.encode(prompt, add_special_tokens=False)]
    num_prompt = len(expected)
    with torch.no_grad():
        for _ in range(20):
            expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    config = GenerateConfig(20, (), SamplingConfig(0.0, None, None, 1.0, 0))
    found = list(engine.generate(expected[:num_prompt], config=config))
    assert found == expected[num_prompt:]
    pieces = stream_text(
        engine,
        prompt=prompt,
        tokenizer=tokenizer,
        decoder=StreamDecoder(tokenizer),
        config=config,
    )
    # Rows beyond the pieces have no text in either.
    assert "".join(pieces) == theirs.decode(found, skip_special_tokens=True)


def test_it_goes_back_to_hugging_face_as_qwen_2(tmp_path: Path, qwen: Path) -> None:
    out = tmp_path / "back"
    write_huggingface(read_packed(qwen), out, weights="float32", figures=None)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    with torch.no_grad():
        expected = load_model(qwen)(torch.tensor([IDS]))
        assert (model(torch.tensor([IDS])).logits - expected).abs().max() < CLOSE
    ours = Tokenizer.from_bytes(read_packed(qwen).tokenizer_bytes)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    text = "She saw <tool_call> a red \u65e5\u672c ball.\n\n"
    assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == (END, TURN, None)
    again = open_source(out)
    assert again.tokenizer == read_packed(qwen).tokenizer_bytes
    assert again.model == open_source(tmp_path / "qwen").renamed("back").model


def test_gguf_refuses_biases_and_a_tokenizer_json(tmp_path: Path, qwen: Path) -> None:
    with pytest.raises(ValueError, match="has qkv_bias, which is not written to GGUF"):
        write_gguf(read_packed(qwen), tmp_path / "x.gguf", weights="f16")
    written(tmp_path / "llama", "Llama")
    packed = tmp_path / "llama.safetensors"
    assert main(["pack", str(tmp_path / "llama"), "--out", str(packed)]) == 0
    with pytest.raises(ValueError, match=r"the tokenizer is a tokenizer\.json, and GGUF is"):
        write_gguf(read_packed(packed), tmp_path / "x.gguf", weights="f16")
    assert not (tmp_path / "x.gguf").exists()
