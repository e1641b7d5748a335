"""What a corpus is made of: its source, the thresholds of its gates, and the shares of its splits.

The values live in conf/corpus/*.yaml; here is what each one means and what it may be.
"""

import math
from dataclasses import dataclass, field
from typing import Any

SOURCE_KINDS = ("stdlib", "folder", "dataset")
SPLITS = ("train", "validation", "test")

# Which options of a source each kind reads; setting any other is an error.
_READ_BY = {
    "stdlib": {"suffixes", "exclude"},
    "folder": {"path", "suffixes", "exclude"},
    "dataset": {
        "name",
        "subset",
        "data_files",
        "split",
        "streaming",
        "text_field",
        "licence_field",
        "language",
    },
}
_NEEDED_BY = {
    "stdlib": ("suffixes",),
    "folder": ("path", "suffixes"),
    "dataset": ("name", "split", "text_field", "language"),
}


@dataclass(frozen=True)
class SourceConfig:
    """Where the documents come from.

    Attributes:
        kind: `stdlib` (the running Python's own library), `folder` or `dataset` (Hugging Face).
        licence: SPDX expression of every document that does not state its own.
        max_documents: read at most so many, in the source's order; None reads all.
        path: the folder.
        suffixes: file names end in one of these, such as `.py`.
        exclude: glob patterns, as in .gitignore: without a slash they match any folder or file
            name on the way, with a slash the whole path below the root.
        name: builder or hub name for `datasets.load_dataset`, such as `json` or `roneneldan/x`.
        subset: the hub's configuration name.
        data_files: local files or URLs for `json`, `text`, `parquet`.
        split: the split of the dataset to read.
        streaming: read without a local copy.
        text_field: the column with the text.
        licence_field: the column with each row's licence, if there is one.
        language: what the rows are written in, `python` or any other name. Files go by suffix.
    """

    kind: str
    licence: str
    max_documents: int | None = None
    path: str | None = None
    suffixes: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    name: str | None = None
    subset: str | None = None
    data_files: tuple[str, ...] = ()
    split: str | None = None
    streaming: bool = False
    text_field: str | None = None
    licence_field: str | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        for key in ("suffixes", "exclude", "data_files"):
            _as_tuple(self, key, section="corpus.source")
        if self.kind not in SOURCE_KINDS:
            raise ValueError(f"corpus.source.kind={self.kind!r} is none of {SOURCE_KINDS}")
        if not self.licence:
            raise ValueError(
                "corpus.source.licence is empty; give an SPDX identifier such as mit: "
                "a document without a licence cannot be kept"
            )
        if self.max_documents is not None and self.max_documents < 1:
            raise ValueError(
                f"corpus.source.max_documents={self.max_documents} must be at least 1, or null"
            )
        self._check_options()

    def _check_options(self) -> None:
        every = set().union(*_READ_BY.values())
        for key in sorted(every - _READ_BY[self.kind]):
            if getattr(self, key):
                raise ValueError(
                    f"corpus.source.{key}={getattr(self, key)!r} has no effect with "
                    f"kind={self.kind!r}; remove it or choose another kind"
                )
        for key in _NEEDED_BY[self.kind]:
            if not getattr(self, key):
                raise ValueError(
                    f"corpus.source.{key} is not set, but kind={self.kind!r} needs it; "
                    f"set corpus.source.{key}=..."
                )


