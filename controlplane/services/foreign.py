"""Checkpoints of trainers that write no manifest: found by their layout, listed and hashed here, then as good as any.

What a layout calls finished counts once nothing in it has changed for a few seconds: several ranks may still be
writing, and no framework's mark covers all of them. Then its files are read once and listed in the run's folder, by a
thread of its own where they are large, so that no run waits for another's terabyte. A directory that its trainer
deletes again is told and not used. No database session is open meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from controlplane.store.tables import Attempt, Checkpoint
from jobs.contract import ContractError, as_text
from jobs.layouts import listing
from jobs.layouts.base import Layout, SeenCheckpoint
from jobs.layouts.listing import Listing
from jobs.layouts.registry import LAYOUTS

SETTLE_S = 3.0
INLINE_BYTES = 64 << 20
REASON_CHARS = 500
NOTE = "its trainer writes no manifest: its files were listed and hashed here"
_SETTLED = ("validated", "tainted")
GONE = "its directory is gone: its trainer keeps only the newest ones"
Row = dict[str, Any]
_log = structlog.get_logger()


@dataclass
class ForeignLook:
    """What one look at a run's disk brought: rows, whether a checkpoint may become usable soon, why it failed."""

    rows: list[Row] = field(default_factory=list)
    waits: bool = False
    failed: str = ""


def unread(error: OSError, place: Path) -> str:
    """Which file could not be read, and why: /runs/x/attempt-0001: Stale file handle."""
    return as_text(f"{error.filename or place}: {error.strerror or error}")[:REASON_CHARS]


def layout_of(attempts: Sequence[Attempt]) -> Layout | None:
    """The layout that the run's spec names, for its number of ranks; None of a run whose trainer writes manifests."""
    body = attempts[-1].spec.get("spec") or {} if attempts else {}
    layout = LAYOUTS.get((body.get("trainer") or {}).get("layout") or "")
    asked = body.get("resources") or {}
    ranks = int(asked.get("nodes") or 0) * int(asked.get("ranksPerNode") or 1)
    return layout.of_world(ranks) if layout is not None else None


def _made(layout: str, found: SeenCheckpoint, path: Path) -> Listing | str | None:
    """The list of a checkpoint, kept; why there can be none; None when it changed meanwhile: look again."""
    try:
        made = listing.make(layout, found)
        listing.write(path, made)
    except ContractError:
        return None
    except OSError as error:
        return f"it cannot be read: {error}"
    return made


class Lister:
    """Lists checkpoints, those over `inline_bytes` in a thread, one at a time."""

    def __init__(self, inline_bytes: int = INLINE_BYTES) -> None:
        self._inline_bytes = inline_bytes
        self._made: dict[Path, Listing | str | None] = {}
        self._busy: set[Path] = set()
        self._turn = threading.Lock()

    def listed(self, layout: str, found: SeenCheckpoint, path: Path) -> Listing | str | None:
        """As `_made`; None also while the files are still being read: ask again."""
        if found.bytes <= self._inline_bytes:
            return _made(layout, found, path)
        if found.directory in self._made:
            return self._made.pop(found.directory)
        if found.directory not in self._busy:
            self._busy.add(found.directory)
            # a daemon: a server that stops does not wait for it, and the next one reads again
            threading.Thread(target=self._read, args=(layout, found, path), name="list", daemon=True).start()
        return None

    def _read(self, layout: str, found: SeenCheckpoint, path: Path) -> None:
        with self._turn:
            try:
                made = _made(layout, found, path)
            except Exception as error:  # without an answer the run would wait for one
                made = f"it cannot be read: {error}"
            if made is not None:
                self._made[found.directory] = made
            self._busy.discard(found.directory)


class Foreign:
    """Remembers since when each finished directory has stood still."""

    def __init__(self, lister: Lister | None = None) -> None:
        self._lister = lister or Lister()
        self._still: dict[Path, tuple[object, float]] = {}

    def look(
        self,
        layout: Layout,
        folder: Path,
        epochs: Mapping[int, int],
        offsets: Mapping[int, float],
        known: Mapping[str, str],
        now: float,
        *,
        again: bool,
    ) -> ForeignLook:
        """What is new on a run's disk. `known`: states by path.

        `again`: what was good is looked into again, as before a restart, and what was not is read again.
        """
        settled = _SETTLED if again else (*_SETTLED, "complete")
        look = ForeignLook()
        there: set[str] = set()
        for no in epochs:
            home = folder / f"attempt-{no:04d}"
            try:
                for directory, step in layout.steps(home):
                    path = str(directory)
                    if known.get(path) in settled and not (again and known[path] == "validated"):
                        there.add(path)
                        continue
                    found = layout.inspect(directory, step)
                    if not found.unfinished:
                        there.add(path)
                    made = None if known.get(path) in settled else self._judge(layout, folder, found, look, now)
                    if made is not None:
                        look.rows.append(_row(made, found, no, epochs[no], offsets.get(no, 0.0)))
            except OSError as error:
                _log.warning("an attempt's checkpoints cannot be looked at", folder=str(home), error=str(error))
                look.failed = unread(error, home)
                there |= {path for path in known if Path(path).is_relative_to(home)}  # not seen is not gone
        look.rows += [_gone(path) for path, state in known.items() if state == "validated" and path not in there]
        look.rows = [row for row in look.rows if known.get(row["path"]) != row["state"]]
        return look

    def _judge(
        self, layout: Layout, folder: Path, found: SeenCheckpoint, look: ForeignLook, now: float
    ) -> Listing | str | None:
        if found.unfinished:
            self._still.pop(found.directory, None)
            return None
        mark, since = self._still.get(found.directory, (None, now))
        if mark != found.fingerprint:
            self._still[found.directory] = found.fingerprint, now
            since = now
        made = None
        if now - since >= SETTLE_S:
            made = self._lister.listed(layout.name, found, listing.place(folder, found.directory))
        look.waits |= made is None
        if made is not None:
            self._still.pop(found.directory, None)
        return made


def _row(made: Listing | str, found: SeenCheckpoint, no: int, epoch: int, offset: float) -> Row:
    """`offset`: seconds to add to the clock of the attempt's writer."""
    ok = isinstance(made, Listing)
    return {
        "path": str(found.directory),
        "attempt_no": no,
        "epoch": epoch,
        "step": found.step,
        "state": "validated" if ok else "complete",
        "state_at_s": found.begun_at_s + offset,
        "written_at_s": found.written_at_s + offset,
        "bytes": found.bytes,
        "reason": NOTE if ok else as_text(str(made))[:REASON_CHARS],
        "hash": made.hash() if isinstance(made, Listing) else "",
    }


def _gone(path: str) -> Row:
    return {"path": path, "state": "complete", "reason": GONE}


def listed(row: Checkpoint) -> Row | None:
    """A checkpoint of a layout in a manifest's terms, from its list; None where there is none that can be trusted."""
    directory = Path(row.path)
    home = next((path.parent for path in directory.parents if path.name.startswith("attempt-")), None)
    if home is None:
        return None
    try:
        made = listing.read(listing.place(home, directory))
    except ContractError:
        return None
    names = ("attempt_no", "epoch", "step", "bias_checksum", "parent", "state_at_s", "written_at_s")
    files = [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in made.files]
    known = {name: getattr(row, name) for name in names}
    return {**known, "layout": made.layout, "world_size": None, "data_position": None, "files": files}
