"""Loads a released model as a stranger would, in a process of its own that knows transformers and nothing of ours.

`python -I loading.py DIRECTORY` reads token prompts from standard input (JSON: {"prompts": [[int]],
"texts": [str], "new_tokens": int}) and writes to standard output one line of JSON: {"logits": [[[float]]] of each
prompt, "greedy": the tokens that follow it, "texts": the tokens of each text and back}. It compares nothing:
jobs/zaya/release.py does.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def greedy_of(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    """What `generate` adds to a prompt without sampling."""
    tokens = torch.tensor([prompt])
    made = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=new_tokens)
    return [int(token) for token in made[0, len(prompt) :]]


def main(arguments: list[str]) -> int:
    """0 and the line, or an error of transformers' own."""
    asked = json.load(sys.stdin)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments[0])
    model = AutoModelForCausalLM.from_pretrained(arguments[0], dtype=torch.float32)  # comes in eval mode
    with torch.no_grad():
        logits = [model(torch.tensor([prompt])).logits[0].tolist() for prompt in asked["prompts"]]
        greedy = [greedy_of(model, prompt, asked["new_tokens"]) for prompt in asked["prompts"]]
    texts = [[ids := tokenizer(text)["input_ids"], tokenizer.decode(ids)] for text in asked["texts"]]
    print(json.dumps({"logits": logits, "greedy": greedy, "texts": texts, "class": type(model).__name__}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
