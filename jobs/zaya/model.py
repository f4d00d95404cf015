"""The reference model: a mixture-of-experts transformer after ZAYA1 (Zyphra, arXiv 2605.05365), trainable on a CPU.

Compressed convolutional attention, an MLP router with exponential depth averaging, balancing biases and a skip slot,
learned residual scaling, tied embeddings. Parameters are named as in transformers' `zaya`. No cache, no generation yet.

Shape suffixes: B batch, T time, D hidden, H query heads, G key/value heads, K head size, E experts, S slots = E + 1,
R router hidden, I expert hidden, N tokens = B * T.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.zaya.config import ModelConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned gain."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotary(length: int, config: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, rotated] of rotary positions over the first part of each head."""
    rotated = int(config.head_dim * config.partial_rotary_factor)
    inverse = config.rope_theta ** (-torch.arange(0, rotated, 2, device=device) / rotated)
    angles = torch.outer(torch.arange(length, device=device), inverse).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first `cos.shape[-1]` channels of each head, in half-split pairs, and leaves the others."""
    size = cos.shape[-1]
    turned, kept = x_BHTK[..., :size], x_BHTK[..., size:]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, kept], dim=-1)


class CompressedProjection(nn.Module):
    """q, k and v in a compressed latent: two causal convolutions over q and k, half of each value one token late."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.groups, self.size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        q, kv = self.heads * self.size, self.groups * self.size
        self.q_proj = nn.Linear(config.hidden_size, q, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv, bias=False)
        self.v_proj_current = nn.Linear(config.hidden_size, kv // 2, bias=False)
        self.v_proj_delayed = nn.Linear(config.hidden_size, kv // 2, bias=False)
        self.conv_qk_depthwise = nn.Conv1d(q + kv, q + kv, config.cca_time0, groups=q + kv)
        self.conv_qk_grouped = nn.Conv1d(q + kv, q + kv, config.cca_time1, groups=self.heads + self.groups)
        self.reach = config.cca_time0 + config.cca_time1 - 2

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = x_BTD.shape
        q, k = self.q_proj(x_BTD), self.k_proj(x_BTD)
        shared = self.heads // self.groups
        q_heads = q.view(batch, length, self.heads, self.size)
        k_heads = k.view(batch, length, self.groups, self.size).repeat_interleave(shared, dim=2)
        q_mean = (q_heads + k_heads) / 2
        k_mean = q_mean.view(batch, length, self.groups, shared, self.size).mean(dim=3)
        mixed = F.pad(torch.cat([q, k], dim=-1).transpose(1, 2), (self.reach, 0))
        mixed = self.conv_qk_grouped(self.conv_qk_depthwise(mixed)).transpose(1, 2)
        q_new, k_new = mixed.split([q.shape[-1], k.shape[-1]], dim=-1)
        delayed = F.pad(self.v_proj_delayed(x_BTD), (0, 0, 1, 0))[:, :-1]
        value = torch.cat([self.v_proj_current(x_BTD), delayed], dim=-1)
        return (
            q_new.reshape(q_mean.shape) + q_mean,
            k_new.reshape(k_mean.shape) + k_mean,
            value.view(batch, length, self.groups, self.size),
        )


class QKNorm(nn.Module):
    """Queries and keys on the sphere of radius √K, keys with a learned temperature a group."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.temp = nn.Parameter(torch.ones(config.num_key_value_heads))
        self.radius = config.head_dim**0.5

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q = F.normalize(q, dim=-1) * self.radius
        k = F.normalize(k, dim=-1) * self.radius * self.temp[:, None]
        return q, k


class Attention(nn.Module):
    """Causal attention inside the compressed latent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.qkv_proj = CompressedProjection(config)
        self.qk_norm = QKNorm(config)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv_proj(x_BTD)
        q, k = self.qk_norm(q, k)
        q, k, v = (rotate(q.transpose(1, 2), cos, sin), rotate(k.transpose(1, 2), cos, sin), v.transpose(1, 2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


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
        for expert, part in enumerate(parts[:experts]):
            gate, up = F.linear(part, self.gate_up_proj[expert]).chunk(2, dim=-1)
            outputs.append(F.linear(F.silu(gate) * up, self.down_proj[expert]))
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


class ResidualScaling(nn.Module):
    """(x + b) ⊙ a + (residual + d) ⊙ c, all four learned."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.hidden_states_scale = nn.Parameter(torch.ones(size))
        self.hidden_states_bias = nn.Parameter(torch.zeros(size))
        self.residual_scale = nn.Parameter(torch.ones(size))
        self.residual_bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        scaled = (x + self.hidden_states_bias) * self.hidden_states_scale
        return scaled + (residual + self.residual_bias) * self.residual_scale


class DecoderLayer(nn.Module):
    """Attention, then experts, each behind a norm and a learned residual."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_residual_scale = ResidualScaling(config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SparseMoeBlock(config, layer)
        self.post_mlp_residual_scale = ResidualScaling(config.hidden_size)

    def forward(
        self, x: Tensor, before: Tensor | None, cos: Tensor, sin: Tensor, route_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x = self.post_attention_residual_scale(self.self_attn(self.input_layernorm(x), cos, sin), x)
        mixed, state = self.mlp(self.post_attention_layernorm(x), before, route_N)
        return self.post_mlp_residual_scale(mixed, x), state


class ZayaModel(nn.Module):
    """Embeddings and layers; the router state of each layer feeds the next one's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.input_hidden_states_scale = nn.Parameter(torch.ones(config.hidden_size))
        self.input_hidden_states_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens_BT: Tensor, routes_LN: Tensor | None = None) -> Tensor:
        x = (self.embed_tokens(tokens_BT) + self.input_hidden_states_bias) * self.input_hidden_states_scale
        cos, sin = rotary(tokens_BT.shape[1], self.config, x.device)
        state: Tensor | None = None
        for number, layer in enumerate(self.layers):
            x, state = layer(x, state, cos, sin, None if routes_LN is None else routes_LN[number])
        out: Tensor = self.norm(x)
        return out


class ZayaForCausalLM(nn.Module):
    """Next-byte logits; the output matrix is the embedding's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = ZayaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight
        self.apply(self._initialise)

    @torch.no_grad()
    def _initialise(self, module: nn.Module) -> None:
        """Small normal weights. So that tokens spread over the experts from the first step, the residual stream starts
        with the token, not with what all tokens share, and a router's logits are sharp and have no common favourite."""
        if isinstance(module, Experts):
            nn.init.normal_(module.gate_up_proj, std=self.model.config.initializer_range)
            nn.init.normal_(module.down_proj, std=self.model.config.initializer_range)
        elif isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d):
            nn.init.normal_(module.weight, std=self.model.config.initializer_range)
            if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ZayaModel):
            module.input_hidden_states_scale.fill_(self.model.config.hidden_size**0.5)
        elif isinstance(module, Router):
            self._initialise_router(module)

    def _initialise_router(self, router: Router) -> None:
        """Scaled by fan-in; rows behind a GELU are centred, for its positive mean would lift one expert for all."""
        mlp = router.router_mlp
        for linear in (router.down_proj, mlp.fc1, mlp.fc2, mlp.out_proj):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        for linear in (mlp.fc2, mlp.out_proj):
            linear.weight -= linear.weight.mean(dim=1, keepdim=True)
        mlp.out_proj.weight *= 2

    def forward(self, tokens_BT: Tensor, *, routes: Tensor | None = None) -> Tensor:
        """Tokens [B, T] → logits [B, T, V].

        `routes` [L, B * T] int64: slots to take in each layer instead of the router's own, −1 to let it choose; the
        weights are still the router's.
        """
        logits: Tensor = self.lm_head(self.model(tokens_BT, routes))
        return logits

    def routers(self) -> list[Router]:
        """The routers in order of depth."""
        return [module for module in self.modules() if isinstance(module, Router)]
