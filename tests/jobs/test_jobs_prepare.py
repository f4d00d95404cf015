"""What a preparing job writes is whole, equal for equal seeds, fit for the trainer, and never a held-out question."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.contract import ContractError, Exit
from jobs.zaya.envs.base import Problem, held_out, read_problems
from jobs.zaya.envs.micro import MicroTask
from jobs.zaya.evaluation.problem_sets import drawn, score
from jobs.zaya.evaluation_config import SHIPPED, PrepareConfig, prepare_problems
from jobs.zaya.judge.pairs import PREFERENCES, read_pairs
from jobs.zaya.preparation.candidates import noisy, spoilt
from jobs.zaya.preparation.lines import (
    Answered,
    answered,
    calibrated,
    packed,
    policy_tails,
    rows_needed,
    sft_lines,
    tail_of,
    taught_by,
    trimmed,
)
from jobs.zaya.prepare import attempt, write_whole
from jobs.zaya.tokens import encode
from jobs.zaya.training.examples import Examples, tokens_of
from tests.jobs.zaya_checkpoint import Attempts, Wishes, saved

PROBLEMS = drawn("micro/reverse@4-6, micro/sort@4", 100, 0, held=False)


@dataclass(frozen=True)
class Said:
    """A completion."""

    tokens: list[int]
    ended: bool = True


def test_lines_are_solved_problems_of_which_a_share_shows_candidates() -> None:
    config = PrepareConfig(aggregation=0.4, corrupted=0.5, candidates=3, tail=4, seed=1)
    lines = sft_lines(PROBLEMS, config, score)
    assert [line["answer"] for line in lines] == [problem.answer for problem in PROBLEMS]
    shown = [line for line in lines if line["tails"]]
    assert 0.3 < len(shown) / len(lines) < 0.5
    assert all(len(line["tails"]) == 3 and max(map(len, line["tails"])) <= 4 for line in shown)
    right = [tail == line["answer"][-4:] for line in shown for tail in line["tails"]]
    assert 0.4 < sum(right) / len(right) < 0.75
    assert lines == sft_lines(PROBLEMS, config, score) != sft_lines(PROBLEMS, PrepareConfig(seed=2), score)
    assert not any(held_out(problem) for problem in PROBLEMS)
    none = sft_lines(PROBLEMS, PrepareConfig(aggregation=0), score)
    assert not any(line["tails"] for line in none)


@pytest.mark.parametrize("corrupted", [0.0, 1.0])
def test_candidates_are_all_right_or_all_wrong_as_asked(corrupted: float) -> None:
    rng = random.Random(0)
    for problem in PROBLEMS[:40]:
        for one in noisy(problem, PROBLEMS[-1].answer, 4, corrupted, score, rng):
            assert score(problem, one) == 1 - corrupted


def test_an_answer_that_cannot_be_spoilt_is_marked() -> None:
    problem = Problem("micro/copy", "x", "copy ", "", 2)
    assert spoilt(problem, "", lambda _problem, answer: 1.0 if answer != "?" else 0.0, random.Random(0)) == "?"


def test_the_policys_own_candidates_may_be_shown() -> None:
    asked: list[int] = []

    def echo(prompts: Sequence[Sequence[int]], _limit: int) -> list[Said]:
        asked.append(len(prompts))
        return [Said(encode(f"answer{place}"), place % 2 == 0) for place in range(len(prompts))]

    config = PrepareConfig(aggregation=1.0, source="policy", candidates=2, tail=3)
    lines = sft_lines(PROBLEMS[:2], config, score, lambda problems: policy_tails(problems, echo, config))
    assert [line["tails"] for line in lines] == [["er0", "er1"], ["er2", "er3"]]
    assert asked == [4]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20), st.integers(1, 8))
def test_a_tail_is_the_end_of_a_text_within_its_tokens(text: str, tail: int) -> None:
    found = tail_of(text, tail)
    assert len(encode(found)) <= tail
    whole = bytes(encode(text)).decode()
    assert whole.endswith(found)
    assert len(encode(found)) > tail - 4 or found == whole


def scored(environment: str, difficulty: int, scores: tuple[float, ...]) -> Answered:
    return Answered(Problem(environment, "i", "q", "a", difficulty), ("a",) * len(scores), scores)


def test_a_calibration_starts_where_every_easier_difficulty_is_solved_often_enough() -> None:
    found = [scored("e", 2, (1, 1)), scored("e", 3, (1, 0)), scored("e", 4, (0, 0)), scored("e", 5, (1, 1))]
    assert calibrated(found, 0.5)["e"] == {"bound": 3, "accuracy": {"2": 1.0, "3": 0.5, "4": 0.0, "5": 1.0}}
    assert calibrated(found, 0.9)["e"]["bound"] == 2
    assert calibrated([scored("f", 7, (0, 0))], 0.5)["f"]["bound"] == 7


def test_a_filter_keeps_what_is_sometimes_solved() -> None:
    found = [scored("e", 2, (1, 1)), scored("e", 3, (1, 0)), scored("e", 4, (0, 0))]
    assert [one.problem.difficulty for one in taught_by(found)] == [3]


def test_answers_that_did_not_end_score_nothing() -> None:
    problem = PROBLEMS[0]

    def halves(prompts: Sequence[Sequence[int]], _limit: int) -> list[Said]:
        return [Said(encode(problem.answer), place % 2 == 0) for place in range(len(prompts))]

    found = answered([problem], halves, PrepareConfig(samples=4), score)[0]
    assert found.scores == (1.0, 0.0, 1.0, 0.0)
    assert found.accuracy == 0.5


def test_lines_are_trimmed_until_the_trainer_takes_them(tmp_path: Path) -> None:
    lines = [
        {"question": "abcd", "tails": ["x" * 30, "yz"], "answer": "dcba"},
        {"question": "q" * 50, "tails": [], "answer": "a"},
        {"question": "ab", "tails": [], "answer": "ba"},
    ]
    kept, metrics = packed(lines, 25)
    assert [line["question"] for line in kept] == ["abcd", "ab"]
    assert kept[0]["tails"] == ["x" * 10, "yz"]
    assert (metrics["dropped"], metrics["trimmed"]) == (1, 1)
    assert metrics["fill_alone"] <= metrics["fill_packed"] <= 1
    assert len(tokens_of(kept[0])) == 25
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    Examples(tmp_path / "sft.jsonl", 24, 0, packed=True)


@settings(max_examples=50, deadline=None)
@given(st.text("abc", max_size=6), st.lists(st.text("xyz", max_size=12), max_size=3), st.integers(4, 40))
def test_a_trimmed_line_fits_and_one_that_fits_is_left_alone(question: str, tails: list[str], length: int) -> None:
    line: dict[str, Any] = {"question": question, "tails": tails, "answer": "a"}
    found = trimmed(line, length)
    if found is None:
        assert len(tokens_of(line | {"tails": [""] * len(tails)})) > length
    else:
        assert len(tokens_of(found)) <= length
        assert (found is line) == (len(tokens_of(line)) <= length)
        assert all(before.endswith(after) for before, after in zip(tails, found["tails"], strict=True))


def test_rows_are_filled_first_fit() -> None:
    assert rows_needed([6, 4, 5, 5], 10) == 2
    assert rows_needed([], 10) == 0


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_whole(tmp_path / "deep" / "a", "one")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "deep" / "a", "\ud800")
    assert [(path.name, path.read_text()) for path in (tmp_path / "deep").iterdir()] == [("a", "one")]


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("run"))


def test_examples_are_prepared_and_then_packed(init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Attempts(tmp_path, init, monkeypatch)
    data = {"kind": "sft", "environments": "micro/reverse@3", "problems": 20, "aggregation": 1.0}
    assert one.run(attempt, data, {"steps": 2}, TRIMTAB_INIT_FROM="", TRIMTAB_INIT_HASH="") == Exit.DONE
    text = (one.prepared / "sft.jsonl").read_text()
    assert one.result().metrics["lines"] == 20 and one.beat().last_step == 2
    assert [path.name for path in one.prepared.iterdir()] == ["sft.jsonl"]
    assert one.run(attempt, data, {"steps": 5}, TRIMTAB_INIT_FROM="", TRIMTAB_INIT_HASH="") == Exit.DONE
    assert (one.prepared / "sft.jsonl").read_text() == text
    assert one.run(attempt, {"kind": "pack"}, {"length": 22}) == Exit.DONE
    assert one.result().metrics["lines"] == 20
    Examples(one.prepared / "sft.jsonl", 22, 0, packed=True)
    assert one.run(attempt, {"kind": "pack"}, {"length": 2}) == Exit.CONFIG
    assert one.run(attempt, {**data, "source": "policy", "limit": 4}) == Exit.DONE
    assert (one.prepared / "sft.jsonl").read_text() != text


def test_a_policy_is_calibrated_and_problems_are_filtered_by_it(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Attempts(tmp_path, init, monkeypatch)
    data = {"environments": "micro/parity@2-3", "problems": 2, "samples": 2, "limit": 2}
    assert one.run(attempt, {**data, "kind": "calibration"}) == Exit.DONE
    told = json.loads((one.prepared / "calibration.json").read_text())
    assert told["environments"] == {"micro/parity": {"bound": 2, "accuracy": {"2": 0.0, "3": 0.0}}}
    assert told["checkpoint_hash"] == one.hash == one.result().checkpoint_hash
    assert one.alive == 2, "a group of prompts, and a batch of problems"
    assert one.run(attempt, {**data, "kind": "filter"}) == Exit.CONFIG
    assert "always or never solves each of 2 problems" in one.record().error_message
    half = iter([1.0, 0.0] * 10)
    monkeypatch.setattr("jobs.zaya.evaluation.problem_sets.score", lambda _problem, _answer: next(half))
    assert one.run(attempt, {**data, "kind": "filter", "limit": 3}, flag=Wishes(stop=True)) == Exit.UNSAVED
    assert not (one.prepared / "problems.jsonl").exists()


@pytest.mark.parametrize(("kind", "scored"), [("sft", 24), ("calibration", 12)])
def test_each_answer_that_is_scored_is_followed_by_a_heartbeat(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, scored: int
) -> None:
    """Candidates that are spoilt are scored as a policy's answers are, and either may take seconds."""
    one, seen = Attempts(tmp_path, init, monkeypatch), list[int]()

    def policy(prompts: Sequence[Sequence[int]], _limit: int) -> list[Said]:
        return [Said(encode(str(place))) for place in range(len(prompts))]

    monkeypatch.setattr("jobs.zaya.prepare.Policy", lambda *_, **__: policy)
    monkeypatch.setattr(MicroTask, "score", lambda *_: float(seen.append(one.alive) or 0))
    data = {"kind": kind, "environments": "micro/sort@4", "problems": 6, "samples": 2, "candidates": 4}
    assert one.run(attempt, data | ({"aggregation": 1.0, "corrupted": 1.0} if kind == "sft" else {})) == Exit.DONE
    assert len(seen) >= scored and seen == list(range(len(seen)))


