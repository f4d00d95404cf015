"""Messages against a real receiver: in order, retried, given up, and never lost; on both databases."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest

from controlplane.notify.webhook import WebhookSender, new_secret
from controlplane.services.deliveries import CLAIM_S, LADDER_S, Delivered, deliver_once
from controlplane.services.lifecycles import submit
from controlplane.store import deliveries, events
from controlplane.store.engine import Store
from jobs.lifecycle import parse_lifecycle
from tests.notify.receiving import LOCAL, Answer, Outbox, Receiver, receiver
from tests.runs.conducting import plan

DYING = Path(__file__).with_name("dying_sender.py")


@pytest.fixture
def sender() -> Iterator[WebhookSender]:
    made = WebhookSender(LOCAL)
    yield made
    made.close()


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture
def outbox(store: Store, hook: Receiver) -> Outbox:
    made = Outbox(store)
    made.channel("ops", hook.url, hook.secret)
    return made


def deliver(outbox: Outbox, sender: WebhookSender) -> list[Delivered]:
    return deliver_once(outbox.store, {"webhook": sender}, outbox.clock.now(), chance=random.Random(1))


def test_a_message_arrives_signed_and_is_told(outbox: Outbox, hook: Receiver, sender: WebhookSender) -> None:
    incident = outbox.incident()
    message = outbox.message(incident, 1)
    (done,) = deliver(outbox, sender)
    assert (done.delivery_id, done.state, done.incident) == (message, "told", 1)
    (taken,) = hook.taken
    assert (taken.id, taken.path) == (message, "/hook")
    assert taken.message == {"type": "incident.opened", "data": {"seq": 1}}
    (row,) = outbox.deliveries(incident)
    assert (row.state, row.tries) == ("told", 1) and row.told_s is not None and row.told_s >= outbox.clock.now()
    assert deliver(outbox, sender) == []


def test_a_failing_receiver_is_tried_up_the_ladder_under_one_id_and_then_given_up(
    outbox: Outbox, hook: Receiver, sender: WebhookSender
) -> None:
    incident = outbox.incident()
    message = outbox.message(incident, 1)
    hook.script = [Answer(503)] * 20
    for wait_s in LADDER_S:
        (done,) = deliver(outbox, sender)
        assert (done.state, done.error) == ("ready", "HTTP 503")
        (row,) = outbox.deliveries(incident)
        assert 0.8 * wait_s <= row.due_s - outbox.clock.now() <= 1.2 * wait_s + 1
        outbox.clock.advance(0.79 * wait_s)
        assert deliver(outbox, sender) == [], "not before its time"
        outbox.clock.advance(0.42 * wait_s + 1)
    assert [done.state for done in deliver(outbox, sender)] == ["dead"]
    assert set(hook.ids) == {message} and len(hook.ids) == 9
    assert len({one.timestamp for one in hook.taken}) == 9, "each try has its own timestamp"
    with outbox.store.read() as session:
        (event,) = events.listed(session, incident_id=incident)
    assert event.kind == "delivery_dead" and "given up after 9 tries" in event.sentence
    assert deliver(outbox, sender) == []


def test_messages_of_one_incident_keep_their_order(outbox: Outbox, hook: Receiver, sender: WebhookSender) -> None:
    incident, other = outbox.incident(1), outbox.incident(2)
    second, first = outbox.message(incident, 2), outbox.message(incident, 1)
    alone = outbox.message(other, 1)
    hook.script = [Answer(500)]
    states = {done.delivery_id: done.state for done in deliver(outbox, sender)}
    assert set(states) == {first, alone} and "ready" in states.values(), "the second waits for the first"
    for _ in range(3):
        outbox.clock.advance(10)
        deliver(outbox, sender)
    assert hook.ids.index(second) > len(hook.ids) - 1 - hook.ids[::-1].index(first)
    assert outbox.states(incident) == ["told", "told"]


def test_a_lifecycle_is_told_beside_incidents_each_in_its_own_order(
    outbox: Outbox, hook: Receiver, sender: WebhookSender
) -> None:
    incident, now = outbox.incident(), outbox.clock.now()
    outbox.message(incident, 1)
    parsed = parse_lifecycle(plan({"name": "a"}))
    with outbox.store.write() as session:
        made = submit(session, parsed, where=lambda _spec: "memory", actor="ada", now=now)
        for seq in (2, 1):
            body = {"type": "lifecycle.held", "data": {"seq": seq, "stage": "a"}}
            deliveries.add(session, lifecycle_id=made.id, seq=seq, channel="ops", body=body, due_s=now, now=now)
    hook.script = [Answer(500), Answer(500)]
    done = deliver(outbox, sender)
    assert sorted((one.incident or 0, one.seq, one.state) for one in done) == [(0, 1, "ready"), (1, 1, "ready")]
    for _ in range(2):
        outbox.clock.advance(10)
        deliver(outbox, sender)
    with outbox.store.read() as session:
        assert [(one.seq, one.state) for one in deliveries.of_lifecycle(session, made.id)] == [(1, "told"), (2, "told")]
    seen = [one.message["data"]["seq"] for one in hook.taken if one.message["type"] == "lifecycle.held"]
    assert seen == [1, 1, 2] and outbox.states(incident) == ["told"]


def test_a_dead_message_does_not_hold_up_the_next(outbox: Outbox, hook: Receiver, sender: WebhookSender) -> None:
    incident = outbox.incident()
    outbox.message(incident, 1)
    hook.script = [Answer(500)] * 9
    for wait_s in (*LADDER_S, 0):
        deliver(outbox, sender)
        outbox.clock.advance(1.3 * wait_s + 2)
    outbox.message(incident, 2)
    deliver(outbox, sender)
    assert outbox.states(incident) == ["dead", "told"]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_obeyed(outbox: Outbox, hook: Receiver, sender: WebhookSender, form: str) -> None:
    incident = outbox.incident()
    outbox.message(incident, 1)
    later = format_datetime(datetime.fromtimestamp(outbox.clock.now() + 300, UTC), usegmt=True)
    hook.script = [Answer(429, {"retry-after": "300" if form == "seconds" else later})]
    deliver(outbox, sender)
    outbox.clock.advance(298)
    assert deliver(outbox, sender) == []
    outbox.clock.advance(4)
    assert [done.state for done in deliver(outbox, sender)] == ["told"]


@pytest.mark.parametrize("said", ["-5", "soon", "9" * 400, "Wed, 99 Foo 2026", ""])
def test_a_senseless_retry_after_changes_nothing_or_waits_a_day_at_most(
    outbox: Outbox, hook: Receiver, sender: WebhookSender, said: str
) -> None:
    incident = outbox.incident()
    outbox.message(incident, 1)
    hook.script = [Answer(429, {"retry-after": said})]
    deliver(outbox, sender)
    (row,) = outbox.deliveries(incident)
    assert row.state == "ready" and row.due_s <= outbox.clock.now() + LADDER_S[-1] + 1


def test_gone_pauses_the_channel_and_what_waits_is_kept(outbox: Outbox, hook: Receiver, sender: WebhookSender) -> None:
    incident, other = outbox.incident(1), outbox.incident(2)
    outbox.message(incident, 1)
    outbox.message(other, 1)
    hook.script = [Answer(410)]
    assert [done.state for done in deliver(outbox, sender)] == ["dead"]
    outbox.clock.advance(60)
    assert deliver(outbox, sender) == [] and len(hook.taken) == 1, "nobody is asked again"
    with outbox.store.read() as session:
        assert [channel.enabled for channel in deliveries.channels(session)] == [False]
        assert sum("the channel is paused" in event.sentence for event in events.listed(session)) == 1
    outbox.channel("ops", hook.url, hook.secret)
    deliver(outbox, sender)
    assert sorted(outbox.states(incident) + outbox.states(other)) == ["dead", "told"]


def test_redirects_are_not_followed(outbox: Outbox, hook: Receiver, sender: WebhookSender) -> None:
    incident = outbox.incident()
    outbox.message(incident, 1)
    with receiver(hook.secret) as elsewhere:
        hook.script = [Answer(307, {"location": elsewhere.url})]
        (done,) = deliver(outbox, sender)
        assert elsewhere.taken == []
    assert done.error == "HTTP 307, redirects are not followed"


def test_a_receiver_that_does_not_answer_costs_one_try_a_round(outbox: Outbox, hook: Receiver) -> None:
    incidents = [outbox.incident(number) for number in (1, 2, 3)]
    for incident in incidents:
        outbox.message(incident, 1)
    release = threading.Event()
    hook.script = [Answer(hold=release)]
    impatient = WebhookSender(LOCAL, timeout_s=0.2)
    done = deliver(outbox, impatient)
    release.set()
    impatient.close()
    assert [(one.state, one.error) for one in done] == [("ready", "no answer in time")]
    tries = [row.tries for incident in incidents for row in outbox.deliveries(incident)]
    assert sorted(tries) == [0, 0, 1], "the rest was given back without a try"


def test_a_dead_receiver_does_not_hold_up_another_channel(
    outbox: Outbox, hook: Receiver, sender: WebhookSender
) -> None:
    with receiver() as gone:
        dead_url = gone.url
    outbox.channel("pager", dead_url, new_secret())
    incident = outbox.incident()
    outbox.message(incident, 1, "ops")
    outbox.message(incident, 1, "pager")
    states = {done.channel: done.state for done in deliver(outbox, sender)}
    assert states == {"ops": "told", "pager": "ready"}


def test_during_a_rotation_both_secrets_sign(outbox: Outbox, hook: Receiver, sender: WebhookSender) -> None:
    outbox.channel("ops", hook.url, new_secret(), former_secret=hook.secret)
    incident = outbox.incident()
    outbox.message(incident, 1)
    assert [done.state for done in deliver(outbox, sender)] == ["told"]
    outbox.channel("ops", hook.url, new_secret())
    outbox.message(incident, 2)
    assert [done.error for done in deliver(outbox, sender)] == ["HTTP 401"]


def test_many_senders_at_once_send_each_message_once(outbox: Outbox, hook: Receiver, sender: WebhookSender) -> None:
    incidents = [outbox.incident(number) for number in range(1, 13)]
    for incident in incidents:
        outbox.message(incident, 1)
    start = threading.Barrier(4)

    def send() -> None:
        start.wait()
        while deliver(outbox, sender):
            pass

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(hook.ids).most_common(1)[0][1] == 1
    assert len(hook.ids) == 12
    assert {state for incident in incidents for state in outbox.states(incident)} == {"told"}


@pytest.mark.parametrize(
    ("point", "arrivals", "waits"),
    [
        ("claimed, not committed", 1, False),
        ("committed, not sent", 1, True),
        ("answered, not marked", 2, True),
        ("marked, not committed", 2, True),
        ("after all", 1, False),
    ],
)
def test_killed_at_any_point_nothing_is_lost_and_repeats_have_the_same_id(
    database_url: str, outbox: Outbox, hook: Receiver, sender: WebhookSender, point: str, arrivals: int, waits: bool
) -> None:
    incident = outbox.incident()
    message = outbox.message(incident, 1)
    command = [sys.executable, str(DYING), database_url, str(outbox.clock.now()), point]
    died = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    if waits:
        assert deliver(outbox, sender) == [], "the claim is still the dead one's"
        outbox.clock.advance(CLAIM_S)
    deliver(outbox, sender)
    assert outbox.states(incident) == ["told"]
    assert hook.ids == [message] * arrivals
    assert deliver(outbox, sender) == []


def test_a_sender_that_wakes_up_late_does_not_mark_anothers_claim(outbox: Outbox, sender: WebhookSender) -> None:
    incident = outbox.incident()
    outbox.message(incident, 1)
    with outbox.store.write() as session:
        (late,) = deliveries.claim(session, now=outbox.clock.now(), claim_s=CLAIM_S, per_channel=4)
    outbox.clock.advance(CLAIM_S)
    with outbox.store.write() as session:
        (taken_over,) = deliveries.claim(session, now=outbox.clock.now(), claim_s=CLAIM_S, per_channel=4)
        assert taken_over.id == late.id
        assert not deliveries.mark_failed(session, late, error="late", due_s=None)
        assert not deliveries.give_back(session, late, due_s=0.0)
        assert deliveries.mark_told(session, taken_over, now=outbox.clock.now())
        assert not deliveries.mark_told(session, late, now=outbox.clock.now())
    assert outbox.states(incident) == ["told"]
