"""Logging: one line an event, with the id of the request that it belongs to."""

import logging
from contextvars import ContextVar

current_request_id = ContextVar("request_id", default="-")


class RequestId(logging.Filter):
    """Gives each record the attribute `request_id`."""

    def filter(self, record):
        record.request_id = current_request_id.get()
        return True


class OneLine(logging.Formatter):
    """Keeps tracebacks on their line, and whoever logs a line break from forging a line."""

    def format(self, record):
        return super().format(record).replace("\r", "\\r").replace("\n", "\\n")
