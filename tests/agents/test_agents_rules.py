"""Every rule of the agents' file: fires, does not fire just below, clears; and healthy noise is no fault."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from agents import drills
from agents.drills import DRILLS
from agents.node.sources.drills import CHANGES
from agents.node.sources.simulated import SimulatedSource
from agents.readings import GPU_INDEX, GPU_METRICS, NIC_INDEX, UNKNOWN, Fault, NodeSample
from agents.rules.evaluate import Attribution, Evaluator
from agents.rules.load import DEFAULT_PATH, RuleError, load_rules, parse_rules

WHO = Attribution("run-1", 2, 5)


@dataclass
class Bench:
    """A node whose registers a test sets, second by second, under the shipped rules."""

    source: SimulatedSource = field(default_factory=lambda: SimulatedSource("node-a", 0.0))
    at: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    who: Attribution = WHO
    every: float = 1.0

    def __post_init__(self) -> None:
        self.evaluator = Evaluator(load_rules(), "node-a", "boot", self.source.facts())
        self.source.follow(3.0)
        self.gpu: dict[int, dict[str, int]] = {}
        self.nic: dict[int, dict[str, int]] = {}

    def run(self, seconds: int) -> list[Fault]:
        """Lets time pass; returns what began or ended in it."""
        found: list[Fault] = []
        for _ in range(seconds):
            self.at += self.every
            found += self.evaluator.check(self._sample(), self.who)
        self.faults += found
        return found

    def _sample(self) -> NodeSample:
        sample = self.source.sample(self.at, self.at)
        gpus, nics = [list(row) for row in sample.gpus], [list(row) for row in sample.nics]
        for rows, index, changes in ((gpus, GPU_INDEX, self.gpu), (nics, NIC_INDEX, self.nic)):
            for number, values in changes.items():
                for name, value in values.items():
                    rows[number][index[name]] = value
        return NodeSample(
            self.at, self.at, tuple(map(tuple, gpus)), tuple(map(tuple, nics)), sample.kernel, sample.host
        )


def fired(found: list[Fault]) -> list[tuple[str, str, str]]:
    return [(fault.rule, fault.entity, fault.state) for fault in found]


AFTER: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("xgmi-degraded", "smu-frozen"), (3, 3)),
    "gpu-lost": (3, 3),
    "hbm-deferred-often": (141, 141),
    "hbm-correctable": (10_000, 11_500),
    "xgmi-slow": (15, 30),
    **dict.fromkeys(("pcie-width", "pcie-speed"), (5, 5)),
    "thermal": (3, 60),
    "prochot": (10, 11),
    **dict.fromkeys(("clock-stuck", "gpu-hang", "vram-leak", "host-clock"), (60, 61)),
    "call-hung": (10, 11),
    "nic-flap": (40, 45),
    **dict.fromkeys(("rdma-retry", "host-disk"), (30, 31)),
    **dict.fromkeys(("retransmits", "congestion", "out-of-order"), (90, 300)),
    "retransmits-severe": (20, 60),
    "host-nvme-missing": (10, 10),
}
"""Seconds of a drill after which its rule fires, least and most; one sample where none stand here."""
OF_PEERS = ("power-cap", "straggler", "drift")
"""Found in the control plane, which sees the job's other nodes."""
LONG_CLEAR = {"hbm-correctable": 3_800, "nic-flap": 2_000}


@pytest.mark.parametrize("drill", [name for name in DRILLS if name not in (*OF_PEERS, "clear")])
def test_a_drill_fires_its_rule_in_time_and_repair_clears_it(drill: str) -> None:
    rule = DRILLS[drill].rule
    least, most = AFTER.get(drill, (1, 1))
    bench = Bench()
    if drill == "gpu-hang":
        bench.who = replace(WHO, heartbeat_age_s=90.0)
    bench.run(320)
    if drill == "vram-leak":
        bench.source.follow(None)
        bench.run(30)
    assert bench.source.apply_drill(drill, 3) == ""
    begun, found = bench.at, list[Fault]()
    while not any(fault.rule == rule for fault in found) and bench.at < begun + most:
        found += bench.run(1)
    fault = next((fault for fault in found if fault.rule == rule), None)
    assert fault is not None and least <= fault.observed_s - begun <= most, (drill, fired(found))
    assert fault.entity in ("gpu3", "nic3", "host") and fault.sentence and fault.severity and fault.action
    assert {one.entity for one in found} == {fault.entity}, "nothing else is found"
    bench.source.apply_drill("clear", 3)
    bench.run(LONG_CLEAR.get(drill, 1_300))
    assert bench.evaluator.firing() == []
    assert [one.state for one in bench.faults if one.id == fault.id] == ["firing", "clear"]


