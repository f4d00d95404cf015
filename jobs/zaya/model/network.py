"""The reference model: a mixture-of-experts transformer after ZAYA1 (Zyphra, arXiv 2605.05365), trainable on a CPU.

Compressed convolutional attention, an MLP router with exponential depth averaging, balancing biases and a skip slot,
learned residual scaling, tied embeddings. Parameters are named as in transformers' `zaya`, and the logits are the same.

Shape suffixes: B batch, T time, V vocabulary, L layers, N tokens = B * T.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jobs.zaya.config import ModelConfig
from jobs.zaya.model.attention import Attention, Positions, positions
from jobs.zaya.model.cache import Cache, LayerCache
from jobs.zaya.model.norms import ResidualScaling, RMSNorm
from jobs.zaya.model.router import Experts, Router, SparseMoeBlock

__all__ = ["DecoderLayer", "Router", "ZayaForCausalLM", "ZayaModel"]


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
        self,
        x: Tensor,
        before: Tensor | None,
        at: Positions,
        cache: LayerCache | None = None,
        route_N: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, D] and the router state before [N, R] → the same of this layer."""
        x = self.post_attention_residual_scale(self.self_attn(self.input_layernorm(x), at, cache), x)
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

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None, routes_LN: Tensor | None = None) -> Tensor:
        """Tokens [B, T] → normalised hidden states [B, T, D]; the residual stream between them is float32."""
        x = (self.embed_tokens(tokens_BT) + self.input_hidden_states_bias) * self.input_hidden_states_scale
        x = x.float()
        at = positions(self.config, tokens_BT.shape[1], cache, x.device)
        state: Tensor | None = None
        for number, layer in enumerate(self.layers):
            x, state = layer(
                x,
                state,
                at,
                None if cache is None else cache.layers[number],
                None if routes_LN is None else routes_LN[number],
            )
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

    def forward(self, tokens_BT: Tensor, *, cache: Cache | None = None, routes: Tensor | None = None) -> Tensor:
        """Tokens [B, T] → logits [B, T, V]. With a cache the tokens come after what it holds, and it takes them in.

        `routes` [L, B * T] int64: slots to take in each layer instead of the router's own, −1 to let it choose; the
        weights are still the router's.
        """
        logits: Tensor = self.lm_head(self.model(tokens_BT, cache, routes))
        return logits

    def routers(self) -> list[Router]:
        """The routers in order of depth."""
        return [module for module in self.modules() if isinstance(module, Router)]
