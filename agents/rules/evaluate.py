"""Turns samples and kernel lines into faults: one small state a rule and device, the rule file's words for the rest.

Pure but for its own memory: time comes with the samples, nothing is read or sent. An UNKNOWN value is no evidence, for
or against: neither a window that must be full nor one that must be quiet grows while nothing is known. Durations are
taken from the monotonic clock, stamps from the wall clock, so a clock that is set neither makes nor ends a fault.
Baselines (counters' values when first seen) belong to a boot and a serial, the history of faults to a serial alone:
both, and `firing()`, can be kept across restarts of the agent. A counter that grows on while its fault fires ends that
fault and begins another: the errors are new ones, whatever became of the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from agents.readings import Fault, KernelLine, NodeFacts, NodeSample, entity_of, fault_id
from agents.rules.load import Rule
from agents.rules.signals import OF_ROWS, Signal, Verdict

TOLERANCE_S = 0.25
"""Sampling is never exact to the millisecond: three samples a second apart fill a window of 3 s."""
LONGEST_GAP_S = 5.0
"""A longer pause between two samples (a stopped agent) says nothing about the time in between."""
REPEAT_S = 60.0
"""A counter that grows each second is a new fault once in so many seconds."""
REMEMBERED = 16
"""How many faults of a rule on a device are remembered for recurrences."""
Past = dict[str, list[tuple[float, str]]]
"""When faults began, wall time, and in which run, by "serial/rule"."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """Who was using a device: run, attempt, rank and pod, empty when nobody; `by_entity` has who differs.

    `heartbeat_age_s` is the age of the trainer's last heartbeat by this node's clock; None where there is none to see.
    """

    run_id: str = ""
    attempt_no: int = 0
    rank: int = -1
    pod: str = ""
    heartbeat_age_s: float | None = None
    by_entity: Mapping[str, Attribution] = field(default_factory=dict)

    def of(self, entity: str) -> Attribution:
        """Who was using one device."""
        return self.by_entity.get(entity, self)


@dataclass(slots=True)
class _State:
    """What is remembered of a rule on a device. `lasted_s` is how long `holds` has been what it is, seen time only."""

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

    def age(self, holds: bool, moment: _Moment) -> None:
        """Takes a verdict in."""
        told = self.told_monotonic_s
        gap = 0.0 if told is None else min(max(0.0, moment.monotonic_s - told), LONGEST_GAP_S)
        if holds and not self.holds:
            self.onset_s = moment.at_s
        self.lasted_s = gap + (self.lasted_s if holds == self.holds else 0.0)
        self.holds, self.told_monotonic_s = holds, moment.monotonic_s
        if not holds:
            self.last_clean_s = moment.at_s


@dataclass(frozen=True, slots=True)
class _Moment:
    """When a look happened, by both clocks, and who was using the node."""

    at_s: float
    monotonic_s: float
    who: Attribution


@dataclass(slots=True)
class _Watch:
    """A rule on one device of the node."""

    rule: Rule
    entity: str
    serial: str
    state: _State
    signal: Signal | None = None


class Evaluator:
    """The rules of one node. `baselines` maps "serial/metric" to a raw value; `firing` are faults of an earlier
    evaluator, which go on or clear here; `past` is what recurrences are counted from."""

    def __init__(
        self,
        rules: tuple[Rule, ...],
        node: str,
        boot_id: str,
        facts: NodeFacts,
        baselines: dict[str, int] | None = None,
        firing: Iterable[Fault] = (),
        past: Past | None = None,
    ) -> None:
        self.rules, self.node, self.boot_id, self.facts = rules, node, boot_id, facts
        self.baselines: dict[str, int] = dict(baselines or {})
        self.past: Past = {key: [(at, run) for at, run in found] for key, found in (past or {}).items()}
        self._of_rows = [rule for rule in rules if rule.signal in OF_ROWS]
        self._of_events = [rule for rule in rules if rule.signal == "event"]
        self._recurring = [rule for rule in rules if rule.signal == "recurrence"]
        known = {rule.id: rule for rule in rules}
        self._left = {(one.rule, one.entity): one for one in firing}
        self._orphans = [self._left.pop(key) for key in list(self._left) if key[0] not in known]
        self._rows: dict[tuple[str, int], list[tuple[_Watch, Signal]]] = {}
        self._marked: dict[tuple[str, str], _Watch] = {}
        self._looked_s: float | None = None
        """when lines were last looked at, wall time: what had not struck by then had not struck"""
        self._devices = {gpu.pci_address: ("gpu", gpu.index) for gpu in facts.gpus}
        self._devices |= {nic.pci_address: ("nic", nic.index) for nic in facts.nics if nic.pci_address}
        for (rule_id, entity), _ in list(self._left.items()):
            if known[rule_id].signal not in OF_ROWS:
                self._mark(known[rule_id], entity)

    def firing(self) -> list[Fault]:
        """The faults that fire now. May be asked from another thread."""
        watches = [watch for row in list(self._rows.values()) for watch, _ in row] + list(self._marked.values())
        told = [watch.state.firing for watch in watches if watch.state.firing is not None]
        return told + list(self._left.values()) + list(self._orphans)

    def check(self, sample: NodeSample, who: Attribution = Attribution()) -> list[Fault]:
        """Takes one sample in; returns the faults that begin to fire and those that clear with it."""
        moment = _Moment(sample.at_s, sample.monotonic_s, who)
        changed = [replace(fault, state="clear", observed_s=sample.at_s) for fault in self._orphans]
        self._orphans = []
        for scope in ("gpu", "nic", "host"):
            for number, values in enumerate(sample.rows(scope)):
                employed = bool(who.of(entity_of(scope, number)).run_id)
                for watch, signal in self._watches(scope, number):
                    changed += self._judge(watch, signal.look(values, sample.monotonic_s, employed), moment)
        changed += self._events(sample.kernel, moment)
        return changed + self._recur(changed, moment)

    def note(self, lines: tuple[KernelLine, ...], at_s: float, monotonic_s: float, who: Attribution) -> list[Fault]:
        """Takes kernel lines in between two samples, so that what they tell waits for none."""
        moment = _Moment(at_s, monotonic_s, who)
        found = self._events(lines, moment, idle=False)
        return found + self._recur(found, moment)

    # --- who is watched ----------------------------------------------------------------------------------------------

    def _watches(self, scope: str, number: int) -> list[tuple[_Watch, Signal]]:
        known = self._rows.get((scope, number))
        if known is not None:
            return known
        entity, serial = entity_of(scope, number), self._serial(scope, number)
        row = []
        for rule in self._of_rows:
            if rule.scope == scope:
                signal = OF_ROWS[rule.signal](rule, serial, self.baselines)
                row.append((_Watch(rule, entity, serial, self._state(rule, entity), signal), signal))
        self._rows[scope, number] = row
        return row

    def _mark(self, rule: Rule, entity: str) -> _Watch:
        """The watch of a rule that looks at lines or faults: made when it first has something to tell."""
        found = self._marked.get((rule.id, entity))
        if found is None:
            number = int(entity[len(rule.scope) :] or 0)
            found = _Watch(rule, entity, self._serial(rule.scope, number), self._state(rule, entity))
            found.state.last_clean_s = self._looked_s
            self._marked[rule.id, entity] = found
        return found

    def _state(self, rule: Rule, entity: str) -> _State:
        return _State(firing=self._left.pop((rule.id, entity), None))

    def _serial(self, scope: str, number: int) -> str:
        if scope == "gpu":
            return self.facts.gpus[number].serial if number < len(self.facts.gpus) else f"gpu{number}"
        if scope == "nic":
            return self.facts.nics[number].name if number < len(self.facts.nics) else f"nic{number}"
        return scope

    # --- lines and recurrences ---------------------------------------------------------------------------------------

    def _events(self, lines: tuple[KernelLine, ...], moment: _Moment, *, idle: bool = True) -> list[Fault]:
        """Rules on kernel lines: which fire now; with `idle`, also which have had none for long enough."""
        struck: dict[tuple[str, str], list[KernelLine]] = {}
        for line in lines:
            if line.kind:
                for rule in self._of_events:
                    entity = self._entity(rule.scope, line) if line.kind in rule.events else ""
                    if entity:
                        struck.setdefault((rule.id, entity), []).append(line)
                        self._mark(rule, entity)
        changed: list[Fault] = []
        for key, watch in list(self._marked.items()):
            found = struck.get(key, [])
            if watch.rule.signal == "event" and (found or idle):
                holds = len(found) >= max(1.0, watch.rule.threshold)
                employed = bool(moment.who.of(watch.entity).run_id)
                holds = holds and (employed or not watch.rule.needs_job)
                changed += self._judge(watch, Verdict(holds, len(found), line=found[0] if found else None), moment)
        self._looked_s = moment.at_s
        return changed

    def _entity(self, scope: str, line: KernelLine) -> str:
        """The device of a scope that a line speaks of; "" if it speaks of none."""
        if scope == "host":
            return "host" if line.pci_address is None else ""
        kind, number = self._devices.get(line.pci_address or "", ("", 0))
        return entity_of(scope, number) if kind == scope else ""

    def _recur(self, changed: list[Fault], moment: _Moment) -> list[Fault]:
        """Rules on faults that come again: what has just begun is remembered, and counted."""
        found: list[Fault] = []
        for rule in self._recurring:
            begun = [one for one in changed if one.state == "firing" and one.rule in rule.faults]
            for fault in begun:
                watch = self._mark(rule, fault.entity)
                count = self._remember(watch, fault)
                found += self._judge(watch, Verdict(count >= rule.threshold, count), moment)
            struck = {one.entity for one in begun}
            for watch in [one for one in self._marked.values() if one.rule is rule and one.entity not in struck]:
                found += self._judge(watch, Verdict(False), moment)
        return found

    def _remember(self, watch: _Watch, fault: Fault) -> int:
        """Adds a fault to the past of its device; how many of the rule's faults there were within its window."""
        rule, key = watch.rule, f"{watch.serial}/{watch.rule.id}"
        past = [one for one in self.past.get(key, ()) if one[0] > fault.onset_s - rule.window_s]
        if not past or fault.onset_s - past[-1][0] >= rule.apart_s:
            past.append((fault.onset_s, fault.run_id))
        self.past[key] = past[-REMEMBERED:]
        return len({run for _, run in past if run}) if rule.distinct_jobs else len(past)

    # --- does it begin or end a fault? -------------------------------------------------------------------------------

    def _judge(self, watch: _Watch, verdict: Verdict, moment: _Moment) -> list[Fault]:
        rule, state = watch.rule, watch.state
        if verdict.holds is None:
            state.told_monotonic_s = None
            return []
        state.age(verdict.holds, moment)
        if state.firing is None:
            if not verdict.holds or not self._has_waited(watch) or not self._is_stale(watch, moment):
                return []
            return [self._fire(self._fault(watch, verdict, moment), state, moment)]
        if verdict.holds and rule.signal == "increase":
            return self._grow(watch, verdict, moment)
        if verdict.holds and rule.signal in ("event", "recurrence") and self._is_anew(state, moment):
            return [*_clear(state, moment.at_s), self._fire(self._fault(watch, verdict, moment), state, moment)]
        # a latched counter that no longer exceeds its baseline was reset: repaired, or its driver loaded anew
        if verdict.holds or (not rule.latch and state.lasted_s + TOLERANCE_S < rule.clear_s):
            return []
        return _clear(state, moment.at_s)

    @staticmethod
    def _has_waited(watch: _Watch) -> bool:
        """Whether the condition has lasted; lines, faults and some signals are judged over the window already."""
        judged = watch.signal is None or watch.signal.judges_window
        return judged or watch.state.lasted_s + TOLERANCE_S >= watch.rule.window_s

    @staticmethod
    def _is_stale(watch: _Watch, moment: _Moment) -> bool:
        """Whether the trainer is silent too, where a rule asks for that; no heartbeat to see is no evidence."""
        if not watch.rule.heartbeat_stale_s:
            return True
        age_s = moment.who.of(watch.entity).heartbeat_age_s
        return age_s is not None and age_s > watch.rule.heartbeat_stale_s

    @staticmethod
    def _is_anew(state: _State, moment: _Moment) -> bool:
        """Whether what comes again is another fault, and not more of the one that was just told."""
        fired = state.fired_monotonic_s
        return fired is None or moment.monotonic_s - fired + TOLERANCE_S >= REPEAT_S

    def _grow(self, watch: _Watch, verdict: Verdict, moment: _Moment) -> list[Fault]:
        """A counter above its baseline whose fault fires: beyond what that fault told, it is another fault."""
        state = watch.state
        total, told = verdict.baseline + verdict.value, _told(state.firing)
        told = min(told, verdict.baseline) if total < told else told  # reset meanwhile: what it counts is new
        if total - told < watch.rule.threshold:
            state.still_s = moment.at_s
            return self._quiet(watch, total, moment)
        before_s = moment.at_s - 1.0 if state.still_s is None else min(state.still_s, moment.at_s)
        state.grown = state.grown or (moment.at_s, before_s)
        if not self._is_anew(state, moment):
            return []
        state.onset_s, state.last_clean_s = state.grown
        growth = replace(verdict, value=total - told, baseline=told)
        ended = _clear(state, moment.at_s)
        return [*ended, self._fire(self._fault(watch, growth, moment), state, moment)]

    def _quiet(self, watch: _Watch, total: float, moment: _Moment) -> list[Fault]:
        """A counter that grew no further: without a latch its fault is over once that has lasted, and forgotten."""
        state = watch.state
        if watch.rule.latch:
            return []
        if state.fired_monotonic_s is None:  # told by an earlier agent
            state.fired_monotonic_s = moment.monotonic_s
        if moment.monotonic_s - state.fired_monotonic_s + TOLERANCE_S < watch.rule.clear_s:
            return []
        if watch.signal is not None:
            self.baselines[watch.signal.key] = int(total)
        return _clear(state, moment.at_s)

    @staticmethod
    def _fire(fault: Fault, state: _State, moment: _Moment) -> Fault:
        state.firing, state.fired_monotonic_s = fault, moment.monotonic_s
        state.grown, state.still_s = None, moment.at_s
        return fault

    def _fault(self, watch: _Watch, verdict: Verdict, moment: _Moment) -> Fault:
        rule, state, who = watch.rule, watch.state, moment.who.of(watch.entity)
        onset_s = verdict.line.at_s if verdict.line is not None else state.onset_s
        return Fault(
            id=fault_id(self.node, self.boot_id, rule.id, watch.entity, onset_s),
            rule=rule.id,
            severity=rule.severity,
            action=rule.action,
            node=self.node,
            entity=watch.entity,
            state="firing",
            onset_s=onset_s,
            last_clean_s=min(onset_s, onset_s - 1.0 if state.last_clean_s is None else state.last_clean_s),
            observed_s=moment.at_s,
            value=verdict.value,
            threshold=rule.threshold,
            sentence=rule.say(watch.entity, self.node, verdict.value, verdict.baseline, state.lasted_s),
            evidence=self._evidence(watch, verdict, who),
            run_id=who.run_id,
            attempt_no=who.attempt_no,
            rank=who.rank,
        )

    def _evidence(self, watch: _Watch, verdict: Verdict, who: Attribution) -> dict[str, object]:
        """What the fault rests on, and where it struck: the device, its port, its address, the pod on it."""
        found: dict[str, object] = {
            "title": watch.rule.title,
            "metrics": list(watch.rule.metrics),
            "baseline": verdict.baseline,
            "serial": watch.serial,
        }
        if verdict.line is not None:
            found["line"] = verdict.line.text
        number = watch.entity.removeprefix(watch.rule.scope)
        if watch.rule.scope == "gpu" and int(number) < len(self.facts.gpus):
            gpu = self.facts.gpus[int(number)]
            found |= {"pci_address": gpu.pci_address, "nic": gpu.nic}
        elif watch.rule.scope == "nic" and int(number) < len(self.facts.nics):
            found |= {"pci_address": self.facts.nics[int(number)].pci_address, "nic": self.facts.nics[int(number)].name}
        return {**found, "pod": who.pod} if who.pod else found


def _clear(state: _State, at_s: float) -> list[Fault]:
    fault, state.firing, state.grown = state.firing, None, None
    return [] if fault is None else [replace(fault, state="clear", observed_s=at_s)]


def _told(fault: Fault | None) -> float:
    """The counter's value up to which a fault has told of its growth."""
    baseline = 0.0 if fault is None else fault.evidence.get("baseline", 0.0)
    return baseline + fault.value if fault is not None and isinstance(baseline, int | float) else 0.0
