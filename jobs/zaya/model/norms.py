"""What keeps the model's activations in scale: normalisations and learned residual scaling.

Shape suffixes as in jobs/zaya/model/network.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.zaya.config import ModelConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned gain; what comes in is cast to the gain's type first."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps)


class QKNorm(nn.Module):
    """Queries and keys [B, T, H or G, K] on the sphere of radius √K, keys with a learned temperature a group."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.temp = nn.Parameter(torch.ones(config.num_key_value_heads))
        self.radius = config.head_dim**0.5

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        eps = torch.finfo(q.dtype).eps
        q = F.normalize(q, dim=-1, eps=eps) * self.radius
        k = F.normalize(k, dim=-1, eps=eps) * self.radius * self.temp[:, None]
        return q, k


class ResidualScaling(nn.Module):
    """(x + b) ⊙ a + (residual + d) ⊙ c, all four learned. The residual stays in its own type, float32 in this model."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.hidden_states_scale = nn.Parameter(torch.ones(size))
        self.hidden_states_bias = nn.Parameter(torch.zeros(size))
        self.residual_scale = nn.Parameter(torch.ones(size))
        self.residual_bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        scaled = (x + self.hidden_states_bias) * self.hidden_states_scale
        return scaled + (residual + self.residual_bias) * self.residual_scale
