"""The API in its own words: the OpenAPI document, with who may make each call, as every viewer may read it.

docs/api.md is written from it. Answers are JSON made for pages; their shape is not promised, their refusals are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from controlplane.api.access import AT_LEAST, identity

Json = dict[str, Any]
LAST_STEP = 2**53
"""Larger numbers are no steps, and no database's."""
Step = Annotated[int | None, Query(ge=0, le=LAST_STEP)]
WHO = "x-trimtab-who"
"""The key of an operation under which stands who may call it."""
NOBODY, ANYBODY = "no token", "any token"
_PROBLEM: Json = {
    "type": "object",
    "description": "A refusal (RFC 9457).",
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "stable: programs may rely on it"},
        "detail": {"type": "string"},
        "hint": {"type": "string", "description": "what to do about it"},
        "problems": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}


def document(app: FastAPI, routes: Iterable[tuple[str, Sequence[BaseRoute]]], open_paths: Collection[str]) -> Json:
    """The OpenAPI document of `app`; `routes` are (prefix, its routes), `open_paths` those without a token."""
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    asked = {(prefix + path, method): who for prefix, found in routes for path, method, who in _asked(found)}
    parts = made.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = _PROBLEM
    parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    refused = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            open_ = path in open_paths
            operation.setdefault(WHO, NOBODY if open_ else asked.get((path, method.upper()), ANYBODY))
            operation["security"] = [] if open_ else [{"token": []}]
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"description": "A refusal", "content": refused}
    return made


def _asked(routes: Sequence[BaseRoute]) -> Iterator[tuple[str, str, str]]:
    for route in routes:
        if isinstance(route, APIRoute):
            for method in route.methods or ():
                yield route.path, method, _who(route.dependant)


def _who(dependant: Dependant) -> str:
    """The role that a call asks for."""
    for one in dependant.dependencies:
        name = getattr(one.call, "__name__", "")
        if name.startswith(AT_LEAST):
            return name.removeprefix(AT_LEAST)
    return ANYBODY if any(one.call is identity for one in dependant.dependencies) else NOBODY
