"""Stage teach: the dense model's predictions on the text of the evolution, kept on disk."""

from stage import Stage, run
from teacher import load_teacher
from trilith.hardware import HardwareConfig, prepare_cpu
from trilith.training.devices import TrainerConfig
from trilith.training.evolve_config import EvolveConfig
from trilith.training.fit import TrainConfig
from trilith.training.teaching import Schooling, keep_predictions


def main(stage: Stage) -> None:
    """Keep the teacher's predictions."""
    prepare_cpu(stage.section("hardware", HardwareConfig).threads)
    schooling = Schooling(
        stage.section("evolve", EvolveConfig),
        stage.section("train", TrainConfig),
        stage.input("tokens"),
        num_ranks=stage.section("trainer", TrainerConfig).world_size,
        seed=stage.seed,
    )
    stage.write_metrics(keep_predictions(load_teacher(stage), schooling, stage.out_dir))


if __name__ == "__main__":
    run("teach", main)
