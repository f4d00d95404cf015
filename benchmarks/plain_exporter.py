"""The peer: a plain prometheus-client exporter that calls each of the package's getters for each GPU, once a second.

What one would write first: the package's dictionaries, a Gauge a field. No rules, no faults, no outbox.
"""

from __future__ import annotations

import sys
import time

from prometheus_client import Gauge, start_http_server


def main() -> int:
    import amdsmi

    amdsmi.amdsmi_init()
    handles = amdsmi.amdsmi_get_processor_handles()
    server, _ = start_http_server(0, "127.0.0.1")
    print(server.server_port, flush=True)
    gauges: dict[str, Gauge] = {}

    def put(name: str, gpu: int, value: object) -> None:
        if isinstance(value, int | float):
            name = name.replace(".", "_")
            if name not in gauges:
                gauges[name] = Gauge(f"plain_{name}", name, ["gpu"])
            gauges[name].labels(str(gpu)).set(value)

    while True:
        begun = time.monotonic()
        for gpu, handle in enumerate(handles):
            for name, value in amdsmi.amdsmi_get_gpu_metrics_info(handle).items():
                for at, one in enumerate(value if isinstance(value, list) else [value]):
                    put(f"{name}_{at}" if isinstance(value, list) else name, gpu, one)
            for block in amdsmi.AmdSmiGpuBlock:
                try:
                    for name, value in amdsmi.amdsmi_get_gpu_ecc_count(handle, block).items():
                        put(f"{block.name}_{name}", gpu, value)
                except amdsmi.AmdSmiException:
                    continue  # a block that this device does not have
            put("vram_used", gpu, amdsmi.amdsmi_get_gpu_memory_usage(handle, amdsmi.AmdSmiMemoryType.VRAM))
            put("bad_page_threshold", gpu, amdsmi.amdsmi_get_gpu_bad_page_threshold(handle))
        time.sleep(max(0.0, 1.0 - (time.monotonic() - begun)))


if __name__ == "__main__":
    sys.exit(main())
