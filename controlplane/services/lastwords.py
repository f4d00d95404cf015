"""Before an attempt's pods go, what its failed members said last is kept: the end of their output, who failed first.

Most platforms forget a member's output with the member, and the controller itself ends what is left of a failed gang.
So each look that sees members ended reads them before anything is decided. It is bounded: so many members, so many
bytes, so long. A node that does not answer in time must not delay the restart. Members that the stop of an attempt
killed have nothing to say.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Sequence

import structlog

from controlplane.backends.base import Backend, BackendUnavailable
from controlplane.runs import ends, states
from controlplane.runs.view import Look, MemberView
from controlplane.store import last_words, leases
from controlplane.store.engine import Store
from controlplane.store.last_words import Said
from controlplane.store.tables import Attempt

MEMBERS = 8
BYTES = 64 << 10
PATIENCE_S = 2.0
TRIES = 3
"""looks at which output that could not be read is asked for again"""
BY_SIGNAL = (128 + signal.SIGKILL, 128 + signal.SIGTERM)
_SLOW = f"its node did not answer within {PATIENCE_S:.0f} s"
_NOTHING = "there was nothing to read"
_log = structlog.get_logger()


class LastWords:
    """Remembers which members of the live attempts are kept already."""

    def __init__(self, store: Store, lease: str, patience_s: float = PATIENCE_S) -> None:
        self._store, self._lease, self._patience_s = store, lease, patience_s
        self._kept: dict[str, dict[int, int]] = {}
        self._tries: Counter[str] = Counter()

    def forget(self, attempt: str) -> None:
        """The attempt is over: nothing of it is asked for any more."""
        self._kept.pop(attempt, None)
        self._tries.pop(attempt, None)

    def keep(self, attempt: Attempt, backend: Backend, look: Look | None, *, lease_epoch: int, now: float) -> None:
        """Reads and writes down the members of a look that have failed and are not kept. LeaseLost."""
        if backend.keeps_logs or look is None:
            return
        name, leaving = attempt.name, attempt.state in states.LEAVING
        places = self._kept.setdefault(name, {})
        told = [member for member in look.members if _failed(member) and not (leaving and _killed(member))]
        failed = sorted(told, key=ends.order)
        new = [member for member in failed if member.index not in places][: MEMBERS - len(places)]
        if not new or self._tries[name] >= TRIES:
            return
        found = _read(backend, name, [member.index for member in new], self._patience_s)
        words = [(len(places) + at, _word(member, found.get(member.index, _SLOW))) for at, member in enumerate(new)]
        with self._store.write() as session:
            leases.guard(session, self._lease, lease_epoch)
            last_words.keep(session, attempt.run_id, attempt.no, words, now=now)
        lacking = [word for _, word in words if word.missing]
        for word in lacking:
            _log.warning("a member's output could not be kept", attempt=name, node=word.node, error=word.missing)
        self._tries[name] += bool(lacking)
        places |= {word.member: place for place, word in words if not word.missing}


def _failed(member: MemberView) -> bool:
    said = member.termination or {}
    return not member.alive and (member.exit_code not in (0, None) or said.get("class", "done") != "done")


def _killed(member: MemberView) -> bool:
    """Whether a signal ended it before it could say anything: of an attempt that is told to stop, that was the stop."""
    return member.termination is None and member.exit_code in BY_SIGNAL


def _word(member: MemberView, output: bytes | str) -> Said:
    missing, log = (output, b"") if isinstance(output, str) else ("" if output else _NOTHING, output)
    # a container that the kernel or the kubelet killed leaves no record, and the platform's word instead
    said = member.termination or ({"message": member.reason} if member.reason else None)
    return Said(member.index, member.node, member.exit_code, said, log, missing)


def _read(backend: Backend, attempt: str, indices: Sequence[int], patience_s: float) -> dict[int, bytes | str]:
    """Each member's output, or why it could not be read; those that take too long are left out. All at once."""
    found: dict[int, bytes | str] = {}
    all_done = threading.Event()

    def read(index: int) -> None:
        try:
            found[index] = backend.read_logs(attempt, index, BYTES)
        except BackendUnavailable as error:
            found[index] = str(error)
        except Exception as error:  # without an answer the others would be waited for in vain
            found[index] = f"{type(error).__name__}: {error}"
        if len(found) == len(indices):
            all_done.set()

    for index in indices:
        # daemons: a server that stops does not wait for a node that is silent
        threading.Thread(target=read, args=(index,), name="last words", daemon=True).start()
    all_done.wait(patience_s)
    return dict(found)


def first_rank(words: Sequence[Said], per_node: int) -> int:
    """The rank that failed first, by what is kept; 0 if nothing is."""
    if not words:
        return 0
    first = words[0]
    own = range(first.member * per_node, (first.member + 1) * per_node)
    told = (first.said or {}).get("first_rank")
    return told if isinstance(told, int) and told in own else own.start


def shown(word: Said) -> dict[str, object]:
    """How a member ended, for a page: where, with which code, in which words."""
    said = word.said or {}
    return {
        "node": word.node,
        "exit_code": word.exit_code,
        "class": said.get("class"),
        "message": said.get("message"),
        "missing": word.missing,
    }
