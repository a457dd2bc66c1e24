"""Logs of the server, as text or a JSON object a line. No image, instruction or token is ever logged."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final, Literal

LogFormat = Literal["json", "text"]
EXTRA: Final = ("request_id", "robot", "proto")


class JsonLines(logging.Formatter):
    """time, level, logger, message, what is known of the request, and an exception's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, str] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: str(vars(record)[name]) for name in EXTRA if name in vars(record)}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class TextLines(logging.Formatter):
    """A line for people, with the request's id where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        request = vars(record).get("request_id")
        line = f"{record.levelname.lower()}: {record.getMessage()}" + (f" (request {request})" if request else "")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(form: LogFormat, *, verbose: bool = False) -> None:
    """The server's loggers, and only those: another program's logging stays as it is."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    for name, level in (("edge_vla", logging.DEBUG if verbose else logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
