"""Offline auctions: each metric by hand, AUC by an oracle, and who wins where it is known."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.auction_metrics import METRICS, Roles, aucs, auctions_of, judge, names_at
from evaluation.auctions import evaluate
from evaluation.bootstrap import Interval, UnitBootstrap
from evaluation.data_folder import read_data_folder
from evaluation.interval_plot import Panel, svg
from policy.errors import GradeError
from policy.schema import Schema, parse_schema
from tests.evaluation.folders import (
    SCHEMA_TOML,
    learnable_tables,
    tiny_schema,
    tiny_tables,
    write,
)

P_ALONE, Q_ALONE = np.array([[1.0, 0.0]] * 2), np.array([[0.0, 1.0]] * 2)


def judged(
    path: Path, weights: np.ndarray, k: int, schema: Schema | None = None, click: int = 0
) -> dict[str, float]:
    """Metrics of the two requests in `tiny_tables`."""
    known = schema or tiny_schema()
    auctions = auctions_of(read_data_folder(write(path, tiny_tables()), known), known)
    figures = judge(auctions, weights, k, click, 1, UnitBootstrap(["7", "8"], draws=4))
    return dict(zip(METRICS, figures.value.tolist(), strict=True))


def test_metrics_by_hand(tmp_path: Path) -> None:
    # Objective q ranks item 2 of request a first: clicked, and bought for 2. In request b nothing
    # happened. One of the two winners is clicked and bought.
    assert judged(tmp_path, Q_ALONE, k=1) == pytest.approx(
        {"ndcg": 1, "gauc": 1, "ctr": 1 / 2, "cvr": 1, "opm": 500, "gpm": 1000}
    )
    # Objective p ranks item 1 first: of the two winners none, of all four items one has outcomes.
    none = judged(tmp_path, P_ALONE, k=1)
    assert np.isnan(none.pop("cvr"))
    assert none == {"ndcg": 0, "gauc": 0, "ctr": 0, "opm": 0, "gpm": 0}
    both = judged(tmp_path, P_ALONE, k=2)
    assert both == pytest.approx(
        {"ndcg": 1 / np.log2(3), "gauc": 0, "ctr": 1 / 4, "cvr": 1, "opm": 250, "gpm": 500}
    )
    assert judged(tmp_path, P_ALONE, k=99) == pytest.approx(both)


def test_what_was_rarely_looked_at_counts_more(tmp_path: Path) -> None:
    # Item 2 of request a stood at position 1, which half of the users look at.
    curve = SCHEMA_TOML.replace("[reward]", "[reward]\nexamination = [1.0, 0.5]")
    found = judged(tmp_path, Q_ALONE, k=1, schema=parse_schema(curve))
    assert found == pytest.approx(
        {"ndcg": 1, "gauc": 1, "ctr": 1, "cvr": 1, "opm": 1000, "gpm": 2000}
    )


def test_a_cvr_needs_two_outcomes(tmp_path: Path) -> None:
    assert np.isnan(judged(tmp_path, Q_ALONE, k=1, click=1)["cvr"])


def test_without_values_gpm_counts_gains(tmp_path: Path) -> None:
    plain = parse_schema(SCHEMA_TOML.replace("value_weighted = true", ""))
    # Click 1 + purchase 3, over two winners.
    assert judged(tmp_path, Q_ALONE, k=1, schema=plain)["gpm"] == pytest.approx(2000)


def test_shares_of_gauc_are_those_of_the_gain(tmp_path: Path) -> None:
    # Click: gain 1. Purchase: gain 3 × value 2.
    folder = read_data_folder(write(tmp_path, tiny_tables()), tiny_schema())
    np.testing.assert_allclose(auctions_of(folder, tiny_schema()).auc_weights, [1 / 7, 6 / 7])


def test_auc_is_the_share_of_pairs_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    fused = draw.integers(0, 4, size=(30, 5)).astype(np.float64)
    shown = np.arange(5) < draw.integers(2, 6, size=30)[:, None]
    happened = (draw.random((2, 30, 5)) < 0.4) & shown
    correction = draw.uniform(1, 3, size=(30, 5))
    monkeypatch.setattr("evaluation.auction_metrics._PAIRS_AT_ONCE", 200)
    areas, valid = aucs(fused, shown, happened, correction)
    for outcome in range(2):
        for request in range(30):
            total = right = 0.0
            for i in np.flatnonzero(happened[outcome, request]):
                for j in np.flatnonzero(shown[request] & ~happened[outcome, request]):
                    weight = correction[request, i]
                    total += weight
                    difference = fused[request, i] - fused[request, j]
                    right += weight * (1.0 if difference > 0 else 0.5 if difference == 0 else 0.0)
            assert valid[outcome, request] == (total > 0)
            assert areas[outcome, request] == pytest.approx(right / total if total else 0)


def test_the_objective_that_outcomes_follow_wins(tmp_path: Path) -> None:
    schema = tiny_schema()
    folder = read_data_folder(write(tmp_path, learnable_tables()), schema)
    upside_down = np.tile([1.0, 0.0], (240, 1))
    found = evaluate(folder, schema, {"p": upside_down}, k=1, roles=Roles.of(schema))
    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["uniform", "baseline", "best single: q", "best static", "p"]
    assert (found.requests, found.units) == (120, 30)
    single = rows["best single: q"]
    for metric in ("ndcg", "gauc", "ctr", "gpm"):
        figure, difference = single.figures[metric], single.differences[metric]
        if metric == "gpm":  # nothing was bought: the value is 0 however it is ranked
            assert figure == Interval(0, 0, 0)
            continue
        assert figure == Interval(1, 1, 1)
        assert difference is not None
        assert difference.low > 0.1
        other = rows["p"].differences[metric]
        assert other is not None
        assert other.high < 0
    assert rows["baseline"].differences["ndcg"] is None
    # Uniform and baseline are the same here, request by request.
    assert rows["uniform"].differences["ndcg"] == Interval(0, 0, 0)
    assert rows["p"].weights == [1, 0]


def test_roles_are_the_schemas_or_named() -> None:
    assert Roles.of(tiny_schema()) == ("click", "buy")
    assert Roles.of(tiny_schema(), click="buy") == ("buy", "buy")
    with pytest.raises(ValueError, match="expected one of click, buy, seen 'order'"):
        Roles.of(tiny_schema(), order="order")
    assert names_at(5, Roles("click", "buy"), money=True)["cvr"] == "CVR@5 (buy / click)"


def test_a_half_without_gain_is_refused(tmp_path: Path) -> None:
    schema = tiny_schema()
    folder = read_data_folder(write(tmp_path, tiny_tables()), schema)
    with pytest.raises(GradeError, match="some gain in the second half, seen none"):
        evaluate(folder, schema, {}, k=1, roles=Roles.of(schema))
    nothing = replace(folder, conversions=[])
    with pytest.raises(GradeError, match="some gain in the first half, seen none"):
        evaluate(nothing, schema, {}, k=1, roles=Roles.of(schema))


def test_the_picture_says_what_is_better() -> None:
    lines = [
        ("a <b>", Interval(2.0, 1.0, 3.0)),
        ("worse", Interval(-1.0, -2.0, -0.5)),
        ("either", Interval(0.0, -1.0, 1.0)),
        ("none", None),
    ]
    root = ET.fromstring(svg("title", [Panel("NDCG", lines), Panel("empty", [("x", None)])]))
    space = {"s": "http://www.w3.org/2000/svg"}
    dots = root.findall("s:circle", space)
    assert [dot.get("fill") for dot in dots] == ["#15803d", "#b91c1c", "#6b7280"]
    across = [float(dot.attrib["cx"]) for dot in dots]
    # -1, 0 and 2 on one scale.
    assert (across[0] - across[2]) == pytest.approx(2 * (across[2] - across[1]), abs=0.3)
    texts = [text.text for text in root.findall("s:text", space)]
    assert {"a <b>", "not defined", "+2", "-1"} <= set(texts)
