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
    files = {"tokenizer_config.json": f"{json.dumps(config, indent=2)}\n".encode()}
    if tokenizer.tokenizer_json is not None:
        return files | {"tokenizer.json": tokenizer.tokenizer_json.encode()}
    table = read_pieces_table(tokenizer, target="transformers")
    content = _build(table).to_str(pretty=True).encode()
    return files | {"tokenizer.model": tokenizer.project_file, "tokenizer.json": content}


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
