"""All 400 RLVE environments: each generates, scores its own reference answer full and a wrong one less, and adapts.

66 of them keep no reference answer, only the best value that can be reached. For the easiest problem of each,
`rlve_solutions.json` holds a solution, found once by search or by hand; the environment's own verifier judges it here.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from jobs.contract import ContractError
from jobs.zaya.envs import rlve
from jobs.zaya.envs.base import Problem
from jobs.zaya.envs.expressions import is_plain
from jobs.zaya.envs.registry import find, names

torch = pytest.importorskip("torch", reason="RLVE-Gym imports torch")
pytest.importorskip("Gym", reason="needs the extra problems")

SOLUTIONS = json.loads((Path(__file__).parent / "rlve_solutions.json").read_text())
BLOCKS = 8
WRONG = ("", "-7", "zzz", "1 2")


@pytest.mark.parametrize("block", range(BLOCKS))
def test_each_of_the_400_generates_verifies_and_adapts(block: int) -> None:
    every = rlve.identifiers()
    assert len(every) == 400
    wrong = []
    for identifier in every[block::BLOCKS]:
        environment = rlve.RlveEnvironment(identifier)
        problem = environment.problem(environment.easiest, 0)
        reference = problem.answer if problem.data["reference"] else SOLUTIONS[identifier]
        right = environment.score(problem, reference)
        worst = min(environment.score(problem, answer) for answer in WRONG)
        harder = [rlve._settings(identifier, difficulty) for difficulty in range(environment.hardest + 1)]
        if right != 1.0 or not 0.0 <= worst < right:
            wrong.append(f"{identifier}: {right} for its own answer, {worst} for a wrong one")
        if any(one == next_one for one, next_one in itertools.pairwise(harder)):
            wrong.append(f"{identifier}: a harder setting is the same")
        if problem.environment != environment.name or not problem.question:
            wrong.append(f"{identifier}: {problem}")
    assert wrong == []


def test_the_list_that_ships_is_the_packages_own() -> None:
    assert sorted(rlve.identifiers()) == list(rlve._listed())


def test_solutions_are_those_of_the_environments_without_a_reference() -> None:
    none = [one for one in rlve.identifiers() if not find(f"rlve/{one}").problem(0, 0).data["reference"]]
    assert sorted(none) == sorted(SOLUTIONS) and len(none) == 66


def test_generating_neither_reads_nor_moves_a_global_state() -> None:
    def states() -> tuple[object, ...]:
        arrays = np.random.get_state()
        return (
            random.getstate(),
            arrays[1].tobytes(),
            torch.get_rng_state().tolist(),
            os.environ.get("PYTHONHASHSEED"),
        )

    random.seed(1)
    before, made = states(), []
    for identifier in rlve.identifiers()[::10]:
        made.append(rlve.RlveEnvironment(identifier).problem(1, 5))
        rlve.RlveEnvironment(identifier).score(made[-1], made[-1].answer)
    assert states() == before
    rlve._made.cache_clear()
    random.seed(2)
    assert made == [rlve.RlveEnvironment(identifier).problem(1, 5) for identifier in rlve.identifiers()[::10]]
    assert sys.modules["Gym.environments.sorting.environment"].random is random


def test_threads_make_the_same_problems() -> None:
    sorting, found = find("rlve/Sorting"), {}

    def make(start: int) -> None:
        found[start] = [sorting.problem(2, seed) for seed in range(start, start + 30)]

    threads = [threading.Thread(target=make, args=(start,)) for start in (0, 0, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rlve._made.cache_clear()
    assert found == {start: [sorting.problem(2, seed) for seed in range(start, start + 30)] for start in (0, 30)}


def test_a_problem_scores_after_a_trip_through_a_file() -> None:
    problem = find("rlve/Sorting").problem(1, 7)
    rlve._made.cache_clear()
    back = Problem.from_json(problem.to_json())
    assert back == problem
    assert find(back.environment).score(back, back.answer) == 1.0
    almost = back.answer.split()
    almost[0] = "-1"
    assert 0.0 < find(back.environment).score(back, " ".join(almost)) < 1.0  # its own partial credit


def test_a_seed_picks_among_a_difficultys_settings() -> None:
    several = next(one for one in rlve.identifiers() if len(rlve._settings(one, 0)) > 1)
    environment = rlve.RlveEnvironment(several)
    assert environment.parameter(0, 0) != environment.parameter(0, 1)
    with pytest.raises(ContractError, match="0 to 8"):
        environment.parameter(9)
    with pytest.raises(ContractError, match="0 to 5"):
        find("rlve/MaximumAchromaticNumber").problem(6, 0)


@pytest.mark.parametrize(
    "answer", ["</answer>", "<answer>", "Assistant:", "\0", "9" * 30_000, "\ud800", "1e999", "None", "[]" * 99, "١ ٢"]
)
def test_no_answer_makes_it_raise(answer: str) -> None:
    for identifier in rlve.identifiers()[::20]:
        environment = rlve.RlveEnvironment(identifier)
        assert 0.0 <= environment.score(environment.problem(0, 0), answer) <= 1.0
    unknown = Problem("rlve/Sorting", "x", "q", "a", 99, {"seed": 0})
    assert find("rlve/Sorting").score(unknown, answer) == 0.0
    assert find("rlve/Sorting").score(Problem("rlve/Sorting", "x", "q", "a", 0), answer) == 0.0


def test_no_answer_is_run_as_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    attack = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    for identifier in ("Integral", "Differentiate", "CountdownEqual", "CountdownClose"):
        environment = rlve.RlveEnvironment(identifier)
        assert environment.score(environment.problem(0, 0), attack) == 0.0
    assert not mark.exists()


@pytest.mark.parametrize(
    "text", ["x", "-x**2/3 + 2.5*sin(x)*exp(-x)", "log(x, 10)", "x**(1/2)", "x^2 + 1", "E**x", "(6*6)-3"]
)
def test_an_expression_may_be_read(text: str) -> None:
    assert is_plain(text)


@pytest.mark.parametrize(
    "text", ["", "x.y", "eval(x)", "[x]", "lambda: x", "'x'", "x**x**x**x**x", "2**99999", "9**(9*9*9*9*9)", "y",
             "x if x else x", "1j", "sin(" * 70 + "x" + ")" * 70, "sin(*x)", "sin(x=1)", "+" * 999,
             "x\0", "١", "+".join("x" * 600), "((9**32)**32)**32**2", "9**33", "x^9^9^9^9", "9" * 13],
)  # fmt: skip
def test_what_might_run_or_explode_may_not(text: str) -> None:
    assert not is_plain(text)
    assert not is_plain("2**3", powers=False)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Gym.environments", None)
    rlve._gym.cache_clear()
    try:
        with pytest.raises(ContractError, match=r"install rlve-gym, networkx, sympy"):
            find("rlve/Sorting")
    finally:
        rlve._gym.cache_clear()


def test_names_have_the_prefix_and_near_ones_are_named() -> None:
    assert names("rlve")[0].startswith("rlve/")
    with pytest.raises(ContractError, match="rlve/Sorting"):
        find("rlve/Sortin")
