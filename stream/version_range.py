"""Which versions to compare: all, none, or a stretch of them as people write it."""

from collections.abc import Collection
from typing import NamedTuple

from policy.errors import SettingsError
from stream.parameters import VersionId

_EXPECTED = "expected 'all', 'none' or a stretch of versions such as 3..17 or 1:3..2:4"


class _Name(NamedTuple):
    epoch: int | None
    """None: the only one that there is."""
    version: int


class VersionRange(NamedTuple):
    """A stretch of versions, both ends included."""

    first: VersionId
    last: VersionId

    def __contains__(self, version: object) -> bool:
        return isinstance(version, VersionId) and self.first <= version <= self.last


EVERY = VersionRange(VersionId(0, 0), VersionId(2**64, 0))
NO_VERSION = VersionRange(VersionId(1, 0), VersionId(0, 0))


def check_range(text: str) -> None:
    """Refuse what cannot be a range, whatever versions there are.

    Raises:
        SettingsError: saying what was expected.
    """
    if text not in ("all", "none"):
        _names(text)


def parse_range(text: str, epochs: Collection[int]) -> VersionRange:
    """Read a range.

    Args:
        text: `all`, `none` or `A..B`, each end a version or `epoch:version`.
        epochs: those that there are; where there are several each end has to name its own.

    Raises:
        SettingsError: saying what was expected.

    >>> parse_range("3..17", {1})
    VersionRange(first=VersionId(epoch=1, version=3), last=VersionId(epoch=1, version=17))
    """
    if text == "all":
        return EVERY
    if text == "none":
        return NO_VERSION
    first, last = (_version(name, text, epochs) for name in _names(text))
    if first > last:
        raise SettingsError(f"versions: expected the first not to come after the last, seen {text}")
    return VersionRange(first, last)


def _names(text: str) -> tuple[_Name, _Name]:
    first, dots, last = text.partition("..")
    if not dots:
        raise SettingsError(f"versions: {_EXPECTED}, seen {text!r}")
    return _name(first, text), _name(last, text)


def _name(part: str, text: str) -> _Name:
    epoch, colon, version = part.rpartition(":")
    if not version.isdecimal() or (colon and not epoch.isdecimal()):
        raise SettingsError(f"versions: {_EXPECTED}, seen {text!r}")
    return _Name(int(epoch) if colon else None, int(version))


def _version(name: _Name, text: str, epochs: Collection[int]) -> VersionId:
    if name.epoch is not None:
        return VersionId(name.epoch, name.version)
    if len(epochs) > 1:
        raise SettingsError(
            f"versions: expected epoch:version, as there are versions of the epochs "
            f"{', '.join(map(str, sorted(epochs)))}, seen {text!r}"
        )
    return VersionId(min(epochs, default=1), name.version)
