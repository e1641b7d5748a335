"""Packed files for other programs: `gguf_file` for llama.cpp, `huggingface` for transformers.

Nothing is handed on from here: each of them needs packages of its own, which come with the extra
`export`.
"""
