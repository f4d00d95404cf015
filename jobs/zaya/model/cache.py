"""What generation keeps of the tokens that it has read, so that each further token costs one token's work.

Each layer keeps the keys and values of the compressed latent, and the little state of its convolutions: the last
projected queries and keys that they still reach, and the last token's delayed half of the value. Router states go from
layer to layer within a token and need no cache. Prompts of different lengths are padded on the left, so that all rows
grow at the same place.

Shape suffixes: B batch, G key/value heads, K head size, C channels of projected queries and keys, T time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.contract import ContractError
from jobs.zaya.config import ModelConfig


class LayerCache:
    """One layer's part: keys and values [B, G, capacity, K], of which `length` are filled, and the convolutions'
    state: `qk` [B, C, reach] and `delayed` [B, 1, G * K / 2], zero before the first token."""

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        groups, size = config.num_key_value_heads, config.head_dim
        channels = (config.num_attention_heads + groups) * size
        self.keys = torch.empty(batch, groups, capacity, size, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.qk = torch.zeros(batch, channels, config.cca_time0 + config.cca_time1 - 2, dtype=dtype, device=device)
        self.delayed = torch.zeros(batch, 1, groups * size // 2, dtype=dtype, device=device)
        self.length = 0

    def convolved(self, qk_BCT: Tensor) -> Tensor:
        """Projected queries and keys with the ones before that the convolutions still reach, [B, C, reach + T]."""
        reach = self.qk.shape[-1]
        joined = torch.cat([self.qk, qk_BCT], dim=-1)
        self.qk = joined[..., joined.shape[-1] - reach :].clone()
        return joined

    def late(self, delayed: Tensor) -> Tensor:
        """Delayed halves of the values [B, T, G * K / 2], each one token later than it came."""
        joined = torch.cat([self.delayed, delayed], dim=1)
        self.delayed = joined[:, -1:].clone()
        return joined[:, :-1]

    def extend(self, keys_BGTK: Tensor, values_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in new keys and values; returns all so far. ContractError when they do not fit."""
        end = self.length + keys_BGTK.shape[2]
        if end > self.keys.shape[2]:
            raise ContractError(f"the cache holds {self.keys.shape[2]} tokens and cannot take {end}")
        self.keys[:, :, self.length : end] = keys_BGTK
        self.values[:, :, self.length : end] = values_BGTK
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Keeps these rows alone, in this order."""
        self.keys, self.values = self.keys[rows], self.values[rows]
        self.qk, self.delayed = self.qk[rows], self.delayed[rows]


@dataclass(frozen=True)
class CacheBytes:
    """The bytes that a cache's tensors take: keys and values, and the state that does not grow with the length."""

    keys_values: int
    state: int


class Cache:
    """All layers' caches of a batch of sequences with up to `capacity` tokens each, padding counted.

    `padding` is how many tokens stand left of each row's first real one; those are never attended to.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        padding: Sequence[int] = (),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if padding and len(padding) != batch:
            raise ContractError(f"padding names {len(padding)} rows of {batch}")
        where = torch.device(device)
        self.padding_B = torch.tensor(padding, device=where) if any(padding) else None
        self.layers = [LayerCache(config, batch, capacity, dtype, where) for _ in range(config.num_hidden_layers)]

    @property
    def length(self) -> int:
        """Tokens read so far, padding counted."""
        return self.layers[0].length

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows alone, in this order: completions that have ended cost nothing more."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.layers[0].keys.device)
        for layer in self.layers:
            layer.keep(index)
        if self.padding_B is not None:
            self.padding_B = self.padding_B[index]


def cache_bytes(cache: Cache) -> CacheBytes:
    """Measured from the storage of the cache's own tensors."""
    growing = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    fixed = [tensor for layer in cache.layers for tensor in (layer.qk, layer.delayed)]
    return CacheBytes(*(sum(t.untyped_storage().nbytes() for t in part) for part in (growing, fixed)))
