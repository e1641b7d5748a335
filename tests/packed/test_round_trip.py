"""What is packed is what comes back, and it computes what the trained model computes."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trilith.kernels import PackedLinear
from trilith.model import ModelConfig, Transformer, build_model
from trilith.packed import (
    Attachments,
    PackConfig,
    TokenizerParts,
    latent_histogram,
    load_model,
    read_packed,
    round_to_stored,
    write_packed,
)
from trilith.quant import BitLinear, QuantConfig, fake_quantize, fake_quantize_activation

QUANTS = {
    "dense": None,
    "ternary": QuantConfig("ternary", "absmean", "tensor", None, 8),
    "ternary rows": QuantConfig("ternary", "absmean", "row", None, 8),
    "ternary groups": QuantConfig("ternary", "least_squares", "group", 8, 8),
    "ternary float activations": QuantConfig("ternary", "absmean", "tensor", None, None),
    "prime7": QuantConfig("prime7", "least_squares", "row", None, 8),
    "prime5": QuantConfig("prime5", "least_squares", "tensor", None, 8),
    "planes": QuantConfig("planes", "least_squares", "row", None, 8),
    "uniform7": QuantConfig("uniform7", "least_squares", "row", None, None),
    "sign": QuantConfig("sign", "absmean", "row", None, 8),
}


class FakeQuantizedLinear(nn.Linear):
    """The training-time definition, written with floats alone."""

    def __init__(self, layer: BitLinear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.weight = layer.weight
        self.quant = layer.config

    def forward(self, x: Tensor) -> Tensor:
        if self.quant.activation_bits:
            x = fake_quantize_activation(x)
        return nn.functional.linear(x, fake_quantize(self.weight, self.quant))


def _oracle(model: Transformer, embedding: str) -> Transformer:
    """The trained model in floats, embedding and head rounded as stored."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BitLinear):
            model.set_submodule(name, FakeQuantizedLinear(module))
        elif isinstance(module, nn.Linear | nn.Embedding):
            rows = module.weight.detach()
            if embedding == "bf16" or name.startswith("blocks"):
                module.weight.data = rows.bfloat16().float()
            elif embedding == "int8":
                scale = rows.abs().amax(dim=1, keepdim=True) / 127
                module.weight.data = (rows / scale).round() * scale
    if model.config.tied_head:
        model.head.weight = model.embedding.weight
    return model


@pytest.mark.parametrize("embedding", ["bf16", "int8"])
@pytest.mark.parametrize("tied_head", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("quant", QUANTS.values(), ids=QUANTS)
def test_the_packed_model_is_the_fake_quantized_one(
    pack: Any, proof_tokens: Tensor, quant: QuantConfig | None, tied_head: bool, embedding: str
) -> None:
    packed = pack(quant, embedding=embedding, tied_head=tied_head, sub_norm=True, qk_norm=True)
    model = load_model(packed.path)
    with torch.no_grad():
        expected = _oracle(packed.model, embedding)(proof_tokens)
        found = model(proof_tokens)
    # Integers against floats: an int8 value may round the other way. write_packed itself asks for
    # equality with the integer forward pass.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2 * float(expected.abs().max()))
    if quant is None or quant.activation_bits is None:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("embedding", "head"), [("int3", "int4"), ("int4", "int8"), ("bf16", "int3"), ("f32", "f32")]
)
@pytest.mark.parametrize("tied_head", [True, False], ids=["tied", "untied"])
def test_embedding_and_head_have_precisions_of_their_own(
    pack: Any, proof_tokens: Tensor, embedding: str, head: str, tied_head: bool
) -> None:
    group_size = None if embedding == "f32" else 8
    rows = {"embedding": embedding, "head": head, "group_size": group_size}
    packed = pack(**rows, tied_head=tied_head)
    file = read_packed(packed.path)
    kinds = {"f32": "float32", "bf16": "bfloat16"}
    assert file.stored_rows("embedding").kind == kinds.get(embedding, embedding)
    expected_head = embedding if tied_head else head
    assert file.stored_head().kind == kinds.get(expected_head, expected_head)
    model = packed.model
    round_to_stored(model, config=packed.config)
    with torch.no_grad():
        assert torch.equal(load_model(packed.path)(proof_tokens), model.eval()(proof_tokens))


@pytest.mark.parametrize("codec", ["base3", "bits2", "bits3"])
def test_the_codec_changes_bytes_and_not_logits(
    pack: Any, proof_tokens: Tensor, codec: str
) -> None:
    smallest = load_model(pack().path)(proof_tokens)
    packed = pack(codec=codec)
    assert torch.equal(load_model(packed.path)(proof_tokens), smallest)
    entry = read_packed(packed.path).manifest.tensors["blocks.0.mlp.up.codes"]
    assert entry.codes is not None and entry.codes.codec == codec


def test_codes_and_scales_come_back_bit_for_bit(pack: Any) -> None:
    packed = pack(QUANTS["ternary groups"])
    file = read_packed(packed.path)
    for name, layer in packed.model.named_modules():
        if isinstance(layer, BitLinear):
            weight = file.packed_weight(name)
            assert torch.equal(weight.codes(), layer.quantized_weight().codes)
            assert torch.equal(weight.scale, layer.quantized_weight().scale)


