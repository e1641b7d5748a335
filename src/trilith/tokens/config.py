"""How the tokenizer is trained, or where it comes from; the values live in conf/tokenizer/."""

from dataclasses import dataclass

from trilith.tokens.marks import SPECIAL_IDS

NUM_BYTE_PIECES = 256


@dataclass(frozen=True)
class TokenizerConfig:
    """Settings of the tokenizer.

    With `from_file` nothing is trained, and the settings of the training must be null.

    Attributes:
        from_file: a `tokenizer.model` to take as it is, as `trilith import` writes it of whatever
            kind, or null.
        vocab_size: number of ids, with the special ids and the 256 byte pieces.
        character_coverage: share of the characters of the training text that get a piece of
            their own; the rest is spelled in bytes.
        max_piece_length: most characters in a learned piece.
        fixed_pieces: texts that are always one token, such as a line break with its indentation.
        training_bytes: train on so much text, chosen by document id; the rest is only encoded.
        num_threads: for training and encoding. It is stored in the tokenizer file, so another
            number gives the same pieces under another hash.
    """

    vocab_size: int
    character_coverage: float | None
    max_piece_length: int | None
    fixed_pieces: tuple[str, ...] | None
    training_bytes: int | None
    num_threads: int
    from_file: str | None = None

    def __post_init__(self) -> None:
        for key in ("vocab_size", "num_threads"):
            if getattr(self, key) < 1:
                raise ValueError(f"tokenizer.{key}={getattr(self, key)} must be at least 1")
        for key in ("character_coverage", "max_piece_length", "fixed_pieces", "training_bytes"):
            value = getattr(self, key)
            if (value is None) != (self.from_file is not None):
                raise ValueError(
                    f"tokenizer.{key}={value!r} with tokenizer.from_file={self.from_file!r}; it "
                    "belongs to the training of a tokenizer, and must be null when one is given"
                )
        if self.from_file is None:
            self._check_training()

    def _check_training(self) -> None:
        if isinstance(self.fixed_pieces, str):
            raise ValueError(
                f"tokenizer.fixed_pieces={self.fixed_pieces!r} is a string; expected a list"
            )
        assert self.fixed_pieces is not None and self.character_coverage is not None
        object.__setattr__(self, "fixed_pieces", tuple(self.fixed_pieces))
        self._check_fixed_pieces(self.fixed_pieces)
        needed = len(SPECIAL_IDS) + NUM_BYTE_PIECES + len(self.fixed_pieces)
        if self.vocab_size <= needed:
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size} leaves no piece to learn: special ids, "
                f"bytes and tokenizer.fixed_pieces take {needed}; choose a larger one"
            )
        if not 0 < self.character_coverage <= 1:
            raise ValueError(
                f"tokenizer.character_coverage={self.character_coverage} is not a share in (0, 1]"
            )
        for key in ("max_piece_length", "training_bytes"):
            if getattr(self, key) < 1:
                raise ValueError(f"tokenizer.{key}={getattr(self, key)} must be at least 1")

    def _check_fixed_pieces(self, pieces: tuple[str, ...]) -> None:
        if len(set(pieces)) < len(pieces):
            raise ValueError(f"tokenizer.fixed_pieces repeats itself: {list(pieces)}")
        for piece in pieces:
            if not piece or "\u2581" in piece or "\0" in piece or piece in SPECIAL_IDS:
                raise ValueError(
                    f"tokenizer.fixed_pieces holds {piece!r}; a fixed piece is text, and neither "
                    "empty, nor a special token, nor holds NUL or U+2581"
                )
