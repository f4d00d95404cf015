"""The virtual cluster under a simulated run: the gang's truth, faults and what is seen of them, stops, repairs, spares.

It does what it is told and answers what it is asked, as a backend and the agents would; it decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

from controlplane.runs.causes import Cause, Costs
from controlplane.runs.checkpoints import Saved
from controlplane.runs.decide import SUSPECT_S
from controlplane.runs.view import Beat, Look, MemberView, Trouble
from controlplane.simulate.agenda import Agenda
from controlplane.simulate.chance import Stop
from controlplane.simulate.gang import NEVER, Gang, Pace
from controlplane.simulate.losses import TRAIN, Losses
from controlplane.simulate.rows import RUN, Rows

LOAD_HANG_S = 600.0
"""a rank that loads may be silent for so long (jobs.contract.hang_limit_s)"""
SAMPLE_S = 1.0
"""the last clean sample before a fault is so old"""
NOTICED_S = 60.0


class Cluster:
    """`think` is called whenever the controller would see something new."""

    def __init__(
        self,
        agenda: Agenda,
        rows: Rows,
        costs: Costs,
        pace: Pace,
        mtbf_s: float,
        luck: Iterator[Stop],
        think: Callable[[], None],
    ) -> None:
        self.agenda, self.rows, self.costs, self.pace, self.think = agenda, rows, costs, pace, think
        self.losses = Losses(pace.step_s)
        self.gang: Gang | None = None
        self.resume: Saved | None = None
        self.stops: Counter[str] = Counter()
        self.wrong = self.ignored = 0
        self.idle_node_s = 0.0
        self._mtbf_s, self._luck = mtbf_s, luck
        self._next = next(luck)
        self._left_s = self._next.after * mtbf_s
        self._exposed_s = 0.0
        self._silent: dict[str, float] = {}
        self._hidden = 0
        """silent corruptions that nobody has found yet"""
        self._suspected = ""
        self._bad: set[str] = set()
        """checkpoints that hold a state computed wrongly"""
        self._saved_s = 0.0
        self._away: set[str] = set()
        self._counted_s = 0.0
        self._incidents = 0

    # --- what the controller is shown ---

    def look(self) -> Look | None:
        """A fresh look at the newest attempt."""
        gang, now = self.gang, self.agenda.now
        if gang is None or not self.rows.alive:
            return None
        fenced = now >= gang.gone_s
        if gang.died or fenced:
            return Look("failed", self._words(gang), fenced)
        return Look("running" if now >= gang.running_s else "pending", (), False)

    @staticmethod
    def _words(gang: Gang) -> tuple[MemberView, ...]:
        """What the first launcher wrote; one member stands for all."""
        if gang.saved:
            return (MemberView(gang.nodes[0], False, 75, {"class": "saved", "message": "saved and stopped"}),)
        if not gang.died:
            return (MemberView(gang.nodes[0], False, None, None),)
        said = {"class": "error", "message": gang.died, "fingerprint": gang.died, "first_rank": 0}
        return (MemberView(gang.died_on, False, 1, said),)

    def beats(self) -> tuple[Beat, ...]:
        """The heartbeat that matters: all ranks say the same here, so one stands for all."""
        gang, now = self.gang, self.agenda.now
        if gang is None or now < gang.running_s:
            return ()
        first, done = self.last_words()
        phase = "train" if first is not None else "load"
        silent = max(0.0, now - gang.stopped_s)
        return (Beat(0, gang.nodes[0], phase, first, done, silent, self.pace.step_s),)

    @property
    def stands_since_s(self) -> float:
        """When the gang made its last step, as its heartbeat tells; now while it goes on."""
        return self.agenda.now if self.gang is None else min(self.agenda.now, self.gang.stopped_s)

    def last_words(self) -> tuple[int | None, int | None]:
        """(first, last) step that the ranks completed; None while there is none."""
        if self.gang is None:
            return None, None
        done = self.gang.done(self.agenda.now)
        return (self.gang.resume_step + 1, done) if done > self.gang.resume_step else (None, None)

    # --- what it is told ---

    def submit(self) -> None:
        """The newest attempt's gang starts."""
        planned, now = self.rows.attempts[-1], self.agenda.now
        running = now + self.costs.restart.place_s
        ready = running + self.costs.load_s
        gang = Gang(planned.no, planned.nodes, planned.resume_step or 0, self.pace, now, running, ready)
        if self.resume is not None and self.resume.id in self._bad:
            gang.corrupt_s = -NEVER
            self.wrong += not self._hidden
        elif self._silent.keys() & set(gang.nodes):
            gang.corrupt_s = ready
        self.gang, self._exposed_s, self._saved_s = gang, now, now
        self.agenda.at(running, partial(self._turn, gang, "load"))
        self.agenda.at(ready, partial(self._turn, gang, TRAIN))
        self.agenda.at(ready + self.pace.step_s, self.think)
        self.agenda.at(now + self._left_s, partial(self._fault, gang))

    def _turn(self, gang: Gang, phase: str) -> None:
        if gang is self.gang and gang.stopped_s == NEVER:
            self.losses.turn(self.agenda.now, phase)
            if phase == "load":
                self.think()

    def stop(self, mode: Literal["kill", "terminate"]) -> None:
        """Ends the gang: at once, or, if its ranks can still agree on it, after it has saved."""
        gang, now, fence_s = self.gang, self.agenda.now, self.costs.restart.fence_s
        if gang is None or gang.gone_s < NEVER:
            return
        if mode == "terminate" and gang.trains(now) and gang.can_save:
            # the step under way is completed, then saved
            gang.stopped_s, gang.saved = gang.step_ends_s(now), True
            self._goes(gang, gang.stopped_s + self.costs.blocking_s + fence_s)
            return
        if mode == "kill" or now < gang.running_s:
            self._halt(gang, self._suspected)
            self._goes(gang, now + fence_s)
        if self.losses.phase != TRAIN:
            self.losses.turn(now, "leave")

    def _goes(self, gang: Gang, at_s: float) -> None:
        gang.gone_s = at_s
        self.agenda.at(at_s, partial(self._gone, gang))

    def _gone(self, gang: Gang) -> None:
        if gang is not self.gang:
            return
        now = self.agenda.now
        self._left_s -= now - self._exposed_s
        self.save()
        if self.losses.phase == TRAIN:  # it saved: until then it trained
            self.losses.trained(gang, gang.stopped_s, self._suspected)
            self.losses.phase = "leave"
            self.losses.cause = self._suspected
            self._keep([self._checkpoint(gang, gang.done(now), gang.stopped_s)])
        self.losses.turn(now, "leave")
        if gang.died:
            self.agenda.at(now + self.costs.restart.decide_s, self.think)
        else:
            self.think()

    def _halt(self, gang: Gang, cause: str) -> None:
        """The gang makes no step any more."""
        if gang.stopped_s < NEVER:
            return
        now = self.agenda.now
        if gang.trains(now):
            self.losses.trained(gang, now, cause)
            self.losses.phase = "detect"
        gang.stopped_s = now
        self.losses.turn(now, "detect", cause)

    # --- faults ---

    def _fault(self, gang: Gang) -> None:
        if gang is not self.gang or self.agenda.now >= gang.gone_s:
            return
        now, stop = self.agenda.now, self._next
        self._next = next(self._luck)
        self._left_s, self._exposed_s = self._next.after * self._mtbf_s, now
        self.agenda.at(now + self._left_s, partial(self._fault, gang))
        cause, node = stop.cause, gang.nodes[int(stop.where * len(gang.nodes))]
        self.stops[cause.name] += 1
        if cause.effect == "exits":
            self._exit(gang, f"{cause.name} {stop.error}", cause.name, node)
            return
        window_s = self.costs.window_s(cause)
        if cause.effect in ("stuck", "corrupts"):
            window_s = max(window_s, LOAD_HANG_S) if cause.window_s is None and not gang.trains(now) else window_s
            self._halt(gang, cause.name)
            gang.can_save = False
        if cause.effect in ("corrupts", "silent"):
            gang.corrupt_s = min(gang.corrupt_s, now)
        if cause.effect == "silent":
            self._silent.setdefault(node, now)
            self._hidden += 1
            window_s = self.costs.silent_s
        if window_s > SUSPECT_S:
            self.agenda.at(now + SUSPECT_S + SAMPLE_S, self.think)
        self.agenda.at(now + window_s + self.costs.restart.detect_s, partial(self._seen, gang.no, cause, node, now))

    def _exit(self, gang: Gang, error: str, cause: str, node: str) -> None:
        if gang.gone_s < NEVER:
            return
        self._halt(gang, cause)
        gang.died, gang.died_on = error, node
        self._goes(gang, self.agenda.now + self.costs.restart.fence_s)

    def _seen(self, no: int, cause: Cause, node: str, onset_s: float) -> None:
        """A rule holds and its incident is open."""
        now, gang = self.agenda.now, self.gang
        here = gang is not None and (gang.no == no or cause.effect == "silent")
        if not cause.node and not here:
            return
        self._incidents += 1
        name = node if cause.node else ""
        trouble = Trouble(
            incident_id=f"i{self._incidents}",
            number=self._incidents,
            rule=cause.rule,
            action="restart",
            node=name,
            gpu=None,
            entity="gpu0" if name else RUN,
            run_id=RUN,
            attempt_no=gang.no if gang is not None and here else no,
            onset_s=onset_s,
            last_clean_s=onset_s - SAMPLE_S,
            corrupting=cause.effect in ("corrupts", "silent"),
            sentence=f"{cause.name} of {name or RUN} failed",
            fault_ids=(f"f{self._incidents}",),
        )
        self.rows.open(trouble, now)
        if cause.node:
            self._count_idle()
            self._away.add(node)
            self.rows.set_node(node, fault=cause.rule)
            self.agenda.at(now + self.costs.repair_s, partial(self._repaired, node))
        if cause.effect == "silent":
            self._hidden -= 1
            self.agenda.at(now + NOTICED_S, partial(self._still_wrong, gang))
        self._suspected = cause.name
        if self.losses.phase == "detect":
            self.losses.turn(now, "decide")
        self.agenda.at(now + self.costs.restart.decide_s, self.think)

    def _still_wrong(self, gang: Gang | None) -> None:
        """What was found must have ended the gang that goes on from it."""
        if gang is not None and gang is self.gang and gang.corrupt_s < NEVER and gang.stopped_s == NEVER:
            self.ignored += 1

    def _repaired(self, node: str) -> None:
        self._count_idle()
        self._away.discard(node)
        self._silent.pop(node, None)
        self.rows.heal(node, self.agenda.now)
        self.think()

    def _count_idle(self) -> None:
        """Healthy nodes beyond those that the run needs, standing by since the last change."""
        spare = len(self.rows.candidates) - len(self._away) - self.rows.spec.nodes
        self.idle_node_s += max(0, spare) * (self.agenda.now - self._counted_s)
        self._counted_s = self.agenda.now

    # --- checkpoints ---

    def save(self) -> None:
        """The regular checkpoints that became usable since the last call are in the store."""
        gang = self.gang
        if gang is None or gang.ready_s == NEVER:
            return
        until = min(self.agenda.now, gang.gone_s)
        found = [self._checkpoint(gang, one.step, one.state_at_s) for one in gang.written(self._saved_s, until)]
        self._saved_s = until
        if found:
            self._keep(found)

    def _checkpoint(self, gang: Gang, step: int, state_at_s: float) -> Saved:
        made = Saved(f"c{gang.no}-{step}", gang.no, gang.no, step, "", "validated", state_at_s)
        if state_at_s >= gang.corrupt_s:
            self._bad.add(made.id)
        return made

    def _keep(self, found: list[Saved]) -> None:
        self.rows.keep(found, self.agenda.now)

    def close(self) -> None:
        """The time that is looked at is over: what is under way is booked up to now."""
        now = self.agenda.now
        self._count_idle()
        gang = self.gang
        if gang is not None and self.losses.phase == TRAIN:
            upto = min(now, gang.stopped_s)
            self.losses.trained(gang, upto, self._suspected if upto < now else self.losses.cause)
            self.losses.phase = "leave" if upto < now else "end"
        self.losses.turn(now, "end")
