"""How a model is packed: one section of the configuration."""

from dataclasses import dataclass
from typing import Literal

from trilith.quant import CODECS, Codec, Grid, codecs_for

EmbeddingPrecision = Literal["bf16", "int8"]


@dataclass(frozen=True)
class PackConfig:
    """The codec of the projections and the precision of embedding and head.

    `codec` is "smallest" (base3 for ternary, bits3 for 5 and 7 levels, planes for 9) or its name;
    `embedding` is bf16, or int8 with one float32 scale a row, and holds for an untied head too.
    """

    codec: str
    embedding: EmbeddingPrecision

    def __post_init__(self) -> None:
        if self.codec not in ("smallest", *CODECS):
            raise ValueError(
                f"pack.codec={self.codec!r} is not known; choose smallest or one of "
                f"{', '.join(CODECS)}"
            )
        if self.embedding not in ("bf16", "int8"):
            raise ValueError(f"pack.embedding={self.embedding!r} is not known; choose bf16 or int8")

    def codec_for(self, grid: Grid) -> Codec:
        """Return the codec that packs codes of this grid.

        Raises:
            ValueError: the chosen codec holds too few codes.
        """
        fitting = codecs_for(grid.num_levels)
        if self.codec == "smallest":
            return fitting[0]
        codec = CODECS[self.codec]
        if codec not in fitting:
            raise ValueError(
                f"pack.codec={self.codec} holds {codec.num_codes} codes, too few for the "
                f"{grid.num_levels} levels of grid {grid.name}; choose one of "
                f"{', '.join(c.name for c in fitting)}, or smallest"
            )
        return codec
