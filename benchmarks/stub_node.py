"""A node that does not exist, kept alive in real time below a folder: what the benches' agents read.

Each line on its standard input is a drill, `kind gpu`; for each it prints when the node said or held it, in Unix
seconds. Its own CPU is nobody's figure.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

from agents.stub.node import StubNode, use


def prepare(folder: Path) -> None:
    """Makes this process, and those that it starts, read the node below `folder` through the real package."""
    package = os.environ.get("TRIMTAB_AMDSMI")
    if not package:
        raise RuntimeError("TRIMTAB_AMDSMI names no folder with the amdsmi package: make bench NAME=agent brings it")
    cache = Path(".cache/stub").absolute()
    cache.mkdir(parents=True, exist_ok=True)
    use(Path(package) / "amdsmi", cache, folder)
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(part for part in dict.fromkeys([*known, package]) if part)


def main() -> int:
    folder = Path(sys.argv[1])
    prepare(folder)
    node = StubNode(folder, "bench", time.time())
    node.source.follow(3.0)
    print("ready", flush=True)
    due = time.time()
    while True:
        due += 1.0
        while (left := due - time.time()) > 0:
            if not select.select([sys.stdin], [], [], left)[0]:
                continue
            asked = sys.stdin.readline()
            if not asked:
                node.close()
                return 0
            kind, _, gpu = asked.strip().partition(" ")
            node.drill(kind, int(gpu))
            node.beat(time.time())
            print(f"{kind} {gpu} {time.time()}", flush=True)
        node.beat(time.time())


if __name__ == "__main__":
    sys.exit(main())
