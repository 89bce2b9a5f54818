"""Who may ask the page and how much: an ASGI layer in front of gradio, which has no bound of its own on either."""

import json
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from opensiglip.apps.hosts import LOOPBACK, names_only

WAITING = 16  # questions in the queue, of all visitors; the model answers one at a time
RATE = 120  # questions and uploads of one address a minute
VISITORS = 10_000  # addresses that are remembered
COUNTED = ("/queue/join", "/call/", "/upload")  # of gradio's routes, those that cost something

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]


class Guard:
    """Answers by itself, with a sentence of ours, what is not to reach gradio.

    On a page for this machine alone: hosts and origins of other names, so that no website that is open in the browser
    can ask it (DNS rebinding; requests across sites). On any page: an address that asks too often, and too large files.
    """

    def __init__(self, app: Any, *, local: bool, largest: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`local`: is the page bound to loopback? `largest`: bytes of an upload, its envelope included."""
        self.app, self.local, self.largest, self.clock = app, local, largest, clock
        self.asked: OrderedDict[str, deque[float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self.refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
            return
        status, sentence = refusal
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"detail": sentence}).encode()})

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """The status and sentence that a request is answered with, None where it may pass."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if self.local and not names_only(headers, LOOPBACK):
            return 403, "this page is for the machine that it runs on; open it there as http://127.0.0.1."
        counted = scope.get("method") == "POST" and any(route in scope["path"] for route in COUNTED)
        if not counted:
            return None
        length = headers.get(b"content-length", "")
        if length.isdigit() and int(length) > self.largest:
            size = self.largest // 1_000_000
            return 413, f"the file has {int(length) / 1e6:.0f} MB and the page takes {size}; make it smaller."
        if self._too_often((scope.get("client") or ("",))[0]):
            return 429, f"the page takes {RATE} questions and files a minute from one address; wait a minute."
        return None

    def _too_often(self, address: str) -> bool:
        now, times = self.clock(), self.asked.setdefault(address, deque())
        self.asked.move_to_end(address)
        while len(self.asked) > VISITORS:
            self.asked.popitem(last=False)
        while times and times[0] <= now - 60:
            times.popleft()
        if len(times) >= RATE:
            return True
        times.append(now)
        return False
