"""Which short chunks are merged next: enough of one series, in the order of writing, to make a long one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import groupby
from typing import Any


def full(
    rows: Iterable[Any], *, series: Callable[[Any], Hashable], size: Callable[[Any], int], at_least: int
) -> list[list[int]]:
    """Ids of the chunks that make up each long one of `at_least` in size; `rows` have an id, each series together."""
    found = []
    for _, group in groupby(rows, key=series):
        ids, held = [], 0
        for row in group:
            ids.append(row.id)
            held += size(row)
            if held >= at_least:
                found.append(ids)
                ids, held = [], 0
    return found
