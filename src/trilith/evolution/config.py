"""Where instructions come from: one section of the configuration.

The values live in conf/instructions/*.yaml; here is what each one means and what it may be.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Kind = Literal["corpus", "files", "hub"]
Form = Literal["alpaca", "chat", "pair"]

# What a row of each form holds; `input` and `system` messages may be absent.
FIELDS: dict[str, tuple[str, ...]] = {
    "alpaca": ("instruction", "input", "output"),
    "chat": ("messages",),
    "pair": ("prompt", "response"),
}
OPTIONAL_FIELDS = ("input",)
# What a message of a chat holds.
MESSAGE_FIELDS = ("role", "content")
SUFFIXES = (".json", ".jsonl", ".parquet")

_SHARED = {"form", "licence", "columns", "ignored_columns", "max_examples", "held_out_share"}
# Which options each kind reads; setting any other is an error.
_READ_BY: dict[str, set[str]] = {
    "corpus": set(),
    "files": {"files", *_SHARED},
    "hub": {"name", "subset", "revision", "split", *_SHARED},
}
_NEEDED_BY = {
    "corpus": (),
    "files": ("files", "form", "licence", "held_out_share"),
    "hub": ("name", "split", "form", "licence", "held_out_share"),
}


@dataclass(frozen=True)
class InstructionConfig:
    """Where instructions come from, and how their rows are read.

    Attributes:
        kind: `corpus` (derived from the documents), `files` (local) or `hub` (Hugging Face).
        form: `alpaca` (instruction, input, output), `chat` (messages with role and content) or
            `pair` (prompt, response).
        licence: of the data; said before they are used, and kept with the models.
        files: local files that end in .json, .jsonl or .parquet.
        name: the data set on the hub, such as `tatsu-lab/alpaca`, or a local folder that holds one.
        subset: the hub's configuration name.
        revision: the hub's commit, branch or tag; None is the newest.
        split: the split of the data set that is read.
        columns: what the data call a field of the form, where they call it otherwise.
        ignored_columns: columns that the form does not know and that are left out.
        max_examples: read at most so many rows of each file or data set; None reads all.
        held_out_share: share of the examples held out for validation, and again for the test.
    """

    kind: Kind
    form: Form | None = None
    licence: str | None = None
    files: tuple[str, ...] = ()
    name: str | None = None
    subset: str | None = None
    revision: str | None = None
    split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    ignored_columns: tuple[str, ...] = ()
    max_examples: int | None = None
    held_out_share: float | None = None

    def __post_init__(self) -> None:
        _require_choice("kind", self.kind, get_args(Kind))
        self._check_options()
        if self.kind == "corpus":
            return
        assert self.form is not None and self.held_out_share is not None
        _require_choice("form", self.form, get_args(Form))
        if not 0 < self.held_out_share < 0.5:
            raise ValueError(
                f"instructions.held_out_share={self.held_out_share} must lie between 0 and 0.5: "
                "it is taken twice, for validation and for the test"
            )
        if self.max_examples is not None and self.max_examples < 1:
            raise ValueError(
                f"instructions.max_examples={self.max_examples} must be at least 1, or null"
            )
        self._check_columns()
        for name in self.files:
            if not name.endswith(SUFFIXES):
                raise ValueError(
                    f"instructions.files: {name!r} ends in none of {', '.join(SUFFIXES)}"
                )

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a row."""
        assert self.form is not None
        return FIELDS[self.form]

    def column(self, name: str) -> str:
        """Return what the data call a field."""
        return self.columns.get(name, name)

    def _check_options(self) -> None:
        every: set[str] = set().union(*_READ_BY.values())
        for key in sorted(every - _READ_BY[self.kind]):
            if getattr(self, key):
                raise ValueError(
                    f"instructions.{key}={getattr(self, key)!r} has no effect with "
                    f"kind={self.kind}; remove it or choose another kind"
                )
        for key in _NEEDED_BY[self.kind]:
            if not getattr(self, key):
                raise ValueError(
                    f"instructions.{key} is not set, but kind={self.kind} needs it; "
                    f"set instructions.{key}=..."
                )

    def _check_columns(self) -> None:
        known = self.fields + (MESSAGE_FIELDS if self.form == "chat" else ())
        for name in self.columns:
            if name not in known:
                raise ValueError(
                    f"instructions.columns names {name!r}, which is no field of form={self.form}; "
                    f"it has {', '.join(known)}"
                )
        read = {self.column(name) for name in self.fields}
        for name in self.ignored_columns:
            if name in read:
                raise ValueError(
                    f"instructions.ignored_columns names {name!r}, which form={self.form} reads"
                )


def _require_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"instructions.{key}={value!r} is not known; choose {', '.join(choices[:-1])} or "
            f"{choices[-1]}"
        )
