"""Why there is no action. Every one means: do not move on what came before; hold, or try again."""

from __future__ import annotations


class ClientError(Exception):
    """Base of all errors below."""


class DeadlineError(ClientError):
    """No answer in time. The connection was given up, so a late answer cannot be taken for the next one."""


class DisconnectedError(ClientError):
    """There is no connection, or it broke before the answer came."""


class StaleError(ClientError):
    """An action came, but its image is too old by now to act on."""


class ProtocolError(ClientError):
    """What came is no message of this protocol, or not for this robot. The connection was given up."""


class RefusedError(ClientError):
    """The server said no. `code` is stable (docs/serve.md lists them), `retry_after_s` when asking again may help."""

    def __init__(self, code: str, detail: str, request_id: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {detail}" + (f" (request {request_id})" if request_id else ""))
        self.code, self.detail, self.request_id, self.retry_after_s = code, detail, request_id, retry_after_s
