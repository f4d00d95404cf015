"""A router made up of numbers, whose answer to its biases is known; not a test itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controlplane.simulate.balance import Controller, Steering

Floats = NDArray[np.float64]
EXPERTS, TOKENS = 8, 1021
# no multiple of the experts, so that no share is exactly fair and the sign of an error is never a matter of rounding


def run(
    controller: Controller,
    gains: list[float],
    *,
    steps: int = 400,
    seed: int = 0,
    fade: float = 0.0,
    walk: float = 0.02,
) -> tuple[Floats, Floats]:
    """Counts and biases [W, L, E] as a probe records them: p = softmax(a + g·(b less its running mean)), a random walk
    in a of `walk` a step, TOKENS independent tokens. A seed's walks are the same under every controller."""
    paths, tokens = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    gain = np.array(gains)[:, None]
    wanted = np.cumsum(walk * paths.standard_normal((steps, len(gains), EXPERTS)), axis=0)
    steering = Steering(controller, np.zeros((len(gains), EXPERTS)))
    running = steering.bias.copy()
    counts, biases = np.empty_like(wanted), np.empty_like(wanted)
    for step in range(steps):
        running += fade * (steering.bias - running)
        share = np.exp(wanted[step] + gain * (steering.bias - running))
        counts[step] = tokens.multinomial(TOKENS, share / share.sum(axis=1, keepdims=True))
        steering.step(counts[step] / TOKENS)
        biases[step] = steering.bias
    return counts, biases