def test_a_nic_without_a_link_alerts_at_once_and_asks_for_a_restart_after_ten_seconds_of_a_job() -> None:
    bench = Bench()
    bench.run(30)
    bench.source.apply_drill("nic-down", 2)
    assert fired(bench.run(9)) == [("nic-down", "nic2", "firing")]
    assert fired(bench.run(3)) == [("nic-down-long", "nic2", "firing")]
    bench.source.apply_drill("clear", 2)
    assert {state for _, _, state in fired(bench.run(200))} == {"clear"}


def test_a_nic_without_a_link_and_without_a_job_only_alerts() -> None:
    bench = Bench(who=Attribution())
    bench.run(30)
    bench.source.apply_drill("nic-down", 2)
    assert fired(bench.run(120)) == [("nic-down", "nic2", "firing")]


def test_heat_alerts_above_five_percent_of_a_minute_and_drains_above_a_quarter_of_five() -> None:
    bench = Bench()
    bench.run(400)
    bench.source.apply_drill("thermal", 1)
    rules = [rule for rule, _, _ in fired(bench.run(400))]
    assert rules == ["thermal", "thermal-severe"]
    bench.source.apply_drill("clear", 1)
    assert {rule for rule, _, state in fired(bench.run(900)) if state == "clear"} == {"thermal", "thermal-severe"}


@pytest.mark.parametrize(
    ("metric", "value", "seconds"),
    [("present", 0, 3), ("xgmi_links_up", 6, 3), ("accumulation_ticks", 12_345, 3)],
)
def test_two_bad_samples_and_a_good_one_are_not_a_fault(metric: str, value: int, seconds: int) -> None:
    bench = Bench()
    bench.run(20)
    for _ in range(5):
        bench.gpu = {4: {metric: value}}
        assert bench.run(seconds - 1) == []
        bench.gpu = {}
        assert bench.run(3) == []


def test_heat_just_below_the_threshold_is_not_a_fault() -> None:
    bench = Bench()
    for second in range(600):
        bench.gpu = {0: {"throttle_thermal_ticks": 50 * second, "accumulation_ticks": 1000 * second}}
        assert bench.run(1) == []


def test_errors_that_were_there_before_are_not_new() -> None:
    bench = Bench()
    bench.gpu = {0: {"ecc_hbm_uncorrectable_total": 41}}
    assert bench.run(50) == []
    bench.gpu = {0: {"ecc_hbm_uncorrectable_total": 42}}
    found = bench.run(1)
    assert fired(found) == [("hbm-uncorrectable", "gpu0", "firing")]
    assert found[0].value == 1


def test_a_counter_that_goes_back_is_a_reset_and_not_a_fault() -> None:
    bench = Bench()
    bench.gpu = {0: {"ecc_hbm_uncorrectable_total": 41}}
    bench.run(10)
    bench.gpu = {0: {"ecc_hbm_uncorrectable_total": 0}}
    assert bench.run(10) == []
    bench.gpu = {0: {"ecc_hbm_uncorrectable_total": 1}}
    assert fired(bench.run(1)) == [("hbm-uncorrectable", "gpu0", "firing")]


def test_what_cannot_be_read_is_no_evidence() -> None:
    bench = Bench()
    bench.run(20)
    bench.gpu = {2: {metric.name: UNKNOWN for metric in GPU_METRICS}}
    assert bench.run(600) == []


def test_a_fault_knows_its_last_clean_sample_and_whom_it_hit() -> None:
    bench = Bench()
    bench.run(20)
    bench.source.apply_drill("hbm-uncorrectable", 6)
    (fault,) = bench.run(1)
    assert (fault.last_clean_s, fault.onset_s, fault.observed_s) == (20.0, 21.0, 21.0)
    assert (fault.run_id, fault.attempt_no, fault.rank) == ("run-1", 2, 5)
    assert "GPU 6 of node-a" in fault.sentence


def test_baselines_survive_a_restart_of_the_agent() -> None:
    bench = Bench()
    bench.gpu = {0: {"ecc_hbm_uncorrectable_total": 3}}
    bench.run(5)
    later = Evaluator(load_rules(), "node-a", "boot", bench.source.facts(), bench.evaluator.baselines)
    bench.evaluator = later
    bench.gpu = {0: {"ecc_hbm_uncorrectable_total": 5}}
    assert fired(bench.run(1)) == [("hbm-uncorrectable", "gpu0", "firing")]


def test_a_virtual_day_of_healthy_noise_is_no_fault() -> None:
    bench = Bench(every=4.0)
    for hour in range(24):
        bench.source.follow(3.0 if hour % 3 else None)
        assert bench.run(900) == []
    assert sum(gpu.ecc.get("hbm_correctable", 0) for gpu in bench.source.registers.gpus) > 0, (
        "the day had its small errors"
    )


