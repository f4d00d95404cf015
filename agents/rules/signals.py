"""Is a rule's condition there, now, on one device? One class a kind of signal, each with the memory it needs. Pure.

A signal is asked once a sample with the device's row and answers with a Verdict; None in it means that nobody can tell,
which is no evidence for or against. How long a condition must hold, and what follows from it, is `evaluate`'s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from statistics import median

from agents.readings import INDEX, METRICS, UNKNOWN, KernelLine
from agents.rules.load import Rule

POINTS = 60
"""How many samples of a window are remembered: enough for its ends, whatever its length."""
LEAST_LINK_KB = 1_000_000
"""What the other links must have carried in a window before the slowest of them says anything."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One look at one device: is the condition there (None: cannot tell), with which figures and since when."""

    holds: bool | None
    value: float = 0.0
    baseline: float = 0.0
    line: KernelLine | None = None


UNTOLD = Verdict(None)
ABSENT = Verdict(False)


class Signal(ABC):
    """A rule on one device. `key` names the device by its serial in `baselines`, which outlive the agent.

    Rules speak in units, rows are raw: thresholds and guards are brought to raw figures once, here.
    """

    judges_window = False
    """whether the verdict is already over the rule's own window"""
    total = UNKNOWN
    values: tuple[int, ...] = ()
    now_s = 0.0

    def __init__(self, rule: Rule, key: str, baselines: MutableMapping[str, int]) -> None:
        index, metrics = INDEX[rule.scope], METRICS[rule.scope]
        self.rule, self.baselines = rule, baselines
        self.scale = metrics[index[rule.metrics[0]]].resolution
        self.threshold = rule.threshold / self.scale
        self.key = f"{key}/{'+'.join(rule.metrics)}"
        self._columns = [index[name] for name in rule.metrics]
        self._of = index[rule.of] if rule.of else -1
        self._guards = [
            (index[guard.metric], replace(guard, figure=guard.figure / metrics[index[guard.metric]].resolution))
            for guard in rule.guards
        ]

    def look(self, values: tuple[int, ...], now_s: float, employed: bool) -> Verdict:
        """The verdict on a row of the device at a monotonic time; `employed`: a job is on the device."""
        total, self.values, self.now_s = 0, values, now_s
        for column in self._columns:
            if values[column] == UNKNOWN:
                return UNTOLD
            total += values[column]
        self.total = total
        for column, guard in self._guards:
            if values[column] == UNKNOWN:
                return UNTOLD
            if not guard.holds(values[column]):
                self.rest()
                return ABSENT
        if self.rule.needs_job and not employed:
            self.rest()
            return ABSENT
        return self.judge()

    @abstractmethod
    def judge(self) -> Verdict:
        """The verdict on `total`, the sum of the metrics, in the row `values` at `now_s`; every guard is satisfied."""

    def rest(self) -> None:  # noqa: B027  # most signals have nothing to do then
        """A sample in which a guard, or the want of a job, keeps the rule from looking."""


class Below(Signal):
    """A gauge under the threshold."""

    def judge(self) -> Verdict:
        return Verdict(self.total < self.threshold, self.total * self.scale)


class Above(Signal):
    """A gauge over the threshold."""

    def judge(self) -> Verdict:
        return Verdict(self.total > self.threshold, self.total * self.scale)


class Still(Signal):
    """A counter that did not move since the sample before."""

    last = UNKNOWN

    def judge(self) -> Verdict:
        moved, self.last = self.total - self.last, self.total
        return Verdict(abs(moved) < self.threshold, moved * self.scale)

    def rest(self) -> None:
        self.last = self.total


class Increase(Signal):
    """A counter above its baseline. One that went back was reset and counts from zero again."""

    def judge(self) -> Verdict:
        baseline = self.baselines.setdefault(self.key, self.total)
        if self.total < baseline:
            self.baselines[self.key] = baseline = 0
        return Verdict(self.total - baseline >= self.rule.threshold, self.total - baseline, baseline)

    def rest(self) -> None:
        """What was counted while nobody was there is nobody's."""
        self.baselines[self.key] = self.total


class Degraded(Signal):
    """A gauge under the best value that it has had."""

    def judge(self) -> Verdict:
        baseline = self.baselines[self.key] = max(self.baselines.get(self.key, self.total), self.total)
        return Verdict(self.total <= baseline - self.threshold, self.total * self.scale, baseline * self.scale)


class Ratio(Signal):
    """A gauge as percent of another."""

    def judge(self) -> Verdict:
        of = self.values[self._of]
        if of == UNKNOWN or of <= 0:
            return UNTOLD
        share = 100.0 * self.total / of
        return Verdict(share >= self.rule.threshold, share, of)


