"""The runtime: prefill, decode, sampling and streaming of packed models."""

from trilith.runtime.engine import Engine, GenerateConfig
from trilith.runtime.sampling import Sampler, SamplingConfig
from trilith.runtime.text import TextDecoder, TextTokenizer, stream_text, until_stop_string

__all__ = [
    "Engine",
    "GenerateConfig",
    "Sampler",
    "SamplingConfig",
    "TextDecoder",
    "TextTokenizer",
    "stream_text",
    "until_stop_string",
]
