"""Trainer settings as a generation says them."""

import json

import pytest

from policy.errors import BoundaryError
from policy.trainer_settings import (
    LEARNER_COMPUTATION,
    TrainerSettings,
    named_settings,
    trainer_settings_of,
)

SETTINGS = TrainerSettings(seed=9, ratio_cap=3.0, replay_steps=0)


def test_settings_go_through_json_and_come_back() -> None:
    named = json.loads(json.dumps(named_settings(SETTINGS)))
    assert named["learn_ratio_cap"] == 3.0
    assert named["learn_computation"] == LEARNER_COMPUTATION
    assert trainer_settings_of({**named, "learn_slot_ms": 250, "another": 1}) == SETTINGS


def test_another_update_rule_is_refused() -> None:
    named = {**named_settings(SETTINGS), "learn_computation": LEARNER_COMPUTATION + 1}
    ours, newer = LEARNER_COMPUTATION, LEARNER_COMPUTATION + 1
    expected = rf"learn_computation: expected {ours}, .* seen {newer}: start a"
    with pytest.raises(BoundaryError, match=expected):
        trainer_settings_of(named)


def test_a_setting_that_is_missing_is_named() -> None:
    named = named_settings(SETTINGS)
    del named["learn_epsilon"]
    with pytest.raises(BoundaryError, match="expected the settings learn_epsilon, seen none"):
        trainer_settings_of(named)
