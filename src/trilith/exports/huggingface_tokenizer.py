"""The tokenizer files of a Hugging Face folder: same text, same ids, with a begin mark before it.

`tokenizer.model` is the SentencePiece model itself; `tokenizer.json` says the same to programs
that read no SentencePiece.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trilith.exports.pieces_table import (
    BYTE,
    CONTROL,
    META_SPACE,
    UNKNOWN,
    USER_DEFINED,
    PiecesTable,
)


def write_tokenizer(folder: Path, model: bytes, *, table: PiecesTable, context: int) -> None:
    """Write tokenizer.model, tokenizer.json and tokenizer_config.json into a folder."""
    (folder / "tokenizer.model").write_bytes(model)
    _build(table).save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": table.pieces[table.unk_id],
        "bos_token": table.pieces[table.bos_id],
        "eos_token": table.pieces[table.stop_ids[0]],
        "pad_token": None if table.pad_id is None else table.pieces[table.pad_id],
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


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
