"""Turns samples into faults: one small state a rule and entity, the rule file's words for the rest.

Pure but for its own memory: time comes with the samples, nothing is read or sent. An UNKNOWN value is no evidence, for
or against: neither a window that must be full nor one that must be quiet grows while nothing is known. Durations are
taken from the monotonic clock, stamps from the wall clock, so a clock that is set neither makes nor ends a fault.
Baselines (counters' values when first seen) belong to a boot and a serial; `baselines` and `firing()` can be kept
across restarts of the agent. A counter that grows on while its fault fires ends that fault and begins another: the
errors are new ones, whatever became of the first.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from agents.readings import GPU_INDEX, NIC_INDEX, UNKNOWN, Fault, KernelLine, NodeFacts, NodeSample, fault_id
from agents.rules.load import Rule

TOLERANCE_S = 0.25
"""Sampling is never exact to the millisecond: three samples a second apart fill a window of 3 s."""
LONGEST_GAP_S = 5.0
"""A longer pause between two samples (a stopped agent) says nothing about the time in between."""
REPEAT_S = 60.0
"""A counter that grows each second is a new fault once in so many seconds."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """Who was using a device: the run, its attempt and the rank on this node; empty when nobody."""

    run_id: str = ""
    attempt_no: int = 0
    rank: int = -1


@dataclass(frozen=True, slots=True)
class _Verdict:
    """One look at one entity: is the condition there (None: cannot tell), with which figures and since when."""

    holds: bool | None
    value: float = 0.0
    baseline: float = 0.0
    line: KernelLine | None = None


UNTOLD = _Verdict(None)


@dataclass(slots=True)
class _State:
    """What is remembered of a rule on an entity. `lasted_s` is how long `holds` has been what it is, seen time only."""

    holds: bool = False
    lasted_s: float = 0.0
    told_monotonic_s: float | None = None
    onset_s: float = 0.0
    last_clean_s: float | None = None
    firing: Fault | None = None
    fired_monotonic_s: float | None = None
    grown: tuple[float, float] | None = None
    """a counter's growth beyond what its fault told: (first sample with it, last sample without), wall time"""
    still_s: float | None = None
    last_raw: int = UNKNOWN
    history: deque[tuple[float, int, int]] = field(default_factory=deque)

    def age(self, holds: bool, sample: NodeSample) -> None:
        """Takes a verdict in."""
        told = self.told_monotonic_s
        gap = 0.0 if told is None else min(max(0.0, sample.monotonic_s - told), LONGEST_GAP_S)
        if holds and not self.holds:
            self.onset_s = sample.at_s
        self.lasted_s = gap + (self.lasted_s if holds == self.holds else 0.0)
        self.holds, self.told_monotonic_s = holds, sample.monotonic_s
        if not holds:
            self.last_clean_s = sample.at_s


