"""The engine: a packed model with its cache, from prompt ids to new ids one by one.

Axes: B batch, T prompt tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trilith.hardware import usable_device
from trilith.model import KVCache, ModelConfig, StaticCache, Transformer
from trilith.packed import PackedFile, build_packed_model, read_packed
from trilith.runtime.native_decoder import NativeDecoder, decodes_natively
from trilith.runtime.sampling import Sampler, SamplingConfig
from trilith.runtime.static_decoder import StaticDecoder


@dataclass(frozen=True)
class GenerateConfig:
    """When a continuation ends, and how its tokens are drawn.

    A token of `stop_ids` ends the continuation and is not part of it.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    sampling: SamplingConfig

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")


class Engine:
    """Runs one packed model; several caches may be in use at once."""

    def __init__(self, model: Transformer, *, file: PackedFile) -> None:
        self.model = model
        self.file = file
        self.device = model.norm.weight.device
        self.decoder = NativeDecoder(model, file=file) if decodes_natively(model) else None
        self.static = StaticDecoder(model) if self.device.type == "cuda" else None

    @classmethod
    def load(cls, path: Path, *, device: str = "cpu") -> "Engine":
        """Read and check a packed file and build its model on a device: "cpu", "cuda", "cuda:1".

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is foreign or damaged, or there is no such device.
        """
        chosen = usable_device(device)
        file = read_packed(path)
        return cls(build_packed_model(file, device=chosen), file=file)

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        return self.model.config

    def new_cache(self, *, batch_size: int, capacity: int) -> KVCache | StaticCache:
        """Make an empty cache for sequences of up to `capacity` tokens.

        Raises:
            ValueError: the model was not trained for so many tokens.
        """
        if not 1 <= capacity <= self.config.context:
            raise ValueError(
                f"{capacity} tokens do not fit the context of {self.config.context} tokens of "
                f"model {self.config.name}; shorten the prompt or ask for fewer new tokens"
            )
        if self.static is not None:
            return self.static.new_cache(batch_size=batch_size, capacity=capacity)
        return KVCache(self.config, batch_size=batch_size, capacity=capacity)

    @torch.inference_mode()
    def prefill(self, tokens_BT: Tensor, *, cache: KVCache | StaticCache) -> Tensor:
        """Run prompts of equal length into the cache; return the logits [B, V] of what follows."""
        self._check_tokens(tokens_BT)
        if isinstance(cache, StaticCache):
            assert self.static is not None
            return self.static.prefill(tokens_BT, cache=cache)
        hidden_BD = self.model.hidden(tokens_BT, cache)[:, -1]
        return (
            self.model.head(hidden_BD) if self.decoder is None else self.decoder.logits(hidden_BD)
        )

    @torch.inference_mode()
    def decode_one_token(self, tokens_B: Tensor, *, cache: KVCache | StaticCache) -> Tensor:
        """Add one token to each sequence; return the logits [B, V] of what follows."""
        if isinstance(cache, StaticCache):
            assert self.static is not None
            return self.static.step(tokens_B, cache=cache)
        if self.decoder is not None and cache.capacity <= self.config.context:
            return self.decoder.step(tokens_B, cache=cache)
        return self.model(tokens_B[:, None], cache)[:, 0]

    def generate(self, prompt_ids: Sequence[int], *, config: GenerateConfig) -> Iterator[int]:
        """Continue a prompt; each token is handed out as soon as it is drawn.

        Raises:
            ValueError: at the call, if the prompt is empty, holds ids the model does not know, or
                does not fit the context together with the new tokens.
        """
        tokens_BT = torch.tensor([list(prompt_ids)], dtype=torch.long, device=self.device)
        self._check_tokens(tokens_BT)
        # The last new token is handed out and never run.
        capacity = tokens_BT.shape[1] + config.max_new_tokens - 1
        cache = self.new_cache(batch_size=1, capacity=capacity)
        return self._continue(tokens_BT, config=config, cache=cache)

    def _continue(
        self, tokens_BT: Tensor, *, config: GenerateConfig, cache: KVCache | StaticCache
    ) -> Iterator[int]:
        sampler = Sampler(config.sampling, device=self.device)
        logits_BV = self.prefill(tokens_BT, cache=cache)
        for num_new in range(1, config.max_new_tokens + 1):
            next_B = sampler.draw(logits_BV, seen_BS=tokens_BT)
            if int(next_B) in config.stop_ids:
                return
            yield int(next_B)
            if num_new < config.max_new_tokens:
                tokens_BT = torch.cat([tokens_BT, next_B[:, None]], dim=1)
                logits_BV = self.decode_one_token(next_B, cache=cache)

    def _check_tokens(self, tokens_BT: Tensor) -> None:
        if not tokens_BT.numel():
            raise ValueError(
                "the prompt is empty; give at least one token, such as the end mark before it"
            )
        if int(tokens_BT.min()) < 0 or int(tokens_BT.max()) >= self.config.vocab_size:
            raise ValueError(
                f"the prompt holds ids {int(tokens_BT.min())}..{int(tokens_BT.max())} and model "
                f"{self.config.name} knows 0..{self.config.vocab_size - 1}; encode it with the "
                "model's own tokenizer"
            )
