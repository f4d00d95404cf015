"""Follows the trainers of this node: their rings and heartbeat files under the runtime directory.

Sums the local ranks' counts of a step, since the server sums nodes only, and passes heartbeats on as bytes. A ring
whose writer is gone is read to its end, let go and, later, removed. Cursors are kept by the caller so that a restarted
agent neither repeats nor skips records.
"""

from __future__ import annotations

import contextlib
import math
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agents.node import rank_sums
from agents.probe.ring import RingError, RingMeta, RingReader, RingRecord
from agents.readings import ExpertRecord, HeartbeatFile, StepRecord

WAIT_FOR_RANKS_S = 1.0
RATE_WINDOW_S, LONGEST_RATE_WINDOW_S = 4.0, 120.0
STEPS_IN_RATE_WINDOW = 2.5
LONGEST_HEARTBEAT = 64 << 10
SPREAD_EVERY_S, SPREAD_EVERY_STEPS = 2.0, 16
KEEP_DEAD_S = 300.0
"""How long the ring of a dead trainer stays, for whoever wants to look at it."""


@dataclass
class _Step:
    """A step's records as the local ranks bring them."""

    seen_s: float
    records: dict[int, tuple[RingMeta, RingRecord]] = field(default_factory=dict)


@dataclass
class _Told:
    """When an attempt's spread was told last, how many steps ago, and how many ranks routed in each layer then."""

    at_s: float = -math.inf
    steps: int = 0
    routed: array[float] = field(default_factory=lambda: array("d"))


@dataclass
class Swept:
    """What one look found; `experts` are summed over the node's ranks."""

    experts: list[ExpertRecord] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)


class Folders:
    """Files by pattern in the folders of a folder, of those folders only that changed since the last look.

    A change within the clock tick of the last look leaves no trace: `forget`, once a second, makes up for it.
    """

    def __init__(self, root: Path, pattern: str) -> None:
        self._root, self._pattern = root, pattern
        self._folders: list[Path] = []
        self._seen_ns: dict[Path, int] = {}

    def forget(self) -> None:
        """The next look takes every folder for changed."""
        self._seen_ns.clear()

    def changed(self) -> list[Path]:
        """The files of every folder that changed, in order of folder and name."""
        if self._moved(self._root):
            self._folders = sorted(path for path in self._root.glob("*") if path.is_dir())
        return [file for folder in self._folders if self._moved(folder) for file in sorted(folder.glob(self._pattern))]

    def _moved(self, folder: Path) -> bool:
        try:
            changed_ns = folder.stat().st_mtime_ns
        except OSError:
            return False
        moved = self._seen_ns.get(folder) != changed_ns
        self._seen_ns[folder] = changed_ns
        return moved


