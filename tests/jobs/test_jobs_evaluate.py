"""An evaluation measures exactly the checkpoint it was given, on what no training has seen, and says what it cost."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch

from jobs.contract import ContractError, Exit
from jobs.zaya.envs.base import Problem
from jobs.zaya.envs.base import held_out as is_held_out
from jobs.zaya.envs.micro import MicroTask
from jobs.zaya.envs.registry import find
from jobs.zaya.evaluate import SHOWN, attempt, batches, judged, metrics_of, table
from jobs.zaya.evaluation.compare import Compared, compare, means
from jobs.zaya.evaluation.policy import Policy
from jobs.zaya.evaluation.problem_sets import drawn, of_sets, score
from jobs.zaya.evaluation.text_loss import held_out_windows, text_metrics
from jobs.zaya.evaluation_config import EvaluationConfig, evaluate_problems, parts, read_config, shipped
from jobs.zaya.judge.pairs import PREFERENCES, pairs, write_pairs
from jobs.zaya.judge.preference import Proxy
from jobs.zaya.rsa import Aggregation
from jobs.zaya.tokens import REPLY, TAIL, decode, encode
from jobs.zaya.training.data import documentation, held_out, source_code
from tests.jobs.zaya_checkpoint import Attempts, Wishes, saved
from tests.jobs.zaya_small import learner

NUMBERS = Aggregation(4, 2, 1, 8, 8)


@dataclass(frozen=True)
class Said:
    """A completion."""

    tokens: list[int]
    ended: bool = True


class Oracle:
    """Knows an answer with the probability `knows`; shown the right one among the tails, it takes it over."""

    def __init__(self, problems: Sequence[Problem], knows: float, aggregates: bool) -> None:
        self.answers = {problem.question: problem.answer for problem in problems}
        self.knows, self.aggregates, self.draw = knows, aggregates, random.Random(1)

    def __call__(self, prompts: Sequence[Sequence[int]], limit: int) -> list[Said]:
        said = []
        for one in prompts:
            question, *tails = (decode(part) for part in bytes(one[1:-1]).split(bytes([TAIL])))
            answer = self.answers[question]
            if self.draw.random() < self.knows or (self.aggregates and answer in tails):
                said.append(Said(encode(answer)))
            else:
                said.append(Said([*encode("no"), REPLY][:limit]))
        return said


def found_by(knows: float, aggregates: bool, problems: list[Problem]) -> list[Compared]:
    return compare(problems, Oracle(problems, knows, aggregates), NUMBERS, 0, score)


def test_a_policy_that_aggregates_gains_by_rsa_alone_and_one_that_does_not_gains_nothing() -> None:
    problems = drawn("micro/reverse@4-6", 60, 0, held=True)
    gains, does_not = means(found_by(0.4, True, problems)), means(found_by(0.4, False, problems))
    assert gains["rsa"] > gains["pass@1"] + 0.2
    assert abs(does_not["rsa"] - does_not["pass@1"]) < 0.1
    perfect = means(found_by(1.0, True, problems))
    assert (perfect["rsa"], perfect["pass@1"], perfect["maj"]) == (1, 1, 1)


def test_methods_cost_the_same_generated_tokens() -> None:
    for one in found_by(0.5, True, drawn("micro/sort@4-6", 20, 3, held=True)):
        assert one.rsa_tokens <= one.plain_tokens < one.rsa_tokens + NUMBERS.limit
        assert one.longest_completion <= NUMBERS.limit
        assert one.longest_prompt <= NUMBERS.longest_prompt(one.problem.question)


def test_a_completion_that_did_not_end_is_no_answer_and_has_no_vote() -> None:
    problem = drawn("micro/copy@2", 1, 0, held=True)[0]
    given = [Said(encode(problem.answer), False)] * 3 + [Said(encode("zz"))]

    def cycle(prompts: Sequence[Sequence[int]], _limit: int) -> list[Said]:
        return (given * len(prompts))[: len(prompts)]

    found = compare([problem], cycle, Aggregation(4, 1, 0, 4, 4), 0, score)[0]
    assert (found.pass_at_1, found.maj, found.rsa, found.majority_answer) == (0, 0, 0, "zz")
    silent = compare([problem], lambda p, _: [Said([65], False)] * len(p), Aggregation(2, 1, 0, 4, 4), 0, score)[0]
    assert (silent.maj, silent.majority_answer) == (0, "")


def test_metrics_are_told_over_all_and_of_each_environment_with_its_baseline() -> None:
    problems = drawn("micro/parity@8-10, micro/first@4", 20, 0, held=True)
    found = found_by(0.5, False, problems)
    metrics = metrics_of(found)
    assert metrics["problems"] == 40
    assert metrics["pass@1"] == pytest.approx(fmean(metrics[f"micro/{name}/pass@1"] for name in ("parity", "first")))
    assert metrics["micro/parity/constant_baseline"] >= 0.5
    own = [metrics[f"micro/{name}/constant_baseline"] for name in ("parity", "first")]
    assert metrics["constant_baseline"] == pytest.approx(fmean(own))
    rows = table(found * 4)
    assert len(rows) <= SHOWN and {row["environment"] for row in rows} == {"micro/parity", "micro/first"}
    assert json.loads(json.dumps(rows)) == rows


def test_the_standard_error_is_what_other_samples_of_the_same_problems_change() -> None:
    """Beside the spread of 300 evaluations of one made-up policy; without two samples of each problem there is none."""
    problems = drawn("micro/parity@8-10", 20, 0, held=True)
    answered, rng = found_by(0.5, False, problems), random.Random(0)
    chances = [random.Random(one.id).random() for one in problems]

    def evaluation(samples: int) -> list[Compared]:
        shares = [sum(rng.random() < chance for _ in range(samples)) / samples for chance in chances]
        return [replace(one, pass_at_1=share, samples=samples) for one, share in zip(answered, shares, strict=True)]

    found = [metrics_of(evaluation(4)) for _ in range(300)]
    assert fmean(one["pass@1_se"] for one in found) == pytest.approx(stdev(one["pass@1"] for one in found), rel=0.15)
    assert "pass@1_se" not in metrics_of(evaluation(1))


def test_problems_that_are_evaluated_are_never_trained_on() -> None:
    names = "micro/reverse@3-5, micro/add@4"
    evaluated, trained = drawn(names, 50, 1, held=True), drawn(names, 200, 1, held=False)
    assert all(map(is_held_out, evaluated)) and not any(map(is_held_out, trained))
    assert not {one.question for one in evaluated} & {one.question for one in trained}
    assert (len(evaluated), len({one.question for one in evaluated}), len(trained)) == (100, 100, 400)
    assert {one.difficulty for one in evaluated if one.environment == "micro/reverse"} == {3, 4, 5}
    assert drawn(names, 50, 1, held=True) == evaluated != drawn(names, 50, 2, held=True)


def test_the_held_out_text_is_in_no_training_and_its_windows_do_not_change() -> None:
    for source, trained in (("python-docs", documentation()), ("python-code", source_code())):
        part = held_out()[source]
        assert len(part) > 20_000 and part not in trained
        windows = held_out_windows(source, 32, 5)
        assert windows.shape == (5, 33)
        assert torch.equal(windows, held_out_windows(source, 32, 5))
        assert all(bytes(row.tolist()) in part for row in windows)
    with pytest.raises(ContractError, match=r"train\.length must be <"):
        held_out_windows("python-docs", 10_000_000, 1)


def test_the_loss_is_that_of_the_text_and_max_vio_that_of_the_choices() -> None:
    model = learner().model.eval()
    windows = held_out_windows("python-docs", 16, 20)
    metrics = text_metrics(model, windows, lambda: None)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    assert metrics["loss"] == pytest.approx(float(expected), abs=1e-5)
    for router in model.routers():
        router.balancing_biases.fill_(-9)
        router.balancing_biases[0] = 9
    assert text_metrics(model, windows, lambda: None)["max_vio"] == pytest.approx(router.num_experts - 1)
    assert not model.routers()[0]._forward_hooks


def test_a_policy_answers_each_prompt_in_groups_and_by_its_seed_alone() -> None:
    model = learner().model.eval()
    told: list[int] = []
    asked = [[5, 65 + place, 6] for place in range(5)]
    one = Policy(model, seed=3, together=2, told=lambda: told.append(1))(asked, 4)
    assert len(told) == 3
    assert one == Policy(model, seed=3, together=2)(asked, 4)
    assert one != Policy(model, seed=4, together=2)(asked, 4)


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("run"))


DATA: dict[str, Any] = {
    "environments": "micro/first@2",
    "problems": 3,
    "rollouts": 2,
    "candidates": 1,
    "rounds": 1,
    "limit": 4,
    "tail": 2,
    "windows": 2,
}


def test_an_evaluation_leaves_its_metrics_with_the_checkpoints_hash(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Attempts(tmp_path, init, monkeypatch)
    assert one.run(attempt, DATA, {"steps": 2, "length": 16}) == Exit.DONE
    result = one.result()
    assert result.checkpoint_hash == one.hash
    names = {"loss", "code_loss", "max_vio", "pass@1", "maj", "rsa", "constant_baseline", "tokens_per_problem"}
    assert names <= set(result.metrics)
    assert "micro/first/rsa" in result.metrics
    assert len(result.details["problems"]) == 3
    assert result.details["stage"] == "sft" and result.details["step"] == 2
    assert (one.beat().first_step, one.beat().last_step, one.record().code) == (1, 2, 0)
    assert one.alive > 4, "more than the two batches and the two texts: each group of prompts"
    first = result.metrics
    assert one.run(attempt, DATA, {"steps": 2, "length": 16}) == Exit.DONE
    assert one.result().metrics == first


def test_each_answer_that_is_scored_is_followed_by_a_heartbeat(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy's answers and the constant ones: either may be run for seconds."""
    one, seen = Attempts(tmp_path, init, monkeypatch), list[int]()

    def policy(prompts: Sequence[Sequence[int]], _limit: int) -> list[Said]:
        return [Said(encode(str(place % 7))) for place in range(len(prompts))]

    monkeypatch.setattr("jobs.zaya.evaluate.Policy", lambda *_, **__: policy)
    monkeypatch.setattr(MicroTask, "score", lambda *_: float(seen.append(one.alive) or 0))
    assert one.run(attempt, DATA | {"environments": "micro/sort@4", "windows": 0}) == Exit.DONE
    answers = 3 * (1 + 3)  # on each of 3 problems the empty answer and 3 references
    assert len(seen) > answers and len(set(seen)) == len(seen)
    assert one.alive == len(seen) + 1, "and one after the batch"


