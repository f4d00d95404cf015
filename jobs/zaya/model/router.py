"""The router and its experts: one slot a token, steered by balancing biases.

Shape suffixes: B batch, T time, D hidden, E experts, S slots = E + 1, R router hidden, I expert hidden, N = B * T.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.zaya.config import ModelConfig
from jobs.zaya.model.norms import RMSNorm


class RouterMLP(nn.Module):
    """From a router state to a logit a slot."""

    def __init__(self, hidden: int, slots: int, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden, eps)
        self.fc1 = nn.Linear(hidden, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, slots, bias=False)

    def forward(self, r: Tensor) -> Tensor:
        hidden = F.gelu(self.fc2(F.gelu(self.fc1(self.norm(r)))))
        logits: Tensor = self.out_proj(hidden)
        return logits


class Router(nn.Module):
    """Chooses one slot a token: e = argmax(s + b), weight s_e (ZAYA1 report, eq. 1-5). The last slot skips the layer.

    Depth averaging: r_l = W_down x_l + γ_l ⊙ r_{l-1}. `tokens_per_expert` [S] counts this rank's choices since it was
    last zeroed, while training and outside of recomputation; `balancing_biases` [S] only select, they never weigh.
    """

    tokens_per_expert: Tensor
    balancing_biases: Tensor

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.num_experts, self.top_k = config.num_experts, 1
        slots = config.num_experts + 1
        self.down_proj = nn.Linear(config.hidden_size, config.router_hidden_size)
        if layer > 0:
            self.router_states_scale = nn.Parameter(torch.ones(config.router_hidden_size))
        self.router_mlp = RouterMLP(config.router_hidden_size, slots, config.rms_norm_eps)
        biases = torch.zeros(slots, dtype=torch.float32)
        biases[-1] = config.skip_bias
        self.register_buffer("balancing_biases", biases)
        self.register_buffer("tokens_per_expert", torch.zeros(slots, dtype=torch.int64), persistent=False)

    def forward(
        self, x_ND: Tensor, before_NR: Tensor | None, route_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, D], the layer before's state [N, R] or None → chosen slots [N], their weights [N], state [N, R].

        Slots ≥ 0 of `route` are taken instead of the router's own choice (router replay, arXiv 2510.11370).
        """
        state = self.down_proj(x_ND)
        if before_NR is not None:
            state = state + before_NR * self.router_states_scale
        scores = self.router_mlp(state).softmax(dim=-1)
        chosen = (scores.detach().float() + self.balancing_biases).argmax(dim=-1)
        if route_N is not None:
            chosen = torch.where(route_N < 0, chosen, route_N)
        if self.training and torch.is_grad_enabled():
            ones = torch.ones_like(chosen)
            self.tokens_per_expert.scatter_add_(0, chosen, ones)
        return chosen, scores.gather(1, chosen[:, None])[:, 0], state


class Experts(nn.Module):
    """E gated MLPs held in two tensors. Tokens of the skip slot pass through as zero."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, hidden, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))

    def forward(self, x_ND: Tensor, chosen_N: Tensor, weight_N: Tensor) -> Tensor:
        order = chosen_N.argsort(stable=True)
        experts = self.gate_up_proj.shape[0]
        sizes = torch.bincount(chosen_N, minlength=experts + 1).tolist()
        parts = torch.split(x_ND[order], sizes)
        outputs = []
        # unbind, not an index an expert: its gradient is one stack, an index's a whole tensor of zeros for each
        for part, gate_up, down in zip(
            parts[:experts], self.gate_up_proj.unbind(), self.down_proj.unbind(), strict=True
        ):
            gate, up = F.linear(part, gate_up).chunk(2, dim=-1)
            outputs.append(F.linear(F.silu(gate) * up, down))
        outputs.append(torch.zeros_like(parts[-1]))
        mixed = torch.cat(outputs)
        return torch.empty_like(mixed).index_copy(0, order, mixed) * weight_N[:, None]


class SparseMoeBlock(nn.Module):
    """A router and its experts."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.gate = Router(config, layer)
        self.experts = Experts(config)

    def forward(self, x_BTD: Tensor, before_NR: Tensor | None, route_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
        flat = x_BTD.flatten(0, 1)
        chosen, weight, state = self.gate(flat, before_NR, route_N)
        return self.experts(flat, chosen, weight).view(x_BTD.shape), state
