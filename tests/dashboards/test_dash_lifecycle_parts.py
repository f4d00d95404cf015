"""Track, lineage and words of the Lifecycle pages as pure functions: depths, lanes, folding, sentences."""

from typing import Any

import fake_lifecycles as samples
import pytest

from dashboards.views import job_cards, lifecycle_actions, lifecycle_cards, lifecycle_lineage, lifecycle_track
from dashboards.views import lifecycle_words as lw
from dashboards.views.lifecycle_lineage import Cell

NOW = samples.BEGUN + 10_000


def stage(name: str, *after: str, source: str | None = None, **changes: Any) -> Any:
    return {**samples.stage(name, "waiting"), "after": list(after), "from": source, **changes}


def named(columns: list[list[Any]]) -> list[list[str]]:
    return [[one["name"] for one in column] for column in columns]


def test_stages_stand_behind_the_longest_way_to_them_whatever_their_order() -> None:
    stages = [stage("d", "b", "c"), stage("a"), stage("b", "a"), stage("c", "b"), stage("e", source="a")]
    assert named(lifecycle_track.columns(stages)) == [["a"], ["b", "e"], ["c"], ["d"]]


def test_a_plan_that_is_no_chain_names_what_a_stage_waits_for() -> None:
    stages = [stage("a"), stage("b", "a"), stage("c", "a"), stage("d", "b", "c", source="b")]
    text = lifecycle_track.track({"id": "x", "stages": stages}, "b", NOW)
    assert "after b and c, from b" in text
    assert "after a" not in text
    assert text.count("tt-leaf") == 1 and text.count("tt-here") == 1


def test_gates_and_ticks_say_their_state_by_sign() -> None:
    text = lifecycle_track.track(samples.view(), "sft", NOW)
    assert 'class="tt-gate tt-ok" role="img" aria-label="gate passed: loss &lt; 2.6"' in text
    assert 'aria-label="gate refuses: loss &lt; 2.6, pass@1 &gt; constant_baseline, a person&#x27;s approval"' in text
    assert text.count("tt-tick tt-ok") == 5  # of pretrain train, evaluate; of sft text, train, evaluate
    training = lifecycle_track.track(samples.training_view(), "sft", NOW)
    assert 'tt-tick tt-now" title="train: active"' in training
    assert 'tt-tick tt-todo" title="evaluate: not begun"' in training


def rows() -> list[tuple[int, int, int | None]]:
    return [(len(one.nodes), one.lane, one.parent) for one in lifecycle_lineage.lines(samples.lineage())]


def test_plain_checkpoints_are_folded_and_a_second_child_opens_a_lane() -> None:
    assert rows() == [(1, 0, None), (3, 0, 0), (1, 0, 1), (1, 0, 2), (1, 0, 3), (1, 1, 2), (1, 1, 5)]


def test_a_branch_is_drawn_from_its_parent_across_and_down_and_a_tainted_one_apart() -> None:
    drawn = lifecycle_lineage.cells(lifecycle_lineage.lines(samples.lineage()))
    assert drawn[2] == [
        Cell(up="tt-sound", down="tt-tainted", right="tt-sound", dot=True),
        Cell(left="tt-sound", down="tt-sound"),
    ]
    assert drawn[3] == [Cell(up="tt-tainted", down="tt-tainted", dot=True), Cell(up="tt-sound", down="tt-sound")]
    assert drawn[6] == [Cell(), Cell(up="tt-sound", dot=True)]


def test_no_line_runs_through_another_branch() -> None:
    """A third child of the first row may not use the lane in which the second one has ended since."""
    name = "{:064x}".format
    nodes = [samples.node(name(at), f"s{at}", at, float(at), candidate=True) for at in range(5)]
    pairs = [(0, 1), (0, 2), (2, 3), (0, 4)]
    edges = [{"from": name(old), "to": name(new), "kind": "init"} for old, new in pairs]
    lines = lifecycle_lineage.lines({"nodes": nodes, "edges": edges})
    assert [one.lane for one in lines] == [0, 0, 1, 1, 2]


