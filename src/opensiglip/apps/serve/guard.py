"""An ASGI layer before the API: hosts, the key, and how many bytes may come and be here at once."""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias

from opensiglip.apps.hosts import names_only
from opensiglip.apps.serve.refusal import error_body

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]

BODY = 32_000_000  # bytes of a request
BODIES = 512_000_000  # bytes of all requests that are being answered
OPEN_PATHS = ("/health",)  # answered without a key, as whoever watches the process asks


class Guard:
    """Refuses by itself what is not to reach the API, before its body is read."""

    def __init__(self, app: Any, *, hosts: Collection[str] | None, key: str | None) -> None:
        """`hosts`: the names that a request may give, None for any. `key`: what it must bring, None for nothing."""
        self.app, self.hosts, self.key = app, hosts, key
        self.bodies = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        size = int(length) if length.isdigit() else 0
        if (refusal := self.refusal(scope, headers, size)) is not None:
            await refuse(send, *refusal)
            return
        self.bodies += size
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:  # uvicorn's, when the time of a graceful end is over
            with suppress(RuntimeError):  # the answer has begun
                await refuse(send, 503, "the server is stopping; ask another.")
        finally:
            self.bodies -= size

    def refusal(self, scope: Scope, headers: dict[bytes, bytes], size: int) -> tuple[int, str] | None:
        """Status and sentence, None where a request may pass."""
        if self.hosts is not None and not names_only(_texts(headers), self.hosts):
            return 403, f"this server answers to {', '.join(self.hosts)}; for another name start it with --allow-host."
        if self.key is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get(b"authorization", b"").partition(b" ")[2]
            if not hmac.compare_digest(given, self.key.encode()):
                return 401, "the key is wrong or missing; send `Authorization: Bearer KEY`."
        if b"transfer-encoding" in headers:
            return 411, "the request does not say how long it is; send its Content-Length."
        if size > BODY:
            return 413, f"the request has {size / 1e6:.0f} MB, and at most {BODY // 1_000_000} are taken; send less."
        if self.bodies and self.bodies + size > BODIES:
            return 429, f"requests of {self.bodies / 1e6:.0f} MB are being answered; ask again in a moment."
        return None


async def refuse(send: Send, status: int, sentence: str) -> None:
    """Answer with OpenAI's form of an error."""
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    headers += [(b"retry-after", b"1")] if status == 429 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error_body(status, sentence)).encode()})


def _texts(headers: dict[bytes, bytes]) -> dict[bytes, str]:
    return {name: value.decode("latin-1") for name, value in headers.items()}
