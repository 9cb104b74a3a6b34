import re
from pathlib import Path

import numpy as np
import pytest

from policy.errors import SchemaError
from policy.schema import Schema, load_schema, parse_schema

EXAMPLE = Path(__file__).parent.parent / "example_schema.toml"

LEAST = """
policy = "p"
features = ["f"]
[[objectives]]
name = "a"
baseline = 0.25
[[objectives]]
name = "b"
baseline = 0.75
[[outcomes]]
name = "click"
gain = 1
[attribution]
window_s = 2
"""


def test_the_example_is_read_as_it_is_written() -> None:
    schema = load_schema(EXAMPLE)
    assert schema.policy == "example"
    assert [f.name for f in schema.features] == ["hour", "age_days", "past_click_rate"]
    assert [o.transform for o in schema.objectives] == ["logit", "logit", "log"]
    assert [o.predicts for o in schema.objectives] == ["click", "order", None]
    assert [o.gain for o in schema.outcomes] == [1.0, 5.0]
    assert (schema.window_ms, schema.early_ms, schema.late_ms) == (5000, 1000, 10000)
    assert schema.examination == (1.0, 0.7, 0.5)
    assert schema.normalise == "running_mean"
    assert schema.soft_rules[0].objective == "price"
    assert (schema.soft_rules[0].min_weight, schema.soft_rules[0].max_weight) == (0.0, 0.6)
    assert schema.holdout_share == 0.1
    assert schema.baseline().tolist() == [0.5, 0.3, 0.2]
    assert schema.floors().tolist() == [0.0, 0.0, 0.0]
    assert (schema.n_features, schema.n_objectives, schema.n_outcomes) == (3, 3, 2)
    assert schema.toml == EXAMPLE.read_text(encoding="utf-8")


def test_what_is_left_out_has_a_default() -> None:
    schema = parse_schema(LEAST)
    objective = schema.objectives[0]
    assert (objective.transform, objective.standardise) == ("linear", True)
    assert (objective.floor, objective.predicts) == (0.0, None)
    assert schema.outcomes[0].value_weighted is False
    assert (schema.early_ms, schema.late_ms) == (0, 4000)
    assert schema.examination == ()
    assert schema.normalise == "running_mean"
    assert schema.soft_rules == ()
    assert schema.holdout_share == 0.0


def test_any_number_of_features_objectives_and_outcomes() -> None:
    text = f"policy = 'wide'\nfeatures = {[f'f{i}' for i in range(200)]}\n"
    text += "".join(
        f"[[objectives]]\nname = 'o{i}'\nbaseline = {round(1 / 12, 4)}\n" for i in range(12)
    )
    text += "".join(f"[[outcomes]]\nname = 'y{i}'\ngain = {i}\n" for i in range(9))
    schema = parse_schema(text + "[attribution]\nwindow_s = 0.25\n")
    assert (schema.n_features, schema.n_objectives, schema.n_outcomes) == (200, 12, 9)
    # Weights written with four digits are divided by their sum.
    np.testing.assert_allclose(schema.baseline(), 1 / 12, rtol=0, atol=1e-15)
    assert schema.window_ms == 250


