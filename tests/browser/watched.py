"""A browser page that keeps what it asked for and what it complained about: no request may leave this machine."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost"})
LOCAL_SCHEMES = frozenset({"data", "blob", "about"})


@dataclass
class Watched:
    """A page with what it asked for and what it complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def external_requests(self) -> list[str]:
        """Every address that is not this machine's loopback or the page's own data."""
        return [url for url in self.requests if not is_local(url)]


def is_local(url: str) -> bool:
    """True for loopback hosts and for addresses that never leave the page."""
    parts = urlsplit(url)
    return parts.scheme in LOCAL_SCHEMES or parts.hostname in LOCAL_HOSTS


def watch(context: BrowserContext) -> Watched:
    """A new page of this context under watch: requests, sockets, console errors, uncaught exceptions."""
    watched = Watched(context.new_page())

    def heard(message: ConsoleMessage) -> None:
        if message.type == "error":
            watched.complaints.append(message.text)

    def asked(request: Request) -> None:
        watched.requests.append(request.url)

    context.on("request", asked)
    context.on("console", heard)
    watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    watched.page.on("websocket", lambda socket: watched.requests.append(socket.url.replace("ws", "http", 1)))
    return watched
