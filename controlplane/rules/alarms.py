"""Every alarm over a window of expert records. They alert a person and never restart. Pure.

This is the door: what is judged of loads stands in alarms_load, of biases in alarms_bias, of routes and ranks in
alarms_routes; what they share in expert_window. Thresholds are rules.toml's.
"""

from __future__ import annotations

from controlplane.rules.alarms_bias import bias_frozen, bias_lost, runaway
from controlplane.rules.alarms_load import dead, imbalance, oscillation, skipping
from controlplane.rules.alarms_routes import parallel_skew, route_mismatch
from controlplane.rules.book import RuleBook
from controlplane.rules.expert_window import ExpertWindow
from controlplane.rules.findings import RUN, Judgement, Subject

_ALARMS = {
    "expert-imbalance": imbalance,
    "expert-oscillation": oscillation,
    "expert-dead": dead,
    "expert-runaway": runaway,
    "expert-bias-frozen": bias_frozen,
    "expert-bias-lost": bias_lost,
    "expert-skip": skipping,
    "expert-parallel-skew": parallel_skew,
    "route-mismatch": route_mismatch,
}
RULES = tuple(_ALARMS)


def judge(window: ExpertWindow, book: RuleBook) -> Judgement:
    """All expert alarms of one window; a rule whose window is not full yet, or in warm-up, is unknown."""
    judgement = Judgement()
    for rule, alarm in _ALARMS.items():
        judgement += alarm(window, book[rule])
    return judgement


def unseen(run_id: str) -> Judgement:
    """What is known of a run's experts when there is no record: nothing."""
    return Judgement(unknown=frozenset(Subject(rule, run_id, RUN) for rule in RULES))
