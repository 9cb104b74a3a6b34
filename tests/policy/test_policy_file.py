"""A policy file: what was written comes back; nothing else is taken, and nothing in it is run."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from grade.v1.refused_pb2 import Reason

from policy import policy_file
from policy.checkpoint import digest
from policy.errors import FileNotWritten, PolicyFileRefused
from policy.initial import initial_parameters
from policy.policy_file import PolicyFile
from policy.schema import load_schema

SCHEMA = load_schema(Path(__file__).parent.parent / "example_schema.toml")
POLICY = PolicyFile(SCHEMA, initial_parameters(SCHEMA, seed=3), epoch=2, version=41, generation=2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.safetensors"
    policy_file.write(path, POLICY)
    return path


def rewritten(path: Path, **changes: str | None) -> Path:
    """The file with entries of its header replaced, or left out, and a checksum that fits."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"] | changes
    metadata = {name: value for name, value in metadata.items() if value is not None}
    tensors = safetensors.numpy.load(content)
    if "sha256" in metadata and "sha256" not in changes:
        del metadata["sha256"]
        metadata["sha256"] = digest(tensors, metadata).hex()
    path.write_bytes(safetensors.numpy.save(tensors, metadata=metadata))
    return path


def test_what_was_written_comes_back(file: Path) -> None:
    read = policy_file.read(file)
    assert read.schema == SCHEMA
    assert read.schema.toml == SCHEMA.toml
    assert (read.epoch, read.version, read.generation) == (2, 41, 2)
    assert read.tensors.keys() == POLICY.tensors.keys()
    for name, tensor in POLICY.tensors.items():
        assert read.tensors[name].dtype == np.float64
        np.testing.assert_array_equal(read.tensors[name], tensor)
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_the_same_policy_has_the_same_checksum(tmp_path: Path) -> None:
    first = policy_file.write(tmp_path / "first", POLICY)
    again = policy_file.write(tmp_path / "again", policy_file.read(tmp_path / "first"))
    other = policy_file.write(tmp_path / "other", POLICY._replace(version=42))
    assert first == again != other


def test_any_safetensors_reader_can_read_it(file: Path) -> None:
    np.testing.assert_array_equal(
        safetensors.numpy.load_file(file)["static_logits"], POLICY.tensors["static_logits"]
    )


def test_every_truncation_is_refused(file: Path) -> None:
    content = file.read_bytes()
    for length in [*range(64), *range(64, len(content), 997), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(PolicyFileRefused, match=f"seen {length} bytes"):
            policy_file.read(file)


def test_an_altered_byte_is_refused_wherever_it_is(file: Path) -> None:
    content = file.read_bytes()
    for at in range(0, len(content), 211):
        altered = bytearray(content)
        altered[at] ^= 0x10
        file.write_bytes(altered)
        with pytest.raises(PolicyFileRefused):
            policy_file.read(file)


def test_a_file_that_is_too_large_is_not_even_parsed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = file.stat().st_size
    monkeypatch.setattr(policy_file, "LARGEST_BYTES", size)
    policy_file.read(file)
    monkeypatch.setattr(policy_file, "LARGEST_BYTES", size - 1)
    with pytest.raises(PolicyFileRefused, match=f"expected at most {size - 1} bytes, seen more"):
        policy_file.read(file)


class Dangerous:
    """Unpickling it would be seen."""

    ran = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (setattr, (Dangerous, "ran", True))


def test_a_pickle_is_refused_and_not_run(file: Path) -> None:
    file.write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(PolicyFileRefused, match="expected a safetensors file"):
        policy_file.read(file)
    assert not Dangerous.ran


def test_a_header_that_claims_more_than_there_is_is_refused(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes((2**63).to_bytes(8, "little") + content[8:])
    with pytest.raises(PolicyFileRefused, match="expected a safetensors file"):
        policy_file.read(file)


def test_another_safetensors_file_is_refused(file: Path) -> None:
    file.write_bytes(safetensors.numpy.save({"x": np.zeros(3)}))
    with pytest.raises(PolicyFileRefused, match="expected a file of `grade export`"):
        policy_file.read(file)


@pytest.mark.parametrize(
    ("changes", "message", "reason"),
    [
        (
            {"format": "grade policy, format 2"},
            "seen the format 'grade policy, format 2'",
            Reason.REASON_WRONG_TYPE,
        ),
        ({"sha256": "00"}, "expected sha256 '00', which it says of itself", Reason.REASON_CHECKSUM),
        ({"sha256": None}, "expected the entries", Reason.REASON_MISSING_FIELD),
        ({"further": "1"}, "expected the entries", Reason.REASON_UNKNOWN_FIELD),
        ({"policy": "another"}, "expected policy 'another', seen", Reason.REASON_INCONSISTENT),
        ({"schema_digest": "00"}, "expected schema_digest '00', seen", Reason.REASON_INCONSISTENT),
        (
            {"schema_toml": "policy = 'x'"},
            "the file was written by another build",
            Reason.REASON_MISSING_FIELD,
        ),
        ({"epoch": "-1"}, "epoch: expected a whole number, seen '-1'", Reason.REASON_OUT_OF_RANGE),
        ({"version": ""}, "version: expected a whole number, seen ''", Reason.REASON_OUT_OF_RANGE),
        (
            {"generation": "9" * 30},
            "generation: expected a whole number",
            Reason.REASON_OUT_OF_RANGE,
        ),
    ],
)
def test_a_header_that_lies_is_refused(
    file: Path, changes: dict[str, str | None], message: str, reason: "Reason.ValueType"
) -> None:
    with pytest.raises(PolicyFileRefused, match=message) as refused:
        policy_file.read(rewritten(file, **changes))
    assert refused.value.reason == reason


def test_a_file_that_is_not_there_or_no_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(PolicyFileRefused, match="expected a policy file, seen"):
            policy_file.read(path)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotWritten, match=r"expected to write .* bytes, seen: "):
        policy_file.write(tmp_path / "file" / "policy", POLICY)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
