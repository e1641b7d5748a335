"""Stage pack: every model to one self-contained file, proved equal to the trained model."""

from pathlib import Path

from stage import Stage, run
from trilith.files import require, write_json
from trilith.hardware import HardwareConfig, prepare_cpu
from trilith.model import ModelConfig
from trilith.packed import PackConfig
from trilith.packed.shelf import pack_all


def main(stage: Stage) -> None:
    """Pack the twins and the evolved models."""
    config = stage.section("pack", PackConfig)
    prepare_cpu(stage.section("hardware", HardwareConfig).threads)
    twins = [stage.input("checkpoints") / name for name in ("dense", "ternary")]
    shelf = pack_all(
        [*twins, *_evolved(stage.input("evolved"))],
        model=stage.section("model", ModelConfig),
        tokens_dir=stage.input("tokens"),
        config=config,
        out_dir=stage.out_dir,
    )
    write_json(stage.metrics_dir / "histograms.json", shelf.histograms)
    stage.write_metrics(shelf.metrics)


def _evolved(folder: Path) -> list[Path]:
    models = require(folder, made_by="evolve")
    return sorted(path for path in models.iterdir() if path.is_dir())


if __name__ == "__main__":
    run("pack", main)
