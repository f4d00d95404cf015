"""The controller's walk: load, look, decide, write, act, for each run, until nothing moves. Level-triggered.

Intent before act: what is to be done is committed, under the lease, before the backend hears of it; a server that dies
in between finds the intent and goes on. No backend is called inside a database session.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from controlplane.backends.absent import backend_of
from controlplane.backends.base import AttemptPlan, Backend, BackendUnavailable, SubmitConflict
from controlplane.rules.book import RuleBook
from controlplane.runs.decide import VERIFY_S, decide
from controlplane.runs.ledger import QUARANTINE_SHARE
from controlplane.runs.states import ENDED
from controlplane.runs.view import (
    Advance,
    Conclude,
    Decide,
    EndAttempt,
    Look,
    Move,
    PlanAttempt,
    Press,
    SetRun,
    Submit,
    Taint,
    View,
    Wait,
)
from controlplane.services import lifecycles_lineage, observe, outcomes, tokens
from controlplane.services.blindness import Blindness
from controlplane.services.discovery import Discovery
from controlplane.services.lastwords import LastWords
from controlplane.services.observe import Fleet
from controlplane.services.plans import Places, plan_of
from controlplane.store import leases, runs
from controlplane.store.engine import Session, Store, StoreUnavailable
from controlplane.store.tables import Attempt, Run
from jobs.contract import write_json
from jobs.spec import JobSpec, parse_job

LEASE = "control"
MOVES_A_ROUND = 12
SETTLE_WITHIN_S = 60.0
"""How long after its end a run's disk is looked at: what a layout calls finished counts once it has stood still."""
TRAINER_GRACE_S = 30 * 86_400.0
_log = structlog.get_logger()


