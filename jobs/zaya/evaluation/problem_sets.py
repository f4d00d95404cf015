"""The problems that a job attempts: drawn from environments, or read from sets, which are files of one problem a line.

Evaluation draws held-out questions only and preparation never one of them: what is held out hangs on the question's
text (jobs/zaya/envs/base.py), so the two are disjoint whatever their seeds. Evaluation takes a set as it is. Training
leaves its held-out questions out, and the sets that ship are refused there (jobs/zaya/evaluation_config.py). No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jobs.contract import ContractError
from jobs.zaya.envs.base import Environment, Problem, draw, held_out, read_problems
from jobs.zaya.envs.registry import find
from jobs.zaya.evaluation.compare import Score
from jobs.zaya.evaluation_config import named_sets, parts, path_of_set, shipped

_PATIENCE = 10
"""draws for each question seen, none of them new, after which there are no more: one is missed in 20,000"""


def ranges(environments: str) -> list[tuple[Environment, range]]:
    """Each named environment with its difficulties; ContractError for one that it does not have."""
    found = []
    for name, low, high in parts(environments):
        one = find(name)
        first, last = one.easiest if low is None else low, one.hardest if high is None else high
        if not one.easiest <= first <= last <= one.hardest:
            raise ContractError(f"{name} has difficulties {one.easiest} to {one.hardest}, not {first} to {last}")
        found.append((one, range(first, last + 1)))
    return found


def drawn(environments: str, each: int, seed: int, *, held: bool) -> list[Problem]:
    """`each` problems of every named environment, its difficulties taking turns; equal arguments give equal problems.

    For training a question may come again. Held-out ones are all different; ContractError when there are too few.
    """
    found: list[Problem] = []
    for one, difficulties in ranges(environments):
        own: dict[object, Problem] = {}
        tries = since = 0
        while len(own) < each:
            problem = draw(one, difficulties[tries % len(difficulties)], seed * 1_000_003 + tries, held=held)
            before = len(own)
            own.setdefault(problem.question if held else tries, problem)
            tries, since = tries + 1, since + 1 if len(own) == before else 0
            if since > _PATIENCE * (1 + len(own)):
                raise ContractError(
                    f"{one.name} has {len(own)} different held-out questions at these difficulties, not {each}: "
                    "ask for fewer or for harder ones"
                )
        found += own.values()
    return found


def of_sets(sets: str) -> list[Problem]:
    """The problems of sets named by a comma: those that ship by name, others by path. ContractError for none such."""
    found: list[Problem] = []
    for name in named_sets(sets):
        path = path_of_set(name)
        if not path.is_file():
            known = ", ".join(shipped())
            raise ContractError(f"there is no problem set {name!r}: {known} ship, others are named by path")
        found += read_problems(path)
    return found


def trainable(problems: Sequence[Problem], source: str) -> list[Problem]:
    """Those that are not held out, in order, and a line for people where some are; ContractError when all are."""
    found = [problem for problem in problems if not held_out(problem)]
    if len(found) < len(problems):
        print(
            f"{len(problems) - len(found)} of {len(problems)} problems of {source} are held out: left out", flush=True
        )
    if problems and not found:
        raise ContractError(f"all {len(problems)} problems of {source} are held out for evaluation: name others")
    return found


def score(problem: Problem, answer: str) -> float:
    """What a problem's own environment gives an answer, 0 to 1."""
    return find(problem.environment).score(problem, answer)


def telling(told: Callable[[], None]) -> Score:
    """`score` that calls `told` after each answer: one that has to be run may take seconds, and there are many."""

    def one(problem: Problem, answer: str) -> float:
        found = score(problem, answer)
        told()
        return found

    return one


def by_environment(problems: Sequence[Problem]) -> dict[str, list[int]]:
    """The places of each environment's problems, environments in the order of their first."""
    found: dict[str, list[int]] = {}
    for place, problem in enumerate(problems):
        found.setdefault(problem.environment, []).append(place)
    return found
