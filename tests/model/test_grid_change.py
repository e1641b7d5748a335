"""Moving to a grid keeps the latent weights and fits the scales anew."""

import torch

from trilith.model import ModelConfig, build_model, move_to_grid
from trilith.quant import BitLinear, QuantConfig, fit_scale

PRIME7 = QuantConfig("prime7", "least_squares", "row", None, 8)
TERNARY = QuantConfig("ternary", "absmean", "tensor", None, 8)
FITTED = QuantConfig("ternary", "least_squares", "row", None, 8)


def test_latent_weights_survive_the_whole_descent(toy: ModelConfig) -> None:
    torch.manual_seed(0)
    dense = build_model(toy, None)
    moved = dense
    for quant in (PRIME7, FITTED, TERNARY, None):
        moved = move_to_grid(moved, quant)
    assert moved.state_dict().keys() == dense.state_dict().keys()
    for name, tensor in dense.state_dict().items():
        assert torch.equal(tensor, moved.state_dict()[name]), name


def test_scales_are_those_of_a_fresh_fit(toy: ModelConfig) -> None:
    moved = move_to_grid(move_to_grid(build_model(toy, None), PRIME7), FITTED)
    for module in moved.modules():
        if isinstance(module, BitLinear):
            assert torch.equal(module.scale, fit_scale(module.weight, FITTED))


def test_the_source_is_left_as_it_was(toy: ModelConfig) -> None:
    dense = build_model(toy, None)
    moved = move_to_grid(dense, TERNARY)
    with torch.no_grad():
        moved.embedding.weight.add_(1)
    assert not torch.equal(moved.embedding.weight, dense.embedding.weight)
