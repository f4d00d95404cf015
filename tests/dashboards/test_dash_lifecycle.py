"""The Lifecycle page as its reader meets it: held, training, empty, broken; and that a word is about one checkpoint."""

from collections.abc import Iterator
from typing import Any

import fake_lifecycles as samples
import pytest
from fake_runs import FakeApi, serving
from pages_under_test import labels, markup, open_page
from streamlit.testing.v1 import AppTest

from dashboards.views import lifecycle_actions, lifecycle_lineage

ID, NEXT = samples.ID, samples.NEXT
PATH = f"lifecycles/{ID}"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    with serving() as fake:
        fake.answers |= samples.answers()
        monkeypatch.setenv("TRIMTAB_API_URL", fake.url)
        yield fake


def lifecycle(**query: str) -> AppTest:
    page = open_page("lifecycle", lifecycle=ID, **query)
    assert not page.exception, page.exception
    return page


def with_stage(api: FakeApi, **changes: Any) -> None:
    """Change the stage that is held."""
    view = samples.view()
    view["stages"][1] |= changes
    api.answers[f"GET {PATH}"] = view


def sent(api: FakeApi) -> list[tuple[str, Any]]:
    return [(call.path.removeprefix(f"{PATH}/"), call.body) for call in api.writes()]


def test_the_page_says_what_it_waits_for_and_shows_the_gate_that_refuses(api: FakeApi) -> None:
    page = lifecycle()
    text = markup(page)
    assert '<p class="tt-lead tt-narrow"><b>sft waits</b> for an operator: approve it all the same' in text
    for part in ("1 of 3 stages passed", "loss &lt; 2.6", "&gt; 0.31", "does not hold", "waited for", "SIMULATED"):
        assert part in text
    assert "refuses checkpoint" in text and f'title="{NEXT}">69c6f8f12c48' in text
    assert 'href="/job?run=walk-sft-train-4"' in text
    assert "productive 30.1, lost 1.40, queued 0.20 GPU-hours" in text
    assert "3.20 · &lt; 0.01 · 0.60" in text
    assert 'aria-label="9 checkpoints, 2 tainted"' in text
    assert all(labels(page)[name] for name in ("Approve…", "Refuse…", "Try again…", "Pause", "Clone…", "Cancel…"))


def test_a_stage_at_work_shows_its_progress_and_bars_the_words(api: FakeApi) -> None:
    api.answers[f"GET {PATH}"] = samples.training_view()
    page = lifecycle()
    text = markup(page)
    assert "<b>sft trains</b>, step 640 of 1,000 · 64.0 %." in text
    assert 'class="tt-track-bar"><i style="width:64.0%"' in text
    assert "data 0.8 s old" in text and "not judged yet" in text
    for verb in ("approve", "refuse", "retry"):
        button = page.button(key=f"lifecycle_{verb}")
        assert button.disabled and button.help.replace("\\", "") == "stage sft is training: it waits for nobody"


def test_the_chosen_stage_and_the_part_below_are_in_the_address(api: FakeApi) -> None:
    page = lifecycle(stage="release", show="What happened")
    text = markup(page)
    assert "None yet: the stage begins after sft." in text and "is not reached yet" in text
    assert "ada submitted walk" in text and "tt-graph" not in text
    page.selectbox(key="lifecycle_stage_named").set_value("pretrain").run()
    assert page.query_params["stage"] == "pretrain"
    assert "let checkpoint" in markup(page)
    assert "31.5 of 40.0 GPU-hours used" in markup(page)
    assert 'class="tt-add"><span>+</span>stages.pretrain.promote: base' in markup(lifecycle(show="Changed"))
    assert lifecycle(show="Plan").code[0].value.startswith("apiVersion")


def test_an_approval_names_the_checkpoint_and_its_reason_and_is_sent_once(api: FakeApi) -> None:
    page = lifecycle()
    page.button(key="lifecycle_approve").click().run()
    told = " ".join(str(one.value) for one in page.markdown).replace("\\", "")
    assert "Stage sft passes with checkpoint 69c6f8f12c48. Alias chat moves to it. Then release can begin" in told
    assert NEXT in [one.value for one in page.code]
    page.button(key="lifecycle_do").click().run()
    assert sent(api) == [] and "although the gate refuses" in page.error[0].value.replace("\\", "")
    page.text_input(key="lifecycle_why").set_value("seen by eye").run()
    page.button(key="lifecycle_do").click().run()
    assert sent(api) == [("stages/sft/approve", {"hash": NEXT, "reason": "seen by eye"})]
    assert api.writes()[0].key
    assert "lifecycle_dialog" not in page.session_state


def test_a_newer_candidate_is_not_approved_by_an_older_look(api: FakeApi) -> None:
    page = lifecycle()
    page.button(key="lifecycle_approve").click().run()
    with_stage(api, candidate=samples.candidate("ab" * 32, "walk-sft-train-9"))
    page.session_state["tt_reads"] = {}
    page.text_input(key="lifecycle_why").set_value("fine").run()
    assert "another checkpoint by now" in page.warning[0].value
    api.refuse(f"POST {PATH}/stages/sft/approve", 409, "not_now", "Its checkpoint is abab, not 69c6.")
    page.button(key="lifecycle_do").click().run()
    assert sent(api)[0][1]["hash"] == NEXT
    assert "not 69c6" in page.error[0].value.replace("\\", "")


