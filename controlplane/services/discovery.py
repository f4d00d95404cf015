"""Finds what a run has saved: the step directories on its disk, each verified once.

Nothing is believed before its files have been read and compared with the manifest. Small checkpoints are read at once,
large ones beside the controller's rounds, so that hashing one run's terabyte delays no other run's restart. No database
session is open meanwhile; the caller writes what is found.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from controlplane.runs.checkpoints import refuses
from controlplane.services.foreign import Foreign, layout_of, unread
from controlplane.store import runs, watch
from controlplane.store.engine import Store
from jobs.contract import (
    ContractError,
    Manifest,
    Verification,
    as_text,
    checkpoint_hash,
    list_checkpoints,
    read_manifest,
    verify,
)

SCAN_EVERY_S = 1.0
REASON_CHARS = 500
INLINE_BYTES = 256 << 20  # a few tenths of a second to hash
_SETTLED = ("validated", "tainted")
_log = structlog.get_logger()


class Verifier:
    """Compares checkpoints with their manifests; those over `inline_bytes` in a thread of their own, one at a time."""

    def __init__(self, inline_bytes: int = INLINE_BYTES) -> None:
        self._inline_bytes = inline_bytes
        self._verdicts: dict[Path, Verification | None] = {}
        self._turn = threading.Lock()

    def verdict(self, directory: Path, size: int) -> Verification | None:
        """Whether the files are what the manifest says; None while they are still being read: ask again."""
        if size <= self._inline_bytes:
            return verify(directory)
        if directory not in self._verdicts:
            self._verdicts[directory] = None
            # a daemon: a server that stops does not wait for it, and the next one reads again
            threading.Thread(target=self._read, args=(directory,), name="verify", daemon=True).start()
            return None
        found = self._verdicts[directory]
        if found is not None:
            del self._verdicts[directory]
        return found

    def _read(self, directory: Path) -> None:
        with self._turn:
            try:
                self._verdicts[directory] = verify(directory)
            except Exception as error:  # without a verdict the run would wait for one
                self._verdicts[directory] = Verification(False, f"it cannot be read: {error}")


class Discovery:
    """Remembers when each run's disk was looked at last, and which runs have files that are still being read."""

    def __init__(self, store: Store, verifier: Verifier | None = None) -> None:
        self._store, self._verifier = store, verifier or Verifier()
        self._scanned: dict[str, float] = {}
        self._verifying: set[str] = set()
        self._failed: dict[str, str] = {}
        self._foreign = Foreign()

    def forget(self, run_id: str) -> None:
        """The next look is at once, and what could not be read is read again."""
        self._scanned.pop(run_id, None)

    def verifying(self, run_id: str) -> bool:
        """Whether a checkpoint of the run waits for its verdict."""
        return run_id in self._verifying

    def failed(self, run_id: str) -> bool:
        """Whether the last look at the run's disk failed, be it only for what its last attempt saved."""
        return run_id in self._failed

    def why(self, run_id: str) -> str:
        """What could not be read at that look, and why; "" if it did not fail."""
        return self._failed.get(run_id, "")

    def scan(self, run_id: str, folder: Path, now: float) -> list[dict[str, Any]]:
        """What is new or further than the store says: the values of a checkpoint row each. Once a second at most."""
        if now - self._scanned.get(run_id, 0.0) < SCAN_EVERY_S:
            return []
        again = run_id not in self._scanned
        self._scanned[run_id] = now
        with self._store.read() as session:
            known = {row.path: row.state for row in runs.checkpoints(session, run_id)}
            attempts = runs.attempts(session, run_id)
            clocks = watch.clock_offsets(session)
        epochs = {attempt.no: attempt.epoch for attempt in attempts}
        offsets = {attempt.no: clocks.get(attempt.nodes[0], 0.0) for attempt in attempts if attempt.nodes}
        settled = _SETTLED if again else (*_SETTLED, "complete")
        self._failed.pop(run_id, None)
        layout = layout_of(attempts)
        if layout is not None:
            self._verifying.discard(run_id)
            look = self._foreign.look(layout, folder, epochs, offsets, known, now, again=again)
            if look.waits:
                self._verifying.add(run_id)
            if look.failed:
                self._failed[run_id] = look.failed
            return look.rows
        newest = folder / f"attempt-{attempts[-1].no:04d}" if attempts else None
        try:
            if newest is not None:
                newest.stat()  # it was made before the attempt began: a disk that lacks it is not the run's
            directories = list_checkpoints(folder)
        except OSError as error:
            _log.warning("a run's checkpoints cannot be looked at", run=run_id, error=str(error))
            self._failed[run_id] = unread(error, newest or folder)
            return []
        self._verifying.discard(run_id)
        found = [
            self._judge(run_id, directory, epochs, offsets, last=directory.parent == newest)
            for directory in directories
            if known.get(str(directory)) not in settled
        ]
        return [values for values in found if values is not None and known.get(values["path"]) != values["state"]]

    def _judge(
        self, run_id: str, directory: Path, epochs: Mapping[int, int], offsets: Mapping[int, float], *, last: bool
    ) -> dict[str, Any] | None:
        """One directory's row; None while it is being written or read, or was abandoned half way."""
        try:
            manifest, digest = read_manifest(directory), checkpoint_hash(directory)
        except ContractError as error:
            if last and isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                self._failed[run_id] = unread(error.__cause__, directory)
            return None if "never completed" in str(error) else _unreadable(directory, str(error))
        size = sum(file.bytes for file in manifest.files)
        offset = offsets.get(manifest.attempt_no, 0.0)
        stale = refuses(manifest.epoch, epochs.get(manifest.attempt_no))
        if manifest.run_id != run_id:
            stale = f"its manifest is that of run {manifest.run_id[:80]}"
        if stale:
            return {**_row(directory, manifest, size, offset, "tainted", stale), "hash": digest}
        verdict = self._verifier.verdict(directory, size)
        if verdict is None:
            self._verifying.add(run_id)
            return None
        if last and "cannot be read" in verdict.reason:
            self._failed[run_id] = f"{directory}: {verdict.reason}"[:REASON_CHARS]
        state = "validated" if verdict.ok else "complete"
        return {**_row(directory, manifest, size, offset, state, verdict.reason), "hash": digest}


def _row(directory: Path, manifest: Manifest, size: int, offset: float, state: str, reason: str) -> dict[str, Any]:
    """`offset`: seconds to add to the clock of the attempt's writer."""
    return {
        "path": str(directory),
        "attempt_no": manifest.attempt_no,
        "epoch": manifest.epoch,
        "step": manifest.step,
        "state": state,
        "state_at_s": manifest.state_at_s + offset,
        "written_at_s": manifest.written_at_s + offset,
        "bytes": size,
        "bias_checksum": manifest.bias_checksum,
        "parent": manifest.parent,
        "reason": reason,
    }


def _unreadable(directory: Path, reason: str) -> dict[str, Any]:
    return {
        "path": str(directory),
        "attempt_no": _number(directory.parent.name, "attempt-"),
        "epoch": 0,
        "step": _number(directory.name, "step-"),
        "state": "complete",
        "state_at_s": None,
        "written_at_s": None,
        "reason": as_text(reason)[:REASON_CHARS],
    }


def _number(name: str, prefix: str) -> int:
    """The number in a directory's name; 0 for one that no attempt and no step can have."""
    digits = name.removeprefix(prefix).lstrip("0")
    return int(digits) if digits.isdecimal() and len(digits) < 10 else 0