def test_every_drill_belongs_to_a_rule_and_every_rule_of_a_node_to_a_drill() -> None:
    rules = {rule.id for rule in load_rules()}
    drilled = {of.rule for name, of in DRILLS.items() if name not in (*OF_PEERS, "clear")}
    again = {"gpu-lost-again", "gpu-reset-again", "other-again", "page-fault-again"}
    further = {"thermal-severe", "nic-down-long"}
    assert drilled <= rules and rules - drilled == again | further
    assert set(DRILLS) == set(CHANGES)


def test_a_drill_says_on_which_part_of_a_node_it_acts() -> None:
    scopes = {rule.id: rule.scope for rule in load_rules()}
    told = {name: of.part for name, of in DRILLS.items() if of.rule in scopes}
    assert told == {name: scopes[DRILLS[name].rule] for name in told}
    assert [DRILLS[name].part for name in OF_PEERS] == ["gpu", "gpu", "host"]
    for kind, said in (("hbm-poison", "hbm-poison on GPU 3"), ("rdma-retry", "rdma-retry on NIC 3")):
        assert drills.told(kind, 3) == said
    assert (drills.told("host-oom", 3), drills.told("not-known-yet", 3)) == ("host-oom", "not-known-yet")


@pytest.mark.parametrize(
    ("drill", "rule", "apart", "count"),
    [
        ("gpu-reset", "gpu-reset-again", 3_600, 2),
        ("gpu-gone", "gpu-lost-again", 86_400, 2),
        ("hardware-assertion", "other-again", 172_800, 2),
        ("hbm-poison-created", "hbm-deferred-often", 7_200, 3),
    ],
)
def test_what_comes_again_is_graver(drill: str, rule: str, apart: int, count: int) -> None:
    bench = Bench()
    bench.run(5)
    for number in range(1, count + 1):
        bench.source.apply_drill(drill, 3)
        struck = {one.rule for one in bench.run(1) if one.state == "firing"}
        assert (rule in struck) == (number == count), (number, struck)
        bench.at += apart
        bench.run(3)


def test_what_comes_again_after_its_window_is_a_first_time() -> None:
    bench = Bench()
    bench.run(5)
    for _ in range(3):
        bench.source.apply_drill("gpu-reset", 3)
        assert "gpu-reset-again" not in {one.rule for one in bench.run(1)}
        bench.run(1_000)
        bench.at += 90_000


def test_page_faults_of_one_job_are_its_own_and_of_two_the_gpus() -> None:
    bench = Bench()
    bench.run(5)
    for run, expected in (("run-1", False), ("run-1", False), ("run-2", True)):
        bench.who = replace(WHO, run_id=run)
        bench.source.apply_drill("page-fault", 3)
        assert ("page-fault-again" in {one.rule for one in bench.run(1)}) == expected
        bench.run(100)


def test_busy_and_flat_with_a_trainer_that_speaks_is_no_hang() -> None:
    bench = Bench(who=replace(WHO, heartbeat_age_s=2.0))
    bench.run(30)
    bench.source.apply_drill("gpu-hang", 3)
    assert bench.run(300) == []
    bench.who = WHO  # no heartbeat to see is no evidence either
    assert bench.run(300) == []


def test_retries_of_a_job_that_is_gone_are_nobodys() -> None:
    bench = Bench(who=Attribution())
    bench.run(30)
    bench.source.apply_drill("rdma-retry", 3)
    assert bench.run(100) == []
    bench.who = WHO
    assert bench.run(100) == [], "what was counted before a job came is not its"


def test_a_rule_file_is_refused_whole_with_every_problem() -> None:
    text = DEFAULT_PATH.read_text()
    broken = text.replace('signal = "still"', 'signal = "stil"').replace("threshold = 25", 'threshold = "hot"')
    with pytest.raises(RuleError) as caught:
        parse_rules(broken)
    assert "smu-frozen: signal" in str(caught.value)
    assert "thermal-severe: threshold" in str(caught.value)
    for wrong in ("version = 9", "[[rule]]\nid = 1", "not toml ["):
        with pytest.raises(RuleError):
            parse_rules(wrong)


def test_a_rule_twice_or_on_an_unknown_metric_is_refused() -> None:
    text = DEFAULT_PATH.read_text()
    first = text[text.index("[[rule]]") : text.index("[[rule]]", text.index("[[rule]]") + 1)]
    with pytest.raises(RuleError, match="given twice"):
        parse_rules(text + "\n" + first)
    with pytest.raises(RuleError, match="powr_w is not a metric"):
        parse_rules(text.replace('metrics = ["present"]', 'metrics = ["powr_w"]'))
