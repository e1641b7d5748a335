"""onnxruntime (1.28 or newer) as an anchor: a shape's projections in 2 bits, in one graph."""

import time
from typing import Any

import numpy as np

from trilith.evaluation.speed import Speed
from trilith.model import ModelConfig

_BLOCK_SIZE = 128
_HEAD_BITS = 4


class OnnxRuntime:
    """The projections of a shape as 2-bit MatMulNBits in one graph: no attention, no norms.

    A head with 4 bits follows where the model has its own. Weights are random bytes.
    """

    def __init__(self, config: ModelConfig, *, threads: int) -> None:
        """Raises ImportError without onnxruntime and onnx."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that go on spinning would disturb whoever is timed next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._width = config.width
        self._session = onnxruntime.InferenceSession(
            _onnx_graph(config), options, providers=["CPUExecutionProvider"]
        )
        self._run(1)

    def measure(self, *, prompt: int, decode: int) -> Speed:
        """Time `prompt` tokens at once, and `decode` tokens one by one."""
        return Speed(prompt / self._run(prompt), decode / self._decode(decode))

    def _decode(self, count: int) -> float:
        return sum(self._run(1) for _ in range(count))

    def _run(self, num_tokens: int) -> float:
        x = np.random.default_rng(0).standard_normal((num_tokens, self._width), dtype=np.float32)
        start = time.perf_counter()
        self._session.run(None, {"x": x})
        return time.perf_counter() - start


class _Graph:
    """Nodes and constants of a graph that is being written."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def product(self, name: str, source: str, shape: tuple[int, int], bits: int) -> str:
        """Add a product with random codes [out, in]; return its name."""
        from onnx import helper

        num_out, num_in = shape
        blocks = -(-num_in // _BLOCK_SIZE)
        packed_shape = (num_out, blocks, _BLOCK_SIZE * bits // 8)
        packed = self._rng.integers(0, 256, packed_shape, dtype=np.uint8)
        scale = np.full(num_out * blocks, 0.01, dtype=np.float32)
        inputs = [
            source,
            self._constant(f"{name}.codes", packed),
            self._constant(f"{name}.scale", scale),
        ]
        size = {"K": num_in, "N": num_out, "bits": bits, "block_size": _BLOCK_SIZE}
        self.nodes.append(
            helper.make_node(
                *("MatMulNBits", inputs, [name]),
                domain="com.microsoft",
                **size,
                accuracy_level=4,
            )
        )
        return name

    def part(self, name: str, source: str, *, begin: int, end: int, axis: int) -> str:
        """Add a slice; return its name."""
        from onnx import helper

        bounds = {"begin": begin, "end": end, "axis": axis}
        names = [self._constant(f"{name}.{key}", np.array([x])) for key, x in bounds.items()]
        self.nodes.append(helper.make_node("Slice", [source, *names], [name]))
        return name

    def _constant(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value, name))
        return name


def _onnx_graph(config: ModelConfig) -> bytes:
    """x [tokens, width] through the products of all layers; each reads the one before."""
    from onnx import TensorProto, helper

    graph, x = _Graph(), "x"
    width, kv_width = config.width, config.num_kv_heads * config.head_width
    for layer in range(config.num_layers):
        qkv = graph.product(f"qkv{layer}", x, (width + 2 * kv_width, width), 2)
        q = graph.part(f"q{layer}", qkv, begin=0, end=width, axis=1)
        x = graph.product(f"out{layer}", q, (width, width), 2)
        up = graph.product(f"up{layer}", x, (2 * config.mlp_width, width), 2)
        half = graph.part(f"g{layer}", up, begin=0, end=config.mlp_width, axis=1)
        x = graph.product(f"down{layer}", half, (width, config.mlp_width), 2)
    last = graph.part("last", x, begin=-1, end=2**31 - 1, axis=0)
    graph.product("logits", last, (config.vocab_size, width), _HEAD_BITS)
    content = helper.make_graph(
        graph.nodes,
        "projections",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["one", config.vocab_size])],
        graph.constants,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(content, opset_imports=opsets, ir_version=10).SerializeToString()
