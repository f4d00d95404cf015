"""Writes README.md's list of files: a line each, the first sentence of its own docstring or comment. `make docs`.

A test compares the list with the tree, so that a new file without a purpose is seen at once.
"""

from __future__ import annotations

import ast
import re
import sys
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("agents", "jobs", "controlplane", "dashboards", "migrations", "benchmarks", "tools")
KINDS = {".py": "", ".js": "//", ".toml": "#", ".yaml": "#"}
"""What is listed, by what begins a comment there; Python has docstrings"""
BEGIN, END = "<!-- files: written by tools/filelist.py -->", "<!-- end of files -->"


def first_sentence(path: Path) -> str:
    """What a file says of itself, up to its first full stop."""
    if mark := KINDS[path.suffix]:
        head = takewhile(lambda line: line.startswith(mark), path.read_text().splitlines())
        said = " ".join(line.removeprefix(mark) for line in head)
    else:
        said = ast.get_docstring(ast.parse(path.read_text())) or ""
    text = " ".join(said.split())
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def listing() -> str:
    """The list as Markdown, a room at a time."""
    lines = [BEGIN]
    for room in ROOMS:
        files = [path for path in sorted((ROOT / room).rglob("*")) if path.suffix in KINDS and path.stat().st_size]
        lines += [
            "",
            f"<details><summary><b>{room}/</b>, {len(files)} files</summary>",
            "",
            "| file | what it is |",
            "|---|---|",
        ]
        lines += [
            f"| `{path.relative_to(ROOT).as_posix()}` | {first_sentence(path).replace('|', '/')} |" for path in files
        ]
        lines += ["", "</details>"]
    return "\n".join([*lines, END])


def main() -> int:
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(before + listing() + rest.split(END)[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
