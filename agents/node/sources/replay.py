"""A node as it was once: a recording through the agent's whole path, at the pace of whoever asks for samples.

It says that it is simulated, whatever it was when it was recorded: what it shows is not happening.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agents.node.recording import Recording, RecordingError
from agents.node.sources.base import Quality, SourceError
from agents.readings import UNKNOWN, GpuUser, KernelLine, NodeFacts, NodeSample


class ReplaySource:
    """After its last second the node is unknown: the recording has nothing more to say."""

    name = "replay"
    simulated = True

    def __init__(self, path: Path) -> None:
        try:
            self._recording = Recording(path)
        except RecordingError as error:
            raise SourceError(str(error)) from error
        self._moments = iter(self._recording)
        self._last: NodeSample | None = None
        self.over = False

    def facts(self) -> NodeFacts:
        return replace(self._recording.facts, source=self.name, simulated=True)

    def sample(self, at_s: float, monotonic_s: float) -> NodeSample:
        moment = next(self._moments, None)
        if moment is not None:
            self._last = moment.sample(at_s, monotonic_s)
            return self._last
        self.over = True
        if self._last is None:
            return NodeSample(at_s, monotonic_s, (), ())

        def unknown(rows: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
            return tuple(tuple(UNKNOWN for _ in row) for row in rows)

        last = self._last
        return NodeSample(at_s, monotonic_s, unknown(last.gpus), unknown(last.nics), (), unknown(last.host))

    def lines(self) -> tuple[KernelLine, ...]:
        """None in between: they come with the samples."""
        return ()

    def users(self) -> tuple[GpuUser, ...]:
        """Nobody now."""
        return ()

    def wakes(self) -> tuple[int, ...]:
        return ()

    def driver_load(self) -> str:
        return "replay"

    def quality(self) -> Quality:
        """Nothing fails here."""
        return Quality()

    def marks(self) -> dict[str, int]:
        return {}

    def follow(self, step_rate: float | None) -> None:
        """Nothing: what was, was."""

    def apply_drill(self, kind: str, gpu: int) -> str:
        """Refused: a recording cannot be changed."""
        return f"a recording shows what was: {kind} cannot be played on GPU {gpu} of it"

    def close(self) -> None:
        self._recording.close()
