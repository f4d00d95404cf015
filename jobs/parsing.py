"""Text or a mapping becomes a validated value, or one error that lists every problem with its path.

Why it exists: jobs and lifecycles are read by the same rules, and a form shows each problem beside its field. It knows
YAML and pydantic, and nothing of what a job is (jobs.spec) or a lifecycle (jobs.lifecycle).
"""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.manifest import as_text, is_finite, is_text, is_whole

MAX_TEXT = 256 * 1024
MAX_DEPTH = 64
SUBMITTED = {"Job": "trimtab job submit", "Lifecycle": "trimtab lifecycle submit"}
"""By kind: what takes a text of it."""
_UNWRITABLE = "a NUL or half of a character, which cannot be written down"
_TOO_DEEP = f"lies deeper than {MAX_DEPTH} mappings and lists"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where, in plain words."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class SpecError(ValueError):
    """A spec that cannot be accepted; `problems` holds all that is wrong with it, in words that can be written down."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = [Problem(as_text(one.path), as_text(one.message)) for one in problems]
        super().__init__("; ".join(map(str, self.problems)))


class Part(BaseModel):
    """A part of a spec: frozen, and strict about what it is given."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, strict=True)


_Spec = TypeVar("_Spec", bound=Part)


class _OnceLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where plain YAML lets the last one win, aliases, whose few lines can stand
    for gigabytes, and what is nested deeper than anybody writes."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call] # the stubs leave it untyped
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not read here", mark)
        if self.depth > MAX_DEPTH:
            raise yaml.constructor.ConstructorError(None, None, _TOO_DEEP, mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, str) and key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        if isinstance(key, str):
            seen.add(key)
    return loader.construct_mapping(node, deep=True)


_OnceLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@lru_cache(maxsize=32)  # the files that ship are asked at each submission; a long one takes a tenth of a second
def kind_of(text: str) -> str:
    """The kind that a YAML text says it is of; "" where it says none."""
    found = read_yaml(text)
    kind = found.get("kind") if isinstance(found, dict) else None
    return kind if isinstance(kind, str) else ""


def read_yaml(text: str) -> Any:
    """What a YAML text holds; SpecError with the place where it is none."""
    if len(text) > MAX_TEXT:
        raise SpecError([Problem("", f"the text has {len(text)} characters, {MAX_TEXT} are read at most")])
    try:
        return yaml.load(text, _OnceLoader)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise SpecError([Problem("", f"{where}{getattr(error, 'problem', None) or error}")]) from error


def _words(error: Any, known: list[str]) -> str:
    """Pydantic's finding as a person would say it."""
    kind, context, given = error["type"], error.get("ctx", {}), error.get("input")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), known, 1)
        return "is not known here" + (f"; did you mean {near[0]}?" if near else "")
    simple = {
        "missing": "is needed",
        "greater_than_equal": f"must be ≥ {context.get('ge')}",
        "greater_than": f"must be > {context.get('gt')}",
        "less_than_equal": f"must be ≤ {context.get('le')}",
        "int_type": f"must be a whole number, not {given!r}",
        "int_from_float": f"must be a whole number, not {given!r}",
        "float_type": f"must be a number, not {given!r}",
        "finite_number": "must be a finite number",
        "bool_type": f"must be true or false, not {given!r}",
        "string_type": f"must be text, not {given!r}",
        "list_type": "must be a list",
        "dict_type": "must be a mapping",
        "model_type": "must be a mapping",
        "too_short": "must not be empty",
        "too_long": f"must have at most {context.get('max_length')}, not {context.get('actual_length')}",
        "value_error": str(context.get("error")),
        "string_pattern_mismatch": "must be 1 to 40 lower-case letters, digits or hyphens, without one at either end",
        "literal_error": f"must be one of {context.get('expected')}, not {given!r}",
    }
    return simple.get(kind, str(error["msg"]).lower())


