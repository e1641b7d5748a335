"""Folders with a tokenizer.json alone, as the libraries of Hugging Face write them."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tests.imports.making import TEXT
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

END, TURN = "<|endoftext|>", "<|im_end|>"
# Llama 3's and Qwen 2's way to split a text before pieces are joined, digits one by one.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(*, normalizer: Any = None, num_pieces: int = 290) -> Any:
    """Train a byte-level BPE tokenizer as Qwen 2's, its marks after the pieces."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_pieces,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True) * 4, trainer)
    tokenizer.add_special_tokens([END, TURN])
    tokenizer.add_tokens(["<tool_call>", "caf\u00e9 !"])
    return tokenizer


def meta_space() -> Any:
    """Train a BPE tokenizer with U+2581 for spaces and byte fallback, as Llama 2's is written."""
    tokenizer = tokenizers.Tokenizer(
        models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    marks = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[*marks, *(f"<0x{byte:02X}>" for byte in range(256))],
        max_token_length=6,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines() * 4, trainer)
    # The byte pieces are pieces, not tokens of their own.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in marks]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def write_tokenizer(folder: Path, tokenizer: Any, **named: str | None) -> None:
    """Write tokenizer.json and a tokenizer_config.json that names the marks."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | named))


def write_model(folder: Path, kind: str, **changes: Any) -> Any:
    """Write a model of transformers with random weights, biases too; return it.

    Weights are of bfloat16, so that packed files of dense models keep them.
    """
    transformers = pytest.importorskip("transformers", reason="needs the extra `export`")
    shape = {
        "vocab_size": 320,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**shape | changes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith("o_proj.bias"):
                weight.add_(torch.randn_like(weight) * 0.3)
            weight.copy_(weight.bfloat16())
    model.save_pretrained(folder)
    return model
