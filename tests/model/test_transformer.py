"""The whole model: causality, cached decoding, twins, and a forward pass by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.conftest import TOY
from torch import Tensor, nn
from torch.nn import functional as F

from trilith.model import Bias, KVCache, RMSNorm, Transformer, build_model
from trilith.quant import BitLinear, QuantConfig

TERNARY = QuantConfig("ternary", "absmean", "tensor", None, 8)
SHAPES: list[dict[str, Any]] = [
    {},
    {"mlp": "relu2", "sub_norm": True, "tied_head": False},
    {"mlp": "gated_relu2", "qk_norm": True, "num_kv_heads": 6},
    {"qkv_bias": True},
]


def _model(quant: QuantConfig | None = None, **changes: Any) -> Transformer:
    torch.manual_seed(0)
    model = build_model(replace(TOY, **changes), quant).eval()
    for module in model.modules():
        if isinstance(module, Bias):
            nn.init.normal_(module.weight)
    return model


def _tokens(num_batch: int, num_tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, TOY.vocab_size, (num_batch, num_tokens), generator=generator)


@pytest.mark.parametrize("changes", SHAPES, ids=str)
@pytest.mark.parametrize("quant", [None, TERNARY], ids=["dense", "ternary"])
def test_later_tokens_do_not_change_earlier_logits(
    quant: QuantConfig | None, changes: dict[str, Any]
) -> None:
    model = _model(quant, **changes)
    tokens = _tokens(2, 9)
    other = tokens.clone()
    other[:, 5:] = (other[:, 5:] + 1) % TOY.vocab_size
    with torch.no_grad():
        before, after = model(tokens), model(other)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


# int8 rounding turns the last bit of float32 into a step of 1/127, so ternary gets a wider
# tolerance than float32 alone would need.
@pytest.mark.parametrize("changes", SHAPES, ids=str)
@pytest.mark.parametrize(("quant", "tolerance"), [(None, 1e-5), (TERNARY, 2e-2)])
@pytest.mark.parametrize("chunks", [[1] * 11, [11], [4, 4, 3], [6, 1, 1, 3]], ids=str)
def test_cached_decoding_is_the_full_forward(
    quant: QuantConfig | None, tolerance: float, changes: dict[str, Any], chunks: list[int]
) -> None:
    model = _model(quant, **changes)
    tokens = _tokens(2, 11)
    cache = KVCache(model.config, batch_size=2, capacity=11)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    with torch.no_grad():
        full = model(tokens)
        parts = [model(part, cache) for part in tokens.split(chunks, dim=1)]
    assert cache.length == 11
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=tolerance, atol=tolerance)


def test_sequences_of_a_batch_do_not_see_each_other() -> None:
    model = _model(TERNARY)
    tokens = _tokens(3, 8)
    with torch.no_grad():
        together = model(tokens)
        alone = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(together, alone, rtol=2e-2, atol=2e-2)


def test_a_full_cache_is_a_clear_error() -> None:
    model = _model()
    cache = KVCache(model.config, batch_size=1, capacity=4)
    with torch.no_grad():
        model(_tokens(1, 3), cache)
        with pytest.raises(ValueError, match="holds 4 tokens and 5 are asked for"):
            model(_tokens(1, 2), cache)


def test_the_cache_is_no_part_of_the_state() -> None:
    model = _model()
    names = set(model.state_dict())
    with torch.no_grad():
        model(_tokens(1, 3), KVCache(model.config, batch_size=1, capacity=4))
    assert set(model.state_dict()) == names


def _rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + TOY.norm_eps).sqrt()


def _one_token_by_hand(model: Transformer, token: int) -> Tensor:
    """A single token at position 0: no rotation, attention returns its value."""
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    config = model.config
    x = weights["embedding.weight"][token]
    kv_start = (config.num_heads + config.num_kv_heads) * config.head_width
    for layer in range(config.num_layers):
        block = f"blocks.{layer}"
        value = (weights[f"{block}.attention.qkv.weight"] @ _rms(x))[kv_start:]
        repeats = config.num_heads // config.num_kv_heads
        mixed = torch.cat([part for part in value.split(config.head_width) for _ in range(repeats)])
        x = x + weights[f"{block}.attention.out.weight"] @ mixed
        hidden = weights[f"{block}.mlp.up.weight"] @ _rms(x)
        if config.mlp == "relu2":
            hidden = hidden.clamp(min=0) ** 2
        else:
            gate, up = hidden[: config.mlp_width], hidden[config.mlp_width :]
            gate = gate * gate.sigmoid() if config.mlp == "swiglu" else gate.clamp(min=0) ** 2
            hidden = gate * up
        x = x + weights[f"{block}.mlp.down.weight"] @ hidden
    head = "embedding.weight" if config.tied_head else "head.weight"
    return weights[head] @ _rms(x)


@pytest.mark.parametrize("mlp", ["swiglu", "relu2", "gated_relu2"])
@pytest.mark.parametrize("tied_head", [True, False])
def test_one_token_by_hand(mlp: str, tied_head: bool) -> None:
    model = _model(mlp=mlp, tied_head=tied_head)
    with torch.no_grad():
        logits = model(torch.tensor([[7]]))[0, 0]
    torch.testing.assert_close(logits, _one_token_by_hand(model, 7), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "num_norms"),
    [({}, 5), ({"sub_norm": True}, 9), ({"qk_norm": True}, 9)],
    ids=str,
)
def test_each_norm_switch_has_its_effect(changes: dict[str, Any], num_norms: int) -> None:
    plain, changed = _model(), _model(**changes)
    norms = [m for m in changed.modules() if isinstance(m, RMSNorm)]
    assert len(norms) == num_norms
    if changes:
        assert not torch.allclose(plain(_tokens(1, 5)), changed(_tokens(1, 5)))


@pytest.mark.parametrize("quant", [None, TERNARY], ids=["dense", "ternary"])
def test_a_bias_moves_queries_keys_and_values(quant: QuantConfig | None) -> None:
    attention = _model(quant, qkv_bias=True).blocks[0].attention
    x = torch.randn(2, 3, 24)
    found = attention.qkv_bias(attention.qkv(x))
    assert torch.equal(found, attention.qkv(x) + attention.qkv_bias.weight)
    # A model without the bias computes what one with zeros does.
    zeros, plain = _model(quant, qkv_bias=True), _model(quant)
    for block in zeros.blocks:
        nn.init.zeros_(block.attention.qkv_bias.weight)
    assert torch.equal(zeros(_tokens(2, 9)), plain(_tokens(2, 9)))


def test_rope_theta_has_an_effect() -> None:
    plain, changed = _model(), _model(rope_theta=100.0)
    # Twice scaled weights, so that attention is far from uniform.
    for model in (plain, changed):
        model.blocks[0].attention.qkv.weight.data.mul_(4)
    assert not torch.allclose(plain(_tokens(1, 9)), changed(_tokens(1, 9)), atol=1e-4)


@pytest.mark.parametrize("rule", ["absmean", "least_squares"])
@pytest.mark.parametrize("tied_head", [True, False])
def test_twins_start_with_equal_weights(rule: str, tied_head: bool) -> None:
    dense = dict(_model(None, tied_head=tied_head).named_parameters())
    quant = QuantConfig("ternary", rule, "row", None, 8)  # type: ignore[arg-type]
    model = _model(quant, tied_head=tied_head)
    ternary = dict(model.named_parameters())
    assert dense.keys() == ternary.keys()
    for name, weight in dense.items():
        assert torch.equal(weight, ternary[name]), name
    layers = [m for m in model.modules() if isinstance(m, BitLinear)]
    assert len(layers) == 4 * TOY.num_layers


def test_a_kept_scale_is_fitted_to_the_initial_weights() -> None:
    model = _model(QuantConfig("prime7", "least_squares", "row", None, 8))
    layer = model.blocks[0].mlp.up
    kept = layer.scale.clone()
    layer.refit()
    assert torch.equal(layer.scale, kept)


def test_a_tied_head_shares_its_weight_and_gets_both_gradients() -> None:
    model = _model(tied_head=True)
    assert model.head.weight is model.embedding.weight
    tokens = _tokens(2, 6)
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    # Rows of tokens that never appear get a gradient through the head.
    absent = [i for i in range(TOY.vocab_size) if i not in tokens.unique().tolist()]
    assert model.embedding.weight.grad[absent].abs().sum() > 0


@pytest.mark.parametrize("quant", [None, TERNARY], ids=["dense", "ternary"])
def test_every_weight_gets_a_gradient(quant: QuantConfig | None) -> None:
    model = _model(quant, tied_head=False, sub_norm=True, qk_norm=True).train()
    tokens = _tokens(2, 8)
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_initial_loss_is_that_of_a_uniform_guess() -> None:
    tokens = _tokens(4, 16)
    logits = _model(vocab_size=37)(tokens)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.roll(1).flatten())
    assert loss.item() == pytest.approx(math.log(37), abs=0.1)


# int8 rounding turns the last bit of float32 into a step of 1/127, as above.
@pytest.mark.parametrize("changes", SHAPES, ids=str)
@pytest.mark.parametrize(("quant", "tolerance"), [(None, 1e-5), (TERNARY, 2e-2)])
def test_a_packed_example_has_the_logits_that_it_has_alone(
    quant: QuantConfig | None, tolerance: float, changes: dict[str, Any]
) -> None:
    model = _model(quant, **changes)
    tokens = _tokens(2, 17)
    # Row by row; the ends of the one are no ends of the other.
    lengths = [[5, 1, 8, 3], [2, 9, 6]]
    segments = torch.stack(
        [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths]
    )
    with torch.no_grad():
        packed = model(tokens, segments_BT=segments)
        for row, sizes in enumerate(lengths):
            start = 0
            for size in sizes:
                own = slice(start, start + size)
                alone = model(tokens[row : row + 1, own])[0]
                torch.testing.assert_close(packed[row, own], alone, rtol=tolerance, atol=tolerance)
                start += size


def test_no_gradient_reaches_another_example_of_the_row() -> None:
    model = _model().train()
    tokens = _tokens(1, 9)
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    embedded = []
    model.embedding.register_forward_hook(lambda *arguments: embedded.append(arguments[2]))
    logits = model(tokens, segments_BT=segments)
    (reached,) = torch.autograd.grad(logits[0, 4:].sum(), embedded)
    assert not reached[0, :4].any()
    assert reached[0, 4:].any(dim=-1).all()
