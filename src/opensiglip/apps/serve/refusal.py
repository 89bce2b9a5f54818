"""What a request is refused with: a status, and a sentence in the form that OpenAI's clients read."""

from typing import Any

from opensiglip.errors import UserError

KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Refused(UserError):
    """A UserError with a status of its own; others are answered with 400."""

    def __init__(self, status: int, sentence: str, field: str | None = None) -> None:
        super().__init__(sentence)
        self.status, self.field = status, field


def error_body(status: int, sentence: str, field: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    kind = KINDS.get(status, "invalid_request_error")
    return {"error": {"message": sentence, "type": kind, "param": field, "code": None}}
