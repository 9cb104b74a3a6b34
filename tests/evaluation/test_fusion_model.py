"""Fitted weights find what made the outcomes, and keep to floors and ridge."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.cross_fit import Requests
from evaluation.data_folder import read_data_folder
from evaluation.fusion_model import (
    Examples,
    Standardised,
    fit_contextual,
    fit_static,
    logit_gradients,
)
from evaluation.learnable import requests_of
from evaluation.segments import Segments, most_useful
from evaluation.static_search import best_single, best_static
from evaluation.yardsticks import Lists, discounted_rows
from policy.fusion import rank
from tests.evaluation.folders import learnable_tables, tiny_schema, write

FREE = np.zeros(2)


def world(seed: int = 0, requests: int = 400) -> Requests:
    """Of 6 items the gain has the best by objective 0 where feature 1 is 1, else by objective 1."""
    draw = np.random.default_rng(seed)
    signals = draw.normal(size=(requests, 6, 2))
    features = np.stack([draw.normal(size=requests), draw.integers(0, 2, requests)], axis=1)
    follows = np.where(features[:, 1] == 1, 0, 1)
    by = np.take_along_axis(signals, follows[:, None, None], axis=2)[:, :, 0]
    gains = (by == by.max(axis=1, keepdims=True)).astype(np.float64)
    lists = Lists(
        signals,
        gains,
        np.ones(gains.shape, dtype=bool),
        np.tile(np.arange(6), (requests, 1)),
        discounted_rows(gains, rank(gains)),
    )
    return Requests(lists, features, Examples.of(lists))


@pytest.fixture(scope="module")
def requests() -> Requests:
    return world()


def test_static_weights_find_the_objective_that_outcomes_follow(tmp_path: Path) -> None:
    folder = read_data_folder(write(tmp_path, learnable_tables()), tiny_schema())
    found, _ = requests_of(folder, tiny_schema())
    model = fit_static(found.examples, FREE)
    assert model.weights(found.features)[0, 1] > 0.9
    assert found.ndcg(model).mean() > 0.98
    searched = best_static(found.lists, FREE)
    assert searched[1] > 0.9
    assert searched.sum() == pytest.approx(1)
    assert best_single(found.lists) == 1


def test_hard_floors_hold(tmp_path: Path) -> None:
    folder = read_data_folder(write(tmp_path, learnable_tables()), tiny_schema())
    found, _ = requests_of(folder, tiny_schema())
    floors = np.array([0.4, 0.1])
    for weights in (
        fit_static(found.examples, floors).weights(found.features)[0],
        best_static(found.lists, floors),
    ):
        assert weights[0] == pytest.approx(0.4, abs=0.06)
        assert weights[0] >= 0.4
        assert weights.sum() == pytest.approx(1)


def test_contextual_weights_find_the_feature(requests: Requests) -> None:
    static = fit_static(requests.examples, FREE)
    encoding = Standardised.over(requests.features)
    fitted = (requests.examples, requests.features, encoding, static)
    weights = fit_contextual(*fitted, ridge=0.001).weights(requests.features)
    one = requests.features[:, 1] == 1
    assert weights[one, 0].min() > 0.6
    assert weights[~one, 1].min() > 0.6
    # A ridge that allows nothing leaves the static weights.
    held = fit_contextual(*fitted, ridge=1e4).weights(requests.features)
    np.testing.assert_allclose(held, np.broadcast_to(held[0], held.shape), atol=0.05)


def test_the_most_useful_feature_makes_the_segments(requests: Requests) -> None:
    static = fit_static(requests.examples, FREE)
    gradients = logit_gradients(requests.examples, static, requests.features)
    np.testing.assert_allclose(gradients.sum(axis=1), 0, atol=1e-5)
    segments = most_useful(requests.features, gradients)
    assert segments.feature == 1
    assert segments.thresholds.tolist() == [0.5]
    columns = segments.columns(requests.features)
    np.testing.assert_allclose(columns.mean(axis=0), 0, atol=1e-6)
    member = requests.features[:, 1] == 1
    np.testing.assert_allclose(columns[:, 1], member - member.mean(), atol=1e-6)


def test_features_with_many_values_make_quarters() -> None:
    features = np.arange(100.0)[:, None]
    segments = Segments.over(features, 0)
    assert np.bincount(segments.of(features)).tolist() == [25, 25, 25, 25]
    assert segments.of(np.array([[-1e9], [1e9]])).tolist() == [0, 3]


def test_features_of_one_value_make_one_segment(requests: Requests) -> None:
    static = fit_static(requests.examples, FREE)
    gradients = logit_gradients(requests.examples, static, requests.features)
    segments = most_useful(np.ones((len(gradients), 2)), gradients)
    assert not segments.thresholds.size
    assert not segments.columns(np.ones((3, 2))).any()


def test_long_lists_are_worked_out_in_portions(
    requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    static = fit_static(requests.examples, FREE)
    whole = logit_gradients(requests.examples, static, requests.features)
    monkeypatch.setattr("evaluation.fusion_model._NUMBERS_AT_ONCE", 1)
    np.testing.assert_allclose(
        logit_gradients(requests.examples, static, requests.features), whole, atol=1e-6
    )
