"""One message out, as a signed webhook (Standard Webhooks 1.0). It sees no database and decides nothing about retries.

https://www.standardwebhooks.com: HMAC-SHA256 over "id.timestamp.body" under each of the channel's secrets. The id is
the delivery's and stays the same for every try, which is how a receiver drops repeats; the timestamp is the try's own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import httpx2

from controlplane.notify.address import UrlPolicy, UrlRefused

TIMEOUT_S = 15.0
MAX_BODY_BYTES = 20_000
PREFIX = "whsec_"
SECRET_BYTES = (24, 64)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one try. `status` is None if no answer came; `seconds` is how long it took.

    gone: the receiver said 410, never again. unsent: nothing left this machine.
    """

    ok: bool
    status: int | None = None
    error: str = ""
    retry_after_s: float | None = None
    gone: bool = False
    unsent: bool = False
    seconds: float = 0.0


class Sender(Protocol):
    """A kind of channel."""

    def send(self, config: Mapping[str, Any], message_id: str, body: Mapping[str, Any], now: float) -> Outcome:
        """Sends one message; failures are outcomes, not exceptions."""
        ...


def new_secret() -> str:
    """A signing secret in the form that receivers are given."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def secret_key(secret: str) -> bytes:
    """The key bytes of a `whsec_…` secret; ValueError unless it is base64 of 24 to 64 bytes."""
    encoded = secret.removeprefix(PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("a secret must be whsec_ and base64") from error
    if not SECRET_BYTES[0] <= len(key) <= SECRET_BYTES[1]:
        raise ValueError(f"a secret must hold {SECRET_BYTES[0]} to {SECRET_BYTES[1]} bytes, this one holds {len(key)}")
    return key


def headers(message_id: str, body: bytes, keys: Sequence[bytes], now: float) -> dict[str, str]:
    """The three headers of a message; several keys (during a rotation) give several signatures."""
    timestamp = str(int(now))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    signatures = [base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


class WebhookSender:
    """Posts to `config["url"]`, signed with `config["secret"]` and, during a rotation, `config["former_secret"]`."""

    def __init__(self, policy: UrlPolicy, *, timeout_s: float = TIMEOUT_S) -> None:
        self._policy = policy
        # no connection is kept: the next message to this address may be for another name behind it
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._client = httpx2.Client(timeout=timeout_s, follow_redirects=False, trust_env=False, limits=limits)

    def close(self) -> None:
        """Closes kept connections."""
        self._client.close()

    def send(self, config: Mapping[str, Any], message_id: str, body: Mapping[str, Any], now: float) -> Outcome:
        """One try. Any 2xx is success; a redirect is a failure like any other answer."""
        try:
            target = self._policy.check(str(config.get("url", "")))
            keys = [secret_key(str(config[name])) for name in ("secret", "former_secret") if config.get(name)]
        except (UrlRefused, ValueError) as error:
            return Outcome(ok=False, error=str(error), unsent=True)
        content = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        if not keys:
            return Outcome(ok=False, error="the channel has no secret", unsent=True)
        if len(content) > MAX_BODY_BYTES:
            return Outcome(ok=False, error=f"the message has {len(content)} bytes", unsent=True)
        request = self._client.build_request(
            "POST",
            target.address_url,
            content=content,
            headers={
                "host": target.authority,
                "content-type": "application/json",
                "user-agent": "trimtab",
                **headers(message_id, content, keys, now),
            },
            extensions={"sni_hostname": target.host},
        )
        try:
            response = self._client.send(request, stream=True)
        except httpx2.TimeoutException:
            return Outcome(ok=False, error="no answer in time", seconds=TIMEOUT_S)
        except httpx2.HTTPError as error:
            return Outcome(ok=False, error=f"no connection: {error}"[:200])
        response.close()  # the status is the whole answer: a body is not read
        return _outcome(response, now)


def _outcome(response: httpx2.Response, now: float) -> Outcome:
    status = response.status_code
    if 200 <= status < 300:
        return Outcome(ok=True, status=status, seconds=response.elapsed.total_seconds())
    redirect = ", redirects are not followed" if 300 <= status < 400 else ""
    return Outcome(
        ok=False,
        status=status,
        error=f"HTTP {status}{redirect}",
        retry_after_s=_retry_after_s(response.headers.get("retry-after", ""), now),
        gone=status == 410,
        seconds=response.elapsed.total_seconds(),
    )


def _retry_after_s(text: str, now: float) -> float | None:
    """Retry-After in seconds, from a number or an HTTP date (RFC 9110, 10.2.3); None if it says neither."""
    if text.isdecimal() and text.isascii():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.fromtimestamp(now, UTC)).total_seconds())
