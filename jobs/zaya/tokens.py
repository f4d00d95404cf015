"""The byte-level tokens of the reference workload, and how a question, its candidates and an answer are laid out.

A token is a byte of UTF-8. Five control characters that no text of ours holds mark the parts:

    ASK question [TAIL candidate's end]… REPLY answer END

A prompt is everything up to and with REPLY. PAD fills up batches and is never learned. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence

PAD, END, ASK, REPLY, TAIL = 0x00, 0x03, 0x05, 0x06, 0x1D
MARKS = frozenset({PAD, END, ASK, REPLY, TAIL})
VOCABULARY = 256


def encode(text: str) -> list[int]:
    """The bytes of a text, less those that are marks here: no question can end its own prompt."""
    return [byte for byte in text.encode() if byte not in MARKS]


def decode(tokens: Sequence[int]) -> str:
    """The text of tokens up to the first END, less the other marks; bytes that are no UTF-8 become U+FFFD."""
    kept = []
    for token in tokens:
        if token == END:
            break
        if token not in MARKS:
            kept.append(token)
    return bytes(kept).decode(errors="replace")


def prompt(question: str, tails: Sequence[Sequence[int]] = ()) -> list[int]:
    """The tokens of a prompt; `tails` are the ends of earlier candidates, as tokens, for an aggregation prompt."""
    found = [ASK, *encode(question)]
    for tail in tails:
        found += [TAIL, *(token for token in tail if token not in MARKS)]
    return [*found, REPLY]
