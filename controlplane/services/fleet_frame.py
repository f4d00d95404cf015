"""The picture of the fleet: the arrays of the fleet frame. Pure.

Arrays of N nodes, by name, and G GPUs, the most that a node has: state u1 [N, G], a place in fleet_state.STATES; power
f4 [N, G] in W, temperature f4 [N, G] in °C (hotspot), ecc f4 [N, G], uncorrectable errors since driver load; xgmi f4
[N, G], links up; nic f4 [N, G], 1 while the port of that number has a link; job f4 [N, G], a place in the head's
`jobs`; NaN where something is unknown, or there is no job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.services.fleet_state import STATES, NodeStatus, gpu_state, known, newest, uncorrectable
from controlplane.store.codec import Samples


def of_nodes(
    statuses: Mapping[str, NodeStatus], seen: Mapping[str, tuple[float, Samples | None, Samples | None]]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The frame's head and arrays from the nodes' statuses and each one's (age in seconds, newest sample of its GPUs,
    newest of its ports)."""
    names = sorted(statuses)
    jobs = sorted({status.run for status in statuses.values() if status.run})
    gpus = max((samples.entities for _, samples, _ in seen.values() if samples is not None), default=0)
    state = np.full((len(names), gpus), STATES.index("nodata"), np.uint8)
    power, temperature, ecc, xgmi, nic, job = (np.full((len(names), gpus), np.nan, np.float32) for _ in range(6))
    for row, name in enumerate(names):
        if statuses[name].run:
            job[row] = jobs.index(statuses[name].run)
        age_s, samples, ports = seen.get(name, (None, None, None))
        if samples is None:
            continue
        for array, column in (
            (power, newest(samples, "power_w")),
            (temperature, newest(samples, "temperature_hotspot_c")),
            (ecc, uncorrectable(samples)),
            (xgmi, newest(samples, "xgmi_links_up")),
            (nic, newest(ports, "link_up")[:gpus]),
        ):
            array[row, : len(column)] = column
        activity = newest(samples, "gfx_activity_percent")
        for gpu in range(samples.entities):
            word = gpu_state(statuses[name], gpu, age_s=age_s, activity_percent=known(activity, gpu))
            state[row, gpu] = STATES.index(word)
    meta = {"nodes": names, "gpus": gpus, "states": list(STATES), "jobs": jobs}
    measures = {"power": power, "temperature": temperature, "ecc": ecc, "xgmi": xgmi, "nic": nic, "job": job}
    return meta, {"state": state, **measures}
