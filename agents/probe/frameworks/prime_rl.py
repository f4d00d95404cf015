"""prime-rl: `MoE.tokens_per_expert`, taken before each `get_load_balance_stats`, which resets it after a micro batch.

The trainer holds that function by name, so ours is put around it wherever a module of prime_rl holds it. A block that
is checkpointed whole counts twice, as a comment there says, and is halved.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from agents.probe.frameworks.routers import AtMoment, AttachError, Options, Reader, Replaced, Router
from agents.probe.frameworks.torchtitan import counter_of, mixtures

_PLACE, _FUNCTION = "prime_rl.trainer.model", "get_load_balance_stats"


class PrimeRL(AtMoment):
    """prime-rl's own counters, of all micro batches of a step."""

    framework = "prime_rl"
    looks_for = "prime-rl's MoE with tokens_per_expert"
    once = False

    def __init__(self, routers: Sequence[Router], options: Options) -> None:
        super().__init__(routers, options)
        self._replaced = Replaced()

    @classmethod
    def find(cls, models: Sequence[nn.Module], options: Options) -> Reader | None:
        routers = mixtures(models, "prime_rl", options)
        return cls(routers, options) if routers else None

    def install(self, counts: Tensor) -> None:
        super().install(counts)
        original = getattr(sys.modules.get(_PLACE), _FUNCTION, None)
        if original is None:
            raise AttachError(f"{_PLACE} has no {_FUNCTION}: this version of prime-rl is not known")

        def ours(*args: Any, **kwargs: Any) -> Any:
            self.moment()
            return original(*args, **kwargs)

        self._replaced.around(original, _FUNCTION, "prime_rl", ours)

    def counter_of(self, module: nn.Module) -> Tensor | None:
        return counter_of(module)

    def close(self) -> None:
        self._replaced.close()
