"""Tokens: the tokenizer, its id table, token shards, n-gram floors.

The stage that makes the shards is in `tokens.tokenization`: it alone needs pyarrow.
"""

from trilith.tokens.config import TokenizerConfig
from trilith.tokens.json_model import JsonMarks, is_json, join_marks
from trilith.tokens.learning import train_tokenizer
from trilith.tokens.marked_file import has_marks
from trilith.tokens.marks import SPECIAL_IDS
from trilith.tokens.ngram import BigramModel, bigram_loss, fit_bigrams, unigram_loss
from trilith.tokens.shards import TokenShard, open_split
from trilith.tokens.tokenizer import StreamDecoder, Tokenizer

__all__ = [
    "SPECIAL_IDS",
    "BigramModel",
    "JsonMarks",
    "StreamDecoder",
    "TokenShard",
    "Tokenizer",
    "TokenizerConfig",
    "bigram_loss",
    "fit_bigrams",
    "has_marks",
    "is_json",
    "join_marks",
    "open_split",
    "train_tokenizer",
    "unigram_loss",
]
