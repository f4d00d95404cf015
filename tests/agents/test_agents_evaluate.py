"""The evaluator's memory: unknown stretches, clocks that are set, restarts, resets, kernel lines; and rows that lie."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.node.sources.simulated import SimulatedSource
from agents.readings import GPU_INDEX, GPU_METRICS, NIC_INDEX, UNKNOWN, Fault, KernelLine, NodeSample
from agents.rules.evaluate import Attribution, Evaluator
from agents.rules.load import DEFAULT_PATH, RuleError, load_rules, parse_rules

FACTS = SimulatedSource("node-a", 0.0).facts()
HEALTHY = {"present": 1, "xgmi_links_up": 7}
NIC_UP = tuple(1 if name == "link_up" else 0 for name in NIC_INDEX)


def moment(at: int, *, wall: float | None = None, kernel: tuple[KernelLine, ...] = (), **gpu: int) -> NodeSample:
    """One GPU and one NIC at a second: healthy but for what is named."""
    values = {**HEALTHY, "accumulation_ticks": 1000 * at, **gpu}
    row = tuple(values.get(metric.name, 0) for metric in GPU_METRICS)
    return NodeSample(float(at) if wall is None else wall, float(at), (row,), (NIC_UP,), kernel)


def evaluator(firing: tuple[Fault, ...] = (), rules: str = "") -> Evaluator:
    return Evaluator(parse_rules(rules) if rules else load_rules(), "node-a", "boot", FACTS, None, firing)


def run(judge: Evaluator, samples: list[NodeSample]) -> list[Fault]:
    return [fault for sample in samples for fault in judge.check(sample)]


def test_what_is_unknown_fills_no_window() -> None:
    judge = evaluator()
    run(judge, [moment(at) for at in range(10)])
    samples = []
    for at in range(10, 200, 2):
        samples += [moment(at, xgmi_links_up=UNKNOWN), moment(at + 1, xgmi_links_up=6)]
    assert run(judge, samples) == [], "each bad sample stands alone between two that cannot tell"
    assert [fault.rule for fault in run(judge, [moment(at, xgmi_links_up=6) for at in range(200, 205)])] == [
        "xgmi-degraded"
    ]


def test_what_is_unknown_clears_no_fault() -> None:
    judge = evaluator()
    run(judge, [moment(at) for at in range(5)])
    assert len(run(judge, [moment(at, present=0) for at in range(5, 10)])) == 1
    assert run(judge, [moment(at, present=UNKNOWN) for at in range(10, 2000)]) == []
    assert [fault.state for fault in run(judge, [moment(at) for at in range(2000, 2200)])] == ["clear"]


def test_a_pause_of_the_agent_is_no_time_in_which_a_condition_was_seen() -> None:
    judge = evaluator()
    down = tuple(0 for _ in NIC_INDEX)
    who = Attribution("run", 1, 0)
    first = replace(moment(1), nics=(NIC_UP,))
    judge.check(first, who)
    found = judge.check(replace(moment(2), nics=(down,)), who)
    assert [fault.rule for fault in found] == ["nic-down"]
    assert judge.check(replace(moment(5000), nics=(down,)), who) == [], "two samples are not ten seconds"


def test_a_wall_clock_that_is_set_makes_and_ends_nothing() -> None:
    judge = evaluator()
    run(judge, [moment(at, wall=1e9 + at) for at in range(10)])
    jumps = [moment(at, wall=1e9 + 10_000 * (-1) ** at, xgmi_links_up=6 + at % 2) for at in range(10, 60)]
    assert run(judge, jumps) == []
    faults = run(judge, [moment(at, wall=2e9 - at, present=0) for at in range(60, 64)])
    assert [fault.rule for fault in faults] == ["gpu-lost"]
    assert run(judge, [moment(at, wall=9e9 + at) for at in range(64, 100)]) == []


def test_a_share_is_judged_over_its_own_window_and_waits_for_no_other() -> None:
    judge = evaluator()
    ticks = [0] * 100 + [500 * at for at in range(1, 400)]
    samples = [moment(at, throttle_thermal_ticks=value) for at, value in enumerate(ticks)]
    onsets = {fault.rule: fault.onset_s for fault in run(judge, samples)}
    # half of each second from 100 on: over 5 % of a minute after 7 s; a third of five minutes when they are first full
    assert onsets == {"thermal": 106.0, "thermal-severe": pytest.approx(300.0, abs=1)}


def test_the_onset_is_the_first_bad_sample_and_not_the_one_that_filled_the_window() -> None:
    judge = evaluator()
    run(judge, [moment(at) for at in range(10)])
    (fault,) = run(judge, [moment(at, present=0) for at in range(10, 13)])
    assert (fault.last_clean_s, fault.onset_s, fault.observed_s) == (9.0, 10.0, 12.0)


def test_a_reset_counter_counts_from_zero_again() -> None:
    judge = evaluator()
    run(judge, [moment(at, ecc_hbm_uncorrectable_total=40) for at in range(3)])
    (fault,) = run(judge, [moment(3, ecc_hbm_uncorrectable_total=2)])
    assert (fault.rule, fault.value) == ("hbm-uncorrectable", 2.0), "both came since the driver was loaded anew"


def test_a_restarted_agent_goes_on_with_its_faults_under_the_same_id() -> None:
    first = evaluator()
    run(first, [moment(at) for at in range(3)])
    (fault,) = run(first, [moment(3, ecc_hbm_uncorrectable_total=1)])
    later = Evaluator(load_rules(), "node-a", "boot", FACTS, first.baselines, first.firing())
    assert run(later, [moment(at, ecc_hbm_uncorrectable_total=1) for at in range(4, 9)]) == []
    assert later.firing() == [fault]
    (cleared,) = run(later, [moment(9)])
    assert (cleared.id, cleared.state, cleared.observed_s) == (fault.id, "clear", 9.0)


def errors(judge: Evaluator, *counts: int, since: int) -> list[Fault]:
    """One sample a second with these uncorrectable errors counted."""
    return run(judge, [moment(at, ecc_hbm_uncorrectable_total=count) for at, count in enumerate(counts, since)])


def test_errors_after_the_first_are_another_fault_with_its_own_onset() -> None:
    judge = evaluator()
    (first,) = errors(judge, 40, 40, 51, since=0)
    assert errors(judge, *[51] * 1000, since=3) == [], "what was told is not told again"
    ended, second = errors(judge, 53, since=1003)
    assert (ended.id, ended.state, ended.observed_s) == (first.id, "clear", 1003.0)
    assert second.id != first.id and second.state == "firing"
    assert (second.last_clean_s, second.onset_s, second.value) == (1002.0, 1003.0, 2.0)
    assert second.evidence["baseline"] == 51 and "reported 2 uncorrectable HBM errors" in second.sentence
    assert judge.firing() == [second]


def test_a_counter_that_grows_each_second_is_a_fault_a_minute_and_none_of_it_is_lost() -> None:
    judge = evaluator()
    found = errors(judge, 0, *range(1, 182), since=0)
    began = [(fault.onset_s, fault.last_clean_s, fault.observed_s) for fault in found if fault.state == "firing"]
    assert began == [(1.0, 0.0, 1.0), (2.0, 1.0, 61.0), (62.0, 61.0, 121.0), (122.0, 121.0, 181.0)]
    assert sum(fault.value for fault in found if fault.state == "firing") == 181
    assert len({fault.id for fault in found}) == 4


def test_errors_that_wait_for_their_minute_are_told_although_no_more_come() -> None:
    judge = evaluator()
    errors(judge, 0, 1, since=0)
    found = errors(judge, *[4] * 100, since=2)
    assert [(fault.state, fault.onset_s, fault.observed_s, fault.value) for fault in found] == [
        ("clear", 1.0, 61.0, 1.0),
        ("firing", 2.0, 61.0, 3.0),
    ]


def test_a_restarted_agent_knows_which_errors_were_told() -> None:
    first = evaluator()
    (fault,) = errors(first, 40, 51, since=0)
    later = Evaluator(load_rules(), "node-a", "boot", FACTS, first.baselines, first.firing())
    assert errors(later, 51, since=2) == []
    ended, more = errors(later, 52, since=3)
    assert (ended.id, more.value, more.last_clean_s) == (fault.id, 1.0, 2.0)


def test_a_counter_that_was_reset_while_its_fault_fires_counts_from_zero() -> None:
    judge = evaluator()
    (fault,) = errors(judge, 40, 51, since=0)
    ended, more = errors(judge, *[3] * 70, since=2)
    assert (ended.id, more.value, more.evidence["baseline"]) == (fault.id, 3.0, 0)
    (cleared,) = errors(judge, 0, since=72)
    assert (cleared.id, cleared.state) == (more.id, "clear")


def test_a_fault_whose_rule_was_removed_is_cleared_at_once() -> None:
    first = evaluator()
    run(first, [moment(at) for at in range(3)])
    (fault,) = run(first, [moment(3, ecc_hbm_uncorrectable_total=1)])
    later = evaluator((fault,), without("hbm-uncorrectable"))
    assert [(one.id, one.state) for one in later.check(moment(4, ecc_hbm_uncorrectable_total=1))] == [
        (fault.id, "clear")
    ]
    assert run(later, [moment(at, ecc_hbm_uncorrectable_total=9) for at in range(5, 9)]) == []


def without(rule: str) -> str:
    """The shipped rule file without one row."""
    head, *rows = DEFAULT_PATH.read_text().split("[[rule]]")
    return head + "".join(f"[[rule]]{row}" for row in rows if f'id = "{rule}"' not in row)


def test_a_rule_that_is_not_in_the_file_is_not_found() -> None:
    judge = evaluator(rules=without("hbm-uncorrectable"))
    run(judge, [moment(at) for at in range(3)])
    assert run(judge, [moment(at, ecc_hbm_uncorrectable_total=99) for at in range(3, 9)]) == []


def test_a_kernel_line_dates_its_fault_and_belongs_to_one_device() -> None:
    judge = evaluator()
    address = FACTS.gpus[0].pci_address
    run(judge, [moment(at) for at in range(3)])
    other = KernelLine(3.2, 6, f"amdgpu {address}: GPU reset begin!", "0000:ff:00.0", "gpu-reset")
    noise = KernelLine(3.3, 6, f"amdgpu {address}: all is well", address)
    assert judge.check(moment(4, kernel=(other, noise))) == []
    line = KernelLine(4.4, 6, f"amdgpu {address}: GPU reset begin!", address, "gpu-reset")
    (fault,) = judge.check(moment(5, kernel=(noise, line)))
    assert (fault.rule, fault.onset_s, fault.last_clean_s, fault.observed_s) == ("gpu-reset", 4.4, 4.0, 5.0)
    assert fault.evidence["line"] == line.text


def test_the_same_history_gives_the_same_ids() -> None:
    def ids() -> list[str]:
        judge = evaluator()
        samples = [moment(at, present=int(at % 400 > 10)) for at in range(1000)]
        return [fault.id for fault in run(judge, samples)]

    assert ids() == ids() and len(set(ids())) >= 2


@given(st.lists(st.tuples(st.sampled_from(list(GPU_INDEX)), st.integers(0, 3) | st.just(UNKNOWN)), max_size=60))
def test_faults_alternate_between_firing_and_clear_whatever_happens(changes: list[tuple[str, int]]) -> None:
    judge, state = evaluator(), dict[str, str]()
    samples = [moment(at, **{name: value}) for at, (name, value) in enumerate(changes)]
    for fault in run(judge, samples):
        assert state.get(fault.rule) != fault.state
        assert fault.last_clean_s <= fault.onset_s <= fault.observed_s
        state[fault.rule] = fault.state
    assert {fault.rule for fault in judge.firing()} == {rule for rule, now in state.items() if now == "firing"}


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("{entity} of {node} no longer answers", "{entity} of {nod} no longer answers", "sentence cannot be said"),
        ("{entity} of {node} no longer answers", "{entity:d} no longer answers", "sentence cannot be said"),
        ('events = ["gpu-reset"]', 'events = ["gpu-rest"]', "gpu-rest is no kind"),
        ('events = ["gpu-reset"]', "", "events is needed"),
        ('when = ["processes < 1"]', 'when = ["processes"]', "must read like"),
        ('when = ["processes < 1"]', 'when = ["procs < 1"]', "procs is not a metric"),
        ('of = "bad_page_threshold"', "", "of is needed"),
        ('metrics = ["present"]', 'metrics = ["present"]\nof = "power_w"', "of says nothing"),
        ('scope = "nic"', 'scope = "switch"', "scope must be one of"),
        ('metrics = ["present"]', "metrics = []", "metrics is needed"),
        ('metrics = ["present"]', 'metrics = "present"', "list of names"),
        ("clear_s = 900\nlatch = true", "clear_s = -1\nlatch = true", "clear_s must be"),
        ("clear_s = 900\nlatch = true", 'clear_s = 900\nlatch = "yes"', "latch must be"),
        ('signal = "share"', 'signal = "above"\nlatch = true', "latch is for"),
        ("window_s = 300", "window_s = 0", "window_s is needed"),
        ("threshold = 25", "threshold = nan", "threshold must be"),
        ('title = "GPU lost"', "", "title is needed"),
        ('title = "GPU lost"', 'title = "GPU lost"\ncolour = "red"', "colour is not known"),
    ],
)
def test_a_row_that_could_not_work_is_refused_when_it_is_read(before: str, after: str, words: str) -> None:
    text = DEFAULT_PATH.read_text()
    assert before in text
    with pytest.raises(RuleError, match=re.escape(words)):
        parse_rules(text.replace(before, after))


@pytest.mark.parametrize("text", ["version = 2\nrule = 3", "version = 2\nrule = [1, 2]", "", "version = '1'"])
def test_a_file_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(RuleError):
        parse_rules(text)