def test_preferences_are_pairs_that_the_rubric_tells_apart(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Attempts(tmp_path, init, monkeypatch)
    data = {"kind": "preferences", "environments": "micro/copy@3-4, micro/sort@3-4", "problems": 30, "noise": 0.2}
    assert one.run(attempt, data, {"steps": 3}, TRIMTAB_INIT_FROM="", TRIMTAB_INIT_HASH="") == Exit.DONE
    assert len(read_pairs(one.prepared / PREFERENCES)) == one.result().metrics["pairs"] == 60
    assert 0.6 < one.result().metrics["labels_right"] < 0.95
    own = {**data, "source": "policy", "samples": 8, "limit": 8, "problems": 4, "noise": 0.0}
    assert one.run(attempt, own) == Exit.DONE
    assert one.result().metrics["labels_right"] == 1


def test_a_filters_problems_can_be_read_again(tmp_path: Path) -> None:
    write_whole(tmp_path / "set.jsonl", "".join(problem.to_json() + "\n" for problem in PROBLEMS[:3]))
    assert list(read_problems(tmp_path / "set.jsonl")) == PROBLEMS[:3]


def test_what_a_kind_needs_and_is_not_there_is_named(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Attempts(tmp_path, init, monkeypatch)
    data = {"kind": "filter", "environments": "micro/copy"}
    for given_data, more, words in (
        (data, {"TRIMTAB_INIT_FROM": ""}, "needs a policy"),
        (data, {"TRIMTAB_PREPARED_DIR": ""}, "no directory to prepare into"),
        ({"kind": "pack"}, {}, "no sft.jsonl to pack"),
        (data, {"WORLD_SIZE": "2"}, "one process, not 2"),
    ):
        assert one.run(attempt, given_data, **more) == Exit.CONFIG
        assert words in one.record().error_message


@pytest.mark.parametrize(
    ("data", "path", "words"),
    [
        ({"kind": "bake"}, "data.kind", "must be one of sft"),
        ({}, "data.environments", "sft needs environments or sets"),
        ({"kind": "calibration", "sets": "x", "environments": "micro/sort"}, "data.sets", "which have difficulties"),
        ({"environments": "micro/sort", "corrupted": 2}, "data.corrupted", "must be a share"),
        ({"kind": "preferences", "environments": "micro/sort", "noise": 0.5}, "data.noise", "the opposite"),
        ({"sets": "micro"}, "data.sets", "micro is kept for evaluation and never trained on"),
        ({"sets": str(SHIPPED / "code.jsonl")}, "data.sets", "kept for evaluation"),
        ({"environments": "!!@"}, "data.environments", "is not an environment's name"),
    ],
)
def test_words_that_a_preparation_would_refuse(data: dict[str, Any], path: str, words: str) -> None:
    found = prepare_problems({"data": data})
    assert path in [where for where, _ in found] and words in "; ".join(message for _, message in found)


def test_problems_without_an_answer_are_not_learned(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unanswered = [Problem("micro/copy", str(place), "copy ab", "" if place else "ab", 2) for place in range(3)]
    (tmp_path / "own.jsonl").write_text("".join(problem.to_json() + "\n" for problem in unanswered))
    one = Attempts(tmp_path, init, monkeypatch)
    assert one.run(attempt, {"sets": str(tmp_path / "own.jsonl")}) == Exit.DONE
    assert one.result().metrics["lines"] == 1
    (tmp_path / "own.jsonl").write_text(unanswered[1].to_json())
    assert one.run(attempt, {"sets": str(tmp_path / "own.jsonl")}) == Exit.CONFIG
    assert "comes with an answer" in one.record().error_message


def test_held_out_questions_of_a_set_of_ones_own_are_left_out(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.jsonl"
    held = drawn("micro/reverse@4", 5, 0, held=True)
    path.write_text("".join(problem.to_json() + "\n" for problem in [*PROBLEMS[:3], *held]))
    one = Attempts(tmp_path, init, monkeypatch)
    assert one.run(attempt, {"sets": str(path)}) == Exit.DONE
    assert one.result().metrics["lines"] == 3
    path.write_text("".join(problem.to_json() + "\n" for problem in held))
    assert one.run(attempt, {"sets": str(path)}) == Exit.CONFIG
    assert "all 5 problems of" in one.record().error_message


def test_a_pack_needs_no_problems() -> None:
    assert prepare_problems({"data": {"kind": "pack"}, "train": {"steps": 1, "length": 64}}) == []


def test_a_set_that_is_no_set_is_refused() -> None:
    with pytest.raises(ContractError, match="micro/copy has difficulties"):
        drawn("micro/copy@40-50", 1, 0, held=False)
