"""Signals of the weights against plain recomputations, at odd sizes."""

import math
from typing import Any

import pytest
import torch
from tests.training.conftest import TERNARY, toy_model
from torch import Tensor, nn

from trilith.model import ModelConfig, Transformer
from trilith.quant import BitLinear, QuantConfig
from trilith.training.detector import GridSignals, StepSignals
from trilith.training.signals import WeightWatch

FITTED = QuantConfig("ternary", "least_squares", "row", None, 8)
LEARNED = QuantConfig("ternary", "learned", "row", None, 8)
PRIME = QuantConfig("prime7", "least_squares", "row", None, 8)
SIGN = QuantConfig("sign", "absmean", "tensor", None, 8)


def step(
    watch: WeightWatch, update: Any = None, *, with_grid: bool = False, lr_factor: float = 1.0
) -> Any:
    """One optimizer step that does `update`; returns its signals."""
    watch.arm()
    watch.look()
    if update is not None:
        with torch.no_grad():
            update()
    return watch.read(
        1,
        loss_nats=torch.tensor(3.0),
        grad_norm=torch.tensor(0.5),
        lr_factor=lr_factor,
        with_grid=with_grid,
    ).signals()


def layers(model: nn.Module) -> list[BitLinear]:
    return [layer for layer in model.modules() if isinstance(layer, BitLinear)]


def measure(watch: WeightWatch, update: Any) -> GridSignals:
    """The signals of the codes after `update`, compared with those before."""
    assert step(watch, with_grid=True)[1] is None
    grid = step(watch, update, with_grid=True)[1]
    assert grid is not None
    return grid


def test_the_signals_of_a_step_that_changes_nothing(toy: ModelConfig) -> None:
    assert step(WeightWatch(toy_model(toy))) == (StepSignals(3.0, 0.5, 0.0, 0.0), None)


@pytest.mark.parametrize("bit", range(32))
def test_any_single_bit_that_changes_between_two_steps_is_seen(toy: ModelConfig, bit: int) -> None:
    model = toy_model(toy)
    watch = WeightWatch(model)
    step(watch)
    parameters = list(model.parameters())
    words = parameters[bit % len(parameters)].detach().view(-1).view(torch.int32)
    words[bit % len(words)] ^= 1 << bit if bit < 31 else -(1 << 31)
    assert step(watch)[0].foreign_change == 1
    assert step(watch)[0].foreign_change == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [1, 3, 8, 255])
def test_weights_of_any_type_and_size_are_watched(dtype: torch.dtype, size: int) -> None:
    model = nn.Linear(size, 1, bias=False, dtype=dtype)
    watch = WeightWatch(model)
    assert step(watch, lambda: model.weight.mul_(2))[0].foreign_change == 0
    with torch.no_grad():
        model.weight[0, -1] += 1
    assert step(watch)[0].foreign_change == 1


def test_weights_that_were_replaced_are_taken_for_good(toy: ModelConfig) -> None:
    model = toy_model(toy)
    watch = WeightWatch(model)
    step(watch)
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})
    watch.disarm()
    assert step(watch)[0] == StepSignals(3.0, 0.5, 0.0, 0.0)


def test_the_update_size_is_the_root_mean_square_change(toy: ModelConfig) -> None:
    model = toy_model(toy)

    def update() -> None:
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape).sign())

    # Float32 differences of values near one are good to 1e-7.
    assert step(WeightWatch(model), update)[0].update_size == pytest.approx(0.01, abs=1e-6)
    halved = step(WeightWatch(model), update, lr_factor=0.5)
    assert halved[0].update_size == pytest.approx(0.02, abs=1e-6)


@pytest.mark.parametrize("quant", [TERNARY, FITTED, LEARNED, PRIME, SIGN], ids=str)
def test_the_codes_are_measured_on_some_rows(toy: ModelConfig, quant: QuantConfig) -> None:
    """Weights that change sign change every code but zero, and nothing else.

    Exact where scales are kept; absmean takes the scale of a few rows for that of the tensor.
    """
    model = toy_model(toy, quant)
    before = [codes(layer) for layer in layers(model)]
    grid = measure(WeightWatch(model), lambda: flip_signs(model))
    zero = quant.levels.numerators.index(0) if 0 in quant.levels.numerators else None
    is_zero = [rows.flatten() == (-1 if zero is None else zero) for rows in before]
    expected = torch.cat(is_zero).float().mean()
    tolerance = 0.1 if quant.scale_rule == "absmean" else 1e-6
    assert grid.zero_share == pytest.approx(float(expected), abs=tolerance)
    assert grid.flip_rate == pytest.approx(1 - grid.zero_share, abs=1e-6)
    assert grid.scale_shift == 0


@pytest.mark.parametrize("factor", [1e-3, 0.5, 40.0])
def test_a_single_scale_that_collapses_or_explodes_is_measured(
    toy: ModelConfig, factor: float
) -> None:
    model = toy_model(toy, FITTED)
    # The last row: no code of it is sampled.
    last = layers(model)[3].scale
    assert last is not None
    grid = measure(WeightWatch(model), lambda: last[-1].mul_(factor))
    assert grid.scale_shift == pytest.approx(abs(math.log(factor)), abs=1e-5)


def test_weights_that_shrink_to_nothing_are_a_collapse_of_their_scale(toy: ModelConfig) -> None:
    model = toy_model(toy, TERNARY)
    weight = layers(model)[0].weight
    grid = measure(WeightWatch(model), lambda: weight.mul_(1e-2))
    assert grid.scale_shift == pytest.approx(math.log(100), abs=1e-3)


@pytest.mark.parametrize("quant", [None, FITTED], ids=["no grid", "dense phase"])
def test_a_dense_model_has_no_codes(toy: ModelConfig, quant: QuantConfig | None) -> None:
    model = toy_model(toy, quant)
    for layer in layers(model):
        layer.quantized_share = 0.0
    watch = WeightWatch(model)
    assert step(watch, with_grid=True)[1] is None
    assert step(watch, with_grid=True)[1] is None


def test_codes_go_on_from_those_of_an_earlier_run(toy: ModelConfig) -> None:
    model = toy_model(toy)
    watch = WeightWatch(model)
    step(watch, with_grid=True)
    flip_signs(model)
    resumed = step(WeightWatch(model, codes=watch.codes), with_grid=True)[1]
    assert resumed is not None and resumed.flip_rate > 0.5


def flip_signs(model: Transformer) -> None:
    with torch.no_grad():
        for layer in layers(model):
            layer.weight.neg_()


def codes(layer: BitLinear) -> Tensor:
    """Codes of the sampled rows, by the layer's own quantization of the whole weight."""
    stride = max(1, len(layer.weight) // 8)
    return layer.quantized_weight().codes[::stride]
