"""A conversation that is kept within a model's context: the oldest exchanges go first."""

from typing import NamedTuple

from trilith.evolution import Turn
from trilith.serving.template import chat_prompt
from trilith.tokens import Tokenizer


class Fitted(NamedTuple):
    """What an answer follows, and what became of the conversation for it.

    Attributes:
        prompt_ids: tokens that the answer follows.
        room: tokens that the answer may have, at least 1.
        dropped: exchanges that had to go, oldest first.
    """

    prompt_ids: list[int]
    room: int
    dropped: list[Turn]


class Conversation:
    """Exchanges so far, with a tokenizer and a context in tokens."""

    def __init__(self, tokenizer: Tokenizer, *, context: int) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.exchanges: list[Turn] = []

    def fit(self, prompt: str, *, wanted: int) -> Fitted:
        """Lay out a new prompt; drop the oldest exchanges until `wanted` tokens of answer fit.

        With no exchange left, an answer gets less than it wants; the new prompt is never cut.

        Raises:
            ValueError: the prompt alone fills the context; nothing was dropped then.
        """
        num_alone = len(chat_prompt(prompt, earlier=[], tokenizer=self.tokenizer))
        if self._room(num_alone) < 1:
            raise ValueError(
                f"{num_alone} tokens of this message alone do not fit the context of "
                f"{self.context} tokens; shorten it"
            )
        for num_dropped in range(len(self.exchanges) + 1):
            kept = self.exchanges[num_dropped:]
            ids = chat_prompt(prompt, earlier=kept, tokenizer=self.tokenizer)
            if self._room(len(ids)) >= wanted or not kept:
                break
        dropped, self.exchanges = self.exchanges[:num_dropped], kept
        return Fitted(ids, min(wanted, self._room(len(ids))), dropped)

    def add(self, prompt: str, response: str) -> None:
        """Keep an exchange."""
        self.exchanges.append(Turn(prompt, response))

    def reset(self) -> None:
        """Forget all exchanges."""
        self.exchanges.clear()

    def _room(self, num_prompt: int) -> int:
        # The last token of an answer is handed out and never run.
        return self.context - num_prompt + 1
