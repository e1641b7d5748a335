"""How the tokenizer is trained; the values live in conf/tokenizer/*.yaml."""

from dataclasses import dataclass

from trilith.tokens.tokenizer import SPECIAL_IDS

NUM_BYTE_PIECES = 256


@dataclass(frozen=True)
class TokenizerConfig:
    """Settings of the tokenizer.

    Attributes:
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
    character_coverage: float
    max_piece_length: int
    fixed_pieces: tuple[str, ...]
    training_bytes: int
    num_threads: int

    def __post_init__(self) -> None:
        if isinstance(self.fixed_pieces, str):
            raise ValueError(
                f"tokenizer.fixed_pieces={self.fixed_pieces!r} is a string; expected a list"
            )
        object.__setattr__(self, "fixed_pieces", tuple(self.fixed_pieces))
        self._check_fixed_pieces()
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
        for key in ("max_piece_length", "training_bytes", "num_threads"):
            if getattr(self, key) < 1:
                raise ValueError(f"tokenizer.{key}={getattr(self, key)} must be at least 1")

    def _check_fixed_pieces(self) -> None:
        if len(set(self.fixed_pieces)) < len(self.fixed_pieces):
            raise ValueError(f"tokenizer.fixed_pieces repeats itself: {list(self.fixed_pieces)}")
        for piece in self.fixed_pieces:
            if not piece or "\u2581" in piece or "\0" in piece or piece in SPECIAL_IDS:
                raise ValueError(
                    f"tokenizer.fixed_pieces holds {piece!r}; a fixed piece is text, and neither "
                    "empty, nor a special token, nor holds NUL or U+2581"
                )
