"""Mathematics: small generated arithmetic, and problem sets of your own as JSONL.

`math/arithmetic` asks for a value, `math/linear` for the solution of an equation, `math/fraction` for a sum of
fractions; their difficulty counts operations, digits of the numbers, and digits of the denominators. `math/union` asks
for the union of two sets of letters, its difficulty counts the letters of both: a model of toy size learns no numbers,
and this is no measure of more than copying and leaving out. `math/set` has no generator: it scores the problems of a
file whose lines name it. An answer is right when math-verify finds it equal to the reference: 1 or 0, no partial
credit. The same text and whole numbers are compared without it, a union is right in any order. No code is run. To a
generated question an answer that leaves an operation to be done, such as the question itself, is none.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import random
import re
import select
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from threading import Lock

from jobs.manifest import ContractError
from jobs.zaya.envs.base import Problem, within

FAMILY = "math"
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_LETTERS = "abcdefgh"
_UNDONE = re.compile(r"\d\s*[+*-]\s*\d")
"""An operation between two numbers; a fraction's bar is none."""
_LONGEST = 4000
"""Of a longer answer the end counts, where the result stands."""
_WORKER = Path(__file__).with_name("mathworker.py")
_START_S, _ANSWER_S = 120.0, 15.0


class Verifier:
    """Asks a process of its own, started at the first question and again after it got stuck. Safe in any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def same(self, reference: str, answer: str, wait_s: float = _ANSWER_S) -> bool:
        """Whether both are the same value; False when it cannot be told in time.

        ContractError where math-verify is not installed.
        """
        line = json.dumps({"reference": reference, "answer": answer}).encode() + b"\n"
        with self._lock:
            process = self._running()
            try:
                assert process.stdin is not None
                process.stdin.write(line)
                process.stdin.flush()
                return bool(json.loads(self._line(process, wait_s))["same"])
            except (OSError, ValueError, KeyError, TimeoutError):
                self._end()
                return False

    def close(self) -> None:
        """Ends the process; the next question starts another."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        if not _installed():
            raise ContractError("mathematics is checked with math-verify: install it (extra problems)")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith("TRIMTAB_")},
        )
        try:
            self._line(self._process, _START_S)
        except (OSError, TimeoutError) as error:
            self._end()
            raise ContractError(f"math-verify's process does not start: {error}") from error
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], wait_s: float) -> bytes:
        """The next line; one line answers one question, so nothing is left behind in a buffer."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], wait_s)
        if not ready:
            raise TimeoutError(f"no answer within {wait_s:g} s")
        return process.stdout.readline()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _installed() -> bool:
    try:
        return importlib.util.find_spec("math_verify") is not None
    except ValueError:  # it is blocked in sys.modules
        return False


VERIFIER = Verifier()
atexit.register(VERIFIER.close)


def equal(reference: str, answer: str) -> bool:
    """Whether an answer is the reference's value, however written: `\\boxed{5/6}`, `10/12`, `0.5`."""
    answer = answer[-_LONGEST:].strip()
    if not answer:
        return False
    if answer == reference:
        return True
    if _WHOLE.fullmatch(answer) and _WHOLE.fullmatch(reference):
        return int(answer) == int(reference)
    if _WHOLE.fullmatch(reference) and not any(letter.isdigit() for letter in answer):
        return False
    return VERIFIER.same(reference, answer)


@dataclass(frozen=True)
class Generated:
    """A generator of questions, by its word."""

    word: str
    easiest: int
    hardest: int

    @property
    def name(self) -> str:
        return f"{FAMILY}/{self.word}"

    def problem(self, difficulty: int, seed: int) -> Problem:
        within(self, difficulty)
        question, answer = _ASK[self.word](random.Random(f"{self.name}/{difficulty}/{seed}"), difficulty)
        return Problem(self.name, f"{self.name}/{difficulty}/{seed}", question, answer, difficulty)

    def score(self, problem: Problem, answer: str) -> float:
        """What follows the last equals sign is the answer, where there is one."""
        undone = _UNDONE.search(answer[-_LONGEST:].rpartition("=")[2])
        return float(undone is None and equal(problem.answer, answer))

    def alike(self, problem: Problem) -> str:
        return problem.answer


