"""The door to the database: one transaction a block, waiting instead of failing, errors in the store's own words."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from controlplane.store import audit, drills, events, tokens
from controlplane.store.engine import Store, StoreConflict, StoreRejected, StoreUnavailable
from controlplane.store.tables import Attempt, Channel, Checkpoint, Decision
from tests.services.batches import START, add_run

ROOT = Path(__file__).resolve().parents[2]


def channels(store: Store) -> list[str]:
    with store.read() as session:
        return [channel.name for channel in session.query(Channel).order_by(Channel.name)]


def write_then_fail(store: Store) -> None:
    with store.write() as session:
        session.add(Channel(name="half", kind="webhook"))
        session.flush()
        raise KeyError("the caller's own trouble")


def test_a_block_that_raises_writes_nothing(store: Store) -> None:
    with pytest.raises(KeyError):
        write_then_fail(store)
    with store.write() as session:
        session.add(Channel(name="whole", kind="webhook"))
    assert channels(store) == ["whole"]


def test_what_a_read_session_writes_is_not_kept(store: Store) -> None:
    with store.read() as session:
        session.add(Channel(name="no", kind="webhook"))
    assert channels(store) == []


def test_rows_stay_readable_after_their_session(store: Store) -> None:
    with store.write() as session:
        session.add(Channel(name="one", kind="webhook", config={"url": "u"}))
    with store.read() as session:
        (row,) = session.query(Channel).all()
    assert row.config == {"url": "u"}


def test_a_read_sees_one_state_while_others_write(sqlite_store: Store) -> None:
    with sqlite_store.read() as session:
        assert session.query(Channel).count() == 0
        with sqlite_store.write() as writer:
            writer.add(Channel(name="meanwhile", kind="webhook"))
        assert session.query(Channel).count() == 0
    assert channels(sqlite_store) == ["meanwhile"]


def test_two_writers_of_one_file_wait_for_each_other(sqlite_url: str, open_store: Callable[[str], Store]) -> None:
    """Two stores, so two processes' worth of connections, each adding a line to what it read: none is lost."""
    stores = [open_store(sqlite_url) for _ in range(4)]
    with stores[0].write() as session:
        session.add(Channel(name="tally", kind="webhook", config={"count": 0}))

    def count(store: Store) -> None:
        for _ in range(25):
            with store.write() as session:
                row = session.get_one(Channel, "tally")
                row.config = {"count": row.config["count"] + 1}

    threads = [threading.Thread(target=count, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with stores[0].read() as session:
        assert session.get_one(Channel, "tally").config == {"count": 100}


def test_a_lock_that_is_held_too_long_is_unavailable_and_loses_nothing(sqlite_url: str) -> None:
    holder, hurried = Store(sqlite_url), Store(sqlite_url, busy_timeout_s=0.05)
    with holder.write() as session:
        session.add(Channel(name="held", kind="webhook"))
        session.flush()
        with pytest.raises(StoreUnavailable, match="locked"), hurried.write() as other:
            other.add(Channel(name="late", kind="webhook"))
    with hurried.write() as other:
        other.add(Channel(name="late", kind="webhook"))
    assert channels(holder) == ["held", "late"]
    holder.close()
    hurried.close()


def test_another_process_waits_for_the_lock_too(sqlite_url: str, open_store: Callable[[str], Store]) -> None:
    store = open_store(sqlite_url)
    program = (
        "import sys\nfrom controlplane.store.engine import Store\nfrom controlplane.store.tables import Channel\n"
        "store = Store(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.readline()\n"
        "with store.write() as session: session.add(Channel(name='other process', kind='webhook'))\nstore.close()"
    )
    command = [sys.executable, "-c", program, sqlite_url]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "ready\n"
        with store.write() as session:
            session.add(Channel(name="this process", kind="webhook"))
            session.flush()
            other.stdin.write("go\n")
            other.stdin.flush()
            with pytest.raises(subprocess.TimeoutExpired):
                other.wait(0.3)
        assert other.wait(30) == 0
    assert channels(store) == ["other process", "this process"]


def test_a_taken_key_is_a_conflict_and_a_wrong_state_too(store: Store) -> None:
    add_run(store)

    def add(row: object) -> None:
        with store.write() as session:
            session.add(row)

    add(Channel(name="one", kind="webhook"))
    with pytest.raises(StoreConflict):
        add(Channel(name="one", kind="webhook"))
    checkpoint = {"run_id": "run-1", "attempt_no": 1, "epoch": 1, "step": 8, "seen_s": START}
    with pytest.raises(StoreConflict):
        add(Checkpoint(id="c", path="p", state="perhaps", **checkpoint))
    with pytest.raises(StoreConflict):  # no such run: found at the commit
        add(Checkpoint(id="c", path="p", **{**checkpoint, "run_id": "nobody's"}))
    add(Checkpoint(id="c", path="p", **checkpoint))
    with pytest.raises(StoreConflict):
        add(Checkpoint(id="d", path="p", **checkpoint))


def test_what_no_column_holds_is_rejected(store: Store) -> None:
    with pytest.raises(StoreRejected), store.write() as session:
        session.add(Channel(name="thing", kind=object()))


def test_a_number_beyond_its_integers_is_rejected_by_the_embedded_one(sqlite_store: Store) -> None:
    with pytest.raises(StoreRejected, match="too large"), sqlite_store.read() as session:
        session.execute(text("SELECT :number"), {"number": 10**24})
    with pytest.raises(OverflowError, match="our own"), sqlite_store.read():
        raise OverflowError("our own")


def test_a_sick_database_is_not_a_wrong_value(tmp_path: Path) -> None:
    path = tmp_path / "sick.db"
    whole = Store(f"sqlite:///{path}")
    whole.migrate()
    whole.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    sick = Store(f"sqlite:///{path}")
    with pytest.raises(StoreUnavailable, match="malformed"), sick.write() as session:
        session.add(Channel(name="one", kind="webhook"))
    sick.close()


def test_a_table_that_is_gone_is_not_a_wrong_value(store: Store) -> None:
    with pytest.raises(StoreUnavailable, match="nowhere"), store.write() as session:
        session.execute(text("INSERT INTO nowhere VALUES (1)"))


def attempt(no: int, state: str) -> Attempt:
    return Attempt(
        id=f"a{no}",
        run_id="run-1",
        no=no,
        name=f"a{no}",
        state=state,
        state_since_s=START,
        spec={},
        spec_hash="",
        epoch=no,
        created_s=START,
    )


@pytest.mark.parametrize(("state", "allowed"), [("pending", False), ("planned", True), ("superseded", True)])
def test_a_run_has_one_live_attempt(store: Store, state: str, allowed: bool) -> None:
    add_run(store)  # its attempt 1 trains
    if allowed:
        with store.write() as session:
            session.add(attempt(2, state))
        return
    with pytest.raises(StoreConflict), store.write() as session:
        session.add(attempt(2, state))


def test_a_run_has_one_planned_attempt_and_an_attempt_one_open_decision(store: Store) -> None:
    add_run(store)
    with store.write() as session:
        session.add(attempt(2, "planned"))
    with pytest.raises(StoreConflict), store.write() as session:
        session.add(attempt(3, "planned"))

    def decide(identifier: str, state: str) -> None:
        with store.write() as session:
            row = Decision(id=identifier, run_id="run-1", attempt_no=1, action="restart", mode="act", reason="why")
            row.state, row.created_s = state, START
            session.add(row)

    decide("d1", "executing")
    decide("d2", "verified")
    with pytest.raises(StoreConflict):
        decide("d3", "proposed")


def test_a_number_that_json_has_no_word_for_becomes_null(store: Store) -> None:
    data = {"loss": float("nan"), "list": [1.5, float("inf")], "text": "ok"}
    with store.write() as session:
        events.add(session, at_s=START, kind="test", sentence="s", data=data)
    with store.read() as session:
        (event,) = events.listed(session, since_s=START)
        assert event.data == {"loss": None, "list": [1.5, None], "text": "ok"}


def test_the_timeline_is_read_in_order_and_by_what_it_is_about(store: Store) -> None:
    with store.write() as session:
        for second, run in ((3, "r"), (1, "r"), (2, "q")):
            events.add(session, at_s=START + second, kind="k", sentence=str(second), run_id=run, node="n")
    with store.read() as session:
        assert [event.sentence for event in events.listed(session, node="n")] == ["1", "2", "3"]
        assert [event.sentence for event in events.listed(session, run_id="r", limit=1)] == ["3"]
        assert events.listed(session, incident_id="none") == []


def test_a_token_is_spent_once(store: Store) -> None:
    with store.write() as session:
        made = tokens.add(
            session, kind="link", sha256="h", subject="admin", now=START, created_by="setup", role="admin"
        )
    spent = []
    for _ in range(2):
        with store.write() as session:
            spent.append(tokens.spend(session, made.id, now=START + 1))
    assert spent == [True, False]
    with store.read() as session:
        found = tokens.by_hash(session, "h")
        assert found is not None
        assert found.revoked_s == START + 1
        assert tokens.by_hash(session, "x") is None
        assert [token.id for token in tokens.listed(session, ["link"])] == [made.id]
    with pytest.raises(StoreConflict), store.write() as session:
        tokens.add(session, kind="link", sha256="h", subject="admin", now=START, created_by="setup")


def test_former_attempts_lose_their_tokens(store: Store) -> None:
    with store.write() as session:
        for epoch in (1, 2):
            made = tokens.add(
                session, kind="trainer", sha256=str(epoch), subject="t", now=START, created_by="c", run_id="r"
            )
            made.epoch = epoch
        tokens.revoke_trainers(session, "r", below_epoch=2, now=START + 5)
        tokens.touch(session, {tokens.listed(session)[0].id: START + 9})
    with store.read() as session:
        found = {token.sha256: token.revoked_s for token in tokens.listed(session)}
    assert found == {"1": START + 5, "2": None}


def test_a_key_is_taken_once_and_its_answer_is_kept_for_its_actor(store: Store) -> None:
    with store.write() as session:
        assert audit.take(session, "k", "me", now=START, asked="this") is None
        audit.add(session, now=START, actor="me", verb="submit", object="run/r", outcome="ok")
        audit.keep_answer(session, "k", "me", status=201, answer={"id": "r"})
    with store.write() as session:
        found = audit.take(session, "k", "me", now=START, asked="that")
        assert found is not None
        assert (found.status, found.body) == (201, {"asked": "this", "answer": {"id": "r"}})
        assert audit.take(session, "k", "you", now=START, asked="that") is None
        audit.give_back(session, "k", "you")
        assert audit.take(session, "k", "you", now=START, asked="that") is None
    with store.read() as session:
        assert [entry.verb for entry in audit.listed(session)] == ["submit"]
        assert audit.listed(session, before_s=START) == []
    with store.write() as session:
        audit.forget(session, before_s=START + 1)
    with store.write() as session:
        assert audit.take(session, "k", "me", now=START, asked="that") is None


def test_only_drills_that_a_device_knows_can_be_asked_for(store: Store) -> None:
    with store.write() as session, pytest.raises(ValueError, match="is no drill"):
        drills.add(session, node="n", kind="earthquake", gpu=0, now=START, created_by="me")


def test_an_unreachable_postgresql_is_unavailable(postgresql_store: Store) -> None:
    gone = Store("postgresql://postgres@/nothing?host=/nonexistent")
    with pytest.raises(StoreUnavailable), gone.read() as session:
        session.execute(text("SELECT 1"))
    gone.close()
