"""`grade join` refuses settings that would falsify log time."""

import pytest

from cli.join import join
from policy.errors import SettingsError


def test_owners_do_not_tick_a_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick of today in a history of last year would end every window."""
    monkeypatch.setenv("GRADE_TIMESTAMPS", "event")
    with pytest.raises(SettingsError, match=r"join_ticks: expected 'producer' .* seen 'owner'"):
        join()
