"""What evaluate measures beside quality: lengths for speed, prompts for samples."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EvaluateConfig:
    """Lengths count tokens. Speed is the median of `repeats` runs at batch 1."""

    prompt_tokens: int
    decode_tokens: int
    repeats: int
    sample_tokens: int
    sample_temperature: float
    prompts: list[str]

    def __post_init__(self) -> None:
        for key in ("prompt_tokens", "decode_tokens", "repeats", "sample_tokens"):
            if getattr(self, key) < 1:
                raise ValueError(f"evaluate.{key}={getattr(self, key)} must be at least 1")
        if self.sample_temperature < 0:
            raise ValueError(
                f"evaluate.sample_temperature={self.sample_temperature} must not be negative"
            )