class Controller:
    """Moves every run one step closer to what is wanted. `expect` is told how many ranks a live attempt has.

    `leads` says whether a lease epoch is young enough to ask something of a backend. `quarantine_share` of the fleet
    may leave service without a person within ten minutes.
    """

    def __init__(
        self,
        store: Store,
        backends: Mapping[str, Backend],
        book: RuleBook,
        places: Places,
        expect: Callable[[str, int, int], None] = lambda _run, _no, _ranks: None,
        discovery: Discovery | None = None,
        leads: Callable[[int], bool] = lambda _epoch: True,
        quarantine_share: float = QUARANTINE_SHARE,
    ) -> None:
        self._store, self._backends, self._book, self._places, self._expect = store, backends, book, places, expect
        self._discovery, self._leads, self._share = discovery or Discovery(store), leads, quarantine_share
        self._last_words = LastWords(store, LEASE)
        self._told: set[str] = set()
        self._blindness = Blindness()
        self._specs: dict[str, JobSpec] = {}
        self._swept: set[str] = set()
        self._settled: set[str] = set()
        self._since: float | None = None

    def reconcile_once(self, lease_epoch: int, now: float) -> list[str]:
        """One round over all runs, those in trouble first; returns the moves made, in words, for the log.

        A run that cannot be handled is logged and holds up no other. LeaseLost, StoreUnavailable.
        """
        with self._store.read() as session:
            ids = [run.id for run in runs.unfinished(session)]
            ended = runs.ended_since(session, now - SETTLE_WITHIN_S)
        self._specs = {run_id: spec for run_id, spec in self._specs.items() if run_id in ids}
        first = self._look_around(now)
        self._taint_ended(first, lease_epoch, now)
        done: list[str] = []
        fleet: Fleet | None = first
        for run_id in sorted(ids, key=lambda one: not first.urgent(one)):
            known, fleet = fleet or self._look_around(now), None
            with self._holding_up_nobody(run_id):
                moved = self.move(run_id, lease_epoch, now, known)
                done += moved
                fleet = None if moved else known
        self._settled &= set(ended)
        for run_id in ended:
            if run_id not in self._settled:
                with self._holding_up_nobody(run_id):
                    self._settled |= {run_id} if self.settle(run_id, lease_epoch, now, fleet or first) else set()
        return done

    def move(self, run_id: str, lease_epoch: int, now: float, fleet: Fleet | None = None) -> list[str]:
        """One run's moves of a round, until it has to wait; raises what `reconcile_once` logs."""
        done: list[str] = []
        before: Move | None = None
        for _ in range(MOVES_A_ROUND):
            move = self.step(run_id, lease_epoch, now, fleet)
            if isinstance(move, Wait | Advance):
                break
            fleet = None  # what was done may have changed what all have in common
            done.append(f"{run_id}: {type(move).__name__}")
            if isinstance(move, Press) or move == before:  # it takes its time: asking again at once changes nothing
                break
            before = move
        return done

    def step(self, run_id: str, lease_epoch: int, now: float, fleet: Fleet | None = None) -> Move:
        """One look at a run and the move that follows from it; `fleet` is read if it is not given."""
        fleet = fleet or self._look_around(now)
        since_s = self._since if self._since is not None else now
        self._find_checkpoints(run_id, fleet, lease_epoch, now)
        rows = observe.read_rows(self._store, run_id, now, since_s=since_s, heard_s=fleet.heard_s, parse=self._spec_of)
        if rows is None:
            return Wait()
        backend = backend_of(self._backends, rows.run.backend)
        last = rows.attempts[-1] if rows.attempts else None
        alive = last is not None and last.state not in (*ENDED, "planned", "submitting")
        if last is not None and alive:
            resources = rows.spec.spec.resources
            self._expect(run_id, last.no, resources.nodes * resources.ranks_per_node)
        look = observe.look_at(backend, last.name, now, fence=True) if last is not None and alive else None
        free = (
            None if alive else observe.candidates(backend, fleet.machines, now, fleet.afflicted, fleet.others(run_id))
        )
        if last is not None and alive:
            with self._holding_up_nobody(run_id):
                self._last_words.keep(last, backend, look, lease_epoch=lease_epoch, now=now)
            self._mind_blindness(rows.run.id, last, backend.name, look, lease_epoch, now)
        told = last is not None and last.name in self._told
        verifying = self._discovery.verifying(run_id)
        view = observe.view_of(
            rows, fleet, look, free, now, told=told, verifying=verifying, pins_nodes=backend.pins_nodes
        )
        move = decide(view)
        if isinstance(move, Wait) and (rows.run.status != "queued" or rows.run.reason == move.reason):
            return move
        with self._store.write() as session:
            leases.guard(session, LEASE, lease_epoch)
            run = runs.locked(session, rows.run.id)
            if run is None:
                return Wait()
            self._write(session, run, view, move)
        self._act(rows.run, last, backend, move, lease_epoch, now)
        return move

    def settle(self, run_id: str, lease_epoch: int, now: float, fleet: Fleet | None = None) -> bool:
        """Takes in what a run that has ended saved last.

        False while its disk cannot be read, or while what it saved last may still turn out to be whole.
        """
        self._discovery.forget(run_id)
        if not self._look_at_disk(run_id, fleet or self._look_around(now), lease_epoch, now):
            return False
        with self._store.read() as session:
            last = runs.newest_attempts(session, [run_id]).get(run_id)
            saved = runs.checkpoints(session, run_id)
        if last is None or last.ended_s is None or now >= last.ended_s + VERIFY_S:
            return True
        # a slow file system may show the rest of it later
        newest = [one for one in saved if one.attempt_no == last.no and one.state != "tainted"][-1:]
        return not any(one.state == "complete" for one in newest)

    def unreadable(self, run_id: str) -> str:
        """What of a run's disk the last look at it could not read, and why; "" if there was nothing."""
        return self._discovery.why(run_id)

    def _look_around(self, now: float) -> Fleet:
        self._since = now if self._since is None else self._since
        return Fleet(self._store, self._book, now, since_s=self._since)

    def _spec_of(self, run: Run) -> JobSpec:
        """A run's spec; it never changes."""
        found = self._specs.get(run.id)
        if found is None:
            found = self._specs[run.id] = parse_job(run.spec)
        return found

    def _taint_ended(self, fleet: Fleet, lease_epoch: int, now: float) -> None:
        """What a run left behind is spoilt by a fault that is told only after it has ended, too."""
        new = [one for one in fleet.corrupting if one.fault.id not in self._swept]
        if new:
            since_s = min(one.last_clean_s for one in new)
            with self._store.read() as session:
                ids = runs.ended_on(session, {one.fault.node for one in new}, since_s=since_s)
            for run_id in ids:
                with self._holding_up_nobody(run_id), self._store.write() as session:
                    leases.guard(session, LEASE, lease_epoch)
                    outcomes.taint_ended(session, run_id, fleet.corruptions(run_id), now=now)
        self._swept = {one.fault.id for one in fleet.corrupting}

    @staticmethod
    @contextmanager
    def _holding_up_nobody(run_id: str) -> Iterator[None]:
        """What goes wrong with one run is logged; that nobody leads or nothing can be stored is everybody's affair."""
        try:
            yield
        except (leases.LeaseLost, StoreUnavailable):
            raise
        except Exception:
            _log.exception("a run could not be minded", run=run_id)

    def _mind_blindness(
        self, run_id: str, attempt: Attempt, backend: str, look: Look | None, lease_epoch: int, now: float
    ) -> None:
        """That an attempt cannot be looked at is said once, and once that it can be again: an alert, nothing else."""
        said = self._blindness.saw(attempt.name, attempt.no, backend, look, now)
        if said is None:
            return
        with self._store.write() as session:
            leases.guard(session, LEASE, lease_epoch)
            run = runs.locked(session, run_id)
            if run is not None:
                outcomes.tell(
                    session,
                    run,
                    said.sentence,
                    kind=said.kind,
                    now=now,
                    attempt_no=attempt.no,
                    lane="rule",
                    level=said.level,
                )

    def _find_checkpoints(self, run_id: str, fleet: Fleet, lease_epoch: int, now: float) -> None:
        """Looks at the run's disk. What a trainer left there is never a reason not to mind the run."""
        with self._holding_up_nobody(run_id):
            self._look_at_disk(run_id, fleet, lease_epoch, now)

    def _look_at_disk(self, run_id: str, fleet: Fleet, lease_epoch: int, now: float) -> bool:
        """Takes in what the run has saved; False while a part of it cannot be read or is still being read."""
        found = self._discovery.scan(run_id, self._places.run(run_id), now)
        if found:
            with self._store.write() as session:
                leases.guard(session, LEASE, lease_epoch)
                corruptions = fleet.corruptions(run_id)
                for values in found:
                    outcomes.saw_checkpoint(session, run_id, values, corruptions=corruptions, now=now)
        return not (self._discovery.failed(run_id) or self._discovery.verifying(run_id))

    def _write(self, session: Session, run: Run, view: View, move: Move) -> None:
        last = view.last
        attempt = runs.attempt_of(session, run.id, last.no) if last is not None else None
        now = view.now
        match move:
            case Wait():
                run.reason = move.reason
            case SetRun():
                outcomes.set_run(session, run, move, now=now)
            case PlanAttempt():
                outcomes.plan_attempt(session, run, move, last=attempt, now=now)
            case Submit() if attempt is not None:
                runs.move_attempt(attempt, "submitting", now=now)
                if run.status != "active":
                    runs.move_run(run, "active", reason="", now=now)
            case Advance() if attempt is not None:
                outcomes.advance(session, run, attempt, move, now=now)
            case Decide():
                outcomes.decide(session, run, attempt, move, now=now, share=self._share)
            case Press() if attempt is not None:
                outcomes.press(session, run, attempt, move, now=now)
            case EndAttempt() if attempt is not None:
                outcomes.end_attempt(session, run, attempt, move, now=now)
            case Taint():
                outcomes.taint(session, run, move, now=now)
            case Conclude():
                outcomes.conclude(session, run, attempt, move, now=now)
            case _:
                raise AssertionError(f"{move} needs an attempt and there is none")

    def _act(
        self,
        run: Run,
        last: Attempt | None,
        backend: Backend,
        move: Move,
        lease_epoch: int,
        now: float,
    ) -> None:
        """What follows a committed intent outside of the database."""
        if last is None:
            return
        if isinstance(move, Submit):
            self._submit(run.id, last.no, backend, lease_epoch, now)
        if isinstance(move, EndAttempt):
            self._discovery.forget(last.run_id)  # what it saved last counts before the next one is planned
            self._told.discard(last.name)
            self._last_words.forget(last.name)
        mode = move.mode if isinstance(move, Press) else move.stop if isinstance(move, Decide) else "none"
        if isinstance(move, Conclude) and move.stop:
            mode = "kill"
        if mode in ("kill", "terminate"):
            self._assert_lead(lease_epoch)
            try:
                backend.stop(last.name, mode="kill" if mode == "kill" else "terminate")
                self._told.add(last.name)
            except BackendUnavailable as error:
                _log.warning("an attempt could not be told to stop", attempt=last.name, error=str(error))

    def _assert_lead(self, lease_epoch: int) -> None:
        """Before anything is asked of a backend: the commit before it proves the lease at that moment, not now."""
        if not self._leads(lease_epoch):
            raise leases.LeaseLost(f"lease {LEASE}: epoch {lease_epoch} may have run out; nothing is asked under it")

    def _submit(self, run_id: str, no: int, backend: Backend, lease_epoch: int, now: float) -> None:
        self._places.attempt(run_id, no).mkdir(parents=True, exist_ok=True)
        with self._store.write() as session:
            leases.guard(session, LEASE, lease_epoch)
            attempt, run = runs.attempt_of(session, run_id, no), runs.locked(session, run_id)
            if run is None:
                return
            file = self._places.token(run_id, no)
            secret = None if file.exists() else self._token(session, run, attempt, now)
            plan = plan_of(self._places, run, attempt)
            lineage = lifecycles_lineage.document(session, run)
        self._lay_out(plan, lineage)
        if secret is not None:  # only now does the database know it
            _keep(file, secret)
        self._assert_lead(lease_epoch)
        try:
            handle = backend.submit(plan)
        except BackendUnavailable as error:
            _log.warning("an attempt could not be submitted; it is tried again", attempt=plan.name, error=str(error))
            return
        except SubmitConflict as error:
            self._conflict(run_id, no, str(error), lease_epoch, now)
            return
        with self._store.write() as session:
            leases.guard(session, LEASE, lease_epoch)
            outcomes.submitted(session, run_id, no, uid=handle.uid, adopted=handle.adopted, now=now)

    @staticmethod
    def _lay_out(plan: AttemptPlan, lineage: dict[str, Any] | None) -> None:
        """What a run of a lifecycle finds on its disk before it begins."""
        prepared, told = (plan.environment[f"TRIMTAB_{name}"] for name in ("PREPARED_DIR", "LINEAGE_JSON"))
        if prepared:
            Path(prepared).mkdir(parents=True, exist_ok=True)
        if told:
            write_json(Path(told), lineage, durable=False)

    def _conflict(self, run_id: str, no: int, message: str, lease_epoch: int, now: float) -> None:
        sentence = f"Attempt {no} could not be submitted: {message}."
        end = EndAttempt("failed", "submit_conflict", sentence, "submit_conflict", message, level="fault")
        with self._store.write() as session:
            leases.guard(session, LEASE, lease_epoch)
            run = runs.locked(session, run_id)
            if run is not None:
                outcomes.end_attempt(session, run, runs.attempt_of(session, run_id, no), end, now=now)

    @staticmethod
    def _token(session: Session, run: Run, attempt: Attempt, now: float) -> str:
        return tokens.issue(
            session,
            kind="trainer",
            subject=f"{run.id} attempt {attempt.no}",
            now=now,
            created_by="controller",
            life_s=TRAINER_GRACE_S,
            run_id=run.id,
            attempt_no=attempt.no,
            epoch=attempt.epoch,
        )


def _keep(path: Path, secret: str) -> None:
    """Writes a secret whole or not at all, for this user alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret)
    temporary.replace(path)
