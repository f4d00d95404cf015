"""What channels are told of lifecycles: once a hold and once the end, by the incidents' outbox, to a real receiver."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.notify.webhook import WebhookSender
from controlplane.services import lifecycles_messages
from controlplane.services.deliveries import LADDER_S, deliver_once
from controlplane.services.lifecycles_conductor import Conductor
from controlplane.store import deliveries
from controlplane.store.tables import Delivery, LifecycleStage
from tests.notify.receiving import LOCAL, Answer, Receiver, receiver
from tests.runs.conducting import Conducting, gate

ROOT = Path(__file__).resolve().parents[2]
PAGES = "https://trimtab.example:8441"
APPROVED = {"name": "sft", "gate": {**gate("pass@1 > constant_baseline"), "approval": True}}
MEASURED = {"pass@1": 0.25, "constant_baseline": 0.0211}


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture
def told(walk: Conducting, hook: Receiver) -> Conducting:
    """A walk whose conductor knows the pages, with one channel to a receiver on this machine."""
    channel(walk, "ops", hook.url, hook.secret)
    walk.conductor = Conductor(walk.store, walk.places, walk.controller, lambda _spec: "memory", lambda: PAGES)
    return walk


def channel(walk: Conducting, name: str, url: str = "http://127.0.0.1:9/", secret: str = "", **more: Any) -> None:
    with walk.store.write() as session:
        deliveries.put_channel(session, name, kind="webhook", config={"url": url, "secret": secret}, **more)


def messages(walk: Conducting, lifecycle_id: str) -> list[Delivery]:
    with walk.store.read() as session:
        return deliveries.of_lifecycle(session, lifecycle_id)


def kinds(walk: Conducting, lifecycle_id: str) -> list[tuple[str, str | None]]:
    return [(one.body["type"], one.body["data"]["hold"]) for one in messages(walk, lifecycle_id)]


def send(walk: Conducting) -> list[str]:
    sender = WebhookSender(LOCAL)
    try:
        return [one.state for one in deliver_once(walk.store, {"webhook": sender}, walk.clock.now())]
    finally:
        sender.close()


def as_documented(real: Any) -> None:
    """The message of docs/messages.md has the fields of a real one, and every type its line."""
    text = (ROOT / "docs" / "messages.md").read_text()
    (shown,) = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    assert (list(shown), list(shown["data"])) == (list(real), list(real["data"]))
    assert shown["data"]["requirements"] == real["data"]["requirements"]
    for name in (lifecycles_messages.HELD, lifecycles_messages.SUCCEEDED, lifecycles_messages.FAILED):
        assert f"| `{name}` |" in text


def test_a_hold_and_the_end_reach_a_receiver_signed_and_once(told: Conducting, hook: Receiver) -> None:
    told.metrics["sft"] = MEASURED
    made = told.begin(APPROVED, name="zaya-life")
    told.walk(made)
    hash_ = told.held(made).candidate_hash
    assert send(told) == ["told"]
    (one,) = hook.taken
    data = one.message["data"]
    link = f"{PAGES}/lifecycle?lifecycle={made}&stage=sft"
    assert data["sentence"] == (
        "zaya-life waits for approval at sft: pass@1 0.25 > constant_baseline 0.0211. "
        f"Checkpoint {hash_[:12]}, step 10. Approve: {link}"
    )
    assert (one.message["type"], data["link"], data["checkpoint_hash"]) == ("lifecycle.held", link, hash_)
    assert data["requirements"] == [
        {"requirement": "pass@1 > constant_baseline", "value": 0.25, "bound": 0.0211, "ok": True}
    ]
    as_documented(one.message)
    for _ in range(3):  # rounds go by
        told.tick(40.0)
    assert send(told) == []
    told.say(made, "sft", "approved")
    told.tick()
    assert send(told) == ["told"]
    assert [(each.message["type"], each.message["data"]["seq"]) for each in hook.taken] == [
        ("lifecycle.held", 1),
        ("lifecycle.succeeded", 2),
    ]
    assert hook.taken[1].message["data"]["sentence"] == (
        f"zaya-life is done: all 1 stages passed. See: {PAGES}/lifecycle?lifecycle={made}"
    )
    shown = told.shown(made)["deliveries"]
    assert [(each["channel"], each["stage"], each["state"], each["tries"]) for each in shown] == [
        ("ops", "sft", "told", 1),
        ("ops", None, "told", 1),
    ]


def test_what_a_gate_refuses_is_told_and_every_new_hold_anew(told: Conducting) -> None:
    made = told.begin({"name": "a", "gate": gate("loss < 1.5")})
    told.walk(made)
    hash_ = told.held(made).candidate_hash
    words = f"walk is held at a: its gate refuses: loss 2 < 1.5 does not hold. Checkpoint {hash_[:12]}, step 10. "
    assert messages(told, made)[0].body["data"]["sentence"].startswith(f"{words}Decide: {PAGES}/")
    send(told)
    told.retry(made, "a", evaluation=True)
    told.tick()
    told.walk(made)
    assert kinds(told, made) == [("lifecycle.held", "refused")] * 2
    told.say(made, "a", "refused", reason="too high")
    told.tick()
    send(told)
    last = messages(told, made)[-1].body
    assert last["type"] == "lifecycle.failed" and last["data"]["stage"] is None
    words = f"walk failed: a did not pass. a: bob refused checkpoint {hash_[:12]} of stage a: too high."
    assert last["data"]["sentence"].startswith(words)


def test_nobody_is_called_to_a_decision_that_was_made(told: Conducting) -> None:
    made = told.begin({"name": "a", "gate": gate(approval=True)}, {"name": "b", "gate": gate(approval=True)})
    told.walk(made)
    assert kinds(told, made) == [("lifecycle.held", "approval")]
    told.say(made, "a", "approved")
    told.tick()
    assert kinds(told, made) == []
    told.walk(made)
    assert [one.body["data"]["stage"] for one in messages(told, made)] == ["b"]
    told.ask(made, "cancel")
    told.tick()
    assert (told.state(made).status, kinds(told, made)) == ("cancelled", [])


def test_a_taint_is_another_hold_and_takes_the_place_of_the_first(told: Conducting) -> None:
    made = told.begin({"name": "a", "gate": gate(approval=True)})
    told.walk(made)
    told.taint(told.held(made).candidate_hash)
    told.tick()
    assert kinds(told, made) == [("lifecycle.held", "tainted")]
    words = messages(told, made)[0].body["data"]["sentence"]
    assert words.startswith("walk is held at a: checkpoint ") and "is tainted" in words


def test_a_failed_run_is_told_with_its_reason(told: Conducting) -> None:
    made = told.begin({"name": "a", "budget": {"retries": 0}}, faults={"restarts": 0})
    told.tick()
    run_id = told.newest(made, "a").run.id
    told.train(run_id, 1, 5)
    told.end(run_id, "failed", **{"class": "error", "message": "it broke", "fingerprint": "broke"})
    for _ in range(3):
        told.tick(120)
    assert kinds(told, made) == [("lifecycle.held", "failed")]
    words = messages(told, made)[0].body["data"]["sentence"]
    assert words.startswith(f"walk is held at a: run {run_id} waits for a person: ")
    assert f". Try again or cancel: {PAGES}/lifecycle?" in words


def test_messages_of_one_lifecycle_keep_their_order_and_one_is_given_up(told: Conducting, hook: Receiver) -> None:
    made = told.begin({"name": "a", "gate": gate(approval=True)})
    told.walk(made)
    hook.script = [Answer(500)] * (len(LADDER_S) + 1)
    assert send(told) == ["ready"]
    told.say(made, "a", "approved")
    told.tick()  # it was tried already: it may have arrived, so it stays
    assert kinds(told, made) == [("lifecycle.held", "approval"), ("lifecycle.succeeded", None)]
    states = []
    for wait_s in LADDER_S:
        told.clock.advance(1.3 * wait_s)
        states += send(told)
    assert states == ["ready"] * (len(LADDER_S) - 1) + ["dead"], "the end waits for the hold"
    assert send(told) == ["told"]
    assert hook.taken[-1].message["type"] == "lifecycle.succeeded"
    (dead,) = told.told(made, "delivery_dead")
    assert dead.sentence == "ops was not told of walk, stage a: given up after 9 tries"


def test_each_channel_that_is_on_has_its_row_without_a_link_where_nobody_knows_the_pages(walk: Conducting) -> None:
    made = walk.begin({"name": "a", "gate": gate(approval=True)})
    walk.walk(made)
    assert (messages(walk, made), walk.state(made).seq) == ([], 0)
    for name, enabled in (("ops", True), ("pager", True), ("off", False)):
        channel(walk, name, enabled=enabled)
    again = walk.begin({"name": "a", "gate": gate(approval=True)})
    walk.walk(again)
    assert [one.channel for one in messages(walk, again)] == ["ops", "pager"]
    data = messages(walk, again)[0].body["data"]
    assert (data["link"], data["page"]) == (None, f"lifecycle?lifecycle={again}&stage=a")
    assert data["sentence"].endswith(", step 10.")


@pytest.mark.parametrize(
    ("hold", "reason", "words"),
    [
        ("budget", "Stage a has used 4.10 of 4 GPU-hours: its run saves and ends.", "it has used 4.10 of 4 GPU-hours"),
        ("tainted", "Stage a cannot begin: checkpoint 12 of stage b is tainted.", "it cannot begin: checkpoint 12 of"),
        ("failed", "Stage a is held: its run r was stopped: no reason was given.", "its run r was stopped: no reason"),
        ("refused", "Stage a is held. The gate refuses: there is no result.", "The gate refuses: there is no"),
        ("failed", "Stage a is held: " + "x" * 5000, "it x"),
    ],
)
def test_every_hold_has_its_sentence_and_none_is_endless(hold: str, reason: str, words: str) -> None:
    verdict = {"sentence": "The gate refuses: there is no result.", "requirements": []} if hold == "refused" else None
    row = LifecycleStage(name="a", state="held", hold=hold, reason=reason, candidate_hash="ab" * 32, verdict=verdict)
    said = lifecycles_messages.held_words("walk", row)
    assert said.startswith(f"walk is held at a: {words}") and len(said) <= lifecycles_messages.WHY_CHARS + 1
