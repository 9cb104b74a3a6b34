"""TOML that came in: text, then a table that is read key by key. Whatever is wrong is named.

Schemas and settings are read by it; messages say where, what was expected and what was seen.
"""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from grade.v1.refused_pb2 import Reason

from policy.errors import BadInput, SchemaError, cut, quoted

LARGEST_FILE_BYTES: Final = 1_000_000

Refuse = Callable[[str, "Reason.ValueType"], BadInput]
"""Makes the error of what was read, of a message and a reason."""


def read_text(path: Path, what: str, refuse: Refuse) -> str:
    """Read a text file that somebody has named.

    Args:
        path: the file.
        what: what it should be, such as `a schema file`.
        refuse: makes the error that is raised.

    Raises:
        BadInput: it is not there, not a file, too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE_BYTES + 1)
        if len(content) > LARGEST_FILE_BYTES:
            raise _too_large(str(path), refuse)
        return content.decode("utf-8")
    except OSError as error:
        seen = error.strerror or str(error)
        raise refuse(f"{path}: expected {what}, seen: {seen}", Reason.REASON_UNAVAILABLE) from None
    except UnicodeDecodeError as error:
        raise refuse(
            f"{path}: expected UTF-8 text, seen: {error}", Reason.REASON_UNDECODABLE
        ) from None
    except ValueError as error:  # text that no file can be called
        raise refuse(
            f"{quoted(str(path))}: expected a path, seen: {error}", Reason.REASON_BAD_NAME
        ) from None


def parse_toml(text: str, where: str, refuse: Refuse) -> dict[str, Any]:
    """Parse TOML.

    Args:
        text: the TOML.
        where: what to call it in messages.
        refuse: makes the error that is raised.

    Raises:
        BadInput: it is too large, or not TOML.
    """
    if len(text) > LARGEST_FILE_BYTES:
        raise _too_large(where, refuse)
    try:
        return tomllib.loads(text)
    # Besides its own error tomllib lets through those of numbers with thousands of digits and of
    # values nested hundreds deep.
    except (ValueError, RecursionError) as error:
        raise refuse(f"{where}: expected TOML, seen: {error}", Reason.REASON_UNDECODABLE) from None


def seen_as(value: object) -> str:
    """A value as messages show it; None is a key that is not there."""
    return "nothing" if value is None else quoted(value)


def _too_large(where: str, refuse: Refuse) -> BadInput:
    return refuse(
        f"{where}: expected at most {LARGEST_FILE_BYTES} bytes, seen more", Reason.REASON_TOO_LARGE
    )


class Table:
    """A table of a schema that is read key by key; what is left over is refused.

    Args:
        content: the table.
        where: the file, for messages.
        path: the table's own name in it, empty for the top.

    Raises:
        SchemaError: from every method that reads.
    """

    def __init__(self, content: Mapping[str, Any], where: str, path: str) -> None:
        self._left = dict(content)
        self._where = where
        self._path = path

    def wrong(
        self,
        key: str,
        expected: str,
        seen: str,
        reason: "Reason.ValueType" = Reason.REASON_OUT_OF_RANGE,
    ) -> SchemaError:
        """What to raise for a value that is not allowed."""
        name = f"{self._path}.{key}" if self._path and key else self._path or key
        return SchemaError(f"{self._where}: {name}: expected {expected}, seen {seen}", reason)

    def mistyped(self, key: str, expected: str, value: object) -> SchemaError:
        """What to raise for a value that is missing or of another type."""
        missing, other = Reason.REASON_MISSING_FIELD, Reason.REASON_WRONG_TYPE
        return self.wrong(key, expected, seen_as(value), missing if value is None else other)

    def take(self, key: str, default: object = None) -> Any:
        """The value of a key, whatever it is."""
        return self._left.pop(key, default)

    def text(self, key: str, expected: str, valid: Callable[[str], bool]) -> str:
        """A name that must be there."""
        value = self.take(key)
        if not isinstance(value, str):
            raise self.mistyped(key, expected, value)
        if not valid(value):
            raise self.wrong(key, expected, seen_as(value), Reason.REASON_BAD_NAME)
        return value

    def choice(self, key: str, options: Sequence[str], default: str) -> str:
        """One of some words."""
        value, expected = self.take(key, default), "one of " + ", ".join(options)
        if not isinstance(value, str):
            raise self.mistyped(key, expected, value)
        if value not in options:
            raise self.wrong(key, expected, seen_as(value))
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.mistyped(key, "true or false", value)
        return value

    def number(
        self,
        key: str,
        expected: str,
        valid: Callable[[float], bool],
        default: float | None = None,
    ) -> float:
        """A finite number; one that must be there if there is no default."""
        value = self.take(key, default)
        self.check_number(key, expected, value)
        if not valid(value):
            raise self.wrong(key, expected, seen_as(value))
        return float(value)

    def check_number(self, key: str, expected: str, value: object) -> None:
        """Refuse what is no finite number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.mistyped(key, expected, value)
        if not abs(value) < math.inf:
            raise self.wrong(key, expected, seen_as(value), Reason.REASON_NOT_FINITE)

    def milliseconds(self, key: str, expected: str, default_ms: int | None = None) -> int:
        """A time that is written in seconds, in whole milliseconds."""
        default = None if default_ms is None else default_ms / 1000
        seconds = self.number(key, expected, lambda x: 0 <= x < 1e9, default)
        if abs(seconds * 1000 - round(seconds * 1000)) > 1e-6:
            raise self.wrong(key, "whole milliseconds", f"{seconds!r} seconds")
        return round(seconds * 1000)

    def table(self, key: str) -> "Table":
        """A table below this one; an empty one if it is not there."""
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise self.mistyped(key, f"a table [{key}]", value)
        return Table(value, self._where, key)

    def tables(self, key: str, most: int) -> list["Table"]:
        """A list of tables below this one."""
        value = self.take(key, [])
        if not isinstance(value, list) or not all(isinstance(x, dict) for x in value):
            raise self.mistyped(key, f"tables [[{key}]]", value)
        if len(value) > most:
            raise self.wrong(key, f"at most {most}", str(len(value)), Reason.REASON_TOO_LARGE)
        return [Table(x, self._where, f"{key}[{i}]") for i, x in enumerate(value)]

    def finish(self) -> None:
        """Refuse what has not been read."""
        if self._left:
            raise self.wrong(
                cut(sorted(self._left)[0]),
                "only keys that are documented",
                "an unknown key",
                Reason.REASON_UNKNOWN_FIELD,
            )
