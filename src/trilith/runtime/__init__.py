"""The runtime: prefill, decode, sampling and streaming of packed models."""

from trilith.runtime.engine import Engine, GenerateConfig
from trilith.runtime.memory import (
    InferenceMemory,
    InferenceSetup,
    Kernel,
    cache_bits,
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
    "Engine",
    "GenerateConfig",
    "InferenceMemory",
    "InferenceSetup",
    "Kernel",
    "Sampler",
    "SamplingConfig",
    "StaticDecoder",
    "StopCutter",
    "TextDecoder",
    "TextTokenizer",
    "cache_bits",
    "file_bytes",
    "longest_context",
    "plan_inference",
    "stream_text",
    "until_stop_string",
]
