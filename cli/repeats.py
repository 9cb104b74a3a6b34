"""Keeps a library that tells every retry from filling the log."""

import logging
import time

EVERY_S = 10.0


class RepeatFilter(logging.Filter):
    """Lets the same message of a logger pass once every so often, whatever its arguments.

    Args:
        every_s: seconds between two.
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        super().__init__()
        self._every_s = every_s
        self._passed_at: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record."""
        what, now = (record.name, str(record.msg)[:40]), time.monotonic()
        if now - self._passed_at.get(what, -self._every_s) < self._every_s:
            return False
        self._passed_at[what] = now
        return True


def limit_repeats(*libraries: str, every_s: float = EVERY_S) -> None:
    """Filter the loggers that libraries have made so far.

    Args:
        libraries: packages whose modules log under their own names.
        every_s: seconds between two messages that are the same.
    """
    repeats = RepeatFilter(every_s)
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in libraries:
            logging.getLogger(name).addFilter(repeats)
