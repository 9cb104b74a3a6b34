"""Broken settings, in the environment and in the settings file."""

from typing import NamedTuple

from grade.v1.refused_pb2 import Reason

from tests.bad_input.case import Case


class BrokenSettings(NamedTuple):
    """What a process finds when it reads its settings."""

    file: bytes | None = None
    """Content of grade.toml; None if there is none."""
    environment: tuple[tuple[str, str], ...] = ()
    folder: bool = False
    """grade.toml is a folder."""


def _file(
    name: str, content: str | bytes, reason: "Reason.ValueType", *said: str
) -> Case[BrokenSettings]:
    as_bytes = content.encode() if isinstance(content, str) else content
    return Case(f"settings file {name}", BrokenSettings(file=as_bytes), reason, said)


def _variable(
    name: str, variable: str, value: str, reason: "Reason.ValueType", *said: str
) -> Case[BrokenSettings]:
    broken = BrokenSettings(environment=((variable, value),))
    return Case(f"environment {name}", broken, reason, said)


CONFIGURATION = [
    Case(
        "settings file that is a folder",
        BrokenSettings(folder=True),
        Reason.REASON_UNAVAILABLE,
        ("grade.toml: expected a TOML file, seen: Is a directory",),
    ),
    _file("cut short", "partitions = [", Reason.REASON_UNDECODABLE, "grade.toml: expected TOML"),
    _file("that is no UTF-8", b"log_level = '\xff'", Reason.REASON_UNDECODABLE, "UTF-8 text"),
    _file(
        "with a key twice",
        "partitions = 1\npartitions = 2\n",
        Reason.REASON_UNDECODABLE,
        "expected TOML, seen: Cannot overwrite a value",
    ),
    _file(
        "nested a thousand deep",
        "partitions = " + "[" * 5_000 + "]" * 5_000,
        Reason.REASON_UNDECODABLE,
        "expected TOML",
    ),
    _file(
        "with a number of 5,000 digits",
        f"partitions = {'1' * 5_000}",
        Reason.REASON_UNDECODABLE,
        "expected TOML",
    ),
    _file(
        "with a huge number",
        f"partitions = 0x{'f' * 9_000}",
        Reason.REASON_OUT_OF_RANGE,
        "GRADE_PARTITIONS (or partitions in the settings file)",
    ),
    _file(
        "of two megabytes", f"#{'x' * 2_000_000}", Reason.REASON_TOO_LARGE, "at most 1000000 bytes"
    ),
    _file(
        "with an unknown key",
        "partition = 3",
        Reason.REASON_UNKNOWN_FIELD,
        "(or partition in the settings file)",
        "seen 3",
    ),
    _file(
        "with true for a number",
        "partitions = true",
        Reason.REASON_WRONG_TYPE,
        "GRADE_PARTITIONS",
        "expected a number, seen True",
    ),
    _file(
        "with a list for a number",
        "learn_slot_ms = [250]",
        Reason.REASON_WRONG_TYPE,
        "GRADE_LEARN_SLOT_MS",
        "seen [250]",
    ),
    _file(
        "with half a partition",
        "partitions = 2.5",
        Reason.REASON_WRONG_TYPE,
        "GRADE_PARTITIONS",
        "seen 2.5",
    ),
    _file(
        "with a NUL in a path",
        'data_dir = "a\\u0000b"',
        Reason.REASON_BAD_NAME,
        "GRADE_DATA_DIR",
        "no control characters, seen 'a\\x00b'",
    ),
    _file(
        "with a learning rate that is NaN",
        "learn_static_rate = nan",
        Reason.REASON_NOT_FINITE,
        "GRADE_LEARN_STATIC_RATE",
        "finite number, seen nan",
    ),
    _variable(
        "that names a file that is not there",
        "GRADE_CONFIG",
        "missing.toml",
        Reason.REASON_UNAVAILABLE,
        "GRADE_CONFIG: expected an existing TOML file, seen 'missing.toml'",
    ),
    _variable(
        "with an unknown name",
        "GRADE_PARTITION",
        "3",
        Reason.REASON_UNKNOWN_FIELD,
        "GRADE_PARTITION: expected a setting that `grade config` lists",
    ),
    _variable(
        "with a word for a number",
        "GRADE_PARTITIONS",
        "many",
        Reason.REASON_WRONG_TYPE,
        "seen 'many'",
    ),
    _variable(
        "with an infinite time",
        "GRADE_SERVE_GRACE_S",
        "inf",
        Reason.REASON_NOT_FINITE,
        "GRADE_SERVE_GRACE_S",
        "seen 'inf'",
    ),
    _variable(
        "with an absurd time",
        "GRADE_SERVE_READY_TIMEOUT_S",
        "1e300",
        Reason.REASON_OUT_OF_RANGE,
        "less than or equal to 1000000, seen '1e300'",
    ),
    _variable(
        "with a negative number",
        "GRADE_LEARN_FRESH_STEPS",
        "-1",
        Reason.REASON_OUT_OF_RANGE,
        "greater than or equal to 0, seen '-1'",
    ),
    _variable(
        "with more members than a group may have",
        "GRADE_SERVE_MEMBERS",
        "1025",
        Reason.REASON_OUT_OF_RANGE,
        "less than or equal to 1024, seen '1025'",
    ),
    _variable(
        "with a port that there is not",
        "GRADE_SERVE_PORT",
        "70000",
        Reason.REASON_OUT_OF_RANGE,
        "65535, seen '70000'",
    ),
    _variable(
        "with an unknown word",
        "GRADE_LOG_FORMAT",
        "xml",
        Reason.REASON_OUT_OF_RANGE,
        "'console' or 'json', seen 'xml'",
    ),
    _variable(
        "with a prefix that no topic can have",
        "GRADE_TOPIC_PREFIX",
        "a b",
        Reason.REASON_BAD_NAME,
        "GRADE_TOPIC_PREFIX",
        "seen 'a b'",
    ),
    _variable(
        "with a value of a megabyte",
        "GRADE_LOG_LEVEL",
        "x" * 100_000,
        Reason.REASON_OUT_OF_RANGE,
        "GRADE_LOG_LEVEL",
        "(100002 long)",
    ),
]
