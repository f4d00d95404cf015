"""What a POST changes: the act, its line of the audit and the answer under its Idempotency-Key, in one transaction.

A client that got no answer cannot know whether it acted, so it asks again under the same key. The key is taken first,
in the act's own transaction: while one request is at it another under its key waits, and then gets the same answer. If
the first failed, or its server was killed, nothing of it is there, key included, and the second acts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from pydantic import BaseModel, ConfigDict, field_validator

from controlplane.api.access import Caller, Parts
from controlplane.api.problems import Problem
from controlplane.clock import Clock
from controlplane.store import audit
from controlplane.store.engine import Session, Store
from controlplane.store.tables import IdempotencyKey
from jobs.contract import is_text

Json = dict[str, Any]
LONGEST_KEY = 200


class Asked(BaseModel):
    """What a request's body says: its fields and no others, of text that can be written down.

    A body that is checked for itself, with the paths of what is wrong in it (a job, a plan), is none of these.
    """

    model_config = ConfigDict(extra="forbid")

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(one, str) and not is_text(one) for one in texts):
            raise ValueError("holds a NUL or half of a character, which cannot be written down")
        return value


@dataclass(frozen=True)
class Deed:
    """One request to change something: who asks for it, for what, and under which key ("" for none)."""

    store: Store
    clock: Clock
    actor: str
    method: str
    path: str
    request_id: str = ""
    key: str = ""
    status: int = 200

    def once(self, body: Any, act: Callable[[Session], Json], *, shown_once: str = "") -> Json:
        """Does `act` in a transaction, once for the key; `body` tells requests under one key apart.

        shown_once: the name of a value in the answer that is given once and kept nowhere; a repeat is then refused.
        """
        with self.store.write() as session:
            before = self._take(session, body)
            if before is not None:
                return _again(before, shown_once)
            answer = act(session)
            self._keep(session, {name: value for name, value in answer.items() if name != shown_once})
        return answer

    def once_outside(self, body: Any, act: Callable[[], Json], note: Callable[[Session, Json], None]) -> Json:
        """For an act beyond the store, which no transaction can hold: done at most once.

        The key is taken before it and answered, with `note`, after it; a repeat that finds no answer is refused.
        """
        with self.store.write() as session:
            before = self._take(session, body)
        if before is not None:
            return _again(before, "")
        try:
            answer = act()
        except Exception:  # whatever it was, the key may be used again; the caller hears of it
            with self.store.write() as session:
                audit.give_back(session, self.key, self.actor)
            raise
        with self.store.write() as session:
            note(session, answer)
            self._keep(session, answer)
        return answer

    def note(self, session: Session, outcome: str, detail: Json | None = None) -> None:
        """The line of the audit, in the act's transaction."""
        audit.add(
            session,
            now=self.clock.now(),
            actor=self.actor,
            verb=self.method,
            object=self.path.removeprefix("/api/v1/"),
            outcome=outcome,
            request_id=self.request_id,
            detail=detail,
        )

    def _take(self, session: Session, body: Any) -> IdempotencyKey | None:
        if not self.key:
            return None
        whole = json.dumps([self.method, self.path, body], sort_keys=True, default=str)
        asked = hashlib.sha256(whole.encode()).hexdigest()
        before = audit.take(session, self.key, self.actor, now=self.clock.now(), asked=asked)
        if before is not None and before.body["asked"] != asked:
            raise Problem(409, "key_reused", "This Idempotency-Key belongs to another request")
        return before

    def _keep(self, session: Session, answer: Json) -> None:
        if self.key:
            audit.keep_answer(session, self.key, self.actor, status=self.status, answer=answer)


def _again(before: IdempotencyKey, shown_once: str) -> Json:
    """What a repeat is answered."""
    if before.status == audit.UNANSWERED:
        raise Problem(
            409,
            "no_answer_yet",
            "The first request under this Idempotency-Key has no answer",
            "It is still being done, or its server ended while it was.",
            "Ask again later; to do it again whatever became of it, use another key.",
        )
    answer: Json = before.body["answer"]
    if shown_once:
        raise Problem(
            409,
            "shown_once",
            f"The {shown_once} was made by the first request under this Idempotency-Key and is shown once",
            f"It is {answer.get('id', 'kept as a hash')}.",
            "Revoke it and make another under a new key.",
        )
    return answer


def deed(
    request: Request,
    parts: Parts,
    caller: Caller,
    key: Annotated[
        str,
        Header(alias="Idempotency-Key", description="Up to 200 characters of your own: a repeat gets the same answer."),
    ] = "",
) -> Deed:
    """The dependency of every POST that changes something."""
    if len(key) > LONGEST_KEY:
        raise Problem(400, "bad_key", f"An Idempotency-Key has {LONGEST_KEY} characters at most")
    return Deed(
        store=parts.store,
        clock=parts.clock,
        actor=caller.actor,
        method=request.method,
        path=request.url.path,
        request_id=getattr(request.state, "request_id", ""),
        key=key,
        status=getattr(request.scope.get("route"), "status_code", None) or 200,
    )


Doing = Annotated[Deed, Depends(deed)]
