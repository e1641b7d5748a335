"""Stage curate: sources to filtered, deduplicated documents, split by document."""

from stage import Stage, run
from trilith.corpus import CorpusConfig, curate


def main(stage: Stage) -> None:
    """Curate the corpus."""
    stage.write_metrics(curate(stage.section("corpus", CorpusConfig), stage.out_dir))


if __name__ == "__main__":
    run("curate", main)
