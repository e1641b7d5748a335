"""The tokenizer that travels in a packed file, held against what the file says of it.

Apart from the package's own names: it imports libraries that running ids does not need.
"""

from trilith.packed.read import PackedFile
from trilith.tokens import Tokenizer


def load_tokenizer(file: PackedFile) -> Tokenizer:
    """Make the tokenizer of a packed file.

    Raises:
        ValueError: it is damaged, or has other special ids or another number of ids than the model.
    """
    tokenizer = Tokenizer(file.tokenizer_bytes, origin=f"the tokenizer in {file.path}")
    said, rows = file.manifest.special_ids, file.manifest.model.vocab_size
    if tokenizer.special_ids != said:
        names = sorted(tokenizer.special_ids.keys() | said.keys())
        differing = [
            f"{name}: {said.get(name)} for {tokenizer.special_ids.get(name)}"
            for name in names
            if said.get(name) != tokenizer.special_ids.get(name)
        ]
        raise ValueError(
            f"{file.path} says special ids that its tokenizer does not have "
            f"({', '.join(differing)}); pack the model again"
        )
    if tokenizer.vocab_size != rows:
        raise ValueError(
            f"{file.path} holds a model of {rows} tokens and a tokenizer of "
            f"{tokenizer.vocab_size}; pack the model again with its own"
        )
    return tokenizer
