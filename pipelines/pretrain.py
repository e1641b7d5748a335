"""Stage pretrain: one of the twins, dense or ternary, from fresh weights or a given checkpoint."""

from pathlib import Path

from stage import Stage, run
from training_run import open_place
from trilith.files import require, sha256
from trilith.imports import open_source
from trilith.model import ModelConfig
from trilith.training.fit import TrainConfig
from trilith.training.pretrain import PretrainConfig, PretrainPlan, pretrain


def main(stage: Stage) -> None:
    """Train the twin that `variant` names."""
    variant = stage.config["variant"]
    if variant not in ("dense", "ternary"):
        raise ValueError(f"variant={variant!r} is not a twin; choose dense or ternary")
    pretraining = stage.section("pretrain", PretrainConfig)
    twin = pretraining.dense if variant == "dense" else pretraining.ternary
    plan = PretrainPlan(stage.section("model", ModelConfig), twin, pretraining.num_steps)
    config = stage.section("train", TrainConfig)
    tokens_dir = stage.input("tokens")
    work = [plan, sha256(require(tokens_dir / "manifest.json", made_by="tokenize"))]
    if pretraining.start_from is not None:
        start = open_source(Path(pretraining.start_from))
        plan = plan._replace(start=start)
        work.append(start.weights_sha256)
    with open_place(stage, variant, depends_on=work) as place:
        metrics = pretrain(
            plan, config=config, tokens_dir=tokens_dir, out_dir=stage.out_dir, place=place
        )
        stage.write_metrics(metrics)


if __name__ == "__main__":
    run("pretrain", main)