def test_an_evaluation_of_another_checkpoint_or_that_was_stopped_leaves_nothing(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Attempts(tmp_path, init, monkeypatch)
    for more, words in (
        ({"TRIMTAB_INIT_HASH": "00" * 32}, "not the one that was asked for"),
        ({"TRIMTAB_INIT_FROM": ""}, "nothing to evaluate"),
        ({"TRIMTAB_DATA_JSON": '{"environments": "micro/none"}'}, "there is no environment"),
        ({"TRIMTAB_DATA_JSON": '{"sets": "none"}'}, "there is no set none"),
        ({"TRIMTAB_DATA_JSON": "[]"}, "must be a JSON object"),
        ({"WORLD_SIZE": "2"}, "one process, not 2"),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "1"}, "one process, not 2"),
    ):
        assert one.run(attempt, DATA, **more) == Exit.CONFIG, words
        assert words in one.record().error_message
    assert one.run(attempt, DATA, flag=Wishes(stop=True)) == Exit.UNSAVED
    assert not list(tmp_path.glob("attempt-*"))


@pytest.mark.parametrize(
    ("maps", "path", "words"),
    [
        ({"data": {"environment": "micro/sort"}}, "data.environment", "is not known to this job"),
        ({"data": {"windows": 0}}, "data.environments", "nothing would be evaluated"),
        ({"data": {"environments": "a b"}}, "data.environments", "is not an environment's name"),
        ({"data": {"environments": "micro/sort@4-2"}}, "data.environments", "ends with an easier difficulty"),
        ({"data": {"candidates": 9}}, "data.candidates", "must be 1 to 4"),
        ({"data": {"tail": 64}}, "data.tail", "must be 1 to 32"),
        ({"data": {"temperature": -1}}, "data.temperature", "must be ≥ 0"),
        ({"data": {"problems": True}}, "data.problems", "must be a whole number"),
        ({"data": {"problems": 0}}, "data.problems", "must be ≥ 1"),
        ({"train": {"learningRate": 1}}, "train.learningRate", "is not known to this job"),
        ({"router": {"experts": "many"}}, "router.experts", "must be a whole number"),
        ({"data": {"temperature": float("inf")}}, "data.temperature", "must be a finite number"),
    ],
)
def test_words_that_an_evaluation_would_refuse(maps: dict[str, dict[str, Any]], path: str, words: str) -> None:
    found = evaluate_problems(maps)
    assert [where for where, _ in found] == [path] and words in found[0][1]


