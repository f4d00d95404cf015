"""The picture of the fleet: the arrays of the fleet frame. Pure.

Arrays of N nodes, by name, and G GPUs, the most that a node has: state u1 [N, G], a place in fleet_state.STATES; power
f4 [N, G] in W, temperature f4 [N, G] in °C (hotspot), ecc f4 [N, G], uncorrectable errors since driver load; NaN where
something is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.services.fleet_state import STATES, NodeStatus, gpu_state, known, newest, uncorrectable
from controlplane.store.codec import Samples


def of_nodes(
    statuses: Mapping[str, NodeStatus], seen: Mapping[str, tuple[float, Samples | None]]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The frame's head and arrays from the nodes' statuses and each one's (age in seconds, newest GPU sample)."""
    names = sorted(statuses)
    gpus = max((samples.entities for _, samples in seen.values() if samples is not None), default=0)
    state = np.full((len(names), gpus), STATES.index("nodata"), np.uint8)
    power, temperature, ecc = (np.full((len(names), gpus), np.nan, np.float32) for _ in range(3))
    for row, name in enumerate(names):
        age_s, samples = seen.get(name, (None, None))
        if samples is None:
            continue
        for array, column in (
            (power, newest(samples, "power_w")),
            (temperature, newest(samples, "temperature_hotspot_c")),
            (ecc, uncorrectable(samples)),
        ):
            array[row, : len(column)] = column
        activity = newest(samples, "gfx_activity_percent")
        for gpu in range(samples.entities):
            word = gpu_state(statuses[name], gpu, age_s=age_s, activity_percent=known(activity, gpu))
            state[row, gpu] = STATES.index(word)
    meta = {"nodes": names, "gpus": gpus, "states": list(STATES)}
    return meta, {"state": state, "power": power, "temperature": temperature, "ecc": ecc}
