"""The same latent weights on another grid: what evolution and continued training start from."""

from trilith.model.checkpoint import load_weights
from trilith.model.transformer import Transformer, build_model
from trilith.quant import BitLinear, QuantConfig


def move_to_grid(model: Transformer, quant: QuantConfig | None) -> Transformer:
    """Return a new model with the same latent weights, its scales fitted to the grid.

    Args:
        model: dense or on any grid; left unchanged.
        quant: the grid to move to; None for dense.
    """
    moved = build_model(model.config, quant)
    kept = {name: t for name, t in model.state_dict().items() if not name.endswith(".scale")}
    fresh = {name: t for name, t in moved.state_dict().items() if name.endswith(".scale")}
    load_weights(moved, kept | fresh, origin="the model that is moved to another grid")
    for module in moved.modules():
        if isinstance(module, BitLinear):
            module.refit()
    return moved
