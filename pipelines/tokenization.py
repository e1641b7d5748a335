"""Stage tokenize: a tokenizer learned on the training split, and the documents as token shards.

Not named after its stage: a script called tokenize.py hides the standard library's module."""

from stage import Stage, run
from trilith.tokens import TokenizerConfig
from trilith.tokens.tokenization import tokenize_corpus


def main(stage: Stage) -> None:
    """Train the tokenizer and write the shards."""
    config = stage.section("tokenizer", TokenizerConfig)
    documents = stage.input("corpus") / "documents.parquet"
    stage.write_metrics(tokenize_corpus(config, documents=documents, out_dir=stage.out_dir))


if __name__ == "__main__":
    run("tokenize", main)
