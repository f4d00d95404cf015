"""Where a channel's URL may lead: judged after its name is resolved, and asked again before each message.

A channel is set by an administrator, yet its URL must not reach what only this machine can: cloud metadata on
link-local addresses, services on loopback, this server's own API. The sender connects to the address that was judged,
so a name that resolves differently a moment later changes nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Sequence[str]]
MAX_URL = 2048


class UrlRefused(ValueError):
    """The URL may not be a channel's; the message says why. `unresolved`: only because its name was not found now."""

    def __init__(self, message: str, *, unresolved: bool = False) -> None:
        super().__init__(message)
        self.unresolved = unresolved


@dataclass(frozen=True, slots=True)
class Target:
    """A URL with the address to connect to."""

    url: str
    scheme: str
    host: str
    port: int
    address: str

    @property
    def authority(self) -> str:
        """The Host header: the URL's own name, with its port where it is not the scheme's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def address_url(self) -> str:
        """The URL with the judged address in place of the name."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        parts = urlsplit(self.url)
        return parts._replace(netloc=f"{host}:{self.port}", fragment="").geturl()


_PORTS = {"http": 80, "https": 443}


def system_resolve(host: str, port: int) -> list[str]:
    """Every address of a name, as this machine finds it. OSError if there is none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """What this installation allows.

    allow_loopback: receivers on this machine (the demo's).
    own: (address, port) where this server itself listens; an unspecified address stands for loopback.
    networks: private networks that receivers may be in, and where plain http is allowed.
    """

    allow_loopback: bool = False
    own: frozenset[tuple[str, int]] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    resolve: Resolve = system_resolve

    def check(self, url: str) -> Target:
        """The URL as a target. UrlRefused if any address of its name is one that no message may go to."""
        scheme, host, port = _split(url)
        try:
            addresses = [_plain(text) for text in self.resolve(host, port)]
        except (OSError, UnicodeError) as error:
            raise UrlRefused(f"{host} cannot be resolved: {error}", unresolved=True) from error
        if not addresses:
            raise UrlRefused(f"{host} has no address", unresolved=True)
        for address in addresses:
            self._check_address(host, address, port)
        if scheme == "http" and not all(self._is_near(address) for address in addresses):
            raise UrlRefused(f"{host} is outside: its URL must begin with https://")
        return Target(url, scheme, host, port, str(addresses[0]))

    def _check_address(self, host: str, address: Address, port: int) -> None:
        if address.is_link_local:
            raise UrlRefused(f"{host} is a link-local address ({address})")
        if address.is_multicast or address.is_unspecified:
            raise UrlRefused(f"{host} is no single machine ({address})")
        if self._is_own(address, port):
            raise UrlRefused(f"{host}:{port} is this server itself")
        if address.is_loopback:
            if not self.allow_loopback:
                raise UrlRefused(f"{host} is this machine ({address}); loopback receivers are switched off")
        elif not address.is_global and not any(address in network for network in self.networks):
            raise UrlRefused(f"{host} is in a private network ({address}) that is not among those allowed")

    def _is_near(self, address: Address) -> bool:
        return address.is_loopback or any(address in network for network in self.networks)

    def _is_own(self, address: Address, port: int) -> bool:
        for text, own_port in self.own:
            own = _plain(text)
            if port == own_port and (own == address or (own.is_unspecified and address.is_loopback)):
                return True
        return False


def _split(url: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UrlRefused(f"this is no URL: {error}") from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise UrlRefused("a URL must begin with https:// (or http://) and name a host")
    if parts.username is not None or parts.password is not None:
        raise UrlRefused("a URL must not carry a user name or password")
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise UrlRefused(f"a URL must be printable ASCII without spaces, {MAX_URL} characters at most")
    return parts.scheme, parts.hostname, port if port is not None else _PORTS[parts.scheme]


def _plain(text: str) -> Address:
    """An address; an IPv4 address inside an IPv6 one counts as the former."""
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