@dataclass(frozen=True)
class GateConfig:
    """Thresholds of the gates that look at one document.

    Attributes:
        max_bytes: largest document, in UTF-8 bytes.
        min_lines: fewest lines.
        max_lines: most lines.
        min_letter_share: letters among all characters, 0..1.
        max_line_length: a longer line marks minified or generated text, in characters.
        generated_markers: phrases that mark a generated file; case does not matter.
        generated_head_lines: how many of the first lines may hold such a phrase.
        licences: SPDX identifiers that may be trained on; case does not matter.
    """

    max_bytes: int
    min_lines: int
    max_lines: int
    min_letter_share: float
    max_line_length: int
    generated_markers: tuple[str, ...]
    generated_head_lines: int
    licences: tuple[str, ...]

    def __post_init__(self) -> None:
        for key in ("generated_markers", "licences"):
            _as_tuple(self, key, section="corpus.gates")
        for key in ("max_bytes", "min_lines", "max_line_length", "generated_head_lines"):
            if getattr(self, key) < 1:
                raise ValueError(f"corpus.gates.{key}={getattr(self, key)} must be at least 1")
        if self.max_lines < self.min_lines:
            raise ValueError(
                f"corpus.gates.max_lines={self.max_lines} is below "
                f"min_lines={self.min_lines}; no document could pass"
            )
        if not 0 <= self.min_letter_share <= 1:
            raise ValueError(
                f"corpus.gates.min_letter_share={self.min_letter_share} is not a share in 0..1"
            )
        if not self.licences:
            raise ValueError("corpus.gates.licences is empty; no document could pass")


@dataclass(frozen=True)
class DuplicateConfig:
    """How alike two documents must be for the later one to go.

    Attributes:
        ngram: tokens in a shingle.
        threshold: Jaccard similarity of the shingle sets from which on two are duplicates.
        num_permutations: length of a MinHash signature.
        num_bands: bands of the signature; two documents that agree in one whole band are compared
            exactly. More bands miss fewer pairs and compare more.
        seed: of the permutations.
    """

    ngram: int = 5
    threshold: float = 0.8
    num_permutations: int = 128
    num_bands: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ngram < 1:
            raise ValueError(f"corpus.duplicates.ngram={self.ngram} must be at least 1")
        if not 0 < self.threshold <= 1:
            raise ValueError(
                f"corpus.duplicates.threshold={self.threshold} is not a similarity in (0, 1]"
            )
        if self.num_permutations < 1 or self.num_bands < 1:
            raise ValueError(
                f"corpus.duplicates.num_permutations={self.num_permutations} and "
                f"num_bands={self.num_bands} must be at least 1"
            )
        if self.num_permutations % self.num_bands:
            raise ValueError(
                f"corpus.duplicates.num_permutations={self.num_permutations} is not a multiple of "
                f"num_bands={self.num_bands}; choose a divisor such as 16 or 32"
            )
        if self.seed < 0:
            raise ValueError(f"corpus.duplicates.seed={self.seed} must not be negative")


@dataclass(frozen=True)
class SplitConfig:
    """Shares of the splits, and the salt that decides who goes where.

    A document's place depends on its text and the salt alone, so a new file moves nobody.
    """

    train: float = 0.9
    validation: float = 0.05
    test: float = 0.05
    salt: str = "trilith"

    def __post_init__(self) -> None:
        for name, share in self.shares.items():
            if not 0 < share < 1:
                raise ValueError(
                    f"corpus.split.{name}={share} is not between 0 and 1; every split is needed"
                )
        if not math.isclose(sum(self.shares.values()), 1, abs_tol=1e-9):
            raise ValueError(
                f"corpus.split: {self.shares} sums to {sum(self.shares.values())}, not to 1"
            )

    @property
    def shares(self) -> dict[str, float]:
        """Share of each split, in the order of SPLITS."""
        return {name: getattr(self, name) for name in SPLITS}


@dataclass(frozen=True)
class CorpusConfig:
    """Everything that decides which documents a corpus holds."""

    source: SourceConfig
    gates: GateConfig
    duplicates: DuplicateConfig = field(default_factory=DuplicateConfig)
    split: SplitConfig = field(default_factory=SplitConfig)


def _as_tuple(config: Any, key: str, *, section: str) -> None:
    # YAML gives lists; a bare string would silently be read letter by letter.
    value = getattr(config, key)
    if isinstance(value, str):
        raise ValueError(f"{section}.{key}={value!r} is a string; expected a list: [{value!r}]")
    object.__setattr__(config, key, tuple(value))
