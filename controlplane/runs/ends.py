"""How a live attempt ended, read off a fresh look: done, too early, killed from outside, gone, or never whole. Pure."""

from __future__ import annotations

from controlplane.runs.view import AttemptView, EndAttempt, Look, MemberView, Move, Press, View, Wait

START_DEADLINE_S = 600.0
LAST_WORDS_S = 30.0


def of_look(view: View, attempt: AttemptView, look: Look) -> Move | None:
    """The move for an attempt that is over; None while it lives."""
    number = attempt.no
    late = view.now - (attempt.submitted_s or attempt.created_s) > START_DEADLINE_S
    if look.state in ("succeeded", "absent", "failed") and not look.fenced:
        # a gang ends with its first end: what is left of it goes before anything is concluded
        return abandoned(attempt, look) or Press("kill", attempt.state)
    if look.state == "succeeded":
        return _returned(view, attempt)
    if look.state == "absent":
        message = "the backend no longer knows the attempt"
        return EndAttempt("failed", "lost", f"Attempt {number} is gone: {message}.", "lost", message, level="warn")
    if look.state == "failed":
        # ended by us for not having started, in a look before this one
        return _never_whole(attempt, look) if late and attempt.state == "pending" else failed(attempt, look)
    return _never_whole(attempt, look) if late and look.state == "pending" else None


def _returned(view: View, attempt: AttemptView) -> Move:
    """Its command returned 0. Who counts steps (level 2) must have been heard, or seen to save, the last one."""
    if not view.counts_steps:
        return EndAttempt("succeeded", "done", f"Attempt {attempt.no} is done: its command returned 0.", level="ok")
    said = [beat.last_step for beat in view.beats if beat.last_step is not None]
    kept = [one.step for one in view.saved if one.attempt_no == attempt.no and one.state == "validated"]
    begun = [attempt.resume_step] if attempt.resume_step is not None else []  # of the last step nothing is left to do
    done = max([*([min(said)] if said else []), *kept, *begun], default=None)
    if done is not None and done >= view.steps:
        return EndAttempt("succeeded", "done", f"Attempt {attempt.no} completed all {view.steps} steps.", level="ok")
    behind = [beat for beat in view.beats if (beat.last_step or 0) < view.steps and beat.phase != "exit"]
    silent_s = [beat.silent_s for beat in behind] if view.beats else [view.now - attempt.state_since_s]
    if min(silent_s, default=LAST_WORDS_S) < LAST_WORDS_S:
        return Wait()  # what it did last may still be on its way here
    message = f"it returned 0 after step {done} of {view.steps}"
    if done is None:
        message = f"it returned 0 and no step of {view.steps} was seen"
    sentence = f"Attempt {attempt.no} ended early: {message}."
    return EndAttempt("failed", "ended_early", sentence, "ended_early", message, level="warn")


def abandoned(attempt: AttemptView, look: Look) -> EndAttempt | None:
    """The end of an attempt of which only members are left that nobody can reach; None while anybody else lives.

    Nobody saw those end. They are fenced by the epoch: no token, record or checkpoint of theirs counts from now on.
    """
    left = [member for member in look.members if member.alive]
    if look.state == "unknown" or not left or not all(member.stuck for member in left):
        return None
    where = ", ".join(sorted(member.node for member in left))
    message = f"{where} is not heard from and does not end what runs there"
    sentence = f"Attempt {attempt.no} is given up: {message}; what it still writes is refused."
    return EndAttempt("abandoned", "node_lost", sentence, "node_lost", message, level="warn")


def _never_whole(attempt: AttemptView, look: Look) -> Move:
    if not look.fenced:
        return abandoned(attempt, look) or Press("kill", attempt.state)
    there = {member.node for member in look.members}
    missing = ", ".join(node for node in attempt.nodes if node not in there) or _waiting(look) or "a part of it"
    message = f"{missing} did not start within {START_DEADLINE_S:.0f} s"
    sentence = f"Attempt {attempt.no} never started whole: {message}."
    return EndAttempt("failed", "never_started", sentence, "never_started", message, level="warn")


def _waiting(look: Look) -> str:
    """The members that never ran, with the platform's reason."""
    return "; ".join(
        f"the member on {member.node or 'no node'} ({member.reason or 'no reason given'})"
        for member in look.members
        if not member.running and member.exit_code is None
    )


# A killed rank knows less than one with an error of its own, more than one that saw its peer go or was told to save.
_KNOWS_LITTLE = {"killed": 1, "peer_lost": 2, "saved": 3}


def order(member: MemberView) -> tuple[int, float]:
    """Who knows the cause comes first; among equals, the earliest. Without a record it was killed, and knew nothing."""
    if member.termination is None:
        return _KNOWS_LITTLE["killed"], 0.0
    told = member.termination
    return _KNOWS_LITTLE.get(str(told.get("class")), 0), float(told.get("at_s") or 0.0)


def failed(attempt: AttemptView, look: Look) -> EndAttempt:
    """The end of a fenced attempt that failed: the first launcher that knows a cause is believed."""
    ousted = _ousted(attempt, look)
    if ousted is not None:
        return ousted
    told = [m for m in look.members if m.termination is not None and m.termination.get("class") != "done"]
    silent = [m for m in look.members if m.termination is None]
    if not told:
        first = min(silent, key=lambda one: not one.reason, default=None)
        why = f" ({first.reason})" if first is not None and first.reason else ""
        where = first.node if first is not None else "an unknown node"
        message = f"the launcher on {where} was killed from outside{why}"
        return EndAttempt(
            "failed", "killed", f"Attempt {attempt.no} ended: {message}.", "killed", message, level="warn"
        )
    knows = min(told, key=order)
    word = knows.termination or {}
    end_class = str(word.get("class") or "error")
    message = str(word.get("message") or "it left no record")
    rank = word.get("first_rank")
    where = f"rank {rank} on {knows.node}" if rank is not None else knows.node
    sentence = f"Attempt {attempt.no} ended on {where}: {message}."
    mark = str(word.get("fingerprint") or end_class)
    return EndAttempt("failed", end_class, sentence, mark, message, node=knows.node, level="warn")


def _ousted(attempt: AttemptView, look: Look) -> EndAttempt | None:
    """The end of an attempt that the platform took a member from, if no member knows a cause of its own."""
    ousted = sorted((one for one in look.members if one.disrupted), key=lambda one: one.node)
    classes = {str(one.termination.get("class")) for one in look.members if one.termination is not None}
    if not ousted or classes - {"saved", "done", *_KNOWS_LITTLE}:
        return None
    message = f"the platform took its member on {ousted[0].node} ({ousted[0].reason or 'it gave no reason'})"
    end_class = "saved" if "saved" in classes else "preempted"
    saved = ", which saved first" if end_class == "saved" else ""
    sentence = f"Attempt {attempt.no} was preempted: {message}{saved}."
    return EndAttempt("preempted", end_class, sentence, end_class, message, level="warn")
