"""The engine: a packed model with its cache, from prompt ids to new ids one by one.

Axes: B batch, T prompt tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trilith.hardware import usable_device
from trilith.model import CacheConfig, KVCache, ModelConfig, StaticCache, Transformer
from trilith.model.cache_storage import KEY_BLOCK
from trilith.packed import PackedFile, build_outer_model, build_packed_model, read_packed
from trilith.runtime.continuation import Continuation, GenerateConfig
from trilith.runtime.kept_caches import KeptCaches
from trilith.runtime.layer_stream import LayerStream
from trilith.runtime.memory import PART_TOKENS, PREFILL_TOKENS, Layers
from trilith.runtime.native_decoder import NativeDecoder, NewTokens, decodes_natively
from trilith.runtime.room import require_memory
from trilith.runtime.static_decoder import StaticDecoder


class Engine:
    """Runs one packed model; several caches may be in use at once."""

    def __init__(
        self,
        model: Transformer,
        *,
        file: PackedFile,
        cache: CacheConfig = CacheConfig(),  # noqa: B008
    ) -> None:
        if cache.window is not None and cache.window > model.config.context:
            raise ValueError(
                f"window={cache.window} is wider than the context of {model.config.context} tokens "
                f"of model {model.config.name}; narrow it"
            )
        self.model = model
        self.file = file
        self.cache_config = cache
        self.device = model.norm.weight.device
        _check_device(self.device, cache=cache)
        is_native = self.stream is None and decodes_natively(model)
        self.decoder = NativeDecoder(model, file=file) if is_native else None
        self.static = StaticDecoder(model) if self.device.type == "cuda" else None

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        cache: CacheConfig = CacheConfig(),  # noqa: B008
        layers: Layers = "held",
        device: str = "cpu",
        context: int | None = 1,
    ) -> "Engine":
        """Read and check a packed file and build its model on a device: "cpu", "cuda", "cuda:1".

        Args:
            path: of the file.
            cache: how its caches keep keys and values.
            layers: `streamed` reads each block just before it runs, for models larger than the
                memory; decoding then goes through the torch modules.
            context: tokens of a sequence for which there must be memory; None for the model's own.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is foreign or damaged, or too large for this machine; or there is
                no such device, or it does not run this.
        """
        chosen = usable_device(device)
        _check_device(chosen, cache=cache, layers=layers)
        require_memory(path, cache=cache, layers=layers, device=chosen, context=context)
        file = read_packed(path)
        if layers == "held":
            return cls(build_packed_model(file, device=chosen), file=file, cache=cache)
        model = build_outer_model(file)
        model.blocks = LayerStream(file)  # type: ignore[assignment]
        return cls(model, file=file, cache=cache)

    @property
    def stream(self) -> LayerStream | None:
        """The blocks, where they are streamed."""
        return self.model.blocks if isinstance(self.model.blocks, LayerStream) else None

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        return self.model.config

    @property
    def part_tokens(self) -> int:
        """Tokens of a prompt that `generate` runs at once; with a window no more than it takes."""
        if self.static is not None:
            return self.config.context
        # Each part reads all layers, where they are streamed.
        at_once = PART_TOKENS if self.stream is None else PREFILL_TOKENS
        window = self.cache_config.window
        return at_once if window is None else min(at_once, window - self.cache_config.sinks)

    @property
    def has_one_path(self) -> bool:
        """True if native kernels run prompts too: a token has the same bits there and later."""
        return self.decoder is not None and self.decoder.runs_prompts

    @property
    def kept_grain(self) -> int:
        """Multiples of so many tokens at which a kept cache can be cut without changing a bit."""
        if not self.has_one_path:
            return self.part_tokens
        return 1 if self.cache_config.bits >= 16 else KEY_BLOCK

    def new_cache(self, *, batch_size: int, capacity: int) -> KVCache | StaticCache:
        """Make an empty cache for sequences of up to `capacity` tokens; a window has no such end.

        Raises:
            ValueError: the model was not trained for so many tokens.
        """
        has_end = self.cache_config.window is None
        if capacity < 1 or (has_end and capacity > self.config.context):
            raise ValueError(
                f"{capacity} tokens do not fit the context of {self.config.context} tokens of "
                f"model {self.config.name}; shorten the prompt or ask for fewer new tokens"
            )
        if self.static is not None:
            return self.static.new_cache(batch_size=batch_size, capacity=capacity)
        return KVCache(
            self.config, batch_size=batch_size, capacity=capacity, config=self.cache_config
        )

    @torch.inference_mode()
    def prefill(self, tokens_BT: Tensor, *, cache: KVCache | StaticCache) -> Tensor:
        """Run prompts of equal length into the cache; return the logits [B, V] of what follows.

        They run in parts of `PREFILL_TOKENS`, so that activations do not grow with the prompt.
        """
        self.check_tokens(tokens_BT)
        if isinstance(cache, StaticCache):
            assert self.static is not None
            return self.static.prefill(tokens_BT, cache=cache)
        at_once = PREFILL_TOKENS
        if cache.config.window is not None:
            at_once = min(at_once, cache.num_recent)
        parts = tokens_BT.split(at_once, dim=1)
        if self.decoder is not None and self.decoder.runs_prompts:
            return [self.decoder.run([NewTokens(part_BT, cache)]) for part_BT in parts][-1]
        for part_BT in parts:
            hidden_BTD = self.model.hidden(part_BT, cache)
        return self.model.head(hidden_BTD[:, -1])

    def decode_one_token(self, tokens_B: Tensor, *, cache: KVCache | StaticCache) -> Tensor:
        """Add one token to each sequence; return the logits [B, V] of what follows."""
        return self.decode_together(tokens_B, caches=[cache])

    @torch.inference_mode()
    def decode_together(
        self, tokens_B: Tensor, *, caches: Sequence[KVCache | StaticCache]
    ) -> Tensor:
        """Add one token to each sequence of several caches, whatever their lengths.

        Each has the logits that it has alone, to the bit. Native kernels run all in one call; on
        the torch path and on a GPU the caches go one by one.

        Returns:
            The logits [B, V] of what follows, of the caches in turn.
        """
        parts = tokens_B.split([cache.batch_size for cache in caches])
        if self.decoder is not None:
            pairs = zip(parts, _of_cpu(caches), strict=True)
            return self.decoder.run([NewTokens(part_B[:, None], cache) for part_B, cache in pairs])
        alone = zip(parts, caches, strict=True)
        return torch.cat([self._decode_alone(part_B, cache) for part_B, cache in alone])

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        config: GenerateConfig,
        kept: KeptCaches | None = None,
    ) -> Iterator[int]:
        """Continue a prompt; each token is handed out as soon as it is drawn.

        Args:
            prompt_ids: run in parts of `part_tokens`.
            config: when it ends, and how tokens are drawn.
            kept: caches of earlier prompts, to begin with and to add to; they change no bit.

        Raises:
            ValueError: at the call, if the prompt is empty, holds ids the model does not know, or
                does not fit the context together with the new tokens.
        """
        return self._continue(Continuation(self, prompt_ids, config=config, kept=kept))

    def _continue(self, one: Continuation) -> Iterator[int]:
        logits_BV = None
        while logits_BV is None:
            logits_BV = one.run_part()
        while (token := one.draw(logits_BV)) is not None:
            yield token
            if one.is_over:
                return
            assert one.next_B is not None
            logits_BV = self.decode_one_token(one.next_B, cache=one.cache)

    def _decode_alone(self, tokens_B: Tensor, cache: KVCache | StaticCache) -> Tensor:
        if isinstance(cache, StaticCache):
            assert self.static is not None
            return self.static.step(tokens_B, cache=cache)
        return self.model(tokens_B[:, None], cache)[:, 0]

    def check_tokens(self, tokens_BT: Tensor) -> None:
        """Refuse prompts that cannot be run.

        Raises:
            ValueError: they are empty, or hold ids the model does not know.
        """
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


def _of_cpu(caches: Sequence[KVCache | StaticCache]) -> list[KVCache]:
    found = [cache for cache in caches if isinstance(cache, KVCache)]
    assert len(found) == len(caches), "a static cache belongs to a GPU"
    return found


def _check_device(device: torch.device, *, cache: CacheConfig, layers: Layers = "held") -> None:
    if device.type == "cpu":
        return
    if (cache.bits, cache.window) != (32, None):
        raise ValueError(
            f"cache_bits={cache.bits} and window={cache.window} do not run on {device}: caches on "
            "a GPU are float32 and keep all tokens; leave both out, or use the CPU"
        )
    if layers == "streamed":
        raise ValueError(f"layers are streamed on the CPU, not on {device}; leave one of both out")
