"""Stage evolve: the dense twin to the prime grid and to ternary, beside a dense control."""

import hashlib

from answers import load_answers
from stage import Stage, run
from training_run import open_place
from trilith.evolution import encode_instructions, pack_instructions
from trilith.files import require, sha256
from trilith.model import ModelConfig, load_checkpoint, require_shape
from trilith.training.evolve import EvolveConfig, EvolveInputs, evolve
from trilith.training.fit import TrainConfig


def main(stage: Stage) -> None:
    """Evolve the dense twin."""
    config = stage.section("evolve", EvolveConfig)
    train = stage.section("train", TrainConfig)
    tokens_dir = stage.input("tokens")
    twin_dir = stage.input("checkpoints") / "dense"
    twin = load_checkpoint(twin_dir, made_by="pretrain")
    require_shape(twin.model.config, stage.section("model", ModelConfig), origin=str(twin_dir))
    encode = encode_instructions if config.answer_packing == "none" else pack_instructions
    answers = load_answers(
        stage, tokens_dir, split="train", length=config.answer_length, encode=encode
    ).required()
    origins = [twin_dir / "config.json", tokens_dir / "manifest.json"]
    hashes = [sha256(require(path, made_by="pretrain")) for path in origins]
    # A changed file of instructions is other work: it must not go on from the old one's state.
    hashes.append(hashlib.sha256(answers.rows.tokens.tobytes()).hexdigest())
    held_out = load_answers(
        stage, tokens_dir, split="validation", length=config.answer_length, encode=encode
    )
    inputs = EvolveInputs(twin, tokens_dir, answers.rows, held_out.rows, answers.licence)
    with open_place(stage, "evolve", depends_on=[config, *hashes]) as place:
        metrics = evolve(inputs, config=config, train=train, out_dir=stage.out_dir, place=place)
        stage.write_metrics(answers.metrics | metrics)


if __name__ == "__main__":
    run("evolve", main)