def test_a_configuration_is_read_as_it_was_judged() -> None:
    maps = {"TRIMTAB_TRAIN_JSON": '{"steps": 3, "checkpointEvery": 5}', "TRIMTAB_DATA_JSON": json.dumps(DATA)}
    found = read_config(EvaluationConfig, maps)
    assert (found.batches, found.problems, found.aggregation) == (3, 3, Aggregation(2, 1, 1, 4, 2))
    with pytest.raises(ContractError, match="TRIMTAB_DATA_JSON is not JSON"):
        read_config(EvaluationConfig, {"TRIMTAB_DATA_JSON": "{"})
    assert parts("micro/a@3, rlve/B,micro/c@1-2,") == [("micro/a", 3, 3), ("rlve/B", None, None), ("micro/c", 1, 2)]


def test_behaviour_is_judged_by_the_rubric_and_by_the_proxy_that_the_stage_learned_from(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = drawn("micro/reverse@4", 12, 0, held=True)
    right, wrong = (found_by(knows, False, problems) for knows in (1.0, 0.0))
    assert judged(right, None)["gold"] > judged(wrong, None)["gold"] + 0.2
    _unfinished_answers_count_as_nothing(right)
    one = Attempts(tmp_path, init, monkeypatch)
    one.prepared.mkdir()
    write_pairs(one.prepared / PREFERENCES, pairs([(find("micro/reverse"), range(3, 5))], 20, 0))
    assert one.run(attempt, {**DATA, "judge": "proxy", "windows": 0}) == Exit.DONE
    assert {"gold", "proxy"} <= set(one.result().metrics)
    assert one.run(attempt, {**DATA, "judge": "proxy"}, TRIMTAB_PREPARED_DIR="") == Exit.CONFIG
    assert "fitted to prepared pairs" in one.record().error_message


def _unfinished_answers_count_as_nothing(right: list[Compared]) -> None:
    """Of some problems no sample ended: they pull the means down and are told as a share."""
    cut = [replace(one, answers=()) for one in right[:9]] + right[9:]
    proxy = Proxy()
    proxy.fit(pairs([(find("micro/reverse"), range(3, 5))], 20, 0), 0)
    whole, rest, found = (judged(some, proxy) for some in (right, right[9:], cut))
    for name in ("gold", "proxy"):
        assert found[name] == pytest.approx(rest[name] / 4) and 0 < rest[name] <= 1
    assert means(right)["ended"] == 1 and means(cut)["ended"] == pytest.approx(0.25)
    assert set(whole) == {"gold", "proxy"}


def test_batches_are_all_problems_in_order() -> None:
    problems = drawn("micro/copy@5", 7, 0, held=True)
    assert [len(part) for part in batches(problems, 3)] == [2, 2, 3]
    assert [one for part in batches(problems, 9) for one in part] == problems


def test_difficulties_that_an_environment_has_not_are_refused() -> None:
    with pytest.raises(ContractError, match="micro/copy has difficulties"):
        drawn("micro/copy@90", 1, 0, held=True)
    with pytest.raises(ContractError, match="different held-out questions"):
        drawn("micro/copy@2", 100, 0, held=True)


def test_a_set_is_read_by_its_name_or_path(tmp_path: Path) -> None:
    problems = drawn("micro/copy@5", 2, 0, held=True)
    (tmp_path / "own.jsonl").write_text("".join(one.to_json() + "\n" for one in problems))
    assert of_sets(f"{tmp_path / 'own.jsonl'}, ") == problems
    with pytest.raises(ContractError, match="there is no problem set"):
        of_sets("nothing")


def test_the_sets_that_ship_are_held_out_and_their_own_answers_are_right() -> None:
    assert shipped() == ["code", "math", "micro"]
    micro = of_sets("micro")
    assert all(map(is_held_out, micro)) and len({one.question for one in micro}) == len(micro)
    for problem in of_sets("micro, math"):
        assert (score(problem, problem.answer), score(problem, "no")) == (1, 0), problem


def test_mathematics_is_checked_by_value_and_code_by_running_it_in_the_sandbox() -> None:
    mathematics = {problem.question: problem for problem in of_sets("math")}
    assert score(mathematics["1/2+1/3"], "10/12") == 1
    assert score(mathematics["0.125 as a fraction"], "$\\frac{2}{16}$") == 1
    code = of_sets("code")
    assert [score(problem, problem.answer) for problem in code] == [1] * len(code)
    assert score(code[0], "def f(x): return x+2") == score(code[0], "import os; os._exit(0)") == 0
