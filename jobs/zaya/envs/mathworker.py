"""A process that says whether two answers are mathematically the same, for as long as its stdin is open.

math-verify guards itself with SIGALRM, which works in a main thread only, and nothing ends a thread that is stuck in
sympy. So it runs here, in a main thread of its own, with limited memory, and whoever asks can kill it. A line in:
`{"reference", "answer"}`, a line out: `{"same": bool}`, after a first line `{"ready": true}`. Started by path; it
imports nothing of ours.
"""

from __future__ import annotations

import importlib
import json
import logging
import resource
import sys

_SECONDS = 2
_MEMORY_BYTES = 2 << 30


def main() -> None:
    library = importlib.import_module("math_verify")  # it ships no types
    logging.disable(logging.CRITICAL)  # it logs each answer that it cannot parse
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            gold = library.parse(f"${asked['reference']}$", parsing_timeout=_SECONDS)
            found = library.parse(asked["answer"], parsing_timeout=_SECONDS)
            same = bool(library.verify(gold, found, timeout_seconds=_SECONDS))
        except BaseException:  # its timeout is no Exception; and an answer that breaks a parser is not the same
            same = False
        sys.stdout.write(json.dumps({"same": same}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