def replaced(old: str, new: str) -> str:
    assert old in LEAST
    return LEAST.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("policy = ", "feed.toml: expected TOML, seen: Invalid value"),
        (replaced('"p"', '"Feed"'), "policy: expected a name of a-z, 0-9, _ and -, seen 'Feed'"),
        (
            replaced('policy = "p"', ""),
            "policy: expected a name of a-z, 0-9, _ and -, seen nothing",
        ),
        (replaced('["f"]', "[]"), "features: expected a list of at least one name, seen []"),
        (replaced('["f"]', '["f", "f"]'), "features[1]: expected each name once, seen 'f' again"),
        (replaced('["f"]', '["f", 3]'), "features[1]: expected a name of 1 to 128"),
        (replaced('["f"]', '[" f"]'), "features[0]: expected a name of 1 to 128"),
        (replaced('name = "b"', 'name = "a"'), "objectives[1]: expected each name once, seen 'a'"),
        (replaced("baseline = 0.75", "baseline = 0.7"), "sum to 1, seen a sum of 0.95"),
        (replaced("baseline = 0.75", ""), "objectives[1].baseline: expected a weight in [0, 1]"),
        (replaced("baseline = 0.75", "baseline = nan"), "baseline: expected a weight in [0, 1]"),
        (replaced("baseline = 0.75", "baseline = true"), "expected a weight in [0, 1], seen True"),
        (
            replaced("baseline = 0.75", "baseline = 0.75\nfloor = -0.1"),
            "objectives[1].floor: expected a weight in [0, 1), seen -0.1",
        ),
        (
            replaced("baseline = 0.25", "baseline = 0.25\nfloor = 0.3"),
            "objectives[0].baseline: expected at least the floor (0.3), seen 0.25",
        ),
        (
            LEAST.replace("baseline", "floor = 0.5\nbaseline"),
            "objectives: expected floors that sum to less than 1, seen a sum of 1",
        ),
        (
            replaced("baseline = 0.75", "baseline = 0.75\ntransform = 'sqrt'"),
            "objectives[1].transform: expected one of linear, log, logit, seen 'sqrt'",
        ),
        (
            replaced("baseline = 0.75", "baseline = 0.75\nstandardise = 1"),
            "objectives[1].standardise: expected true or false, seen 1",
        ),
        (
            replaced("baseline = 0.75", "baseline = 0.75\npredicts = 'order'"),
            "objectives[1].predicts: expected an outcome type (click), seen 'order'",
        ),
        (
            LEAST.replace("baseline", "predicts = 'click'\nbaseline"),
            "objectives[1].predicts: expected one objective per outcome type, seen 'click' again",
        ),
        (
            replaced(
                "baseline = 0.75", "baseline = 0.75\ntransform = 'logit'\npredicts = 'click'"
            ).replace("gain = 1", "gain = 1\nvalue_weighted = true"),
            "objectives[1].predicts: expected an outcome type that is not value_weighted (a logit "
            "objective's score is a probability; an expected value wants linear or log), seen "
            "'click'",
        ),
        (
            replaced("baseline = 0.75", "baseline = 0.75\nweight = 1"),
            "objectives[1].weight: expected only keys that are documented, seen an unknown key",
        ),
        (
            replaced('[[objectives]]\nname = "a"\nbaseline = 0.25', ""),
            "objectives: expected at least 2 tables [[objectives]], seen 1",
        ),
        (replaced("gain = 1", "gain = -1"), "outcomes[0].gain: expected a finite number >= 0"),
        (replaced("gain = 1", "gain = inf"), "outcomes[0].gain: expected a finite number >= 0"),
        (replaced("gain = 1", "gain = 0"), "outcomes: expected at least one gain above 0"),
        (replaced('[[outcomes]]\nname = "click"\ngain = 1', ""), "at least 1 table [[outcomes]]"),
        (replaced("window_s = 2", ""), "attribution.window_s: expected a time in seconds above 0"),
        (replaced("window_s = 2", "window_s = 0"), "window_s: expected a time in seconds above 0"),
        (replaced("window_s = 2", "window_s = 1.0005"), "window_s: expected whole milliseconds"),
        (
            replaced("window_s = 2", "window_s = 2\nearly_s = 1\nlate_s = 5.1"),
            "attribution.late_s: expected a time from window_s to 2 × window_s + early_s (2 to 5), "
            "seen 5.1",
        ),
        (replaced("window_s = 2", "window_s = 2\nlate_s = 1.9"), "(2 to 4), seen 1.9"),
        (replaced("window_s = 2", "window_s = 2\nwindow = 3"), "attribution.window: expected only"),
        (LEAST + "[holdout]\nshare = 1.0", "holdout.share: expected a share in [0, 1), seen 1.0"),
        (LEAST + "[reward]\nexamination = [1, 0]", "examination[1]: expected a probability in (0"),
        (LEAST + "[reward]\nexamination = 1", "examination: expected a list of probabilities"),
        (
            LEAST + "[reward]\nnormalise = 'max'",
            "reward.normalise: expected one of running_mean, request, seen 'max'",
        ),
        (
            LEAST + "[[soft_rules]]\nobjective = 'c'",
            "soft_rules[0].objective: expected an objective (a, b), seen 'c'",
        ),
        (
            LEAST + "[[soft_rules]]\nobjective = 'a'\nmin_weight = 0.5\nmax_weight = 0.4",
            "soft_rules[0].min_weight: expected at most max_weight (0.4), seen 0.5",
        ),
        (LEAST + "[rewards]\nexamination = []", "rewards: expected only keys that are documented"),
        ("reward = 3\n" + LEAST, "reward: expected a table [reward], seen 3"),
        ("soft_rules = 3\n" + LEAST, "soft_rules: expected tables [[soft_rules]], seen 3"),
    ],
)
def test_a_wrong_schema_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(sentence)) as refused:
        parse_schema(text, where="feed.toml")
    assert str(refused.value).startswith("feed.toml: ")


