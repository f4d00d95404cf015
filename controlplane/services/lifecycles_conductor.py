"""The conductor's walk over lifecycles: load, look, decide, write, until nothing moves. Level-triggered.

It brings about runs and states in the store only; the controller starts, minds and ends the runs. What a run left on
its disk (its result, its last checkpoints) is read outside of any transaction and kept before it is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import structlog

from controlplane.runs.lifecycle import decide
from controlplane.runs.lifecycle_view import Keep, PlanMove, PlanView, Rest
from controlplane.runs.view import Taint, Tainted
from controlplane.services import lifecycles_look, lifecycles_moves, lifecycles_unread, outcomes
from controlplane.services.foreign import unread
from controlplane.services.lifecycles_messages import Pages, no_pages
from controlplane.services.plans import Places
from controlplane.store import leases, lifecycles, runs
from controlplane.store.engine import Sessions, StoreUnavailable
from controlplane.store.lifecycle_signs import Sign, signs
from controlplane.store.lifecycles import Executed
from jobs.contract import ContractError, Result, read_result
from jobs.lifecycle import Lifecycle, parse_lifecycle
from jobs.spec import JobSpec

LEASE = "control"
MOVES_A_ROUND = 64
QUIET_S = 30.0
"""at the latest after this, one of which there is no news is looked at all the same"""
GENERATIONS = 32
DETAIL_CHARS = 32_768
_log = structlog.get_logger()


class Minder(Protocol):
    """Who looks at the disk of a run that has ended."""

    def settle(self, run_id: str, lease_epoch: int, now: float) -> bool:
        """Takes in what the run saved last; False while a checkpoint is still being verified."""
        ...

    def unreadable(self, run_id: str) -> str:
        """What of the run's disk that look could not read, and why; "" if there was nothing."""
        ...


