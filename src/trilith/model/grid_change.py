"""The same latent weights on another grid: what evolution and continued training start from."""

from trilith.model.checkpoint import load_weights
from trilith.model.transformer import Transformer, build_model
from trilith.quant import SCALE_NAMES, BitLinear, QuantConfig


def move_to_grid(model: Transformer, quant: QuantConfig | None) -> Transformer:
    """Return a new model with the same latent weights, its scales fitted to the grid.

    Args:
        model: dense or on any grid; left unchanged.
        quant: the grid to move to; None for dense.
    """
    moved = build_model(model.config, quant)
    kept = {name: t for name, t in model.state_dict().items() if not _is_scale(name)}
    fresh = {name: t for name, t in moved.state_dict().items() if _is_scale(name)}
    load_weights(moved, kept | fresh, origin="the model that is moved to another grid")
    for module in moved.modules():
        if isinstance(module, BitLinear):
            module.refit()
    return moved


def _is_scale(name: str) -> bool:
    return name.rpartition(".")[2] in SCALE_NAMES