def test_the_manifest_says_what_was_packed(pack: Any) -> None:
    packed = pack()
    file = read_packed(packed.path)
    assert file.manifest.model == packed.model.config
    assert file.manifest.activation_bits == 8
    assert file.manifest.provenance == {
        "stage": "pretrain",
        "num_steps": 7,
        "loss_nats": 3.25,
        "seed": 0,
    }
    assert file.manifest.special_ids == {"bos": 1, "eos": 2}
    assert file.tokenizer_bytes == b"not really a tokenizer" * 3
    assert file.manifest.tokenizer_sha256 == hashlib.sha256(file.tokenizer_bytes).hexdigest()


def test_the_loaded_model_has_no_latent_weights_and_no_gradient(pack: Any) -> None:
    model = load_model(pack().path)
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not any(isinstance(module, BitLinear) for module in model.modules())
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 8
    assert model.head.values is model.embedding.values
    assert not any(weight.is_meta for weight in model.state_dict().values())


def test_packing_leaves_the_trained_model_as_it_was(pack: Any) -> None:
    packed = pack(embedding="int8")
    torch.manual_seed(0)
    fresh = build_model(packed.model.config, QUANTS["ternary"])
    assert packed.model.training
    assert torch.equal(packed.model.embedding.weight, fresh.embedding.weight)


def test_equal_models_give_equal_files(pack: Any) -> None:
    first = pack().path.read_bytes()
    assert pack().path.read_bytes() == first


def test_a_bfloat16_model_is_packed_by_its_values(pack: Any, tmp_path: Path) -> None:
    model = pack().model.bfloat16()
    write_packed(
        model,
        path=tmp_path / "half.safetensors",
        config=PackConfig("smallest", "bf16"),
        attachments=Attachments(TokenizerParts(b"x", {}), {}),
        proof_tokens=torch.zeros(1, 3, dtype=torch.long),
    )
    file = read_packed(tmp_path / "half.safetensors")
    assert torch.equal(file.tensors["embedding.weight"], model.embedding.weight)


class LouderBitLinear(BitLinear):
    """Computes something else than its codes and scales say."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.0001


def _write(model: Transformer, path: Path, **changes: Any) -> None:
    arguments = {
        "config": PackConfig("smallest", "bf16"),
        "attachments": Attachments(TokenizerParts(b"x", {"eos": 2}), {}),
        "proof_tokens": torch.arange(12).view(2, 6),
    }
    write_packed(model, path=path, **(arguments | changes))


def test_a_file_whose_logits_differ_is_never_written(toy: ModelConfig, tmp_path: Path) -> None:
    model = build_model(toy, QUANTS["ternary"])
    up = LouderBitLinear(toy.width, 2 * toy.mlp_width, QUANTS["ternary"])
    model.set_submodule("blocks.1.mlp.up", up)
    path = tmp_path / "model.safetensors"
    path.write_text("the old file")
    with pytest.raises(ValueError, match=r"was not written: the packed logits differ"):
        _write(model, path)
    assert path.read_text() == "the old file"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"config": PackConfig("base3", "bf16")}, "pack.codec=base3 holds 3 codes, too few"),
        ({"attachments": Attachments(TokenizerParts(b"x", {"eos": 37}), {})}, "eos=37 is outside"),
        ({"attachments": Attachments(TokenizerParts(b"x", {}), {"a": float("nan")})}, "plain JSON"),
        ({"attachments": Attachments(TokenizerParts(b"x", {}), {"a": Path()})}, "plain JSON"),
        ({"proof_tokens": torch.zeros(1, 33, dtype=torch.long)}, "context=32"),
        ({"proof_tokens": torch.zeros(0, 3, dtype=torch.long)}, r"expected \[B, T\]"),
    ],
    ids=["codec", "special id", "NaN", "object", "context", "empty"],
)
def test_what_cannot_be_packed_is_refused(
    toy: ModelConfig, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        _write(build_model(toy, QUANTS["prime7"]), tmp_path / "model.safetensors", **changes)
    assert not list(tmp_path.iterdir())


def test_a_diverged_model_is_refused(toy: ModelConfig, tmp_path: Path) -> None:
    model = build_model(toy, QUANTS["ternary"])
    model.blocks[1].mlp.up.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.up\.weight holds a weight that is not"):
        _write(model, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "change", [{"codec": "zip"}, {"embedding": "fp8"}, {"head": "fp8"}, {"group_size": 8}], ids=str
)
def test_unknown_choices_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=rf"pack\.({next(iter(change))}|group_size)="):
        PackConfig(**({"codec": "smallest", "embedding": "bf16"} | change))  # type: ignore[arg-type]


def test_a_latent_histogram_counts_every_projection_weight(toy: ModelConfig) -> None:
    model = build_model(toy, QUANTS["ternary"])
    histogram = latent_histogram(model, num_bins=51)
    weights = torch.cat([m.weight.flatten() for m in model.blocks.modules() if hasattr(m, "refit")])
    assert histogram.counts.sum() == weights.numel()
    assert histogram.edges[-1] == float(weights.detach().abs().max())
    middle = (weights.abs() < histogram.edges[26]).sum()
    assert histogram.counts[25] == int(middle)