def _known_names(model: Any, location: tuple[Any, ...]) -> list[str]:
    for part in location[:-1]:
        if isinstance(part, int):  # an item of a list
            model = next(iter(get_args(model)), None)
            continue
        fields = {(field.alias or name): field for name, field in getattr(model, "model_fields", {}).items()}
        model = fields[part].annotation if part in fields else None
        options = [one for one in get_args(model) if hasattr(one, "model_fields")]
        if not isinstance(model, type) and len(options) == 1 and get_origin(model) is not list:
            model = options[0]  # a part that may be left out
    return [field.alias or name for name, field in getattr(model, "model_fields", {}).items()]


def _path(names: tuple[Any, ...]) -> str:
    """Where something stands: relative to `spec`."""
    return ".".join(map(str, names[1:] if names[:1] == ("spec",) and len(names) > 1 else names))


def _unfit(given: Mapping[Any, Any]) -> Iterator[Problem]:
    """What JSON and the databases cannot keep, wherever it stands; what a value may be else is the models' matter."""
    open_: deque[tuple[tuple[Any, ...], Any]] = deque([((), given)])
    while open_:
        place, value = open_.popleft()
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        if inner and len(place) >= MAX_DEPTH:
            yield Problem(_path(place[:3]), _TOO_DEEP)
            continue
        for name, one in inner:
            if isinstance(value, dict) and not isinstance(name, str):
                yield _unnamed(place, name)
            elif isinstance(name, str) and not is_text(name):
                yield Problem(_path(place), f"has the name {name!r} with {_UNWRITABLE}")
            open_.append(((*place, name), one))
        wrong = _unfit_alone(value)
        if wrong:
            yield Problem(_path(place), wrong)


def _unnamed(place: tuple[Any, ...], name: object) -> Problem:
    return Problem(_path(place), f"its names must be text, not {name!r}: put it in quotes")


def _unfit_alone(value: object) -> str:
    if isinstance(value, dict | list | bool | None):
        return ""
    if isinstance(value, str):
        return "" if is_text(value) else f"holds {_UNWRITABLE}"
    if isinstance(value, int):
        return "" if is_whole(value) else "must be a whole number of 64 bits"
    if isinstance(value, float):
        return "" if is_finite(value) else "must be a finite number"
    return f"must be text, a number, true or false, not the {type(value).__name__} {value}: put it in quotes"


def _problem(model: type[Part], error: Any) -> Problem:
    location = tuple(error["loc"])
    scalar = location[-1:] and location[-1] in ("int", "float", "str", "bool")
    names = location[:-1] if scalar else location
    path = _path(names)
    if names[-1:] == ("[key]",) or error["type"] == "invalid_key":
        place = names[:-2] if names[-1] == "[key]" else names[:-1]
        return _unnamed(place, error["input"] if names[-1] == "[key]" else names[-1])
    if scalar:
        return Problem(path, "must be text, a number, true or false")
    return Problem(path, _words(error, _known_names(model, location)))


def parse(
    model: type[_Spec], source: Mapping[str, Any] | str, what: str, judge: Callable[[Mapping[str, Any]], list[Problem]]
) -> _Spec:
    """A validated spec; raises SpecError with every problem at once, those that only `judge` can see included."""
    given = read_yaml(source) if isinstance(source, str) else dict(source)
    if not isinstance(given, dict):
        raise SpecError([Problem("", f"a {what} is a mapping with apiVersion, kind, metadata and spec")])
    kind, own = given.get("kind"), model.model_fields["kind"].default
    if isinstance(kind, str) and kind != own and kind in SUBMITTED:
        raise SpecError([Problem("kind", f"this is a {kind}, not a {own}: {SUBMITTED[kind]}")])
    problems = {str(problem): problem for problem in _unfit(given)}
    unfit = {problem.path for problem in problems.values()}
    try:
        made = model.model_validate(given)
    except ValidationError as error:
        found = (_problem(model, one) for one in error.errors(include_url=False))
        problems |= {str(problem): problem for problem in found if problem.path not in unfit}
    told = {problem.path for problem in problems.values()}
    unseen: list[Problem] = [one for one in judge(given) if one.path not in told]
    if problems or unseen:
        raise SpecError([*problems.values(), *unseen])
    return made
