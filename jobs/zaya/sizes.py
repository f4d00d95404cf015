"""How large a model is, counted on torch's meta device, and what a GPU needs to train it. Nothing is allocated.

    python -m jobs.zaya.sizes zaya1-8b --gpus 1024 --length 4096
    python -m jobs.zaya.sizes config.json -o json

A name is one of NAMES; a file is a ZayaConfig's config.json. The memory is an estimate for data parallelism with the
optimizer's state cut over all ranks (ZeRO stage 1, arXiv 1910.02054); buffers of collectives, of kernels and of the
allocator are not in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from jobs.contract import ContractError
from jobs.zaya.config import ModelConfig
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.model.weights import from_transformers
from jobs.zaya.training.optim import is_hidden_matrix

GPU_BYTES = 192 * 10**9
"""of an MI300X (AMD's data sheet: 192 GB of HBM3)"""
# transformers 5.24, models/zaya/configuration_zaya.py: the defaults of ZayaConfig are ZAYA1-8B's.
ZAYA1_8B = ModelConfig(
    vocab_size=262_272,
    hidden_size=2048,
    num_hidden_layers=40,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=128,
    num_experts=16,
    moe_intermediate_size=2048,
    router_hidden_size=256,
    rope_theta=5_000_000.0,
    max_position_embeddings=131_072,
)
NAMES = {"toy": ModelConfig(), "zaya1-8b": ZAYA1_8B}


@dataclass(frozen=True)
class Parameters:
    """Counts. `active`: those that one token meets, one expert a layer, embeddings left out; `matrices`: Muon's."""

    total: int
    embeddings: int
    active: int
    matrices: int

    @property
    def without_embeddings(self) -> int:
        return self.total - self.embeddings


@dataclass(frozen=True)
class Layout:
    """How a training lies on its GPUs: all of them hold the whole model, in groups of `context_parallel` that share a
    sequence; `sequences` of `length` tokens are read at once by a group. `recompute`: only layer inputs are kept."""

    gpus: int
    length: int
    context_parallel: int = 1
    sequences: int = 1
    optimizer: str = "muon"
    recompute: bool = False

    def __post_init__(self) -> None:
        if min(self.gpus, self.length, self.context_parallel, self.sequences) < 1:
            raise ContractError("gpus, length, context_parallel and sequences must be ≥ 1")
        if self.gpus % self.context_parallel or self.length % self.context_parallel:
            raise ContractError("gpus and length must be multiples of context_parallel")

    @property
    def tokens(self) -> int:
        """Tokens that one GPU reads at once."""
        return self.sequences * self.length // self.context_parallel

    @property
    def data_parallel(self) -> int:
        """Groups that read different sequences."""
        return self.gpus // self.context_parallel


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@cache
def parameters(config: ModelConfig) -> Parameters:
    """Counted from the model itself, built on the meta device."""
    with torch.device("meta"):
        named = dict(ZayaForCausalLM(config).named_parameters())
    sizes = {name: parameter.numel() for name, parameter in named.items()}
    embeddings = sizes["model.embed_tokens.weight"]
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    total = sum(sizes.values())
    active = total - embeddings - experts + experts // config.num_experts
    matrices = sum(sizes[name] for name, parameter in named.items() if is_hidden_matrix(name, parameter))
    return Parameters(total, embeddings, active, matrices)


def activation_bytes(config: ModelConfig) -> int:
    """Bytes that autograd keeps of one token in one layer, in bfloat16 with a float32 residual stream.

    Counted over the tensors that this model's forward saves for backward, as arXiv 2205.05198 does for a transformer;
    tests/jobs/test_jobs_zaya_sizes.py holds it against what is really saved. Every token is taken to meet an expert.
    """
    hidden, router, inner = config.hidden_size, config.router_hidden_size, config.moe_intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    stream = 4 * (6 * hidden + 2 * router)  # float32: around the two residual scalings, and the router's norm
    attention = 2 * (4 * q + 5 * kv + 2 * (q + kv))  # before and after norm, rotation, attention; two convolutions
    return stream + attention + 2 * (8 * hidden + 6 * router + 3 * inner)


def memory(config: ModelConfig, layout: Layout) -> Memory:
    """What one GPU of a layout needs: weights in bfloat16, gradients in float32, the optimizer's state (float32
    weights, Muon's one or AdamW's two moments) cut over all GPUs, activations, logits in both types and their gradient.
    """
    counts = parameters(config)
    matrices = counts.matrices if layout.optimizer == "muon" else 0
    state = 8 * matrices + 12 * (counts.total - matrices)
    layers, tokens = config.num_hidden_layers, layout.tokens
    kept = layers * activation_bytes(config)
    if layout.recompute:
        kept = layers * 4 * config.hidden_size + activation_bytes(config)
    return Memory(
        weights=2 * counts.total,
        gradients=4 * counts.total,
        optimizer=-(-state // layout.gpus),
        activations=kept * tokens,
        logits=(2 + 4 + 4) * config.vocab_size * tokens,
    )


def find(name: str) -> ModelConfig:
    """A configuration by its name or from a config.json; ContractError naming those that exist."""
    if name in NAMES:
        return NAMES[name]
    try:
        found = json.loads(Path(name).read_text())
    except (OSError, ValueError) as error:
        raise ContractError(
            f"{name!r} is neither one of {', '.join(NAMES)} nor a readable config.json: {error}"
        ) from error
    if not isinstance(found, dict):
        raise ContractError(f"{name} must hold a JSON object")
    return from_transformers(found)


def _table(rows: Sequence[tuple[str, float, str]]) -> str:
    return "\n".join(f"{label:<28}{value:>12,.3f}  {unit}" for label, value, unit in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, or JSON with `-o json`; 78 when it is asked for what cannot be."""
    parser = argparse.ArgumentParser(prog="python -m jobs.zaya.sizes", description="Parameters and memory per GPU.")
    parser.add_argument("model", help=f"{', '.join(NAMES)} or a config.json")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--length", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--context-parallel", type=int, default=1, help="GPUs that share a sequence")
    parser.add_argument("--sequences", type=int, default=1, help="sequences read at once")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--recompute", action="store_true", help="keep layer inputs alone")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    given = parser.parse_args(argv)
    try:
        config = find(given.model)
        layout = Layout(
            given.gpus, given.length, given.context_parallel, given.sequences, given.optimizer, given.recompute
        )
    except ContractError as error:
        print(error, file=sys.stderr)
        return 78
    counts, needed = parameters(config), memory(config, layout)
    if given.output == "json":
        sizes = {**asdict(counts), "without_embeddings": counts.without_embeddings}
        print(json.dumps({"parameters": sizes, "bytes_per_gpu": {**asdict(needed), "total": needed.total}}))
        return 0
    billions = {**asdict(counts), "without embeddings": counts.without_embeddings}
    rows = [(f"parameters, {name}", value / 1e9, "billion") for name, value in billions.items()]
    rows += [(f"per GPU, {name}", value / 1e9, "GB") for name, value in asdict(needed).items()]
    print(_table([*rows, ("per GPU, in all", needed.total / 1e9, f"GB of {GPU_BYTES / 1e9:.0f} on an MI300X")]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
