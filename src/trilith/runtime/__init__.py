"""The runtime: prefill, decode, sampling and streaming of packed models."""

from trilith.runtime.continuation import Continuation, GenerateConfig
from trilith.runtime.engine import Engine
from trilith.runtime.kept_caches import KeptCaches
from trilith.runtime.memory import (
    PREFILL_TOKENS,
    InferenceMemory,
    InferenceSetup,
    Kernel,
    Layers,
    file_bytes,
    kept_bytes,
    longest_context,
    plan_inference,
)
from trilith.runtime.sampling import Sampler, SamplingConfig, most_likely
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
    "Continuation",
    "Engine",
    "GenerateConfig",
    "InferenceMemory",
    "InferenceSetup",
    "KeptCaches",
    "Kernel",
    "Layers",
    "Sampler",
    "SamplingConfig",
    "StaticDecoder",
    "StopCutter",
    "TextDecoder",
    "TextTokenizer",
    "file_bytes",
    "kept_bytes",
    "longest_context",
    "most_likely",
    "plan_inference",
    "stream_text",
    "until_stop_string",
]
