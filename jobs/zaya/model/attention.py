"""Compressed convolutional attention (Zyphra, arXiv 2510.04476) and the positions that it needs.

Shape suffixes: B batch, T time, S keys' time, D hidden, H query heads, G key/value heads, K head size, P rotated
channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.zaya.config import ModelConfig
from jobs.zaya.model.cache import Cache, LayerCache
from jobs.zaya.model.norms import QKNorm


@dataclass(frozen=True)
class Positions:
    """What all layers share about the tokens of one forward pass.

    `cos`, `sin` [T, P] or [B, 1, T, P]; `mask` [B or 1, 1, T, S], true where attended, or None, and then `causal` says
    whether each token sees those before it alone or all of them; `real` [B, T, 1], zero at padding, or None.
    """

    cos: Tensor
    sin: Tensor
    causal: bool = True
    mask: Tensor | None = None
    real: Tensor | None = None


def rotary(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., P] of rotary positions [...] over the first part of each head."""
    rotated = int(config.head_dim * config.partial_rotary_factor)
    inverse = config.rope_theta ** (-torch.arange(0, rotated, 2, device=positions.device) / rotated)
    angles = positions[..., None] * inverse
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first `cos.shape[-1]` channels of each head, in half-split pairs, and leaves the others."""
    size = cos.shape[-1]
    turned, kept = x_BHTK[..., :size], x_BHTK[..., size:]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, kept], dim=-1)


def positions(config: ModelConfig, length: int, cache: Cache | None, device: torch.device) -> Positions:
    """Those of `length` tokens that come after what the cache holds."""
    begin = cache.length if cache is not None else 0
    times = torch.arange(begin, begin + length, device=device)
    padding = cache.padding_B if cache is not None else None
    if padding is None:
        cos, sin = rotary(times, config)
        if begin == 0 or length == 1:
            return Positions(cos, sin, causal=begin == 0)
        keys = torch.arange(begin + length, device=device)
        return Positions(cos, sin, False, (keys <= times[:, None])[None, None])
    cos, sin = rotary((times - padding[:, None]).clamp_min(0)[:, None], config)
    keys = torch.arange(begin + length, device=device)
    seen = (keys <= times[:, None]) & (keys >= padding[:, None, None])
    seen |= keys == times[:, None]  # a padding token sees itself: a softmax over nothing would be NaN
    real = (times >= padding[:, None])[..., None] if begin < int(padding.max()) else None
    return Positions(cos, sin, False, seen[:, None], real)


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

    def forward(self, x_BTD: Tensor, cache: LayerCache | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, D] → q [B, T, H, K], k and v [B, T, G, K]."""
        batch, length, _ = x_BTD.shape
        q, k = self.q_proj(x_BTD), self.k_proj(x_BTD)
        shared = self.heads // self.groups
        q_heads = q.view(batch, length, self.heads, self.size)
        k_heads = k.view(batch, length, self.groups, self.size).repeat_interleave(shared, dim=2)
        q_mean = (q_heads + k_heads) / 2
        k_mean = q_mean.view(batch, length, self.groups, shared, self.size).mean(dim=3)
        mixed, delayed = torch.cat([q, k], dim=-1).transpose(1, 2), self.v_proj_delayed(x_BTD)
        if cache is None:
            mixed, delayed = F.pad(mixed, (self.reach, 0)), F.pad(delayed, (0, 0, 1, 0))[:, :-1]
        else:
            mixed, delayed = cache.convolved(mixed), cache.late(delayed)
        mixed = self.conv_qk_grouped(self.conv_qk_depthwise(mixed)).transpose(1, 2)
        q_new, k_new = mixed.split([q.shape[-1], k.shape[-1]], dim=-1)
        value = torch.cat([self.v_proj_current(x_BTD), delayed], dim=-1)
        return (
            q_new.reshape(q_mean.shape) + q_mean,
            k_new.reshape(k_mean.shape) + k_mean,
            value.view(batch, length, self.groups, self.size),
        )


class Attention(nn.Module):
    """Causal attention inside the compressed latent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.qkv_proj = CompressedProjection(config)
        self.qk_norm = QKNorm(config)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, at: Positions, cache: LayerCache | None = None) -> Tensor:
        """x [B, T, D] → [B, T, D]; with a cache, over what it holds too."""
        if at.real is not None:
            x_BTD = x_BTD * at.real  # the convolutions and the delayed value must not reach into padding
        q, k, v = self.qkv_proj(x_BTD, cache)
        q, k = self.qk_norm(q, k)
        cos, sin = at.cos.to(q.dtype), at.sin.to(q.dtype)
        q, k, v = rotate(q.transpose(1, 2), cos, sin), rotate(k.transpose(1, 2), cos, sin), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, at.mask, is_causal=at.causal, enable_gqa=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out
