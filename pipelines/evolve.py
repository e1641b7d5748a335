"""Stage evolve: a dense model to the prime grid and to ternary, beside a dense control."""

import hashlib

from answers import load_answers
from stage import Stage, run
from teacher import load_teacher
from training_run import open_place
from trilith.evolution import encode_instructions, pack_instructions
from trilith.files import require, sha256
from trilith.training.evolve import EvolveConfig, EvolveInputs, evolve
from trilith.training.fit import TrainConfig


def main(stage: Stage) -> None:
    """Evolve the dense twin, or the checkpoint that the configuration names."""
    config = stage.section("evolve", EvolveConfig)
    train = stage.section("train", TrainConfig)
    tokens_dir = stage.input("tokens")
    teacher = load_teacher(stage)
    encode = encode_instructions if config.answer_packing == "none" else pack_instructions
    answers = load_answers(
        stage, tokens_dir, split="train", length=config.answer_length, encode=encode
    ).required()
    # A changed file of instructions is other work: it must not go on from the old one's state.
    hashes = [
        sha256(require(tokens_dir / "manifest.json", made_by="tokenize")),
        hashlib.sha256(answers.rows.tokens.tobytes()).hexdigest(),
    ]
    held_out = load_answers(
        stage, tokens_dir, split="validation", length=config.answer_length, encode=encode
    )
    inputs = EvolveInputs(
        teacher,
        tokens_dir,
        stage.input("teacher"),
        answers.rows,
        held_out.rows,
        answers.licence,
    )
    work = [config, teacher.weights_sha256, *hashes]
    with open_place(stage, "evolve", depends_on=work) as place:
        metrics = evolve(inputs, config=config, train=train, out_dir=stage.out_dir, place=place)
        stage.write_metrics(answers.metrics | metrics)


if __name__ == "__main__":
    run("evolve", main)
