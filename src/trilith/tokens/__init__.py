"""Tokens: the tokenizer, its id table, token shards, n-gram floors."""

from trilith.tokens.config import TokenizerConfig
from trilith.tokens.learning import train_tokenizer
from trilith.tokens.ngram import BigramModel, bigram_loss, fit_bigrams, unigram_loss
from trilith.tokens.shards import TokenShard, open_split
from trilith.tokens.tokenization import tokenize_corpus
from trilith.tokens.tokenizer import SPECIAL_IDS, StreamDecoder, Tokenizer

__all__ = [
    "SPECIAL_IDS",
    "BigramModel",
    "StreamDecoder",
    "TokenShard",
    "Tokenizer",
    "TokenizerConfig",
    "bigram_loss",
    "fit_bigrams",
    "open_split",
    "tokenize_corpus",
    "train_tokenizer",
    "unigram_loss",
]
