"""The 400 environments of RLVE-Gym (the package rlve-gym, whose module is `Gym`) behind our interface.

Difficulty counts how often the environment's own parameter controller was updated: 0 is its easiest setting. The seed
draws the problem and, where a difficulty has several settings, one of them. A score is 1 where the environment counts
the answer as solved, else its own reward if that is above 0 (its partial credit), else 0. Most environments keep a
reference answer; 66 only know the best value that can be reached: theirs is empty and `data["reference"]` is false.

The package reseeds Python, NumPy and torch through one function of its base class. It is not called: each
environment's module is lent a private generator while it draws, so a problem neither reads nor moves a global state.
No torch of ours, but `Gym` itself imports it, so it is loaded late.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import Any

from jobs.manifest import ContractError, is_whole
from jobs.zaya.envs.base import Problem, within
from jobs.zaya.envs.expressions import is_plain

FAMILY = "rlve"
EASIEST, HARDEST = 0, 8
# Searches that take more than a second of a core beyond these; RLVE itself gives up after ten seconds, which would make
# a problem hang on the machine's load.
_HARDEST = {"Minimum_DominatingSet_Grid": 4, "GridLocalMinimumCounting": 4, "MaximumAchromaticNumber": 5}
# Their scorers evaluate the answer: Countdown's with eval, the other two with sympify.
_EVALUATING = {"CountdownEqual": False, "CountdownClose": False, "Differentiate": True, "Integral": True}
# Its scorer looks for the answer in the whole output and forgets the marks around it, so it gets no marks.
_UNMARKED = frozenset({"PolyaModel"})
_LONGEST_ANSWER = 20_000
_LOCK = RLock()
"""The package's modules are shared by all threads, and so is the generator that each is lent."""


@lru_cache(maxsize=1)
def _gym() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Environments and controllers by identifier; ContractError where the package or one that it needs is missing."""
    try:
        environments = importlib.import_module("Gym.environments")
        controllers = importlib.import_module("Gym.parameter_controllers")
    except ImportError as error:
        needs = "rlve-gym, networkx, sympy, numpy and torch"
        raise ContractError(
            f"RLVE's environments cannot be loaded ({error}): install {needs} (extras train, problems)"
        ) from error
    return environments.identifier2environment, controllers.identifier2controller


@lru_cache(maxsize=4096)
def _settings(identifier: str, difficulty: int) -> tuple[dict[str, Any], ...]:
    """The parameters of a difficulty, at least one."""
    controller = _gym()[1][identifier]()
    for _ in range(difficulty):
        controller.update()
    return tuple(copy.deepcopy(controller.get_parameter_list()))


@contextmanager
def _lent(kind: type, seed: str) -> Iterator[None]:
    """Lends an environment's module a private generator in place of the module `random`."""
    module = sys.modules[kind.__module__]
    with _LOCK:
        before = getattr(module, "random", None)
        if before is not None:
            setattr(module, "random", random.Random(seed))  # noqa: B010  a module has no such attribute to mypy
        try:
            yield
        finally:
            if before is not None:
                setattr(module, "random", before)  # noqa: B010  as above


@lru_cache(maxsize=512)
def _made(identifier: str, difficulty: int, seed: int) -> Any:
    """The environment's own object with this problem in it."""
    kind = _gym()[0][identifier]
    made = kind(answer_markers=("<answer>", "</answer>"))
    settings = _settings(identifier, difficulty)
    with _lent(kind, f"{identifier}/{difficulty}/{seed}"):
        made.seed, made.parameter = seed, copy.deepcopy(settings[seed % len(settings)])
        try:
            made._generate()  # the public generator reseeds every global generator and gives up by the clock
        except Exception as error:
            raise ContractError(f"{FAMILY}/{identifier} made no problem of difficulty {difficulty}: {error}") from error
    return made


@dataclass(frozen=True)
class RlveEnvironment:
    """One of the 400. Questions are English of some hundred to some thousand characters, answers free text."""

    identifier: str

    @property
    def name(self) -> str:
        return f"{FAMILY}/{self.identifier}"

    @property
    def easiest(self) -> int:
        return EASIEST

    @property
    def hardest(self) -> int:
        return _HARDEST.get(self.identifier, HARDEST)

    def parameter(self, difficulty: int, seed: int = 0) -> dict[str, Any]:
        """The setting that this difficulty and seed generate from."""
        settings = _settings(self.identifier, within(self, difficulty))
        return copy.deepcopy(settings[seed % len(settings)])

    def problem(self, difficulty: int, seed: int) -> Problem:
        within(self, difficulty)
        made = _made(self.identifier, difficulty, seed)
        with _lent(type(made), "prompt"):
            question = made.prompt_generator()
        reference = made.parameter.get("reference_answer")
        answer = "" if reference is None else str(reference)
        data = {"seed": seed, "reference": reference is not None}
        return Problem(self.name, f"{self.name}/{difficulty}/{seed}", question, answer, difficulty, data)

    def score(self, problem: Problem, answer: str) -> float:
        seed = problem.data.get("seed")
        if not is_whole(seed) or not EASIEST <= problem.difficulty <= self.hardest or not self._may_be_read(answer):
            return 0.0
        try:
            made = _made(self.identifier, problem.difficulty, seed)
            output = answer if self.identifier in _UNMARKED else f"<answer>{answer}</answer>"
            with _lent(type(made), "score"):
                verdict = made.verifier(output)
            reward = float(verdict["reward"])
        except Exception:  # a verifier of 400 authors on a model's text: whatever it trips over is no solution
            return 0.0
        return 1.0 if verdict["accuracy"] else min(1.0, max(0.0, reward))

    def alike(self, problem: Problem) -> str:
        """The reference's text: which other answers are right only the environment's own scorer says."""
        return problem.answer

    def _may_be_read(self, answer: str) -> bool:
        if len(answer) > _LONGEST_ANSWER:
            return False
        powers = _EVALUATING.get(self.identifier)
        return powers is None or is_plain(answer, powers=powers)


def identifiers() -> list[str]:
    """The identifiers of the package's environments, in its own order."""
    return list(_gym()[0])


def names() -> list[str]:
    """The environments of this family."""
    return [f"{FAMILY}/{identifier}" for identifier in identifiers()]


@lru_cache(maxsize=1)
def _listed() -> tuple[str, ...]:
    return tuple(Path(__file__).with_name("rlve.txt").read_text().split())


def listed(identifier: str) -> RlveEnvironment:
    """The environment with this identifier, by the list that ships: the package is not loaded. ContractError names
    near ones."""
    if identifier not in _listed():
        near = ", ".join(difflib.get_close_matches(identifier, _listed(), 3) or _listed()[:3])
        raise ContractError(f"there is no environment {FAMILY}/{identifier}; near are {near}")
    return RlveEnvironment(identifier)


def environment(rest: str) -> RlveEnvironment | None:
    """The environment with this identifier, None if there is none."""
    return RlveEnvironment(rest) if rest in _gym()[0] else None
