"""What one GPU's row costs, in microseconds of CPU: the agent's reader, and the package's getters for the same values.

Over the stand-in library, whose own answers cost next to nothing, so the figures are the path's. benchmarks.agent runs
it as a process of its own: `python -m benchmarks.gpu_row FOLDER`, where FOLDER holds a stub node's state.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.stub_node import prepare

ROUNDS = 200


def microseconds(work: Callable[[], object]) -> float:
    work()
    begun = time.process_time()
    for _ in range(ROUNDS):
        work()
    return (time.process_time() - begun) / ROUNDS * 1e6


def main() -> int:
    prepare(Path(sys.argv[1]))
    from agents.node.sources.amd.binding import Binding
    from agents.node.sources.amd.reader import GpuReader

    binding = Binding()
    reader, second = GpuReader(binding, binding.handles()[0], 0, ""), 0.0

    def row() -> None:
        nonlocal second
        second += 1.0
        reader.read(second)

    ours = microseconds(row)
    print(json.dumps({"row": ours, "getters": microseconds(getters())}))
    return 0


def getters() -> Callable[[], object]:
    """The same values by the package's documented calls."""
    import amdsmi

    amdsmi.amdsmi_init()
    handle = amdsmi.amdsmi_get_processor_handles()[0]

    def ask() -> None:
        amdsmi.amdsmi_get_gpu_metrics_info(handle)
        for block in amdsmi.AmdSmiGpuBlock:
            try:
                amdsmi.amdsmi_get_gpu_ecc_count(handle, block)
            except amdsmi.AmdSmiException:
                continue  # a block that this device does not have
        amdsmi.amdsmi_get_gpu_memory_usage(handle, amdsmi.AmdSmiMemoryType.VRAM)
        amdsmi.amdsmi_get_gpu_bad_page_threshold(handle)

    return ask


if __name__ == "__main__":
    sys.exit(main())
