"""The contracts stay readable by those who already read them, and say what every field means."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests import contracts


@pytest.fixture(scope="module")
def files() -> FileDescriptorSet:
    return contracts.descriptors()


def test_wire_format_is_compatible_with_the_baseline(files: FileDescriptorSet) -> None:
    baseline = json.loads(contracts.BASELINE.read_text(encoding="utf-8"))
    assert contracts.breaking_changes(baseline, contracts.wire_format(files)) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("remove message", "Context: gone"),
        ("renumber field", "Context 4: was"),
        ("retype field", "Context 2: was"),
        ("rename method", "PolicyService Sample: was"),
        ("remove enum value", "Arm 2: was ARM_HOLDOUT, is gone"),
    ],
)
def test_each_kind_of_breaking_change_is_named(
    files: FileDescriptorSet, change: str, named: str
) -> None:
    before = contracts.wire_format(files)
    after = copy.deepcopy(before)
    match change:
        case "remove message":
            del after["messages"]["Context"]
        case "renumber field":
            after["messages"]["Context"]["9"] = after["messages"]["Context"].pop("4")
        case "retype field":
            after["messages"]["Context"]["2"][1] = "TYPE_BYTES"
        case "rename method":
            del after["services"]["PolicyService"]["Sample"]
        case "remove enum value":
            del after["enums"]["Arm"]["2"]
    found = contracts.breaking_changes(before, after)
    assert len(found) == 1
    assert found[0].startswith(named)


def test_additions_are_not_breaking(files: FileDescriptorSet) -> None:
    before = contracts.wire_format(files)
    after = copy.deepcopy(before)
    after["messages"]["Context"]["99"] = ["locale", "TYPE_STRING", "LABEL_OPTIONAL"]
    after["messages"]["Locale"] = {}
    assert contracts.breaking_changes(before, after) == []


def test_everything_in_the_contracts_is_commented(files: FileDescriptorSet) -> None:
    assert contracts.uncommented_fields(files) == []


def test_every_message_of_a_topic_or_rpc_names_its_policy(files: FileDescriptorSet) -> None:
    parts = {
        "SignedDecision",  # an envelope; the policy is in its payload
        "PackedSignedDecision",  # the same, read differently
        "Cursor",
        "Counts",
        "Standing",
        "JoinedConversion",
        "Rewards",
        "JoinRecord",
        "PackedJoinRecord",  # the same, for groups
        "Loss",
        "Setting",
        "Ledger",
        "SampleRequest",  # its context names it
    }
    wire = contracts.wire_format(files)
    nameless = {
        name
        for name, fields in wire["messages"].items()
        if all(field[0] != "policy" for field in fields.values())
    }
    assert nameless == parts


@pytest.mark.parametrize("name", ["Decision", "SignedDecision", "Impression", "RewardGroup"])
def test_packed_messages_are_other_messages_read_differently(
    files: FileDescriptorSet, name: str
) -> None:
    """Numbers, names and types agree; only lists and what is nested are read otherwise."""
    wire = contracts.wire_format(files)["messages"]
    read, written = wire[f"Packed{name}"], wire[name]
    assert {number: field[0] for number, field in read.items()} == {
        number: field[0] for number, field in written.items()
    }
    for number, (field, kind, label) in written.items():
        numbers = label == "LABEL_REPEATED" and kind in {"TYPE_FLOAT", "TYPE_DOUBLE", "TYPE_UINT32"}
        if numbers:
            assert read[number][1:] == ["TYPE_BYTES", "LABEL_OPTIONAL"]
        elif field not in ("payload", "decision", "impression"):
            assert read[number] == [field, kind, label]


def test_a_packed_join_record_holds_its_group_where_a_join_record_does(
    files: FileDescriptorSet,
) -> None:
    wire = contracts.wire_format(files)["messages"]
    [(number, group)] = wire["PackedJoinRecord"].items()
    assert group[0] == wire["JoinRecord"][number][0] == "group"


def test_committed_stubs_are_fresh(tmp_path: Path) -> None:
    folder = Path(sys.executable).parent
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{contracts.PROTO}",
            f"--plugin=protoc-gen-mypy={folder / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={folder / 'protoc-gen-mypy_grpc'}",
            f"--python_out={tmp_path}",
            f"--mypy_out=quiet:{tmp_path}",
            f"--grpc_python_out={tmp_path}",
            f"--mypy_grpc_out=quiet:{tmp_path}",
            *contracts.protos(),
        ],
        check=True,
    )
    committed = sorted((contracts.PROTO / "grade" / "v1").glob("*_pb2*.py*"))
    assert committed
    stale = [
        path.name
        for path in committed
        if path.read_bytes() != (tmp_path / "grade" / "v1" / path.name).read_bytes()
    ]
    assert stale == [], "run `make proto`"