class Share(Signal):
    """A counter's growth as percent of another's, over the window; no verdict until the window is full."""

    judges_window = True

    def __init__(self, rule: Rule, key: str, baselines: MutableMapping[str, int]) -> None:
        super().__init__(rule, key, baselines)
        self._history: deque[tuple[float, int, int]] = deque()
        self._least = max(self.rule.least, 1.0)

    def judge(self) -> Verdict:
        of, history, window_s = self.values[self._of], self._history, self.rule.window_s
        if of == UNKNOWN:
            return UNTOLD
        if history and (of < history[-1][2] or self.total < history[-1][1]):
            history.clear()  # reset, by repair or driver load
        if not history or self.now_s - history[-1][0] >= window_s / POINTS:
            history.append((self.now_s, self.total, of))
        while len(history) > 1 and history[1][0] <= self.now_s - window_s:
            history.popleft()
        since_s, first, first_of = history[0]
        if since_s > self.now_s - window_s or of - first_of < self._least:
            return UNTOLD
        share = 100.0 * (self.total - first) / (of - first_of)
        return Verdict(share > self.rule.threshold, share)

    def rest(self) -> None:
        self._history.clear()


class Rate(Signal):
    """A counter that grew by more than the threshold in each `per_s` of the whole window."""

    judges_window = True

    def __init__(self, rule: Rule, key: str, baselines: MutableMapping[str, int]) -> None:
        super().__init__(rule, key, baselines)
        self._begun: tuple[float, int] | None = None
        self._streak = 0
        self._last = ABSENT

    def judge(self) -> Verdict:
        if self._begun is None or self.total < self._begun[1]:
            self._begun = self.now_s, self.total
        since_s, first = self._begun
        if self.now_s - since_s >= self.rule.per_s:
            grown = (self.total - first) * self.rule.per_s / (self.now_s - since_s)
            self._streak = self._streak + 1 if grown > self.rule.threshold else 0
            self._begun = self.now_s, self.total
            self._last = Verdict(self._streak * self.rule.per_s >= self.rule.window_s, grown)
        return self._last


class Burst(Signal):
    """A counter that grew by at least the threshold within the window, in however many steps."""

    judges_window = True

    def __init__(self, rule: Rule, key: str, baselines: MutableMapping[str, int]) -> None:
        super().__init__(rule, key, baselines)
        self._steps: deque[tuple[float, int]] = deque()
        self._last = UNKNOWN

    def judge(self) -> Verdict:
        grown = 0 if self._last == UNKNOWN else self.total - self._last
        self._last = self.total
        if grown > 0:
            self._steps.append((self.now_s, grown))
        while self._steps and self._steps[0][0] <= self.now_s - self.rule.window_s:
            self._steps.popleft()
        found = sum(step for _, step in self._steps)
        return Verdict(found >= self.rule.threshold, found)


class Laggard(Signal):
    """Counters of one kind, of which the slowest grew by less than a percentage of the median of the others."""

    judges_window = True

    def __init__(self, rule: Rule, key: str, baselines: MutableMapping[str, int]) -> None:
        super().__init__(rule, key, baselines)
        self._history: deque[tuple[float, tuple[int, ...]]] = deque()
        # one that is not known (a link to itself) is left out, and does not end the look
        self._several, self._columns = self._columns, []

    def rest(self) -> None:
        self._history.clear()

    def judge(self) -> Verdict:
        row, history, window_s = tuple(self.values[one] for one in self._several), self._history, self.rule.window_s
        if not history or self.now_s - history[-1][0] >= window_s / POINTS:
            history.append((self.now_s, row))
        while len(history) > 1 and history[1][0] <= self.now_s - window_s:
            history.popleft()
        since_s, first = history[0]
        pairs = zip(first, row, strict=True)
        grown = sorted(after - before for before, after in pairs if UNKNOWN not in (before, after))
        if since_s > self.now_s - window_s or len(grown) < 3:
            return UNTOLD
        if grown[0] < 0:
            history.clear()
            return UNTOLD
        others = median(grown[1:])
        if others < LEAST_LINK_KB:
            return UNTOLD
        share = 100.0 * grown[0] / others
        return Verdict(share < self.rule.threshold, share)


OF_ROWS: dict[str, type[Signal]] = {
    "increase": Increase,
    "below": Below,
    "above": Above,
    "degraded": Degraded,
    "still": Still,
    "share": Share,
    "ratio": Ratio,
    "rate": Rate,
    "burst": Burst,
    "laggard": Laggard,
}
"""The signals that look at rows of samples; events and recurrences are looked for where lines and faults come by."""