@pytest.mark.parametrize(
    ("changes", "can", "why"),
    [
        ({"hold": "failed", "can": ["retry"]}, "retry", "it is not held for a word on a checkpoint: a run failed"),
        (
            {"can": ["refuse"], "candidate": samples.candidate(NEXT, "x", tainted=True)},
            "refuse",
            "its checkpoint is tainted: nobody may approve it",
        ),
        ({"can": []}, "", "a person's word on it is being carried out"),
    ],
)
def test_a_word_that_is_not_possible_says_why(changes: Any, can: str, why: str) -> None:
    reasons = lifecycle_actions.stage_reasons(samples.view(), {**samples.stages()[1], **changes})
    assert [verb for verb, reason in reasons.items() if not reason] == ([can] if can else [])
    assert reasons["approve"] == why


def test_a_stage_is_tried_again_afresh_and_refused_with_what_is_lost(api: FakeApi) -> None:
    page = lifecycle()
    page.button(key="lifecycle_retry").click().run()
    assert page.radio(key="lifecycle_again").options == [
        "its evaluation alone",
        "its training from the beginning, with another seed",
    ], "nothing failed"
    told = " ".join(str(one.value) for one in page.markdown).replace("\\", "")
    assert "Trained from the beginning, it has 69c6f8f12c48 as its checkpoint no longer." in told
    page.radio(key="lifecycle_again").set_value("fresh").run()
    page.button(key="lifecycle_do").click().run()
    page.button(key="lifecycle_refuse").click().run()
    told = " ".join(str(one.value) for one in page.markdown).replace("\\", "")
    assert "and release and all that waits for it is cancelled" in told
    page.button(key="lifecycle_do").click().run()
    assert sent(api) == [
        ("stages/sft/retry", {"fresh": True, "evaluation": False}),
        ("stages/sft/refuse", {"hash": NEXT, "reason": ""}),
    ]
    assert len({call.key for call in api.writes()}) == 2


def test_it_is_cancelled_only_by_its_name_and_an_alias_is_moved_to_a_verified_checkpoint(api: FakeApi) -> None:
    page = lifecycle()
    page.button(key="lifecycle_cancel").click().run()
    page.text_input(key="lifecycle_typed").set_value("wall").run()
    page.button(key="lifecycle_do").click().run()
    assert sent(api) == []
    page.text_input(key="lifecycle_typed").set_value("walk").run()
    page.button(key="lifecycle_do").click().run()
    page.button(key="lifecycle_promote").click().run()
    assert not any("tainted" in option or "0bad" in option for option in page.selectbox(key="lifecycle_to").options)
    page.button(key="lifecycle_do").click().run()
    assert sent(api) == [("cancel", {}), ("promote", {"alias": "base", "hash": NEXT})]


def test_a_clone_begins_with_the_chosen_stage_and_opens(api: FakeApi) -> None:
    page = lifecycle()
    page.button(key="lifecycle_clone").click().run()
    page.selectbox(key="lifecycle_begin").set_value("release").run()
    page.button(key="lifecycle_do").click().run()
    assert sent(api) == [("clone", {"begin": "release"})]
    assert page.session_state["tt_went"] == ("lifecycle", {"lifecycle": "clone-1"})


def test_a_viewer_looks_and_does_not_act(api: FakeApi) -> None:
    api.answers["GET session"] = {"actor": "v", "role": "viewer", "kind": "login"}
    page = lifecycle()
    assert not any(on for name, on in labels(page).items() if name.endswith("…") or name == "Pause")
    assert "viewer" in page.button(key="lifecycle_approve").help


def test_nothing_from_outside_becomes_markup(api: FakeApi) -> None:
    bad = samples.HOSTILE
    view = samples.view(name=bad, created_by=bad, yaml=bad)
    view["stages"][1] |= {"name": bad, "reason": bad, "hold": "approval"}
    view["stages"][1]["runs"][0] |= {"id": bad, "item": bad, "missing": bad, "role": "evaluate"}
    view |= {"stage": bad, "timeline": [samples.event(0, bad, bad, bad, bad)]}
    api.answers[f"GET {PATH}"] = view
    api.answers[f"GET {PATH}/lineage"] = {"nodes": [samples.node(bad, bad, 1, 0, aliases=[bad], path=bad)], "edges": []}
    text = markup(lifecycle(show="What happened"))
    text += lifecycle_lineage.graph(api.answers[f"GET {PATH}/lineage"])
    assert "&lt;img" in text and "<img" not in text


@pytest.mark.parametrize(
    ("query", "said"), [({}, "No lifecycle is named"), ({"lifecycle": "none-such"}, "There is no such thing.")]
)
def test_an_address_that_names_none_says_so(api: FakeApi, query: dict[str, str], said: str) -> None:
    page = open_page("lifecycle", **query)
    assert not page.exception
    assert said in markup(page)


def test_a_lifecycle_is_found_by_its_name_and_followed_by_its_id(api: FakeApi) -> None:
    api.answers["GET lifecycles/walk"] = api.answers[f"GET {PATH}"] = samples.view(parent="older")
    page = open_page("lifecycle", lifecycle="walk")
    text = markup(page)
    assert 'Cloned from <a class="" href="/lifecycle?lifecycle=older"' in text
    assert f"lifecycle={ID}&amp;stage=pretrain" in text
    assert [call.path for call in api.calls if "walk" in call.path.split("/")] == ["lifecycles/walk"]


def test_a_server_that_fails_is_told_with_its_code(api: FakeApi) -> None:
    api.refuse(f"GET {PATH}", 503, "store_locked", "The store is busy.")
    assert "store_locked" in markup(lifecycle())
