"""Which text may be handed to a parser that evaluates what it reads. No parser itself, and no judge of what is right.

Some verifiers give a model's answer to `eval` or to `sympy.sympify`, which runs Python. So an answer first has to be an
expression of numbers, one variable and known functions, with powers small enough that nobody waits for them.
"""

from __future__ import annotations

import ast
import math

FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "sinh", "cosh", "tanh", "coth"}
    | {"asinh", "acosh", "atanh", "exp", "log", "ln", "sqrt", "Abs", "sign"}
)
CONSTANTS = frozenset({"E", "pi"})
_LONGEST = 1000
_DEEPEST = 60
_LARGEST_NUMBER = 1e12
_LARGEST_POWER = 32
_NESTED_POWERS = 3
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.FloorDiv, ast.UAdd, ast.USub)


def is_plain(text: str, variables: frozenset[str] = frozenset({"x"}), *, powers: bool = True) -> bool:
    """Whether the text is a harmless expression in these variables; `powers` False refuses `**` altogether."""
    text = text.strip().replace("^", "**")  # as sympify reads it
    if not text or len(text) > _LONGEST or not text.isascii() or "\0" in text:
        return False
    try:
        body = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return _plain(body, variables, _NESTED_POWERS if powers else 0, _DEEPEST)


def _plain(node: ast.expr, variables: frozenset[str], powers: int, depth: int) -> bool:
    if depth == 0:
        return False
    match node:
        case ast.Constant(value=int() | float() as value):
            return not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER
        case ast.Name(id=name):
            return name in variables or name in CONSTANTS
        case ast.UnaryOp(op=op, operand=operand):
            return isinstance(op, _OPERATORS) and _plain(operand, variables, powers, depth - 1)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            known = name in FUNCTIONS and len(arguments) in (1, 2)
            return known and all(_plain(one, variables, powers, depth - 1) for one in arguments)
        case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
            if powers == 0 or not _small(exponent):
                return False
            return all(_plain(one, variables, powers - 1, depth - 1) for one in (base, exponent))
        case ast.BinOp(left=left, op=op, right=right):
            return isinstance(op, _OPERATORS) and all(
                _plain(one, variables, powers, depth - 1) for one in (left, right)
            )
    return False


def _small(exponent: ast.expr) -> bool:
    """Whether an exponent's numbers stay small: sums and products of theirs are below the product of each plus one."""
    values = [node.value for node in ast.walk(exponent) if isinstance(node, ast.Constant)]
    numbers = [1 + abs(value) for value in values if isinstance(value, int | float)]
    return math.prod(numbers) <= _LARGEST_POWER + 1
