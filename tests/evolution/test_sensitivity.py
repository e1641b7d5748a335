"""What a layer's move costs, against a model in which that layer alone has moved."""

import copy

import pytest
import torch

from trilith.evolution import forward_kl, groups_within, layer_costs
from trilith.model import ModelConfig, build_model, move_to_grid
from trilith.quant import BitLinear, QuantConfig

PRIME7 = QuantConfig("prime7", "least_squares", "row", None, 8)
TERNARY = QuantConfig("ternary", "least_squares", "row", None, 8)


@pytest.mark.parametrize("start", [None, PRIME7])
@torch.no_grad()
def test_a_cost_is_what_the_move_of_one_layer_adds(
    toy: ModelConfig, start: QuantConfig | None
) -> None:
    torch.manual_seed(0)
    teacher = build_model(toy, None).eval()
    before = move_to_grid(teacher, start).eval()
    after = move_to_grid(teacher, TERNARY).eval()
    windows = torch.randint(toy.vocab_size, (6, 16))
    weights = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    costs = layer_costs(teacher, before, after, windows_NT=windows)
    layers = [name for name, m in after.named_modules() if isinstance(m, BitLinear)]
    assert list(costs) == layers
    name = layers[3]
    mixed = copy.deepcopy(before)
    mixed.set_submodule(name, copy.deepcopy(after.get_submodule(name)))
    divergences = [float(forward_kl(m(windows), teacher(windows))) for m in (mixed, before)]
    assert costs[name] == pytest.approx(divergences[0] - divergences[1], rel=1e-3, abs=1e-7)
    for key, tensor in before.state_dict().items():
        assert torch.equal(tensor, weights[key]), key


def test_groups_spend_the_budget_on_the_cheapest_first() -> None:
    costs = {"a": 0.5, "b": 0.1, "c": 3.0, "d": 0.4, "e": -0.2}
    assert groups_within(costs, budget=0.6) == [["e", "b", "d"], ["a"], ["c"]]
    assert groups_within(costs, budget=100.0) == [["e", "b", "d", "a", "c"]]
