"""One sequence that is continued: its prompt part by part, then a token a step.

Axes: B batch (1 here), T prompt tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trilith.model import KVCache
from trilith.runtime.kept_caches import KeptCaches
from trilith.runtime.sampling import Sampler, SamplingConfig

if TYPE_CHECKING:
    from trilith.runtime.engine import Engine


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


class Continuation:
    """A prompt with a cache and a sampler of its own; who steps it decides with whom it decodes.

    `run_part` until there are logits, then `draw`, then a decoding step with `next_B`, and so on.

    Attributes:
        cache: of this sequence alone.
        num_reused: tokens of the prompt that came from a kept cache.
        next_B: int64 [1], the token to be run next; None until one was drawn.
        is_over: True once no token follows.
    """

    def __init__(
        self,
        engine: "Engine",
        prompt_ids: Sequence[int],
        *,
        config: GenerateConfig,
        kept: KeptCaches | None = None,
    ) -> None:
        tokens_BT = torch.tensor([list(prompt_ids)], dtype=torch.long, device=engine.device)
        engine.check_tokens(tokens_BT)
        self._engine, self._config, self._kept = engine, config, kept
        self._prompt_ids = prompt_ids
        # What was drawn, where it is to be kept.
        self._new_ids: list[int] = []
        # The last new token is handed out and never run.
        capacity = tokens_BT.shape[1] + config.max_new_tokens - 1
        self.cache = engine.new_cache(batch_size=1, capacity=capacity)
        self.num_reused = self._restore()
        self._rest = list(tokens_BT[:, self.num_reused :].split(engine.part_tokens, dim=1))
        self._seen_BS = tokens_BT
        self._sampler = Sampler(config.sampling, device=engine.device)
        self._num_new = 0
        self.next_B: Tensor | None = None
        self.is_over = False

    def run_part(self) -> Tensor | None:
        """Run the next part of the prompt; return the logits [1, V] after the last one."""
        logits_BV = self._engine.prefill(self._rest.pop(0), cache=self.cache)
        self._keep_prompt()
        return None if self._rest else logits_BV

    def draw(self, logits_BV: Tensor) -> int | None:
        """Draw the next token from logits [1, V]; None where a stop id ends the continuation."""
        next_B = self._sampler.draw(logits_BV, seen_BS=self._seen_BS)
        if int(next_B) in self._config.stop_ids:
            self._end()
            return None
        self._num_new += 1
        if self._keeps_answer:
            self._new_ids.append(int(next_B))
        if self._num_new == self._config.max_new_tokens:
            self._end()
        if self._config.sampling.repetition_penalty != 1:
            # Each id once, so that an endless stream stays small.
            self._seen_BS = torch.cat([self._seen_BS[0], next_B]).unique()[None]
        self.next_B = next_B
        return int(next_B)

    @property
    def _keeps_answer(self) -> bool:
        """With a window, the prompt is the more useful one: what was dropped cannot come back."""
        has_end = self._engine.cache_config.window is None
        return self._kept is not None and self._engine.has_one_path and has_end

    def _restore(self) -> int:
        if self._kept is None:
            return 0
        assert isinstance(self.cache, KVCache), "caches on a GPU are not kept"
        return self._kept.restore(self._prompt_ids, cache=self.cache, grain=self._engine.kept_grain)

    def _keep_prompt(self) -> None:
        """Keep the cache at the end of the prompt, or of the last part that is whole."""
        length = self.cache.length
        grain = 1 if self._engine.has_one_path else self._engine.part_tokens
        if length == len(self._prompt_ids) // grain * grain:
            self._keep(self._prompt_ids[:length])

    def _end(self) -> None:
        """Nothing follows; the last token that was drawn was not run."""
        self.is_over = True
        if self._keeps_answer:
            self._keep([*self._prompt_ids, *self._new_ids][: self.cache.length])

    def _keep(self, ids: Sequence[int]) -> None:
        if self._kept is not None:
            assert isinstance(self.cache, KVCache)
            self._kept.keep(ids, cache=self.cache)
