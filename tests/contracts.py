"""The contracts as data: what a reader of the wire format relies on.

`python -m tests.contracts` writes the baseline that the compatibility test compares with. Do that
when a contract is released, never to make a breaking change pass.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorSet

PROTO = Path(__file__).parent.parent / "proto"
BASELINE = PROTO / "grade" / "v1" / "baseline.json"


def protos() -> list[str]:
    """Paths of the contracts below the import root."""
    return sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("grade/v1/*.proto"))


def descriptors() -> FileDescriptorSet:
    """The contracts as protoc reads them, with their comments."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "contracts.pb"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                f"-I{PROTO}",
                f"--descriptor_set_out={out}",
                "--include_source_info",
                *protos(),
            ],
            check=True,
        )
        return FileDescriptorSet.FromString(out.read_bytes())


def wire_format(files: FileDescriptorSet) -> dict[str, Any]:
    """What must not change: numbers, names, types and labels.

    Returns:
        `messages`: name -> field number -> [name, type, label]; `enums`: name -> number -> name;
        `services`: name -> method -> [request, response].
    """
    messages: dict[str, dict[str, list[str]]] = {}
    enums: dict[str, dict[str, str]] = {}
    services: dict[str, dict[str, list[str]]] = {}
    for file in files.file:
        for message in file.message_type:
            messages[message.name] = {str(f.number): _field(f) for f in message.field}
        for enum in file.enum_type:
            enums[enum.name] = {str(v.number): v.name for v in enum.value}
        for service in file.service:
            services[service.name] = {m.name: [m.input_type, m.output_type] for m in service.method}
    return {"messages": messages, "enums": enums, "services": services}


def breaking_changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Sentences that name what a reader of `before` can no longer rely on; additions are fine."""
    found = []
    for kind, names in before.items():
        for name, parts in names.items():
            if name not in after[kind]:
                found.append(f"{name}: gone")
                continue
            now = after[kind][name]
            found += [
                f"{name} {key}: was {part}, is {now.get(key, 'gone')}"
                for key, part in parts.items()
                if now.get(key) != part
            ]
    return found


def uncommented_fields(files: FileDescriptorSet) -> list[str]:
    """Fields, messages, enums, values and methods without a comment."""
    found = []
    for file in files.file:
        commented = {
            tuple(location.path)
            for location in file.source_code_info.location
            if location.leading_comments
        }
        for i, message in enumerate(file.message_type):
            found += _missing(message, (4, i), commented)
        for i, enum in enumerate(file.enum_type):
            found += [
                f"{enum.name}.{value.name}"
                for j, value in enumerate(enum.value)
                if (5, i, 2, j) not in commented
            ]
        for i, service in enumerate(file.service):
            found += [
                f"{service.name}.{method.name}"
                for j, method in enumerate(service.method)
                if (6, i, 2, j) not in commented
            ]
    return found


def _missing(
    message: DescriptorProto, path: tuple[int, ...], commented: set[tuple[int, ...]]
) -> list[str]:
    found = [] if path in commented else [message.name]
    found += [
        f"{message.name}.{field.name}"
        for j, field in enumerate(message.field)
        if (*path, 2, j) not in commented
    ]
    return found


def _field(field: FieldDescriptorProto) -> list[str]:
    kind = field.type_name or FieldDescriptorProto.Type.Name(field.type)
    return [field.name, kind, FieldDescriptorProto.Label.Name(field.label)]


if __name__ == "__main__":
    BASELINE.write_text(json.dumps(wire_format(descriptors()), indent=1) + "\n", encoding="utf-8")
