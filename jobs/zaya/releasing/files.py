"""The files of a released model: weights, configuration, tokenizer and model card, as transformers reads them.

The tokenizer is written out by hand: each byte is its own token under the name that byte-level tokenizers have for it,
and the marks of jobs/zaya/tokens.py are special tokens. No code of ours is needed to load any of it, and none of it is
downloaded. transformers is not imported here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from jobs.contract import ContractError
from jobs.zaya.config import ModelConfig
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.model.weights import state_to_transformers, to_transformers
from jobs.zaya.tokens import ASK, END, MARKS, PAD, REPLY, VOCABULARY

WEIGHTS, CARD = "model.safetensors", "README.md"


def byte_names() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary, as GPT-2 chose them: itself where it can be
    seen, else the next free one from U+0100 on. The marks stand for themselves: they are special tokens, and a letter
    of a text must never become one."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    free = iter(range(0x100, 0x200))
    names = [chr(byte) if byte in seen else chr(next(free)) for byte in range(VOCABULARY)]
    return [chr(byte) if byte in MARKS else name for byte, name in enumerate(names)]


def tokenizer_files(longest: int) -> dict[str, Any]:
    """tokenizer.json and tokenizer_config.json of the byte tokens; `longest` is the model's context in tokens."""
    special = [
        {
            "id": mark,
            "content": chr(mark),
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for mark in sorted(MARKS)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocabulary: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {name: byte for byte, name in enumerate(byte_names())},
        "merges": [],
    }
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": vocabulary,
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": longest,
        "eos_token": chr(END),
        "pad_token": chr(PAD),
        "chat_template": f"{chr(ASK)}{{{{ messages[-1]['content'] }}}}{chr(REPLY)}",
    }
    return {"tokenizer.json": whole, "tokenizer_config.json": settings}


def write_files(directory: Path, model: ZayaForCausalLM, config: ModelConfig, words: str) -> None:
    """All files of a release, `words` its card, into an empty directory; ContractError for a model that is not of
    bytes."""
    if config.vocab_size != VOCABULARY:
        raise ContractError(f"only a model of {VOCABULARY} byte tokens is released here, not of {config.vocab_size}")
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in state_to_transformers(model).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    shapes = to_transformers(config) | {"dtype": "float32"}
    longest = int(shapes.get("max_position_embeddings", 4096))
    files: dict[str, Any] = {
        "config.json": shapes,
        "generation_config.json": {"eos_token_id": END, "pad_token_id": PAD},
        **tokenizer_files(longest),
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    (directory / CARD).write_text(words)