class Conductor:
    """Moves every lifecycle one step closer to what is wanted. `where` names the backend on which a job runs; `pages`
    is the address of the dashboard, to which messages link."""

    def __init__(
        self,
        store: Sessions,
        places: Places,
        minder: Minder,
        where: Callable[[JobSpec], str],
        pages: Pages = no_pages,
    ) -> None:
        self._store, self._places, self._minder, self._where, self._pages = store, places, minder, where, pages
        self._plans: dict[str, Lifecycle] = {}
        self._settled: set[str] = set()
        self._unread: dict[str, str] = {}
        """of this round: runs whose disk does not say all yet, and what cannot be read there, "" for nothing"""
        self._marked = False
        """whether a stage of the lifecycle that was looked at last says that it waits for a disk"""
        self._still: set[str] = set()
        self._seen: dict[str, tuple[Sign, float]] = {}
        """under which sign a lifecycle was looked at last and found to wait for news, and when"""

    def reconcile_once(self, lease_epoch: int, now: float) -> list[str]:
        """One round over all lifecycles of which there is news; returns the moves made, in words, for the log.

        One that cannot be handled is logged and holds up no other. LeaseLost, StoreUnavailable.
        """
        done = self._guarded(lambda: self._spread_taint(lease_epoch, now), "taint could not be spread")
        with self._store.read() as session:
            found = signs(session)
        self._plans = {one: plan for one, plan in self._plans.items() if one in found}
        self._seen = {one: seen for one, seen in self._seen.items() if one in found}
        if not found:
            self._settled.clear()  # of lifecycles that are over
        for one in self._due(found, now):
            self._seen.pop(one, None)
            done += self._guarded(partial(self.move, one, lease_epoch, now), "a lifecycle could not be minded", one)
            if one in self._still:
                self._seen[one] = (found[one], now)
        return done

    def _guarded(self, act: Callable[[], list[str]], failed: str, lifecycle_id: str = "") -> list[str]:
        try:
            return act()
        except (leases.LeaseLost, StoreUnavailable):
            raise
        except Exception:
            _log.exception(failed, lifecycle=lifecycle_id)
            return []

    def _due(self, found: Mapping[str, Sign], now: float) -> list[str]:
        """Lifecycles with news, and a share of those that nobody looked at for long: a sign may miss something."""
        changed = {one for one, sign in found.items() if one not in self._seen or self._seen[one][0] != sign}
        old = [one for one, (_, at_s) in self._seen.items() if one not in changed and abs(now - at_s) >= QUIET_S]
        old.sort(key=lambda one: self._seen[one][1])
        due = changed.union(old[: 1 + len(found) // int(QUIET_S)])
        return [one for one in found if one in due]

    def move(self, lifecycle_id: str, lease_epoch: int, now: float) -> list[str]:
        """One lifecycle's moves of a round, until it has to wait; raises what `reconcile_once` logs."""
        done: list[str] = []
        self._unread.clear()
        self._still.discard(lifecycle_id)
        for _ in range(MOVES_A_ROUND):
            move = self.step(lifecycle_id, lease_epoch, now)
            if isinstance(move, Rest):
                self._note_unread(lifecycle_id, lease_epoch, now)
                break
            if not (isinstance(move, Keep) and move.run_id in self._unread):
                done.append(f"{lifecycle_id}: {type(move).__name__}")
        return done

    def step(self, lifecycle_id: str, lease_epoch: int, now: float) -> PlanMove:
        """One look at a lifecycle and the move that follows from it; Rest if it has to be looked at later."""
        with self._store.read() as session:
            found = lifecycles.get(session, lifecycle_id)
            if found is None:
                return Rest()
            plan = self._plan(found)
            self._marked = any(one.unread is not None for one in found.stages)
            view = lifecycles_look.view_of(session, found, plan, now, settled=self._settled, unread=self._unread)
        move = decide(view)
        if isinstance(move, Rest):
            if not self._unread and _waits_for_news(view):
                self._still.add(lifecycle_id)
            return move
        if isinstance(move, Keep):
            if not self._keep(move.run_id, lease_epoch, now):  # the other stages do not wait for it
                self._unread.setdefault(move.run_id, self._minder.unreadable(move.run_id))
            return move
        with self._store.write() as session:
            leases.guard(session, LEASE, lease_epoch)
            current = lifecycles.locked(session, lifecycle_id)
            written = current is not None and lifecycles_moves.write(
                session, current, plan, view, move, self._where, self._pages
            )
        return move if written else Rest()

    def _plan(self, found: Executed) -> Lifecycle:
        """A lifecycle's plan; it never changes."""
        if found.id not in self._plans:
            self._plans[found.id] = parse_lifecycle(found.plan.spec)
        return self._plans[found.id]

    # --- what lies on disk ---

    def _keep(self, run_id: str, lease_epoch: int, now: float) -> bool:
        """Takes in what an ended run left; False while its last checkpoints are still being verified."""
        if not self._minder.settle(run_id, lease_epoch, now):
            return False
        self._settled.add(run_id)
        with self._store.read() as session:
            work = lifecycles.work_of(session, run_id)
            attempts = runs.attempts(session, run_id)
        if work is None or work.result is not None or not attempts:
            return True
        try:
            result = self._result(run_id, attempts[-1].no)
        except OSError as error:
            self._unread[run_id] = unread(error, self._places.attempt(run_id, attempts[-1].no))
            return False
        with self._store.write() as session:
            leases.guard(session, LEASE, lease_epoch)
            row = lifecycles.work_of(session, run_id)
            if row is not None and row.result is None:
                row.result = result
        return True

    def _result(self, run_id: str, attempt_no: int) -> dict[str, Any]:
        """What the attempt that succeeded wrote; of one that wrote nothing, or no result, the reason.

        OSError if the disk does not say: that is no result of any kind.
        """
        try:
            found = read_result(self._places.attempt(run_id, attempt_no))
        except ContractError as error:
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, IsADirectoryError):
                raise error.__cause__ from error
            return {"metrics": {}, "checkpoint_hash": "", "details": {}, "missing": str(error)[:500]}
        if found is None:
            return {"metrics": {}, "checkpoint_hash": "", "details": {}, "missing": f"run {run_id} left no result"}
        return _plain(found)

    def _note_unread(self, lifecycle_id: str, lease_epoch: int, now: float) -> None:
        """Which stages wait for a disk, and which do so no more, once the round has asked all of them."""
        blind = {run_id: why for run_id, why in self._unread.items() if why}
        if not (blind or self._marked):
            return
        with self._store.read() as session:
            found = lifecycles.get(session, lifecycle_id)
            if found is None or not lifecycles_unread.news(session, found, blind, now):
                return
        with self._store.write() as session:
            leases.guard(session, LEASE, lease_epoch)
            current = lifecycles.locked(session, lifecycle_id)
            if current is not None:
                lifecycles_unread.note(session, current, blind, self._settled, now)

    # --- taint ---

    def _spread_taint(self, lease_epoch: int, now: float) -> list[str]:
        """What was made from a tainted checkpoint in another run, stage or lifecycle is tainted, as far as it goes."""
        done: list[str] = []
        for _ in range(GENERATIONS):
            with self._store.read() as session:
                found = lifecycles.made_from_tainted(session)
            if not found:
                break
            with self._store.write() as session:
                leases.guard(session, LEASE, lease_epoch)
                for row, reason in found:
                    run = runs.locked(session, row.run_id)
                    if run is not None:
                        spoilt = Tainted(row.id, row.step, row.attempt_no, reason)
                        outcomes.taint(session, run, Taint((spoilt,)), now=now)
            done.append(f"{len(found)} checkpoints tainted")
        return done


def _waits_for_news(view: PlanView) -> bool:
    """Whether a lifecycle that rests moves only once its sign changes: neither time nor a wish will do it."""
    timed = any(
        stage.plan.budget.gpu_hours is not None and not one.ended for stage in view.stages for one in stage.runs
    )
    return not timed and not any(one.wished for stage in view.stages for one in stage.runs)


def _plain(found: Result) -> dict[str, Any]:
    """A result as it is kept; details that would fill the store are left on the disk."""
    details = dict(found.details)
    if len(repr(details)) > DETAIL_CHARS:
        details = {"left_out": "they are too long to keep here; the run's result.json has them"}
    return {
        "metrics": {name: float(value) for name, value in found.metrics.items()},
        "checkpoint_hash": found.checkpoint_hash,
        "details": details,
        "missing": "",
    }
