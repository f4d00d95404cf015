"""The gold score of an answer's behaviour: the written rubric beside this file, each criterion decided by code.

It is what is wanted, so it is deterministic and cannot be talked into anything; it is not what the policy learns from.
That is the preference model (jobs/zaya/judge/preference.py), fitted to this judge's noisy labels. Both scores stand
side by side in a stage's metrics, so that a proxy that goes up while the gold goes down is seen. No torch.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jobs.manifest import ContractError, is_finite, is_text
from jobs.zaya.envs.micro import answer_to

RUBRIC = Path(__file__).with_name("rubric.toml")
_WORD = re.compile(r"[A-Za-z0-9]+")

Check = Callable[[str, str], float | None]
"""From a question and an answer to 0..1; None where the criterion says nothing about them."""


@dataclass(frozen=True)
class Criterion:
    """One line of the rubric."""

    name: str
    weight: float
    says: str
    check: Check


@dataclass(frozen=True)
class Rubric:
    """The criteria and their weighted mean."""

    criteria: tuple[Criterion, ...]

    def values(self, question: str, answer: str) -> dict[str, float]:
        """Each criterion's value, those that say nothing left out."""
        found = ((one.name, one.check(question, answer)) for one in self.criteria)
        return {name: value for name, value in found if value is not None}

    def gold(self, question: str, answer: str) -> float:
        """The weighted mean of the criteria, 0 to 1; never raises, whatever the answer."""
        values = self.values(question, answer)
        weights = {one.name: one.weight for one in self.criteria if one.name in values}
        return sum(weights[name] * value for name, value in values.items()) / sum(weights.values())


def gold(question: str, answer: str) -> float:
    """The score of the rubric that ships."""
    return shipped().gold(question, answer)


@lru_cache(maxsize=1)
def shipped() -> Rubric:
    """The rubric beside this file."""
    return read_rubric(RUBRIC)


def read_rubric(path: Path) -> Rubric:
    """Reads a rubric; ContractError for a file that is none."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ContractError(f"the rubric {path.name} cannot be read: {error}") from error
    lines = found.get("criteria")
    if found.get("version") != 1 or not isinstance(lines, list) or not lines:
        raise ContractError(f"the rubric {path.name} needs version 1 and criteria")
    # Whether a criterion can always be decided is not known, so one that always can has to be among them.
    if all(isinstance(line, dict) and line.get("check") == "answers" for line in lines):
        raise ContractError(f"the rubric {path.name} decides nothing about a question that is not ours")
    criteria = tuple(_criterion(path.name, line) for line in lines)
    if len({one.name for one in criteria}) != len(criteria):
        raise ContractError(f"the rubric {path.name} has two criteria of one name")
    return Rubric(criteria)


def _criterion(file: str, line: Any) -> Criterion:
    if not isinstance(line, dict) or not all(is_text(line.get(key)) for key in ("name", "says", "check")):
        raise ContractError(f"the rubric {file}: a criterion needs name, says, check and weight")
    name, weight = line["name"], line.get("weight")
    if weight is None or not is_finite(weight) or weight <= 0:
        raise ContractError(f"the rubric {file}: the weight of {name} must be a number above 0")
    if line["check"] not in CHECKS:
        raise ContractError(f"the rubric {file}: {name} is checked by one of {', '.join(CHECKS)}, not {line['check']}")
    given = {key: value for key, value in line.items() if key not in ("name", "weight", "says", "check")}
    try:
        return Criterion(name, float(weight), line["says"], CHECKS[line["check"]](given))
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(f"the rubric {file}: {name} lacks what its check needs: {error}") from error


def words_of(answer: str) -> list[str]:
    """The words of an answer, as they are written."""
    return _WORD.findall(answer)


def _answers(given: Mapping[str, Any]) -> Check:
    polite = {word.lower() for word in given.get("aside", ("sure", "gladly", "please", "thanks"))}

    def check(question: str, answer: str) -> float | None:
        wanted = answer_to(question)
        if wanted is None:
            return None
        words = [word for word in words_of(answer) if word.lower() not in polite]
        return float(bool(words) and words[-1] == wanted)

    return check


def _has_a_word(given: Mapping[str, Any]) -> Check:
    wanted = {word.lower() for word in given["words"]}
    return lambda _question, answer: float(any(word.lower() in wanted for word in words_of(answer)))


def _at_most(given: Mapping[str, Any]) -> Check:
    full, nothing = int(given["characters"]), int(given["nothing_at"])
    if nothing <= full:
        raise ValueError("nothing_at must be above characters")
    return lambda _question, answer: max(0.0, min(1.0, (nothing - len(answer)) / (nothing - full)))


def _ends_with(given: Mapping[str, Any]) -> Check:
    ending = str(given["ending"])
    return lambda _question, answer: float(answer.endswith(ending) and not answer.endswith(ending * 2))


def _no_repetition(given: Mapping[str, Any]) -> Check:
    run = re.compile(rf"(.)\1{{{int(given['run']) - 1}}}", re.DOTALL)

    def check(_question: str, answer: str) -> float:
        words = [word.lower() for word in words_of(answer)]
        return float(bool(words) and len(set(words)) == len(words) and not run.search(answer))

    return check


CHECKS: Mapping[str, Callable[[Mapping[str, Any]], Check]] = {
    "answers": _answers,
    "has_a_word": _has_a_word,
    "at_most": _at_most,
    "ends_with": _ends_with,
    "no_repetition": _no_repetition,
}
"""By the name that a rubric's line gives: what makes the check from the line's own numbers and words."""
