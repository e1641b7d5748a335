"""Fits of a whole model: what they do to its outputs, and the errors that they report."""

from dataclasses import replace

import pytest
import torch
from tests.conftest import TOY
from torch import Tensor, nn

from trilith.evolution import FitMethod, GridFit, fit_to_grid
from trilith.model import Transformer, build_model, move_to_grid
from trilith.quant import BitLinear, QuantConfig, dequantized_weight, fit_weighted_scale

# Float activations: rounding them would blur what the fit of the weights does.
TERNARY = QuantConfig("ternary", "least_squares", "row", None, None)
LEARNED = QuantConfig("prime7", "learned", "group", 4, None)
ABSMEAN = QuantConfig("ternary", "absmean", "tensor", None, None)
METHODS: list[FitMethod] = ["plain", "weighted", "gptq"]


def dense() -> Transformer:
    torch.manual_seed(0)
    return build_model(replace(TOY, num_layers=2, sub_norm=True), None)


def windows(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, TOY.vocab_size, (10, 32), generator=generator)


def fit(method: FitMethod, quant: QuantConfig = TERNARY) -> GridFit:
    return fit_to_grid(dense(), quant, method=method, windows_NT=windows())


def inputs_of(model: Transformer, name: str) -> Tensor:
    """What the projection gets when the whole model runs, one row a token."""
    seen = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, -2)))
    with torch.no_grad():
        model.eval()(windows())
    handle.remove()
    return seen[0].double()


@pytest.mark.parametrize("quant", [TERNARY, LEARNED], ids=["kept scale", "learned scale"])
@pytest.mark.parametrize("method", METHODS)
def test_the_reported_error_is_that_of_the_outputs_of_the_finished_model(
    method: FitMethod, quant: QuantConfig
) -> None:
    before, found = dense(), fit(method, quant)
    names = [name for name, m in found.model.named_modules() if isinstance(m, BitLinear)]
    assert list(found.output_errors) == names
    for name in names:
        layer = found.model.get_submodule(name)
        assert isinstance(layer, BitLinear)
        x = inputs_of(found.model, name)
        original = before.get_submodule(name).weight.detach().double()
        assert isinstance(original, Tensor)
        outputs = x @ original.T
        lost = outputs - x @ dequantized_weight(layer).double().T
        expected = float(lost.square().sum() / outputs.square().sum())
        assert found.output_errors[name] == pytest.approx(expected, rel=1e-3), name


def test_each_fit_loses_less_of_the_outputs_than_the_simpler_one() -> None:
    totals = [sum(fit(method).output_errors.values()) for method in METHODS]
    assert totals[2] < totals[1] < totals[0]
    assert totals[2] < 0.8 * totals[0]


def test_the_plain_fit_is_a_move_to_the_grid() -> None:
    expected = move_to_grid(dense(), TERNARY)
    found = fit("plain").model
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]), name
    assert found.training


def test_the_weighted_fit_keeps_the_latent_weights_and_fits_their_scales() -> None:
    before, found = dense(), fit("weighted").model
    for name, layer in found.named_modules():
        if isinstance(layer, BitLinear):
            moments = inputs_of(found, name).square().mean(dim=0)
            scale = fit_weighted_scale(layer.weight, moments, TERNARY)
            assert layer.scale is not None
            # The mean squares are summed in another order.
            torch.testing.assert_close(layer.scale, scale, rtol=1e-3, atol=1e-6)
            kept = before.get_submodule(name)
            assert isinstance(kept, nn.Linear)
            assert torch.equal(layer.weight, kept.weight)


def test_a_fit_is_the_same_each_time_and_leaves_its_source_alone() -> None:
    source = dense()
    first = fit_to_grid(source, TERNARY, method="gptq", windows_NT=windows())
    second = fit_to_grid(source, TERNARY, method="gptq", windows_NT=windows())
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    for name, tensor in dense().state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_a_grid_without_a_kept_scale_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="scale_rule=absmean keeps no scale"):
        fit("weighted", ABSMEAN)


def test_a_broken_model_is_named_by_its_first_projection_that_sees_it() -> None:
    source = dense()
    with torch.no_grad():
        source.blocks[0].mlp_norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.up: its inputs .* not finite"):
        fit_to_grid(source, TERNARY, method="gptq", windows_NT=windows())
