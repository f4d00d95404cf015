"""One lease, two servers: who gets it, who loses it, and that the loser writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from controlplane.clock import ManualClock
from controlplane.loops import Leadership
from controlplane.store import leases
from controlplane.store.engine import Store
from controlplane.store.leases import Holder, LeaseLost
from controlplane.store.tables import Channel

FIRST = Holder("first", "boot-a/pid:1", 100)
SECOND = Holder("second", "boot-b/pid:1", 100)
TTL = 9.0


def acquire(store: Store, holder: Holder, now: float, alive: bool = True) -> int | None:
    with store.write() as session:
        return leases.acquire(session, "control", holder, now=now, ttl_s=TTL, alive=lambda _: alive)


def renew(store: Store, epoch: int, now: float) -> None:
    with store.write() as session:
        leases.renew(session, "control", epoch, now=now)


@pytest.fixture
def two(database_url: str, open_store: Callable[[str], Store]) -> tuple[Store, Store]:
    """Two servers on one database."""
    return open_store(database_url), open_store(database_url)


def test_the_second_server_waits_until_the_lease_has_run_out(two: tuple[Store, Store]) -> None:
    one, other = two
    assert acquire(one, FIRST, 0.0) == 1
    renew(one, 1, 2.0)
    assert acquire(other, SECOND, 10.9) is None
    assert acquire(other, SECOND, 11.0) == 2
    with pytest.raises(LeaseLost, match="second holds epoch 2"):
        renew(one, 1, 11.1)


def test_a_late_holder_writes_nothing(two: tuple[Store, Store]) -> None:
    one, other = two
    assert acquire(one, FIRST, 0.0) == 1
    assert acquire(other, SECOND, 60.0) == 2

    def write_late() -> None:
        with one.write() as session:
            session.add(Channel(name="late", kind="webhook"))
            leases.guard(session, "control", 1)

    with pytest.raises(LeaseLost):
        write_late()
    with other.write() as session:
        leases.guard(session, "control", 2)
        assert session.get(Channel, "late") is None


def test_nobody_takes_the_lease_between_a_guard_and_its_commit(two: tuple[Store, Store]) -> None:
    one, other = two
    assert acquire(one, FIRST, 0.0) == 1
    order: list[str] = []

    def take() -> None:
        order.append(f"epoch {acquire(other, SECOND, 60.0)}")

    with one.write() as session:
        leases.guard(session, "control", 1)
        taker = threading.Thread(target=take)
        taker.start()
        session.add(Channel(name="in time", kind="webhook"))
        session.flush()
        order.append("written")
    taker.join(30)
    assert order == ["written", "epoch 2"]


def test_a_holder_that_died_on_this_boot_is_not_waited_for(store: Store) -> None:
    assert acquire(store, FIRST, 0.0) == 1
    successor = Holder("again", FIRST.boot_id, 200)
    assert acquire(store, successor, 1.0, alive=True) is None
    assert acquire(store, successor, 1.0, alive=False) == 2


def test_the_dead_of_another_boot_or_an_unknown_one_are_waited_for(store: Store) -> None:
    assert acquire(store, Holder("first", "", 100), 0.0) == 1
    assert acquire(store, Holder("again", "", 200), 1.0, alive=False) is None
    assert acquire(store, SECOND, 1.0, alive=False) is None


def test_a_restart_of_the_same_holder_fences_its_former_life(store: Store) -> None:
    assert acquire(store, FIRST, 0.0) == 1
    assert acquire(store, FIRST, 1.0) == 2
    with pytest.raises(LeaseLost):
        renew(store, 1, 2.0)


def test_a_released_lease_is_free_at_once_and_its_epoch_still_grows(two: tuple[Store, Store]) -> None:
    one, other = two
    assert acquire(one, FIRST, 0.0) == 1
    with one.write() as session:
        leases.release(session, "control", 1, now=1.0)
    assert acquire(other, SECOND, 1.0) == 2
    with one.write() as session:
        leases.release(session, "control", 1, now=1.0)
    renew(other, 2, 2.0)


def test_two_servers_that_ask_at_once_get_one_lease(two: tuple[Store, Store]) -> None:
    barrier = threading.Barrier(2)
    got: list[int | None] = []

    def ask(store: Store, holder: Holder) -> None:
        barrier.wait(10)
        got.append(acquire(store, holder, 0.0))

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(two, (FIRST, SECOND), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(got, key=lambda epoch: epoch is None) == [1, None]


def hosts(store: Store, seconds: float) -> tuple[Leadership, Leadership]:
    """Two hosts on one database; the second one's clock is `seconds` off the first one's."""
    clocks = ManualClock(), ManualClock()
    clocks[1].jump(seconds)
    return Leadership(store, FIRST, clocks[0]), Leadership(store, SECOND, clocks[1])


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
def test_on_a_shared_database_no_hosts_own_clock_says_that_a_lease_is_over(
    postgresql_store: Store, seconds: float
) -> None:
    one, other = hosts(postgresql_store, seconds)
    for leadership in (one, other, one, other):
        leadership.campaign_once()
    assert (one.epoch, other.epoch) == (1, None)
    with postgresql_store.write() as session:
        lease = leases.read(session, "control")
        assert lease is not None
        lease.renewed_s -= lease.ttl_s  # as if so much time had passed for the database
    other.campaign_once()
    one.campaign_once()
    assert (one.epoch, other.epoch) == (None, 2)
    other.release()
    one.campaign_once()
    assert (one.epoch, other.epoch) == (3, None)


def test_a_lease_that_never_was_guards_nothing(store: Store) -> None:
    with pytest.raises(LeaseLost, match="nobody holds it"), store.write() as session:
        leases.guard(session, "control", 1)


def test_the_dead_and_the_living_are_told_apart() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert leases.process_alive(os.getpid())
    assert not leases.process_alive(gone.pid)
    assert leases.this_process("me").pid == os.getpid()
