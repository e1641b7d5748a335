"""The runtime: prefill, decode, sampling and streaming of packed models."""

from trilith.runtime.engine import Engine, GenerateConfig
from trilith.runtime.memory import (
    PREFILL_TOKENS,
    InferenceMemory,
    InferenceSetup,
    Kernel,
    Layers,
    file_bytes,
    longest_context,
    plan_inference,
)
from trilith.runtime.sampling import Sampler, SamplingConfig
from trilith.runtime.static_decoder import StaticDecoder
from trilith.runtime.text import (
    StopCutter,
    TextDecoder,
    TextTokenizer,
    stream_text,
    until_stop_string,
)

__all__ = [
    "PREFILL_TOKENS",
    "Engine",
    "GenerateConfig",
    "InferenceMemory",
    "InferenceSetup",
    "Kernel",
    "Layers",
    "Sampler",
    "SamplingConfig",
    "StaticDecoder",
    "StopCutter",
    "TextDecoder",
    "TextTokenizer",
    "file_bytes",
    "longest_context",
    "plan_inference",
    "stream_text",
    "until_stop_string",
]
