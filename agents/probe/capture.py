"""The probe in the training process: one record an optimizer step, written into the ring, and a tap for the agent.

It never waits for anybody and never raises into a training loop: what cannot be recorded is counted, and said once in
the trainer's log. What it is not: a place for statistics; counts leave the process as they are.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.probe.ring import UNWRITABLE, RingError, RingMeta, RingWriter
from agents.probe.wake import Waker

log = logging.getLogger("trimtab.probe")


def _meta(env: Mapping[str, str], shape: tuple[int, int, int, int], **layout: int) -> RingMeta:
    layers, slots, experts, top_k = shape
    return RingMeta(
        run_id=env.get("TRIMTAB_RUN_ID", "local"),
        attempt_no=int(env.get("TRIMTAB_ATTEMPT", "1")),
        epoch=int(env.get("TRIMTAB_EPOCH", "1")),
        rank=int(env.get("RANK", "0")),
        world=int(env.get("WORLD_SIZE", "1")),
        layers=layers,
        slots=slots,
        experts=experts,
        top_k=top_k,
        pid=os.getpid(),
        local_world=int(env.get("LOCAL_WORLD_SIZE", "1")),
        created_ns=time.time_ns(),
        **layout,
    )


class Probe:
    """Writes already counted loads: counts uint32 and biases float32, both [layers, slots], C-contiguous, in anything
    that offers the buffer protocol (a NumPy array; a CPU tensor's `.numpy()`).

    experts and top_k are the router's; `expert_parallel`, `tensor_parallel` (of the experts) and `pipeline_parallel`
    the sizes of the trainer's groups, so that a load can be told of a rank; leave all at 1 where experts lie otherwise
    than ring.RingMeta says; start_bias: there too. Every rank writes, also one whose
    counts another tells already: such a rank writes zeros.

    Without TRIMTAB_HEARTBEAT_DIR it does nothing, so a trainer may keep the call in every run; the same if the ring
    cannot be made there. `dropped` counts the steps that could not be recorded.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        experts: int,
        top_k: int,
        env: Mapping[str, str] | None = None,
        expert_parallel: int = 1,
        tensor_parallel: int = 1,
        pipeline_parallel: int = 1,
        start_bias: int = 0,
    ) -> None:
        values = os.environ if env is None else env
        self.dropped = 0
        self._ring: RingWriter | None = None
        self._waker: Waker | None = None
        directory = values.get("TRIMTAB_HEARTBEAT_DIR")
        if not directory:
            return
        folder = Path(directory)
        try:
            meta = _meta(
                values,
                (layers, slots, experts, top_k),
                expert_parallel=expert_parallel,
                tensor_parallel=tensor_parallel,
                pipeline_parallel=pipeline_parallel,
                start_bias=start_bias,
            )
            folder.mkdir(parents=True, exist_ok=True)
            self._ring = RingWriter(folder / f"ring-rank-{meta.rank}.bin", meta)
            # runtime directory/attempts/attempt name: the agent listens at the top
            self._waker = Waker(folder.parent.parent)
        except (OSError, ValueError, RingError) as error:
            log.warning("expert loads are not recorded, there is no ring: %s", error)

    @property
    def active(self) -> bool:
        """Whether records go anywhere."""
        return self._ring is not None

    def write(
        self,
        step: int,
        counts: Any,
        bias: Any,
        *,
        routed: int = 0,
        loss: float = float("nan"),
        grad_norm: float = float("nan"),
        step_seconds: float = float("nan"),
        learning_rate: float = float("nan"),
        tokens: int = 0,
        data_position: int = 0,
        route_mismatch: float = float("nan"),
        facts: Any = None,
    ) -> None:
        """One step. `routed` is the number of tokens that each layer routed on this rank (top-k counted once);
        `route_mismatch` the share of (token, layer) choices that differ from the rollout's (reinforcement learning);
        `facts` float32 [len(readings.LAYER_FACTS), layers], NaN where unknown."""
        if self._ring is None:
            return
        now, rate, place = time.time(), learning_rate, data_position
        values = (step, now, loss, grad_norm, step_seconds, rate, tokens, place, routed, route_mismatch)
        try:
            self._ring.write(values, counts, bias, facts)
        except UNWRITABLE as error:
            self.drop(step, error)
        if self._waker is not None:
            self._waker.wake()

    def drop(self, step: int, error: Exception) -> None:
        """Counts a step that could not be recorded; the first one is said."""
        self.dropped += 1
        if self.dropped == 1:
            log.warning("step %s is not recorded, nor may later ones be: %s", step, error)

    def close(self) -> None:
        """Lets go of the ring; the agent reads what is left."""
        if self._ring is not None:
            self._ring.close()
        if self._waker is not None:
            self._waker.close()
        self._ring = self._waker = None
