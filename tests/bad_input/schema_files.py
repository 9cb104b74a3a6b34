"""Broken schema files."""

from pathlib import Path

from grade.v1.refused_pb2 import Reason

from tests.bad_input.case import Case

SOUND = (Path(__file__).parent.parent / "example_schema.toml").read_text(encoding="utf-8")


def _file(
    name: str, content: bytes | str | None, reason: "Reason.ValueType", *said: str
) -> Case[bytes | None]:
    """A file of this content; None is a folder of that name."""
    return Case(
        f"schema file {name}",
        content.encode() if isinstance(content, str) else content,
        reason,
        said,
    )


def _edited(
    name: str, was: str, now: str, reason: "Reason.ValueType", *said: str
) -> Case[bytes | None]:
    """A sound file with its first occurrence of a text replaced."""
    assert was in SOUND, was
    return _file(name, SOUND.replace(was, now, 1), reason, *said)


_OBJECTIVE = '[[objectives]]\nname = "{}"\nbaseline = 0.0\n\n'
_FEATURES = 'features = ["hour", "age_days", "past_click_rate"]'
_DIGITS = "1" * 5_000

SCHEMA_FILES = [
    _file("that is a folder", None, Reason.REASON_UNAVAILABLE, "a schema file, seen: Is a dir"),
    _file("that is empty", "", Reason.REASON_MISSING_FIELD, "policy: expected", "seen nothing"),
    _file("that is no UTF-8", b'policy = "\xff"', Reason.REASON_UNDECODABLE, "expected UTF-8 text"),
    _file("that is no TOML", "policy: example", Reason.REASON_UNDECODABLE, "expected TOML, seen:"),
    _file(
        "cut short",
        SOUND[: SOUND.index("holdout") + 4],
        Reason.REASON_UNDECODABLE,
        "expected TOML",
    ),
    _file(
        "with a key twice",
        'policy = "a"\npolicy = "b"\n',
        Reason.REASON_UNDECODABLE,
        "expected TOML, seen: Cannot overwrite a value",
    ),
    _file(
        "nested a thousand deep",
        "policy = " + "[" * 5_000 + "]" * 5_000,
        Reason.REASON_UNDECODABLE,
        "expected TOML, seen:",
    ),
    _file(
        "with a number of 5,000 digits",
        f"policy = {_DIGITS}",
        Reason.REASON_UNDECODABLE,
        "expected TOML, seen: Exceeds the limit",
    ),
    _file(
        "of two megabytes",
        f"# {'x' * 2_000_000}\n{SOUND}",
        Reason.REASON_TOO_LARGE,
        "expected at most 1000000 bytes, seen more",
    ),
    _file("with a NUL", SOUND + "\0", Reason.REASON_UNDECODABLE, "expected TOML, seen:"),
    _edited(
        "whose policy is a number",
        'policy = "example"',
        "policy = 7",
        Reason.REASON_WRONG_TYPE,
        "policy: expected a name of a-z, 0-9, _ and -, seen 7",
    ),
    _edited(
        "whose policy is a huge number",
        'policy = "example"',
        f"policy = 0x{'f' * 9_000}",
        Reason.REASON_WRONG_TYPE,
        "seen one too long to be shown (int)",
    ),
    _edited(
        "whose policy has a slash",
        'policy = "example"',
        'policy = "a/b"',
        Reason.REASON_BAD_NAME,
        "seen 'a/b'",
    ),
    _edited(
        "with an unknown key",
        "features",
        "colour = 3\nfeatures",
        Reason.REASON_UNKNOWN_FIELD,
        "colour: expected only keys that are documented, seen an unknown key",
    ),
    _edited(
        "with an unknown key of an objective",
        'name = "pctr"',
        'name = "pctr"\nweight = 0.5',
        Reason.REASON_UNKNOWN_FIELD,
        "objectives[0].weight: expected only keys that are documented",
    ),
    _edited(
        "without features",
        _FEATURES,
        "features = []",
        Reason.REASON_MISSING_FIELD,
        "features: expected a list of at least one name, seen []",
    ),
    _edited(
        "with features in a text",
        _FEATURES,
        'features = "hour"',
        Reason.REASON_WRONG_TYPE,
        "features: expected a list of at least one name, seen 'hour'",
    ),
    _edited(
        "with a feature twice",
        '"age_days"',
        '"hour"',
        Reason.REASON_REPEATED_NAME,
        "features[1]: expected each name once, seen 'hour' again",
    ),
    _edited(
        "with a feature that is a number",
        '"age_days"',
        "true",
        Reason.REASON_WRONG_TYPE,
        "features[1]: expected a name",
        "seen True",
    ),
    _edited(
        "with a feature of a long name",
        "age_days",
        "x" * 500,
        Reason.REASON_BAD_NAME,
        "features[1]: expected a name of 1 to 128",
        "(502 long)",
    ),
    _edited(
        "with ten thousand and one features",
        _FEATURES,
        f"features = {[f'f{i}' for i in range(10_001)]}",
        Reason.REASON_TOO_LARGE,
        "features: expected at most 10000 names, seen 10001",
    ),
    _edited(
        "with 300 objectives",
        "[[outcomes]]",
        "".join(_OBJECTIVE.format(f"o{i}") for i in range(300)) + "[[outcomes]]",
        Reason.REASON_TOO_LARGE,
        "objectives: expected at most 256, seen 303",
    ),
    _edited(
        "with an objective twice",
        'name = "pcvr"',
        'name = "pctr"',
        Reason.REASON_REPEATED_NAME,
        "objectives[1]: expected each name once, seen 'pctr' again",
    ),
    _file(
        "with one objective",
        'policy = "a"\nfeatures = ["f"]\n[[objectives]]\nname = "o"\nbaseline = 1\n',
        Reason.REASON_MISSING_FIELD,
        "at least 2 tables [[objectives]], seen 1",
    ),
    _file(
        "whose objectives are numbers",
        'policy = "a"\nfeatures = ["f"]\nobjectives = [1, 2]\n',
        Reason.REASON_WRONG_TYPE,
        "objectives: expected tables [[objectives]], seen [1, 2]",
    ),
    _edited(
        "with an unknown transform",
        'transform = "log"',
        'transform = "cube"',
        Reason.REASON_OUT_OF_RANGE,
        "objectives[2].transform: expected one of linear, log, logit, seen 'cube'",
    ),
    _edited(
        "without a baseline",
        "baseline = 0.5\n",
        "",
        Reason.REASON_MISSING_FIELD,
        "objectives[0].baseline: expected a weight in [0, 1], seen nothing",
    ),
    _edited(
        "whose baseline is true",
        "baseline = 0.5",
        "baseline = true",
        Reason.REASON_WRONG_TYPE,
        "objectives[0].baseline: expected a weight in [0, 1], seen True",
    ),
    _edited(
        "whose baseline is NaN",
        "baseline = 0.5",
        "baseline = nan",
        Reason.REASON_NOT_FINITE,
        "objectives[0].baseline: expected a weight in [0, 1], seen nan",
    ),
    _edited(
        "whose baseline is negative",
        "baseline = 0.5",
        "baseline = -0.5",
        Reason.REASON_OUT_OF_RANGE,
        "seen -0.5",
    ),
    _edited(
        "whose baselines do not sum to 1",
        "baseline = 0.5",
        "baseline = 0.9",
        Reason.REASON_INCONSISTENT,
        "objectives: expected baseline weights that sum to 1, seen a sum of 1.4",
    ),
    _edited(
        "whose baseline is below its floor",
        "baseline = 0.2",
        "baseline = 0.2\nfloor = 0.3",
        Reason.REASON_INCONSISTENT,
        "objectives[2].baseline: expected at least the floor (0.3), seen 0.2",
    ),
    _edited(
        "with an objective that predicts nothing known",
        'predicts = "click"',
        'predicts = "wink"',
        Reason.REASON_UNKNOWN_OUTCOME,
        "objectives[0].predicts: expected an outcome type (click, order), seen 'wink'",
    ),
    _edited(
        "with two objectives that predict the same",
        'predicts = "order"',
        'predicts = "click"',
        Reason.REASON_REPEATED_NAME,
        "objectives[1].predicts: expected one objective per outcome type, seen 'click' again",
    ),
    _edited(
        "with an infinite gain",
        "gain = 5.0",
        "gain = inf",
        Reason.REASON_NOT_FINITE,
        "outcomes[1].gain: expected a finite number >= 0 and at most 1e+09, seen inf",
    ),
    _edited(
        "with an absurd gain",
        "gain = 5.0",
        f"gain = 1{'0' * 400}",
        Reason.REASON_OUT_OF_RANGE,
        "outcomes[1].gain: expected a finite number >= 0 and at most 1e+09, seen 1000",
        "(401 long)",
    ),
    _edited(
        "with a negative gain",
        "gain = 5.0",
        "gain = -5.0",
        Reason.REASON_OUT_OF_RANGE,
        "outcomes[1].gain",
        "seen -5.0",
    ),
    _edited(
        "with a window of nothing",
        "window_s = 5.0",
        "window_s = 0",
        Reason.REASON_OUT_OF_RANGE,
        "attribution.window_s: expected a time in seconds above 0, seen 0",
    ),
    _edited(
        "with a window of a thousand years",
        "window_s = 5.0",
        "window_s = 3e10",
        Reason.REASON_OUT_OF_RANGE,
        "attribution.window_s: expected a time in seconds above 0, seen 30000000000.0",
    ),
    _edited(
        "with a horizon before the window's end",
        "late_s = 10.0",
        "late_s = 1.0",
        Reason.REASON_INCONSISTENT,
        "attribution.late_s: expected a time from window_s",
        "seen 1",
    ),
    _edited(
        "with a position that nobody looks at",
        "[1.0, 0.7, 0.5]",
        "[1.0, 0.0]",
        Reason.REASON_OUT_OF_RANGE,
        "reward.examination[1]: expected a probability in (0, 1], at least 1e-06, seen 0.0",
    ),
    _edited(
        "with a position that is a text",
        "[1.0, 0.7, 0.5]",
        '["often"]',
        Reason.REASON_WRONG_TYPE,
        "reward.examination[0]: expected a probability",
        "seen 'often'",
    ),
    _edited(
        "with a rule about an unknown objective",
        'objective = "price"',
        'objective = "prize"',
        Reason.REASON_UNKNOWN_OBJECTIVE,
        "soft_rules[0].objective: expected an objective (pctr, pcvr, price), seen 'prize'",
    ),
    _edited(
        "with a rule that nothing meets",
        "max_weight = 0.6",
        "max_weight = 0.6\nmin_weight = 0.7",
        Reason.REASON_INCONSISTENT,
        "soft_rules[0].min_weight: expected at most max_weight (0.6), seen 0.7",
    ),
    _edited(
        "that holds everybody out",
        "share = 0.1",
        "share = 1",
        Reason.REASON_OUT_OF_RANGE,
        "holdout.share: expected a share in [0, 1), seen 1",
    ),
]
