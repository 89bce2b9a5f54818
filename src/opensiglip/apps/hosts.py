"""The hosts that a request names, and the one that is served: what is of this machine answers no other name.

Else a website that is open in a browser could ask it (DNS rebinding; requests across sites).
"""

import errno
import socket
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from opensiglip.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def names_only(headers: Mapping[bytes, str], allowed: Collection[str]) -> bool:
    """Are the host of a request and the origin of the page that sends it, if one does, among `allowed`?"""
    origin = headers.get(b"origin")
    return host_of(f"//{headers.get(b'host', '')}") in allowed and (origin is None or host_of(origin) in allowed)


def host_of(url: str) -> str:
    """The name or address in a URL; empty where there is none that can be read."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def check_port(host: str, port: int) -> None:
    """Raises UserError where nothing can be served."""
    if not host:
        raise UserError("--host is empty, which would be every address; give one, such as 127.0.0.1 or 0.0.0.0.")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((host, port))
        except (OSError, OverflowError, ValueError) as error:  # ValueError: a name that no name of a host can be
            number = getattr(error, "errno", None)
            if number == errno.EADDRINUSE:
                raise UserError(f"port {port} is in use; give another, such as --port {port + 1}.") from None
            if isinstance(error, socket.gaierror | ValueError) or number == errno.EADDRNOTAVAIL:
                sentence = f"--host {host} can't be bound ({error}); give an address of this machine, as 127.0.0.1."
                raise UserError(sentence) from None
            raise UserError(f"--host {host} --port {port} can't be served ({error}); leave them out.") from None
