"""What a problem and an environment are, how problems are kept as lines of JSON, and the two measures that keep
training honest: which problems are held out, and what a constant answer would score. No torch, no model.

A problem is a pure function of environment, difficulty and seed, so a learner that restarts needs no file of problems,
only its sampler's state. Each environment says in its own file what its difficulty counts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from jobs.manifest import ContractError, is_text, is_whole

HELD_OUT_IN = 10
"""One question in this many is never trained on."""
_TRIES = 1000
_CONSTANTS = 16
"""reference answers that are tried as a constant answer, besides the empty one"""
TASK = "task"
"""In a problem's data: what it asks for, the same in every environment of its family."""

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """A question with its reference answer. `data` is what the environment needs to score, as plain JSON."""

    environment: str
    id: str
    question: str
    answer: str
    difficulty: int
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, line: str | bytes) -> Problem:
        """Reads a line; ContractError for one that is no problem."""
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ContractError(f"a problem is not a line of JSON: {error}") from error
        names = {one.name for one in fields(cls)}
        if not isinstance(found, dict) or not names - {"data"} <= set(found) <= names:
            raise ContractError(f"a problem is an object with {', '.join(sorted(names))} and nothing else")
        problem = cls(**found)
        texts = (problem.environment, problem.id, problem.question, problem.answer)
        if not all(is_text(text) for text in texts) or not is_whole(problem.difficulty):
            raise ContractError("a problem's texts must be text and its difficulty a whole number")
        if not isinstance(problem.data, dict):
            raise ContractError("a problem's data must be an object")
        return problem


class Environment(Protocol):
    """A source of problems that also scores answers. Difficulties run from `easiest` to `hardest`, both included."""

    @property
    def name(self) -> str: ...

    @property
    def easiest(self) -> int: ...

    @property
    def hardest(self) -> int: ...

    def problem(self, difficulty: int, seed: int) -> Problem:
        """The problem of this difficulty and seed, the same on every call; ContractError outside the difficulties."""

    def score(self, problem: Problem, answer: str) -> float:
        """From 0 (wrong) to 1 (right); never raises, whatever the answer."""

    def alike(self, problem: Problem) -> str:
        """Equal for problems whose reference answers are right for one another, as far as can be told without scoring:
        the reference in the form in which right answers are equal, or what decides which answers are right."""


def within(environment: Environment, difficulty: int) -> int:
    """The difficulty, if the environment has it; ContractError otherwise."""
    if not environment.easiest <= difficulty <= environment.hardest:
        span = f"{environment.easiest} to {environment.hardest}"
        raise ContractError(f"{environment.name} has difficulties {span}, {difficulty} is none of them")
    return difficulty


def held_out(problem: Problem) -> bool:
    """Whether evaluation owns this question. It hangs on the question's text alone, so that no other seed or
    difficulty brings the same question into training. Environments of a family that ask for the same thing in other
    words name it in `data["task"]`, which then decides, so that none of them trains on what another holds out."""
    task = problem.data.get(TASK)
    asked = f"{problem.environment.partition('/')[0]}\n{task}" if task else f"{problem.environment}\n{problem.question}"
    found = hashlib.sha256(asked.encode(errors="surrogatepass")).digest()
    return int.from_bytes(found[:4], "big") % HELD_OUT_IN == 0


def draw(environment: Environment, difficulty: int, seed: int, *, held: bool) -> Problem:
    """The first problem from this seed on that is held out, or that is not. Its own seed is a function of `seed`.

    ContractError when none of a thousand is: the environment then has too few questions at this difficulty.
    """
    for again in range(_TRIES):
        problem = environment.problem(difficulty, seed * _TRIES + again)
        if held_out(problem) == held:
            return problem
    kind = "held out" if held else "for training"
    raise ContractError(f"{environment.name} has no question {kind} at difficulty {difficulty}: ask for a harder one")


def constant_baseline(environment: Environment, difficulty: int, problems: int, seed: int) -> float:
    """The mean score of the best constant answer over `problems` problems: what a model gets without reading.

    Tried is what `constant_baseline_of` tries.
    """
    if problems < 1:
        raise ContractError("a baseline needs at least one problem")
    drawn = [environment.problem(difficulty, seed + number) for number in range(problems)]
    return constant_baseline_of(environment, drawn)


def constant_baseline_of(
    environment: Environment, problems: Iterable[Problem], told: Callable[[], None] = lambda: None
) -> float:
    """The same over problems at hand, such as those of an evaluation; `told` is called after each scoring.

    Scored on each problem are the empty answer and the 16 commonest reference answers, of equally common ones those
    that come first; references count as the same where the environment calls their problems `alike`. That is the best
    of all references where being alike is all of being right (micro, and mathematics and code that are generated) and
    where there are no more than 16; elsewhere one that is seldom and still scores best may be missed. So n problems
    cost 17 n scorings at most. ContractError without a problem.
    """
    drawn = list(problems)
    if not drawn:
        raise ContractError("a baseline needs at least one problem")
    kinds = [environment.alike(problem) for problem in drawn]
    references: dict[str, str] = {}
    for kind, problem in zip(kinds, drawn, strict=True):
        references.setdefault(kind, problem.answer)
    best = 0.0
    for answer in dict.fromkeys(["", *(references[kind] for kind, _ in Counter(kinds).most_common(_CONSTANTS))]):
        total = 0.0
        for problem in drawn:
            total += environment.score(problem, answer)
            told()
        best = max(best, total)
    return best / len(drawn)


class ProblemSet:
    """A set of problems at hand, such as a file's, as an environment: a seed picks among those of a difficulty.

    `scorer` is the environment that scores them. ContractError for an empty set or one of another environment.
    """

    def __init__(self, scorer: Environment, problems: Iterable[Problem]) -> None:
        self.scorer = scorer
        self._problems: dict[int, list[Problem]] = {}
        for problem in problems:
            if problem.environment != scorer.name:
                raise ContractError(f"{problem.id} is of {problem.environment}, this set is of {scorer.name}")
            self._problems.setdefault(problem.difficulty, []).append(problem)
        if not self._problems:
            raise ContractError("the problem set is empty")

    @property
    def name(self) -> str:
        return self.scorer.name

    @property
    def easiest(self) -> int:
        return min(self._problems)

    @property
    def hardest(self) -> int:
        return max(self._problems)

    def problem(self, difficulty: int, seed: int) -> Problem:
        within(self, difficulty)
        nearest = min(self._problems, key=lambda one: (abs(one - difficulty), one))
        return self._problems[nearest][seed % len(self._problems[nearest])]

    def score(self, problem: Problem, answer: str) -> float:
        return self.scorer.score(problem, answer)

    def alike(self, problem: Problem) -> str:
        return self.scorer.alike(problem)


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Writes a problem set, a line each."""
    path.write_text("".join(f"{problem.to_json()}\n" for problem in problems), encoding="utf-8")


def read_problems(path: Path) -> Iterator[Problem]:
    """A problem set's problems; ContractError names the line that is none."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ContractError(f"the problem set {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield Problem.from_json(line)
            except ContractError as error:
                raise ContractError(f"{path.name}, line {number}: {error}") from error
