"""How a model is packed: one section of the configuration."""

from dataclasses import dataclass
from typing import get_args

from trilith.packed.precision import RowForm, RowPrecision
from trilith.quant import CODECS, Codec, Grid, codecs_for


@dataclass(frozen=True)
class PackConfig:
    """The codec of the projections and the precision of embedding and head.

    `codec` is "smallest" (base3 for ternary, bits3 for 5 and 7 levels, planes for 9) or its name;
    `embedding` and `head` are f32, bf16, int8 with a float32 scale a row, or int4 and int3 with a
    float16 scale for each `group_size` features; without `head` it has the embedding's precision,
    as a tied one always has.
    """

    codec: str
    embedding: RowPrecision
    head: RowPrecision | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.codec not in ("smallest", *CODECS):
            raise ValueError(
                f"pack.codec={self.codec!r} is not known; choose smallest or one of "
                f"{', '.join(CODECS)}"
            )
        for key in ("embedding", "head"):
            value = getattr(self, key)
            if value not in get_args(RowPrecision) and (key, value) != ("head", None):
                raise ValueError(
                    f"pack.{key}={value!r} is not known; choose one of "
                    f"{', '.join(get_args(RowPrecision))}"
                )
        if ({"int4", "int3"} & {self.embedding, self.head} != set()) != bool(self.group_size):
            raise ValueError(
                f"pack.group_size={self.group_size} with pack.embedding={self.embedding} and "
                f"pack.head={self.head}; a group size belongs to int4 and int3 and to no other"
            )

    @property
    def embedding_form(self) -> RowForm:
        """How the embedding is stored."""
        return RowForm(self.embedding, self.group_size)

    @property
    def head_form(self) -> RowForm:
        """How a head of its own is stored."""
        return RowForm(self.head or self.embedding, self.group_size)

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


# A dense model is the reference: everything in it stays in bfloat16.
DENSE = PackConfig(codec="smallest", embedding="bf16")
