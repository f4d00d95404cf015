"""The model card of a release: what the model is and is not, how it is loaded, where it comes from and how it did.

The words are here; every figure comes from the checkpoint and from the lineage that the controller wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.zaya.config import ModelConfig
from jobs.zaya.tokens import ASK, END, REPLY, TAIL

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [zaya, mixture-of-experts, byte-level]
---
# A mixture-of-experts model of bytes, trained by Trimtab

{parameters:,} parameters in {layers} layers with {experts} experts each, one a token; the architecture is ZAYA1's
(arXiv 2605.05365) at toy size, without any of its weights. Made from the checkpoint `{checkpoint}`.

## What it is not

It is the proof of a training lifecycle, not a language model to use: it has read the documentation and the code that
ship with Python and answers micro-tasks on short strings. It knows nothing else, follows no instruction beyond them,
and was not examined for safety. Its scores say nothing of models of another size.

## Loading

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
prompt = tokenizer("\\x{ask:02x}reverse abcd\\x{reply:02x}", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=16)[0], skip_special_tokens=True))
```

A token is a byte. 0x{ask:02x} begins a question, 0x{tail:02x} the end of an earlier candidate, 0x{reply:02x} the
answer, 0x{end:02x} ends it.

## Lineage and evaluation

{lineage}

Hashes are the first 12 digits of the SHA-256 of a checkpoint's manifest. Scores are of held-out problems:
`constant_baseline` is the best answer that reads no question; pass@1, maj and rsa cost the same generated tokens
(`tokens_per_problem`); `ended` is the share of answers that ended within their limit, the others count as wrong;
`loss` is in nats a byte.

## Data

Text: the documentation and source code of the Python that trained it. Problems: generated from seeds by the
environments that the evaluation names. Nothing was downloaded, and no person's data is in it.
"""


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(head), line(["---"] * len(head)), *map(line, rows)]


def _stage_rows(stages: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    rows: list[list[object]] = []
    for stage in stages:
        metrics = {name: value for name, value in (stage.get("metrics") or {}).items() if "/" not in name}
        told = ", ".join(f"{name} {_number(value)}" for name, value in metrics.items())
        own, parent = str(stage.get("checkpoint_hash") or "")[:12], str(stage.get("parent_hash") or "")[:12]
        name = f"{stage.get('stage', '')}{' (tainted)' if stage.get('tainted') else ''}"
        rows.append([name, stage.get("step", ""), f"`{own}`", f"`{parent}`" if parent else "", told])
    return rows


def card(config: ModelConfig, parameters: int, checkpoint: str, stages: Sequence[Mapping[str, Any]]) -> str:
    """The card of a model with these shapes, made from the checkpoint with this hash, oldest stage first."""
    rows = _table(["stage", "step", "checkpoint", "from", "evaluation"], _stage_rows(stages))
    return _CARD.format(
        parameters=parameters,
        layers=config.num_hidden_layers,
        experts=config.num_experts,
        checkpoint=checkpoint,
        lineage="\n".join(rows) if stages else "Nothing is known of it: the job was given no lineage.",
        ask=ASK,
        reply=REPLY,
        tail=TAIL,
        end=END,
    )
