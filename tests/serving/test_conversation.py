"""The chat template by hand, and a conversation against a context that is too small for it."""

import pytest

from trilith.evolution import Turn
from trilith.serving import Conversation, chat_prompt, chat_stop_ids
from trilith.tokens import Tokenizer

BOS, EOS, USER, ASSISTANT, END = 1, 2, 4, 5, 6


def _by_hand(tokenizer: Tokenizer, *texts: str) -> list[int]:
    """Prompts and responses in turn, the last a prompt."""
    ids = [BOS]
    for place, text in enumerate(texts):
        is_prompt = place % 2 == 0
        ids += [USER] if is_prompt else []
        ids += tokenizer.encode(text)
        ids += [ASSISTANT] if is_prompt else [END]
    return ids


@pytest.mark.parametrize(
    "texts",
    [
        ("def add",),
        ("a", "b", "c"),
        ("für", "木 <|end|>", "two\nlines", "", " spaces ", "x" * 500, "last"),
    ],
)
def test_the_template_is_that_of_training(tokenizer: Tokenizer, texts: tuple[str, ...]) -> None:
    *spoken, prompt = texts
    earlier = [Turn(*pair) for pair in zip(spoken[::2], spoken[1::2], strict=True)]
    found = chat_prompt(prompt, earlier=earlier, tokenizer=tokenizer)
    assert found == _by_hand(tokenizer, *texts)


def test_an_answer_ends_at_its_mark_or_that_of_a_document(tokenizer: Tokenizer) -> None:
    assert set(chat_stop_ids(tokenizer)) == {END, EOS}


def test_a_conversation_that_fits_is_kept_whole(tokenizer: Tokenizer) -> None:
    conversation = Conversation(tokenizer, context=1000)
    conversation.add("one", "two")
    conversation.add("three", "four")
    fitted = conversation.fit("five", wanted=50)
    assert fitted.prompt_ids == _by_hand(tokenizer, "one", "two", "three", "four", "five")
    assert (fitted.room, fitted.dropped) == (50, [])


def test_the_oldest_exchanges_go_until_the_answer_has_room(tokenizer: Tokenizer) -> None:
    said = [(f"question {i}", f"answer {i}") for i in range(6)]
    whole = [text for exchange in said for text in exchange]
    for context in range(20, 260, 7):
        conversation = Conversation(tokenizer, context=context)
        for prompt, response in said:
            conversation.add(prompt, response)
        # An answer's last token never runs, so it may lie one beyond the context.
        fits = [
            n
            for n in range(7)
            if len(_by_hand(tokenizer, *whole[2 * n :], "now")) + 10 - 1 <= context
        ]
        fitted = conversation.fit("now", wanted=10)
        num_dropped = min(fits, default=6)
        assert fitted.prompt_ids == _by_hand(tokenizer, *whole[2 * num_dropped :], "now")
        assert [tuple(exchange) for exchange in fitted.dropped] == said[:num_dropped]
        assert [tuple(exchange) for exchange in conversation.exchanges] == said[num_dropped:]
        assert fitted.room == min(10, context + 1 - len(fitted.prompt_ids))


def test_a_message_too_long_by_itself_is_refused_and_drops_nothing(tokenizer: Tokenizer) -> None:
    prompt = "x" * 300
    size = len(_by_hand(tokenizer, prompt))
    conversation = Conversation(tokenizer, context=size)
    conversation.add("one", "two")
    assert conversation.fit(prompt, wanted=5).room == 1
    conversation = Conversation(tokenizer, context=size - 1)
    conversation.add("one", "two")
    with pytest.raises(ValueError, match=f"{size} tokens of this message"):
        conversation.fit(prompt, wanted=5)
    assert conversation.exchanges == [("one", "two")]


def test_a_reset_forgets_everything(tokenizer: Tokenizer) -> None:
    conversation = Conversation(tokenizer, context=100)
    conversation.add("one", "two")
    conversation.reset()
    assert conversation.fit("three", wanted=5).prompt_ids == _by_hand(tokenizer, "three")