class RuntimeDirectory:
    """`runtime_dir/attempts/<attempt>/` holds rings and heartbeats; `cursors` maps a ring's name to records read."""

    def __init__(self, runtime_dir: Path, cursors: dict[str, int] | None = None) -> None:
        attempts = self._attempts = runtime_dir / "attempts"
        self.cursors = dict(cursors or {})
        self._ring_files = Folders(attempts, "ring-rank-*.bin")
        self._beat_files = Folders(attempts, "heartbeat-rank-*.json")
        self._rings: dict[Path, RingReader] = {}
        self._dead_s: dict[Path, float] = {}
        """when the ring of a dead trainer was read to its end"""
        self._ended: dict[Path, int] = {}
        """the inode of each ring that is done with or cannot be read: a new file of the name is looked at again"""
        self._beats: dict[Path, tuple[int, int]] = {}
        self._steps: dict[tuple[str, int, int], _Step] = {}
        self._recent: list[float] = []
        self._step_seconds = 0.0
        self.missed = 0
        self._missed_told = 0
        self._spreads: dict[tuple[str, int], _Told] = {}
        self.broken: dict[str, str] = {}

    def look_around(self) -> None:
        """Once a second: makes the next sweep list every folder, and forgets what is no longer there."""
        self._ring_files.forget()
        self._beat_files.forget()
        living = {(reader.meta.run_id, reader.meta.attempt_no) for reader in self._rings.values()}
        self._spreads = {key: told for key, told in self._spreads.items() if key in living}
        there = {key for key in self.cursors if (self._attempts / key).parent.exists()}
        self.cursors = {key: at for key, at in self.cursors.items() if key in there}
        self._ended = {path: inode for path, inode in self._ended.items() if path.exists()}
        self._beats = {path: mark for path, mark in self._beats.items() if path.exists()}

    def tell_again(self) -> None:
        """Takes every heartbeat file for changed: some batches that told of them were lost."""
        self._beat_files.forget()
        self._beats.clear()

    def sweep(self, now_s: float) -> Swept:
        """Everything new since the last call."""
        swept = Swept()
        self._clean(now_s)
        self._open_rings()
        for path in list(self._rings):
            self._read_ring(path, now_s, swept)
        swept.experts += list(self._summed(now_s))
        return swept

    def heartbeats(self) -> list[HeartbeatFile]:
        """Heartbeat files that changed since the last call."""
        found = []
        for path in self._beat_files.changed():
            try:
                stat = path.stat()
                mark = (stat.st_mtime_ns, stat.st_ino)
                if self._beats.get(path) == mark or stat.st_size > LONGEST_HEARTBEAT:
                    continue
                body = path.read_bytes()
            except OSError:
                continue
            self._beats[path] = mark
            found.append(HeartbeatFile(f"{path.parent.name}/{path.name}", stat.st_mtime, len(body), body))
        return found

    def step_rate(self, now_s: float) -> float | None:
        """Steps a second, all ranks together, over a few of their steps; None when no trainer lives here."""
        wanted = STEPS_IN_RATE_WINDOW * self._step_seconds
        window_s = min(max(wanted, RATE_WINDOW_S), LONGEST_RATE_WINDOW_S)
        self._recent = [at for at in self._recent if at > now_s - window_s]
        return len(self._recent) / window_s if self._rings else None

    def ranks(self) -> list[RingMeta]:
        """The ranks that live on this node, those of the newest attempt first."""
        metas = [reader.meta for reader in self._rings.values() if reader.written_by_living]
        return sorted(metas, key=lambda meta: (-meta.attempt_no, meta.rank))

    def heartbeat_ages(self, now_s: float) -> dict[int, float]:
        """How long ago each rank's heartbeat file was written, by this node's clock; none of a rank without one."""
        found: dict[int, float] = {}
        for path, (modified_ns, _) in self._beats.items():
            rank = path.stem.rpartition("-")[2]
            if rank.isdecimal():
                age_s = now_s - modified_ns / 1e9
                found[int(rank)] = min(age_s, found.get(int(rank), age_s))
        return found

    def _open_rings(self) -> None:
        for path in self._ring_files.changed():
            try:
                inode = path.stat().st_ino
                known = self._rings.get(path)
                if self._ended.get(path) == inode or (known is not None and known.inode == inode):
                    continue
                reader = RingReader(path)
            except OSError:
                continue
            except RingError as error:
                self.broken[path.name] = str(error)
                self._ended[path] = inode
                continue
            if known is not None:
                known.close()
            reader.next = self.cursors.get(self._key(path, reader.meta), 0)
            self._rings[path] = reader

    @staticmethod
    def _key(path: Path, meta: RingMeta) -> str:
        return f"{path.parent.name}/{path.name}/{meta.created_ns}"

    def _read_ring(self, path: Path, now_s: float, swept: Swept) -> None:
        reader = self._rings[path]
        alive = reader.written_by_living
        meta, missed = reader.meta, reader.missed
        try:
            for record in reader.read():
                self._recent.append(now_s)
                if record.step_seconds > 0:
                    self._step_seconds = record.step_seconds
                step = self._steps.setdefault((meta.run_id, meta.attempt_no, record.step), _Step(now_s))
                step.records[meta.rank] = meta, record
                swept.steps.append(self._step_record(meta, record))
        except RingError as error:
            self.broken[path.name], alive = str(error), False
        self.missed += reader.missed - missed
        self.cursors[self._key(path, meta)] = reader.next
        if not alive:
            self._ended[path] = reader.inode
            self._dead_s[path] = now_s
            reader.close()
            del self._rings[path]

    def _clean(self, now_s: float) -> None:
        """Removes rings whose trainers are dead and that nobody needs any more; what may not be removed stays."""
        for path in [path for path, dead_s in self._dead_s.items() if now_s - dead_s > KEEP_DEAD_S]:
            del self._dead_s[path]
            with contextlib.suppress(OSError):
                if path.stat().st_ino == self._ended.get(path):  # no later trainer's of the same name
                    path.unlink()

    @staticmethod
    def _step_record(meta: RingMeta, record: RingRecord) -> StepRecord:
        return StepRecord(
            run_id=meta.run_id,
            attempt_no=meta.attempt_no,
            epoch=meta.epoch,
            rank=meta.rank,
            step=record.step,
            at_s=record.at_s,
            loss=record.loss,
            grad_norm=record.grad_norm,
            step_seconds=record.step_seconds,
            tokens=record.tokens,
            learning_rate=record.learning_rate,
            data_position=record.data_position,
        )

    def _summed(self, now_s: float) -> Iterator[ExpertRecord]:
        """Steps for which every local rank of the attempt has spoken, or that waited long enough."""
        metas = [reader.meta for reader in self._rings.values()]
        rings = Counter((meta.run_id, meta.attempt_no) for meta in metas)
        worlds = {(meta.run_id, meta.attempt_no): meta.local_world for meta in metas}
        for step_key in sorted(self._steps):
            attempt, step, waiting = step_key[:2], step_key[2], self._steps[step_key]
            wanted = max(rings[attempt], worlds.get(attempt, 1))
            if len(waiting.records) < wanted and now_s - waiting.seen_s < WAIT_FOR_RANKS_S:
                continue
            del self._steps[step_key]
            yield self._expert_record(step, waiting.records, now_s)

    def _spread(self, meta: RingMeta, records: list[RingRecord], now_s: float) -> array[float]:
        """The spread between ranks, told now and then since it costs; between, only how many ranks route in each
        layer, and nothing where all of them do."""
        key = (meta.run_id, meta.attempt_no)
        told = self._spreads.setdefault(key, _Told())
        told.steps += 1
        if told.routed and told.steps < SPREAD_EVERY_STEPS and now_s - told.at_s < SPREAD_EVERY_S:
            plain = all(ranks == len(records) for ranks in told.routed)
            return array("d") if plain else array("d", [math.nan] * meta.layers) + told.routed
        spread = rank_sums.spread([record.counts for record in records], meta)
        self._spreads[key] = _Told(now_s, 0, spread[meta.layers :])
        return spread

    def _expert_record(self, step: int, found: dict[int, tuple[RingMeta, RingRecord]], now_s: float) -> ExpertRecord:
        """The sum over ranks of one shape, the lowest rank's."""
        meta = found[min(found)][0]
        records = [found[rank][1] for rank in sorted(found) if found[rank][0].array_bytes == meta.array_bytes]
        told = [record.route_mismatch for record in records if not math.isnan(record.route_mismatch)]
        dropped, self._missed_told = self.missed - self._missed_told, self.missed
        return ExpertRecord(
            run_id=meta.run_id,
            attempt_no=meta.attempt_no,
            epoch=meta.epoch,
            step=step,
            at_s=max(record.at_s for record in records),
            ranks=len(records),
            layers=meta.layers,
            slots=meta.slots,
            experts=meta.experts,
            top_k=meta.top_k,
            tokens=sum(record.routed for record in records),
            dropped=dropped,
            counts=array("I", rank_sums.summed([record.counts for record in records])),
            bias=rank_sums.joined_bias([record.bias for record in records], meta.layers),
            expert_parallel=meta.expert_parallel,
            tensor_parallel=meta.tensor_parallel,
            pipeline_parallel=meta.pipeline_parallel,
            start_bias=meta.start_bias,
            route_mismatch=sum(told) / len(told) if told else math.nan,
            facts=rank_sums.mean_facts([record.facts for record in records if record.facts]),
            spread=self._spread(meta, records, now_s),
        )
