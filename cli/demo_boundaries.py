"""New generations in the middle of a demo: what a person would do by an editor and a command."""

import re
from collections.abc import Sequence

from cli.generation import begin_now
from cli.settings import Settings
from policy.durable_file import replace_file
from policy.schema import Schema, load_schema
from stream.connection import Connection
from stream.generations import changes


class PlannedBoundaries:
    """Begins generations at given seconds of the traffic, while everything runs.

    The first one makes the attribution window half as long again, the second one raises what an
    order is worth, and so on in turn.

    Args:
        connection: where Kafka is.
        settings: of the system; its schema file is edited.
        at_s: seconds of the traffic, in any order.
    """

    def __init__(self, connection: Connection, settings: Settings, at_s: Sequence[float]) -> None:
        self._connection = connection
        self._settings = settings
        self._due_s = sorted(at_s)
        self.schema: Schema = load_schema(settings.schema_path)
        """As it is in force."""
        self.begun: list[str] = []
        """What each generation after the first one changed."""

    @property
    def generation(self) -> int:
        """Number of the generation in force."""
        return 1 + len(self.begun)

    def keep(self, elapsed_s: float) -> str | None:
        """Begin a generation if one is due; says what it changes."""
        if not self._due_s or elapsed_s < self._due_s[0]:
            return None
        del self._due_s[0]
        text = self.schema.toml
        edited = _longer_window(text) if self.generation % 2 else _dearer_orders(text)
        replace_file(self._settings.schema_path, edited.encode())
        self.schema = load_schema(self._settings.schema_path)
        _, before, begun = begin_now(self._connection, self._settings, self.schema, "demo")
        assert before is not None
        told = ", ".join(str(each) for each in changes(before, begun))
        self.begun.append(told)
        return f"generation {begun.generation} begins: {told}"


def _longer_window(text: str) -> str:
    for name in ("window_s", "late_s"):
        text = _scaled(text, rf"^({name} = )([\d.]+)$", 1.5)
    return text


def _dearer_orders(text: str) -> str:
    return _scaled(text, r'^(name = "order"\ngain = )([\d.]+)$', 1.2)


def _scaled(text: str, place: str, factor: float) -> str:
    edited, found = re.subn(
        place, lambda m: f"{m[1]}{float(m[2]) * factor:g}", text, flags=re.MULTILINE
    )
    assert found == 1, place
    return edited
