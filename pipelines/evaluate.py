"""Stage evaluate: quality, size and speed of every model, from its packed file."""

from answers import load_answers
from stage import Stage, run
from trilith.evaluation import EvaluateConfig, evaluate_models
from trilith.hardware import HardwareConfig, device_name, prepare_cpu


def main(stage: Stage) -> None:
    """Evaluate all packed models on the test split."""
    config = stage.section("evaluate", EvaluateConfig)
    hardware = stage.section("hardware", HardwareConfig)
    length = stage.config["evolve"]["answer_length"]
    prepare_cpu(hardware.threads)
    tokens_dir = stage.input("tokens")
    results = evaluate_models(
        stage.input("packed"),
        tokens_dir=tokens_dir,
        answers=load_answers(stage, tokens_dir, split="test", length=length).required().rows,
        config=config,
        context=stage.config["train"]["context"],
    )
    results["run"] |= {
        "seed": stage.seed,
        "threads": hardware.threads,
        "device": device_name(),
    }
    stage.write_metrics(results)


if __name__ == "__main__":
    run("evaluate", main)
