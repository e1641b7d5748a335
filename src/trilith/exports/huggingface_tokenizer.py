"""The tokenizer files of a Hugging Face folder: same text, same ids.

Of a SentencePiece model, `tokenizer.model` is the model itself; `tokenizer.json` says the same to
programs that read none, with a begin mark before the text. A `tokenizer.json` goes back as it came.
"""

import json
from collections.abc import Iterator
from typing import Any

from trilith.exports.pieces_table import (
    BYTE,
    CONTROL,
    META_SPACE,
    UNKNOWN,
    USER_DEFINED,
    PiecesTable,
    exported_marks,
    read_pieces_table,
)
from trilith.tokens import Tokenizer

_CHAT_MARKS = ("<s>", "<|user|>", "<|assistant|>", "<|end|>")


def tokenizer_files(tokenizer: Tokenizer, *, context: int) -> dict[str, bytes]:
    """Return the content of each file by its name; `context` counts tokens.

    Raises:
        ValueError: transformers would give other ids for the same text.
    """
    marks = exported_marks(tokenizer)
    ids = {"unk": tokenizer.unk_id, "bos": marks.bos_id, "eos": marks.stop_ids[0]}
    names = {
        f"{mark}_token": None if token is None else tokenizer.piece(token)
        for mark, token in (ids | {"pad": marks.pad_id}).items()
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    template = chat_template(tokenizer)
    if template is not None:
        config["chat_template"] = template
    files = {"tokenizer_config.json": f"{json.dumps(config, indent=2)}\n".encode()}
    if tokenizer.tokenizer_json is not None:
        return files | {"tokenizer.json": tokenizer.tokenizer_json.encode()}
    table = read_pieces_table(tokenizer, target="transformers")
    content = _build(table).to_str(pretty=True).encode()
    return files | {"tokenizer.model": tokenizer.project_file, "tokenizer.json": content}


def chat_template(tokenizer: Tokenizer) -> str | None:
    """Return the Jinja template that lays out a conversation as the training rows have it.

    A system message goes in front of the first question, as `trilith serve` has it. transformers
    finds marks by their names wherever they stand: texts that hold one are refused.

    Returns:
        None where the tokenizer has no marks of a conversation of its own.
    """
    if not set(_CHAT_MARKS).isdisjoint(tokenizer.stand_ins):
        return None
    names = {mark: tokenizer.piece(tokenizer.special_ids[mark]) for mark in _CHAT_MARKS}
    begin, user, assistant, end = (json.dumps(name) for name in names.values())
    known = json.dumps([tokenizer.piece(token) for token in tokenizer.special_ids.values()])
    return (
        f"{{{{ {begin} }}}}{{% for message in messages %}}{{% for name in {known} %}}"
        "{% if name in message['content'] %}"
        "{{ raise_exception('a message holds ' + name + ', which would become a mark') }}"
        "{% endif %}{% endfor %}{% endfor %}"
        "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
        "{% set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}"
        "{% for message in turns %}"
        "{% if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
        "{{ raise_exception('messages must be of user and assistant in turn, "
        "after at most one system message') }}"
        "{% elif message['role'] == 'user' %}"
        "{% set before = system + '\\n\\n' if system and loop.first else '' %}"
        f"{{{{ {user} + before + message['content'] + {assistant} }}}}"
        f"{{% else %}}{{{{ message['content'] + {end} }}}}{{% endif %}}"
        "{% endfor %}"
    )


def _build(table: PiecesTable) -> Any:
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        normalizers,
        processors,
    )

    vocabulary = {piece: token for token, piece in enumerate(table.pieces)}
    bpe = models.BPE(
        vocab=vocabulary,
        merges=list(_merges(table)),
        unk_token=table.pieces[table.unk_id],
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(bpe)
    spaces = normalizers.Replace(" ", META_SPACE)
    steps = [normalizers.Prepend(META_SPACE), spaces] if table.adds_space else [spaces]
    tokenizer.normalizer = normalizers.Sequence(steps)
    back = [decoders.Replace(META_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if table.adds_space:
        back.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(back)
    tokenizer.add_tokens(
        [
            # Found where spaces are U+2581 already, as SentencePiece finds them.
            AddedToken(piece, normalized=kind == USER_DEFINED, special=kind != USER_DEFINED)
            for piece, kind in zip(table.pieces, table.types, strict=True)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
    )
    begin = table.pieces[table.bos_id]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin}:0 $A:0",
        pair=f"{begin}:0 $A:0 {begin}:1 $B:1",
        special_tokens=[(begin, table.bos_id)],
    )
    return tokenizer


def _merges(table: PiecesTable) -> Iterator[tuple[str, str]]:
    """Hand out the pairs that SentencePiece joins: best result first, and of equal ones leftmost.

    Pieces of a kind of their own are matched whole, never joined.
    """
    own = (UNKNOWN, CONTROL, USER_DEFINED, BYTE)
    scores = {
        piece: score
        for piece, score, kind in zip(table.pieces, table.scores, table.types, strict=True)
        if kind not in own
    }
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        for place in range(1, len(piece)):
            left, right = piece[:place], piece[place:]
            if left in scores and right in scores:
                yield left, right