@dataclass(frozen=True)
class Union:
    """The union of two sets of the letters a to h, `union ab bd`: each element once, in any order."""

    word: str = "union"
    easiest: int = 2
    hardest: int = 6

    @property
    def name(self) -> str:
        return f"{FAMILY}/{self.word}"

    def problem(self, difficulty: int, seed: int) -> Problem:
        """A question of at most 13 characters; the sets share letters as often as chance has it."""
        within(self, difficulty)
        rng = random.Random(f"{self.name}/{difficulty}/{seed}")
        size = rng.randint(1, difficulty - 1)
        one, other = ("".join(rng.sample(_LETTERS, count)) for count in (size, difficulty - size))
        answer = "".join(dict.fromkeys(one + other))
        return Problem(self.name, f"{self.name}/{difficulty}/{seed}", f"{self.word} {one} {other}", answer, difficulty)

    def score(self, problem: Problem, answer: str) -> float:
        return float(sorted(answer.strip()) == sorted(problem.answer))

    def alike(self, problem: Problem) -> str:
        return "".join(sorted(problem.answer))


@dataclass(frozen=True)
class MathSet:
    """Scores the problems of a file; `read_problems` and `ProblemSet` of envs/base.py bring them here."""

    name: str = f"{FAMILY}/set"
    easiest: int = 0
    hardest: int = 0

    def problem(self, difficulty: int, seed: int) -> Problem:
        raise ContractError(
            f"{self.name} has no problem {difficulty}/{seed} of its own: read them from a file of JSONL"
        )

    def score(self, problem: Problem, answer: str) -> float:
        return float(equal(problem.answer, answer))

    def alike(self, problem: Problem) -> str:
        return problem.answer


def _arithmetic(rng: random.Random, operations: int) -> tuple[str, str]:
    """A chain of + - * over numbers of one digit, by the usual precedence."""
    numbers = [rng.randrange(10) for _ in range(operations + 1)]
    signs = [rng.choice("+-*") for _ in range(operations)]
    text = str(numbers[0]) + "".join(f"{sign}{number}" for sign, number in zip(signs, numbers[1:], strict=True))
    total, product, outer = 0, numbers[0], 1
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign == "*":
            product *= number
        else:
            total, product, outer = total + outer * product, number, 1 if sign == "+" else -1
    return text, str(total + outer * product)


def _linear(rng: random.Random, digits: int) -> tuple[str, str]:
    """a*x+b=c with a whole solution, which may be negative."""
    most = 10**digits - 1
    factor, offset = rng.randint(2, 9), rng.randint(1, most)
    solution = rng.randint(-most, most)
    return f"{factor}x+{offset}={factor * solution + offset}", str(solution)


def _fraction(rng: random.Random, digits: int) -> tuple[str, str]:
    """The sum of two proper fractions, in lowest terms."""
    parts = []
    for _ in range(2):
        lower = rng.randint(2, 10**digits - 1)
        parts.append((rng.randint(1, lower - 1), lower))
    total = sum((Fraction(*part) for part in parts), Fraction(0))
    return "+".join(f"{upper}/{lower}" for upper, lower in parts), str(total)


_ASK = {"arithmetic": _arithmetic, "linear": _linear, "fraction": _fraction}
ENVIRONMENTS: dict[str, Generated | Union | MathSet] = {
    "arithmetic": Generated("arithmetic", 1, 8),
    "linear": Generated("linear", 1, 4),
    "fraction": Generated("fraction", 1, 4),
    "union": Union(),
    "set": MathSet(),
}


def names() -> list[str]:
    """The environments of this family."""
    return [one.name for one in ENVIRONMENTS.values()]


def environment(rest: str) -> Generated | Union | MathSet | None:
    """The environment with this word, None if there is none."""
    return ENVIRONMENTS.get(rest)
