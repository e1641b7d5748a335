"""A source: what is known of a checkpoint before its weights are read, and how to read them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilith.files import sha256
from trilith.model import Checkpoint, ModelConfig, Transformer, build_model, load_weights
from trilith.quant import QuantConfig
from trilith.tokens import Tokenizer

State = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A checkpoint of any project, opened: what can be wrong is found before weights are converted.

    Attributes:
        kind: whose format it is, for people.
        path: what was opened.
        model: its shape.
        quant: its grid; None for a dense model.
        stored: how the file keeps the weights, for people.
        weight_files: files that hold the weights.
        tokenizer: bytes of its `tokenizer.model`, as `Tokenizer` takes them; None where nothing
            beside it holds one.
        tokenizer_sha256: hash of those bytes.
        provenance: what it says of its own training; plain JSON.
        licence: what a file beside it says, if one does.
        read: returns the weights by our names, in float32.
        is_own: True if Trilith made it, so that its provenance says where it comes from.
        read_parts: returns the same weights part by part, as `parts` does; None where they can only
            be read together.
    """

    kind: str
    path: Path
    model: ModelConfig
    quant: QuantConfig | None
    stored: str
    weight_files: tuple[Path, ...]
    tokenizer: bytes | None
    tokenizer_sha256: str
    provenance: dict[str, Any]
    licence: str | None
    read: Callable[[], State]
    is_own: bool = False
    read_parts: Callable[[], Iterator[State]] | None = None

    def parts(self) -> Iterator[State]:
        """Hand out the weights: embedding, last norm and head, then one block after the other.

        Where the source can be read so, no more than one part need be in memory.

        Raises:
            ValueError: a weight is not finite.
        """
        for part in self._parts() if self.read_parts is None else self.read_parts():
            self._require_finite(part)
            yield part

    def _parts(self) -> Iterator[State]:
        state = self.read()
        yield {name: tensor for name, tensor in state.items() if not name.startswith("blocks.")}
        for index in range(self.model.num_layers):
            prefix = f"blocks.{index}."
            yield {name: tensor for name, tensor in state.items() if name.startswith(prefix)}

    @cached_property
    def weights_sha256(self) -> dict[str, str]:
        """SHA-256 of each file that holds weights, by its name."""
        return {path.name: sha256(path) for path in self.weight_files}

    def renamed(self, name: str) -> "Source":
        """Return the same source under another name, which goes into conf/ and file names.

        Raises:
            ValueError: the name is not fit for that.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            raise ValueError(
                f"the name {name!r} must be of a-z, 0-9, '.', '_' and '-'; give another with --name"
            )
        provenance = self.provenance | {"name": name}
        return replace(self, model=replace(self.model, name=name), provenance=provenance)

    def load(self) -> Checkpoint:
        """Read the weights.

        Raises:
            ValueError: a weight is not finite, or they do not fit the shape.
        """
        state = self.read()
        self._require_finite(state)
        model = _model_of(state, self).eval()
        return Checkpoint(model, self.quant, self.tokenizer_sha256, self.provenance)

    def _require_finite(self, state: State) -> None:
        for name, tensor in state.items():
            if not tensor.isfinite().all():
                raise ValueError(
                    f"{self.path} holds a weight that is not finite, in our {name}; its training "
                    "diverged or the file is damaged: get another copy"
                )

    def load_with_origin(self) -> Checkpoint:
        """Read the weights; where they come from becomes part of the provenance.

        Raises:
            ValueError: as `load`.
        """
        checkpoint = self.load()
        return checkpoint._replace(provenance=self.provenance_with_origin)

    @property
    def provenance_with_origin(self) -> dict[str, Any]:
        """The provenance, and the files that the weights come from."""
        return self.provenance | {"imported": {"kind": self.kind, "weights": self.weights_sha256}}


def plain_name(text: str) -> str:
    """Return the name of a file or folder as the name of a model: fit for conf/ and other files."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "imported"


def fresh_provenance(name: str) -> dict[str, Any]:
    """Provenance of a model whose training another project did: nothing is known of its tokens."""
    return {"name": name, "reference": "dense", "num_tokens_seen": 0, "num_steps": 0}


def require_tokenizer_size(tokenizer: Tokenizer, *, rows: int, origin: Path) -> None:
    """Refuse a tokenizer whose ids are not the rows of the embedding.

    Raises:
        ValueError: it has more or fewer.
    """
    if tokenizer.vocab_size != rows:
        raise ValueError(
            f"{origin}: the embedding has {rows} rows and the tokenizer {tokenizer.vocab_size} "
            "ids; give the model's own tokenizer with --tokenizer"
        )


def _model_of(state: State, source: Source) -> Transformer:
    if source.quant is not None:
        model = build_model(source.model, source.quant)
        load_weights(model, state, origin=str(source.path))
        return model
    # On the meta device nothing is drawn or copied: the tensors that were read become the weights.
    with torch.device("meta"):
        model = build_model(source.model, None)
    load_weights(model, state, origin=str(source.path))
    return model
