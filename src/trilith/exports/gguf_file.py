"""GGUF for llama.cpp: ternary weights as TQ1_0 or TQ2_0, or everything as F16.

llama.cpp quantizes the inputs of ternary projections to int8 by 256 features, ours by token, so
that logits are near ours, not the same.
"""

from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

from trilith.exports.gguf_blocks import half_floats, row_blocks, ternary_blocks
from trilith.exports.layout import Layout, kind_of, pieces_of
from trilith.exports.matrices import RowMatrix
from trilith.exports.pieces_table import (
    META_SPACE,
    USER_DEFINED,
    ExportedMarks,
    PiecesTable,
    exported_marks,
    read_pieces_table,
)
from trilith.files import replacing
from trilith.model import ModelConfig
from trilith.packed import PackedFile
from trilith.packed.read import naming
from trilith.tokens import Tokenizer

# The first is what is written unless another is asked for.
GGUF_TYPES = ("tq2_0", "tq1_0", "f16")

_PIECES = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "out": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "attention_sub_norm": "attn_sub_norm",
    "mlp_sub_norm": "ffn_sub_norm",
}
_ARCHITECTURES = {"llama": "llama", "qk_norm": "qwen3", "sub_norm": "bitnet"}


def write_gguf(file: PackedFile, path: Path, *, weights: str) -> None:
    """Write a packed model and its tokenizer as one GGUF file, whole or not at all.

    Args:
        file: a model with a counterpart among llama.cpp's architectures.
        path: the file to write; what is there is replaced.
        weights: one of GGUF_TYPES. With tq1_0 and tq2_0, codes are kept, scales are rounded to
            float16, and the embedding is Q8_0 or BF16, as the packed file has it.

    Raises:
        ValueError: GGUF cannot hold this model; nothing is written in another type instead.
    """
    with naming(file.path):
        layout = _layout(file.manifest.model)
        tokenizer = Tokenizer.from_bytes(file.tokenizer_bytes)
        table = read_pieces_table(tokenizer, target="GGUF")
        with replacing(path) as partial:
            writer = gguf.GGUFWriter(partial, layout.architecture)
            try:
                _add_shape(writer, file.manifest.model)
                _add_tokenizer(writer, table, exported_marks(tokenizer))
                _add_weights(writer, file, layout=layout, weights=weights)
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
            finally:
                writer.close()


def _layout(model: ModelConfig) -> Layout:
    kind = kind_of(model, target="GGUF")
    if model.mlp != "swiglu":
        raise ValueError(
            f"has mlp={model.mlp}, and llama.cpp computes silu in every architecture that could "
            "hold this model; train with model.mlp=swiglu"
        )
    if kind == "sub_norm" and not model.tied_head:
        raise ValueError(
            "has sub_norm and a head of its own, and llama.cpp's bitnet takes the embedding for "
            "head; train with model.tied_head=true or model.sub_norm=false"
        )
    if kind == "qkv_bias":
        raise ValueError("has qkv_bias, which is not written to GGUF; export it to huggingface")
    return Layout(
        architecture=_ARCHITECTURES[kind],
        rope="pairs" if kind == "llama" else "halves",
        embedding="token_embd.weight",
        norm="output_norm.weight",
        head="output.weight",
        layer="blk.{}.",
        pieces=_PIECES,
    )


def _add_shape(writer: Any, model: ModelConfig) -> None:
    writer.add_name(model.name)
    writer.add_vocab_size(model.vocab_size)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.num_layers)
    writer.add_feed_forward_length(model.mlp_width)
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_key_length(model.head_width)
    writer.add_value_length(model.head_width)
    writer.add_rope_dimension_count(model.head_width)
    writer.add_rope_freq_base(model.rope_theta)
    writer.add_layer_norm_rms_eps(model.norm_eps)


def _add_tokenizer(writer: Any, table: PiecesTable, marks: ExportedMarks) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    # llama.cpp looks for these in the text itself, where spaces are spaces.
    pieces = [
        piece.replace(META_SPACE, " ") if kind == USER_DEFINED else piece
        for piece, kind in zip(table.pieces, table.types, strict=True)
    ]
    writer.add_token_list(pieces)
    writer.add_token_scores(table.scores)
    writer.add_token_types(table.types)
    writer.add_unk_token_id(table.unk_id)
    writer.add_bos_token_id(table.bos_id)
    _add_ends(writer, marks.stop_ids)
    if marks.pad_id is not None:
        writer.add_pad_token_id(marks.pad_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(table.adds_space)


def _add_ends(writer: Any, stop_ids: list[int]) -> None:
    """Name the ends: of a document, of a turn, of a message; llama.cpp stops at each."""
    keys = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    if len(stop_ids) > len(keys):
        raise ValueError(
            f"ends a text at {len(stop_ids)} ids, and GGUF names {len(keys)}; export this model to "
            "huggingface"
        )
    for add, token in zip(keys, stop_ids, strict=False):
        add(token)


def _add_weights(writer: Any, file: PackedFile, *, layout: Layout, weights: str) -> None:
    file_types = gguf.LlamaFileType
    types = gguf.GGMLQuantizationType
    kind = {"tq1_0": types.TQ1_0, "tq2_0": types.TQ2_0, "f16": types.F16}[weights]
    writer.add_file_type(getattr(file_types, f"MOSTLY_{kind.name}"))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, content in pieces_of(file, layout):
        if isinstance(content, Tensor):
            writer.add_tensor(name, content.float().numpy())
        elif kind == types.F16:
            writer.add_tensor(name, half_floats(content, name=name))
        elif isinstance(content, RowMatrix):
            blocks, row_kind = row_blocks(content, name=name)
            writer.add_tensor(name, blocks, raw_dtype=row_kind)
        else:
            blocks = ternary_blocks(content, name=name, kind=kind)
            writer.add_tensor(name, blocks, raw_dtype=kind)
