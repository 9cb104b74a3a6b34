"""`grade examination`: what it prints, writes and refuses."""

import json
import tomllib
from pathlib import Path

import pytest

from cli.examination import examination, settled
from evaluation.bootstrap import Interval
from evaluation.examination import Examination
from policy.errors import DataError
from policy.schema import parse_schema
from tests.evaluation.folders import SCHEMA_TOML, learnable_tables, tiny_tables, write


def test_the_printed_lines_are_a_schemas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy.toml").write_text(SCHEMA_TOML, encoding="utf-8")
    figures_file = tmp_path / "figures.json"
    examination(write(tmp_path, learnable_tables()), json_file=figures_file)
    figures = json.loads(figures_file.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    printed = capsys.readouterr().out
    lines = printed[printed.index("[reward]") :]
    curve = tomllib.loads(lines)["reward"]["examination"]
    assert curve == figures["schema_examination"]
    assert len(curve) == 4
    schema = parse_schema(SCHEMA_TOML.replace("[reward]", lines))
    assert list(schema.examination) == curve
    # Clicks follow the signal q alone, at whichever position.
    assert figures["relevance"]["q"] > 5 * abs(figures["relevance"]["p"])
    assert figures["requests_with_outcome"] == sum(figures["outcomes"]) == 240


def test_what_a_schema_does_not_allow_is_cut() -> None:
    curve = [Interval(value, 0.0, 2.0) for value in (1.0, 1.0804, 0.43219, 1e-9)]
    least = settled(Examination(curve, [9] * 4, [], 9))
    assert least[:3] == [1.0, 1.0, 0.432]
    assert least[3] > 0


def test_a_log_of_two_requests_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(SCHEMA_TOML, encoding="utf-8")
    with pytest.raises(DataError, match=r"expected 20 items with an outcome .* seen 0, 1"):
        examination(write(tmp_path, tiny_tables()))
