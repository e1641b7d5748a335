"""onnxruntime (1.28 or newer) as an anchor: a shape's projections in 2 bits, in one graph."""

import time

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


def _onnx_graph(config: ModelConfig) -> bytes:
    """x [tokens, width] through the products of all layers; each reads the one before."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, constants = [], []

    def product(name: str, source: str, shape: tuple[int, int], bits: int) -> str:
        num_out, num_in = shape
        blocks = -(-num_in // _BLOCK_SIZE)
        packed = rng.integers(0, 256, (num_out, blocks, _BLOCK_SIZE * bits // 8), dtype=np.uint8)
        scale = np.full(num_out * blocks, 0.01, dtype=np.float32)
        constants.append(numpy_helper.from_array(packed, f"{name}.codes"))
        constants.append(numpy_helper.from_array(scale, f"{name}.scale"))
        inputs = [source, f"{name}.codes", f"{name}.scale"]
        nodes.append(
            helper.make_node(
                *("MatMulNBits", inputs, [name]),
                domain="com.microsoft",
                **{"K": num_in, "N": num_out, "bits": bits, "block_size": _BLOCK_SIZE},
                accuracy_level=4,
            )
        )
        return name

    def first(name: str, source: str, count: int) -> str:
        bounds = [f"{name}.{key}" for key in ("begin", "end", "axis")]
        for key, value in zip(bounds, (0, count, 1), strict=True):
            constants.append(numpy_helper.from_array(np.array([value]), key))
        nodes.append(helper.make_node("Slice", [source, *bounds], [name]))
        return name

    width, kv_width = config.width, config.num_kv_heads * config.head_width
    x = "x"
    for layer in range(config.num_layers):
        qkv = product(f"qkv{layer}", x, (width + 2 * kv_width, width), 2)
        x = product(f"out{layer}", first(f"q{layer}", qkv, width), (width, width), 2)
        up = product(f"up{layer}", x, (2 * config.mlp_width, width), 2)
        x = product(
            f"down{layer}", first(f"g{layer}", up, config.mlp_width), (width, config.mlp_width), 2
        )
    bounds = {"begin": [-1], "end": [2**31 - 1], "axis": [0]}
    for key, value in bounds.items():
        constants.append(numpy_helper.from_array(np.array(value), f"last.{key}"))
    nodes.append(helper.make_node("Slice", [x, *(f"last.{key}" for key in bounds)], ["last"]))
    product("logits", "last", (config.vocab_size, width), _HEAD_BITS)
    graph = helper.make_graph(
        nodes,
        "projections",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["one", config.vocab_size])],
        constants,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