def test_parents_come_before_children_although_a_clock_was_set_back() -> None:
    old, new = samples.node("a" * 64, "s", 1, 100.0), samples.node("b" * 64, "s", 2, 50.0)
    edges = [{"from": "a" * 64, "to": "b" * 64, "kind": "init"}]
    assert lifecycle_lineage.in_order([new, old], edges) == [old, new]


def test_tainted_checkpoints_are_told_by_shape_word_and_reason() -> None:
    text = lifecycle_lineage.graph(samples.lineage(), "sft")
    assert text.count('<i class="tt-glyph tt-fault" aria-hidden="true">×</i></span>') == 2
    assert 'title="a bad data shard"' in text
    assert ">base</span>" in text and "verified, passed, resumed" in text
    assert "No checkpoint yet" in lifecycle_lineage.graph({"nodes": [], "edges": []})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": "cancelled", "reason": ""}, "It has cancelled."),
        ({"desired": "cancel"}, "It is being cancelled"),
        ({"status": "paused", "stages": []}, "It is paused. Nothing begins until somebody resumes it."),
        ({"desired": "pause", "stages": []}, "It is being paused: its runs save and stop."),
        ({"stages": [samples.stage("a", "waiting")]}, "Nothing of it is under way yet"),
        ({"status": "succeeded", "reason": "All of its 3 stages passed."}, "All of its 3 stages passed."),
    ],
)
def test_the_first_sentence_says_what_it_does(changes: Any, said: str) -> None:
    assert lw.lead_words(samples.view(**changes))[0].startswith(said)


def test_an_approval_is_asked_of_an_operator_with_the_hash_and_what_goes_on_meanwhile() -> None:
    view = samples.view()
    view["stages"][1] |= {"hold": "approval", "reason": "Stage sft is held. All 2 requirements hold."}
    progress = {"step": 5, "steps": 10, "share": 0.5}
    view["stages"].append(samples.stage("code", "training", progress=progress))
    assert lw.lead_words(view)[0] == (
        "sft waits for an operator's word on checkpoint 69c6f8f12c48. All 2 requirements hold. "
        "Meanwhile code trains, step 5 of 10 · 50.0 %. Then release begins."
    )


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"hold": "failed"}, ["again", "fresh", "evaluation"]),
        ({"hold": "budget", "candidate": None}, ["again", "fresh"]),
        ({"hold": "approval"}, ["evaluation", "fresh"]),
        ({"hold": "refused", "runs": []}, ["fresh"]),
        ({"hold": "refused", "role": "release", "runs": []}, ["fresh"]),
        ({"hold": "failed", "role": "release", "runs": []}, ["again"]),
    ],
)
def test_only_what_failed_is_offered_without_saying_what(changes: Any, found: list[str]) -> None:
    held = {**samples.stages()[1], **changes}
    assert lifecycle_actions.retries(held) == found
    told = [lifecycle_actions.retried(how, held) for how in found]
    assert any("seed" in one for one in told) == (held["role"] == "train")


@pytest.mark.parametrize(
    ("state", "of", "said"),
    [
        ("refused", "cancelled", "refuses checkpoint"),
        ("overridden", "passed", "; a person let it pass"),
        ("undecided", "cancelled", "was reached and not decided for checkpoint"),
        ("open", "cancelled", "was not reached"),
        ("open", "waiting", "is not reached yet"),
    ],
)
def test_the_gate_is_told_as_it_was(state: str, of: str, said: str) -> None:
    held = samples.stages()[1]
    text = lifecycle_cards.gate_block({**held, "state": of, "gate": {**held["gate"], "state": state}})
    assert said in text and ("✓</i> <b>The gate" in text) == (state == "passed")


@pytest.mark.parametrize(("hours", "said"), [(None, "–"), (0.0, "0"), (0.004, "< 0.01"), (0.5, "0.50"), (34.7, "34.7")])
def test_gpu_hours_are_never_rounded_to_none(hours: float | None, said: str) -> None:
    assert lw.gpu_hours(hours) == said


