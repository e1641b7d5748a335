"""A dense source on a grid, packed block by block: memory stays near one block beside the file."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import nn

from trilith.imports.source import Source, State
from trilith.model import ModelConfig, Transformer, empty_model, load_weights, without_memory
from trilith.model.transformer import Block
from trilith.packed import Attachments, PackConfig, PackReport, TokenizerParts, write_packed
from trilith.packed.shelf import drawn_proof_tokens
from trilith.quant import SCALE_NAMES, BitLinear, QuantConfig
from trilith.tokens import Tokenizer


def pack_on_grid(
    source: Source, *, path: Path, quant: QuantConfig, config: PackConfig, tokenizer: Tokenizer
) -> PackReport:
    """Fit the scales of a dense source to a grid and pack it, without any training.

    The result is proved as `write_packed` does, against the same weights on the grid before
    packing; how far that is from the dense model is for an evaluation to say.

    Args:
        source: dense.
        path: the file to write.
        quant: the grid and how its scales are fitted.
        config: codec and precision of embedding and head.
        tokenizer: the source's.

    Raises:
        ValueError: the source is on a grid already, or cannot be packed.
    """
    if source.quant is not None:
        raise ValueError(
            f"{source.path} is on grid {source.quant.grid} already; a grid is chosen for dense "
            "models alone"
        )
    parts = source.parts()
    model = _frame(next(parts), source.model, origin=str(source.path))
    provenance = source.provenance if source.is_own else source.provenance_with_origin
    return write_packed(
        model,
        path=path,
        config=config,
        attachments=Attachments(
            TokenizerParts(tokenizer.model_bytes, tokenizer.special_ids),
            provenance | {"fitted": quant.grid},
        ),
        proof_tokens=drawn_proof_tokens(source.model),
        blocks=_blocks(parts, source.model, quant),
    )


def _frame(state: State, config: ModelConfig, *, origin: str) -> Transformer:
    """Return the model with its weights but for those of the blocks, which stay on meta."""
    model = empty_model(config, partial(nn.Linear, bias=False))
    blocks = {k: t for k, t in model.state_dict().items() if k.startswith("blocks.")}
    load_weights(model, state | blocks, origin=origin)
    return model


def _blocks(parts: Iterator[State], config: ModelConfig, quant: QuantConfig) -> Iterator[Block]:
    for index, state in enumerate(parts):
        with without_memory():
            block = Block(config, layer=index, linear=partial(BitLinear, config=quant))
        block.to_empty(device="cpu")
        weights = {key.removeprefix(f"blocks.{index}."): t for key, t in state.items()}
        missing, unknown = block.load_state_dict(weights, strict=False)
        assert not unknown and all(name.endswith(SCALE_NAMES) for name in missing), missing
        for module in block.modules():
            if isinstance(module, BitLinear):
                module.refit()
        yield block
