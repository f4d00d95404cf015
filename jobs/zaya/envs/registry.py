"""Finds an environment by its name: `micro/reverse`, `rlve/Sorting`, `math/arithmetic`, `code/expression`.

The part before the slash is the family, one file each; a family is loaded when it is first asked for, since some need
packages that only one stage has.
"""

from __future__ import annotations

import difflib
import importlib

from jobs.manifest import ContractError
from jobs.zaya.envs import rlve
from jobs.zaya.envs.base import Environment, within

FAMILIES = {"micro": "micro", "rlve": "rlve", "math": "mathematics", "code": "code"}
"""A family's name to the module of this package that holds it."""


def names(family: str) -> list[str]:
    """All environments of a family, with its prefix; ContractError for a family that does not exist or cannot load."""
    if family not in FAMILIES:
        raise ContractError(f"there is no family of environments {family!r}: there are {', '.join(FAMILIES)}")
    module = importlib.import_module(f"jobs.zaya.envs.{FAMILIES[family]}")
    return list(module.names())


def refused(name: str, low: int | None, high: int | None) -> str:
    """Why problems of these difficulties (None: the environment's own) cannot be drawn from a name; "" if they can.

    RLVE's names are known from the list that ships, so a server judges a plan without the package.
    """
    family, _, rest = name.partition("/")
    try:
        environment = rlve.listed(rest) if family == "rlve" else find(name)
        for difficulty in (environment.easiest if low is None else low, environment.hardest if high is None else high):
            within(environment, difficulty)
            if family != "rlve":
                environment.problem(difficulty, 0)
    except ContractError as error:
        return str(error)
    return ""


def find(name: str) -> Environment:
    """The environment with this name; ContractError names near ones."""
    family, _, rest = name.partition("/")
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, 1) or list(FAMILIES)
        raise ContractError(
            f"there is no environment {name!r}: a name begins with {' or '.join(f'{one}/' for one in near)}"
        )
    module = importlib.import_module(f"jobs.zaya.envs.{FAMILIES[family]}")
    found: Environment | None = module.environment(rest)
    if found is None:
        known = list(module.names())
        near = difflib.get_close_matches(name, known, 3) or known[:3]
        raise ContractError(f"there is no environment {name!r}; near are {', '.join(near)}")
    return found
