"""Steps from the lines that Megatron-LM and torchtitan print, which come at once, where their event files come late.

Megatron's last rank prints, each `--log-interval` iterations; its stamp has no time zone and is not read. A fork for
ROCm prints two elapsed times, of the iteration and its mean. torchtitan prints colours and, in the same shape,
validations, which are no steps. Source: megatron/training/training.py (training_log), torchtitan/components/metrics.py.
"""

from __future__ import annotations

import re

from jobs.steps import StepScalars, is_step, real

_MEGATRON = re.compile(r"\biteration\s+(\d{1,10})/\s*\d+ \|(.*)")
_TORCHTITAN = re.compile(r"(?<!validate )\bstep:\s*(\d{1,10})\s+loss:\s*(\S+)\s+grad_norm:\s*(\S+)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LOSSES = ("lm loss", "loss")


class Megatron:
    """Lines such as ` iteration       10/     100 | consumed samples: 80 | … | lm loss: 1.0E+01 | … |`."""

    name = "megatron-log"
    last_member = True

    def steps(self, text: str) -> list[StepScalars]:
        return [step for line in text.splitlines() if (step := self._step(line)) is not None]

    @staticmethod
    def _step(line: str) -> StepScalars | None:
        found = _MEGATRON.search(line)
        if found is None or not is_step(int(found[1])):
            return None
        parts = (part.partition(": ") for part in found[2].split("|"))
        values = {name.strip(): value.strip() for name, _, value in parts}
        elapsed_ms = real(values.get("elapsed time per iteration (ms)", "").partition("/")[0])
        return StepScalars(
            step=int(found[1]),
            loss=next((loss for name in _LOSSES if (loss := real(values.get(name))) is not None), None),
            grad_norm=real(values.get("grad norm")),
            learning_rate=real(values.get("learning rate")),
            step_seconds=elapsed_ms / 1000 if elapsed_ms is not None else None,
        )


class Torchtitan:
    """Lines such as `step: 10  loss:  8.24380  grad_norm:  1.5  memory: … tps: …`."""

    name = "torchtitan-log"
    last_member = False

    def steps(self, text: str) -> list[StepScalars]:
        found = (_TORCHTITAN.search(line) for line in _COLOUR.sub("", text).splitlines())
        return [
            StepScalars(int(one[1]), loss=real(one[2]), grad_norm=real(one[3]))
            for one in found
            if one is not None and is_step(int(one[1]))
        ]