class Evaluator:
    """The rules of one node. `baselines` maps "serial/metric" to a raw value; `firing` are faults of an earlier
    evaluator, which go on or clear here."""

    def __init__(
        self,
        rules: tuple[Rule, ...],
        node: str,
        boot_id: str,
        facts: NodeFacts,
        baselines: dict[str, int] | None = None,
        firing: Iterable[Fault] = (),
    ) -> None:
        self.rules, self.node, self.boot_id, self.facts = rules, node, boot_id, facts
        self.baselines: dict[str, int] = dict(baselines or {})
        self._patterns = {rule.id: re.compile(rule.pattern) for rule in rules if rule.signal == "kernel"}
        index = {"gpu": GPU_INDEX, "nic": NIC_INDEX}
        self._columns = {rule.id: [index[rule.scope][name] for name in rule.metrics] for rule in rules}
        self._states = {(fault.rule, fault.entity): _State(firing=fault) for fault in firing}
        known = {rule.id for rule in rules}
        self._orphans = [key for key in self._states if key[0] not in known]

    def firing(self) -> list[Fault]:
        """The faults that fire now. May be asked from another thread."""
        return [state.firing for state in list(self._states.values()) if state.firing is not None]

    def check(self, sample: NodeSample, who: Attribution = Attribution()) -> list[Fault]:
        """Takes one sample in; returns the faults that begin to fire and those that clear with it."""
        changed: list[Fault] = []
        for key in self._orphans:
            changed += self._clear(self._states.pop(key), sample.at_s)
        self._orphans = []
        for rule in self.rules:
            for number, values in enumerate(sample.gpus if rule.scope == "gpu" else sample.nics):
                entity = f"{rule.scope}{number}"
                state = self._states.get((rule.id, entity))
                if state is None:
                    state = self._states[rule.id, entity] = _State()
                verdict = self._look(rule, number, values, sample, state)
                changed += self._judge(rule, entity, verdict, state, sample, who)
        return changed

    # --- is the condition there? -------------------------------------------------------------------------------------

    def _look(self, rule: Rule, number: int, values: tuple[int, ...], sample: NodeSample, state: _State) -> _Verdict:
        if rule.signal == "kernel":
            return self._kernel(rule, number, sample.kernel)
        total = 0
        for column in self._columns[rule.id]:
            if values[column] == UNKNOWN:
                state.told_monotonic_s = None
                return UNTOLD
            total += values[column]
        if rule.signal == "below":
            return _Verdict(total < rule.threshold, total)
        if rule.signal == "above":
            return _Verdict(total > rule.threshold, total)
        if rule.signal == "still":
            moved, state.last_raw = total - state.last_raw, total
            return _Verdict(moved == 0)
        if rule.signal == "share":
            return self._share(rule, total, values[GPU_INDEX["accumulation_ticks"]], sample.monotonic_s, state)
        key = f"{self._serial(rule, number)}/{'+'.join(rule.metrics)}"
        return self._degraded(rule, key, total) if rule.signal == "degraded" else self._increase(rule, key, total)

    def _increase(self, rule: Rule, key: str, total: int) -> _Verdict:
        """Growth over the baseline. A counter that went back was reset and counts from zero again."""
        baseline = self.baselines.setdefault(key, total)
        if total < baseline:
            self.baselines[key] = baseline = 0
        return _Verdict(total - baseline >= rule.threshold, total - baseline, baseline)

    def _degraded(self, rule: Rule, key: str, total: int) -> _Verdict:
        baseline = self.baselines[key] = max(self.baselines.get(key, total), total)
        return _Verdict(total <= baseline - rule.threshold, total, baseline)

    @staticmethod
    def _share(rule: Rule, ticks: int, accumulated: int, now_s: float, state: _State) -> _Verdict:
        """Residency over the window in percent: Δticks ÷ Δaccumulation; no verdict until the window is full."""
        if accumulated == UNKNOWN:
            return UNTOLD
        history = state.history
        if history and (accumulated < history[-1][2] or ticks < history[-1][1]):
            history.clear()
        history.append((now_s, ticks, accumulated))
        while len(history) > 1 and history[1][0] <= now_s - rule.window_s:
            history.popleft()
        since_s, first, first_accumulated = history[0]
        if since_s > now_s - rule.window_s or accumulated == first_accumulated:
            return UNTOLD
        share = 100.0 * (ticks - first) / (accumulated - first_accumulated)
        return _Verdict(share > rule.threshold, share)

    def _kernel(self, rule: Rule, number: int, lines: tuple[KernelLine, ...]) -> _Verdict:
        if not lines or number >= len(self.facts.gpus):
            return _Verdict(False)
        address, pattern = self.facts.gpus[number].pci_address, self._patterns[rule.id]
        found = [line for line in lines if line.pci_address == address and pattern.search(line.text)]
        return _Verdict(len(found) >= rule.threshold, len(found), line=found[0] if found else None)

    def _serial(self, rule: Rule, number: int) -> str:
        if rule.scope == "gpu":
            return self.facts.gpus[number].serial if number < len(self.facts.gpus) else f"gpu{number}"
        return self.facts.nics[number].name if number < len(self.facts.nics) else f"nic{number}"

    # --- does it begin or end a fault? -------------------------------------------------------------------------------

    def _judge(
        self, rule: Rule, entity: str, verdict: _Verdict, state: _State, sample: NodeSample, who: Attribution
    ) -> list[Fault]:
        if verdict.holds is None:
            return []
        state.age(verdict.holds, sample)
        if state.firing is None:
            # `share` has judged over its own window
            waited = rule.signal == "share" or state.lasted_s + TOLERANCE_S >= rule.window_s
            if not verdict.holds or not waited or (rule.needs_job and not who.run_id):
                return []
            return [self._fire(self._fault(rule, entity, verdict, state, sample.at_s, who), state, sample)]
        if verdict.holds and rule.signal == "increase":
            return self._grow(rule, entity, verdict, state, sample, who)
        # a latched counter that no longer exceeds its baseline was reset: repaired, or its driver loaded anew
        if verdict.holds or (not rule.latch and state.lasted_s + TOLERANCE_S < rule.clear_s):
            return []
        return self._clear(state, sample.at_s)

    def _grow(
        self, rule: Rule, entity: str, verdict: _Verdict, state: _State, sample: NodeSample, who: Attribution
    ) -> list[Fault]:
        """A counter above its baseline whose fault fires: beyond what that fault told, it is another fault."""
        total, told = verdict.baseline + verdict.value, _told(state.firing)
        told = min(told, verdict.baseline) if total < told else told  # reset meanwhile: what it counts is new
        if total - told < rule.threshold:
            state.still_s = sample.at_s
            return []
        before_s = sample.at_s - 1.0 if state.still_s is None else min(state.still_s, sample.at_s)
        state.grown = state.grown or (sample.at_s, before_s)
        fired = state.fired_monotonic_s
        if fired is not None and sample.monotonic_s - fired + TOLERANCE_S < REPEAT_S:
            return []
        state.onset_s, state.last_clean_s = state.grown
        growth = replace(verdict, value=total - told, baseline=told)
        ended = self._clear(state, sample.at_s)
        return [*ended, self._fire(self._fault(rule, entity, growth, state, sample.at_s, who), state, sample)]

    @staticmethod
    def _fire(fault: Fault, state: _State, sample: NodeSample) -> Fault:
        state.firing, state.fired_monotonic_s = fault, sample.monotonic_s
        state.grown, state.still_s = None, sample.at_s
        return fault

    @staticmethod
    def _clear(state: _State, at_s: float) -> list[Fault]:
        fault, state.firing, state.grown = state.firing, None, None
        return [] if fault is None else [replace(fault, state="clear", observed_s=at_s)]

    def _fault(self, rule: Rule, entity: str, verdict: _Verdict, state: _State, at_s: float, who: Attribution) -> Fault:
        onset_s = verdict.line.at_s if verdict.line is not None else state.onset_s
        evidence = {"title": rule.title, "metrics": list(rule.metrics), "baseline": verdict.baseline}
        if verdict.line is not None:
            evidence["line"] = verdict.line.text
        return Fault(
            id=fault_id(self.node, self.boot_id, rule.id, entity, onset_s),
            rule=rule.id,
            severity=rule.severity,
            action=rule.action,
            node=self.node,
            entity=entity,
            state="firing",
            onset_s=onset_s,
            last_clean_s=min(onset_s, onset_s - 1.0 if state.last_clean_s is None else state.last_clean_s),
            observed_s=at_s,
            value=verdict.value,
            threshold=rule.threshold,
            sentence=rule.say(entity, self.node, verdict.value, verdict.baseline, state.lasted_s),
            evidence=evidence,
            run_id=who.run_id,
            attempt_no=who.attempt_no,
            rank=who.rank,
        )


def _told(fault: Fault | None) -> float:
    """The counter's value up to which a fault has told of its growth."""
    baseline = 0.0 if fault is None else fault.evidence.get("baseline", 0.0)
    return baseline + fault.value if fault is not None and isinstance(baseline, int | float) else 0.0