def test_the_bars_of_a_cost_are_to_one_scale() -> None:
    text = lifecycle_cards.cost_block(samples.stages())
    assert f'class="tt-role-train" style="width:{100 * 30.1 / 31.7:.2f}%"' in text
    assert f'class="tt-role-train" style="width:{100 * 3.2 / 31.7:.2f}%"' in text
    assert "width" not in lifecycle_cards.cost_block([samples.stage("a", "waiting")])


def test_an_alias_of_a_tainted_checkpoint_says_so() -> None:
    view = samples.view()
    (alias,) = view["aliases"]
    assert "tainted" not in lifecycle_cards.alias_block(view, 0.0)
    assert "</i> tainted" in lifecycle_cards.alias_block({"aliases": [alias | {"tainted": True}]}, 0.0)


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ({"used_s": 9.0}, ""),
        ({"used_s": None, "voided_s": None}, "not carried out yet"),
        ({"used_s": None, "voided_s": 9.0}, "void: it was never carried out"),
    ],
)
def test_a_word_that_came_to_nothing_is_not_shown_as_carried_out(when: Any, said: str) -> None:
    view = samples.view()
    word = {"stage": "sft", "verdict": "approved", "checkpoint_hash": "ab" * 32, "actor": "bob", "at_s": 1.0, **when}
    text = lifecycle_cards.fact_block(view | {"approvals": [word]}, view["stages"][1])
    assert (said in text) and ("carried out" in text) is bool(said)


def test_a_long_difference_says_how_much_it_leaves_out() -> None:
    changes = [{"path": f"p{at}", "before": at, "after": None} for at in range(lifecycle_cards.MOST_CHANGES + 5)]
    lines = lifecycle_cards.diff_lines(changes)
    assert lines[0] == ("-", "p0: 0") and lines[-1] == (" ", "and 5 more")


def test_the_job_pages_bar_leads_to_the_stage_of_its_lifecycle() -> None:
    run = {"stages": ["pretrain", "sft"], "stage": "sft", "step": 3, "steps": 10, "progress": 0.3}
    bar = job_cards.stage_bar({**run, "lifecycle": {"id": samples.ID, "name": "walk"}})
    assert f'href="/lifecycle?lifecycle={samples.ID}&amp;stage=sft"' in bar
    assert "href" not in job_cards.stage_bar({**run, "lifecycle": None})


def test_a_stage_that_cannot_read_its_disk_says_so_in_words_and_sign() -> None:
    said = "It waits: cannot read /data/<x>: Stale file handle, for 3 m 02 s now. Nothing is decided by that."
    view = samples.training_view()
    view["stages"][1]["unread"] = {"run": "r", "why": "x", "since_s": NOW, "sentence": said}
    assert lw.stage_words(view["stages"][1]) == ("warn", "!", "cannot read its disk")
    text, bold = lw.lead_words(view)
    assert text.startswith(f"sft{said.removeprefix('It')}") and bold == ("sft waits",)
    assert "cannot read its disk" in lifecycle_track.track(view, "sft", NOW)
    assert lw.status_words(samples.row(waits_for_person=False, waits_for_disk=True))[:2] == ("warn", "!")


def test_who_was_told_of_a_hold_stands_among_the_stages_facts() -> None:
    view = samples.view()
    text = lifecycle_cards.fact_block(view, view["stages"][1])
    assert "<span>told</span><b>ops at " in text and "pager not yet (HTTP 503)</b>" in text
    assert "<span>told</span>" not in lifecycle_cards.fact_block(view, view["stages"][0])
    old = {**view["deliveries"][0], "channel": "older", "seq": 0}
    hostile = {**view["deliveries"][0], "channel": samples.HOSTILE, "state": "dead", "told_s": None}
    told = {**view, "deliveries": [old, hostile]}
    text = lifecycle_cards.fact_block(told, view["stages"][1])
    assert "older" not in text and "<img" not in text and "given up" in text
    block = lifecycle_cards.message_block([{**hostile, "stage": None, "type": "lifecycle.failed"}, old], NOW)
    assert "<img" not in block and ">failed<" in block and ">held sft<" in block