def test_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"none\.toml: expected a schema file, seen: No such"):
        load_schema(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SchemaError, match=r"binary\.toml: expected UTF-8 text"):
        load_schema(tmp_path / "binary.toml")


def test_the_digest_is_of_the_content_and_not_of_its_spelling() -> None:
    respelled = "# a comment\n" + LEAST.replace("gain = 1", "gain = 1.0\nvalue_weighted = false")
    respelled = respelled.replace("window_s = 2", "late_s = 4.0\nwindow_s = 2.0\nearly_s = 0")
    one, other = parse_schema(LEAST), parse_schema(respelled)
    assert one.toml != other.toml
    assert one.digest == other.digest
    assert len(one.digest) == 32
    assert one == other
    assert hash(one) == hash(other)
    assert one != LEAST


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('policy = "p"', 'policy = "q"'),
        ('["f"]', '["g"]'),
        ('name = "b"', 'name = "c"'),
        ("baseline = 0.25", "baseline = 0.25\nfloor = 0.1"),
        ("baseline = 0.25", "baseline = 0.25\nstandardise = false"),
        ("baseline = 0.25", "baseline = 0.25\ntransform = 'log'"),
        ("baseline = 0.25", "baseline = 0.25\npredicts = 'click'"),
        ("gain = 1", "gain = 2"),
        ("gain = 1", "gain = 1\nvalue_weighted = true"),
        ("window_s = 2", "window_s = 3\nlate_s = 4"),
        ("window_s = 2", "window_s = 2\nearly_s = 1"),
        ("window_s = 2", "window_s = 2\nlate_s = 3"),
        ("window_s = 2", "window_s = 2\n[reward]\nexamination = [1]"),
        ("window_s = 2", "window_s = 2\n[reward]\nnormalise = 'request'"),
        ("window_s = 2", "window_s = 2\n[[soft_rules]]\nobjective = 'a'\nmin_weight = 0.1"),
        ("window_s = 2", "window_s = 2\n[holdout]\nshare = 0.1"),
    ],
)
def test_every_part_of_the_content_is_in_the_digest(old: str, new: str) -> None:
    assert parse_schema(replaced(old, new)).digest != parse_schema(LEAST).digest


def test_a_digest_that_was_published_stays() -> None:
    # Decisions and groups carry it: changing how it is made orphans every log.
    assert parse_schema(LEAST).digest.hex() == DIGEST_OF_LEAST


def test_schemas_are_frozen() -> None:
    schema: Schema = parse_schema(LEAST)
    with pytest.raises(AttributeError):
        schema.policy = "q"  # type: ignore[misc]  # frozen


DIGEST_OF_LEAST = "164aedae29f51bc747a9677909055045d39e2d8ca6c34ae4ad0dd1ecdab73037"
