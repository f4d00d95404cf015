"""docs/scenarios.md from the rows that the tests of tests/flow wrote: what each rule on nodes was seen to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HEAD = """\
# The fault table, as it was seen

Written by `make scenarios`: for each rule that runs on a node, and for those of the server that compare nodes and GPUs
with their peers, something was done to a device or said by its kernel, behind the real `amdsmi` package over a stand-in
library and real file formats, and the agent and a server did the rest on a virtual clock. Fired: seconds until the
fault was in the server's database and its incident open. Cleared: seconds after the repair, in steps of 30, of peers in
steps of 10. Each row also has something just below it that did not fire.

| rule | severity, action | what was said | fired | cleared |
|---|---|---|---|---|
"""


def table(rows: list[dict[str, object]]) -> str:
    """The page; the rules in order of name, the last word of each."""
    last = {str(row["rule"]): row for row in rows}
    lines = [
        f"| `{rule}` | {row['severity']}, {row['action']} | {row['sentence']} | "
        f"{row['fired_s']} s | {row['cleared_s']} s |"
        for rule, row in sorted(last.items())
    ]
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    Path(__file__).resolve().parent.parent.joinpath("docs/scenarios.md").write_text(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
