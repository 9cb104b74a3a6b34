"""Parameters and snapshots for tests, and how they are published."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from grade.v1.context_pb2 import Context
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY, Arm
from grade.v1.parameters_pb2 import ParameterSnapshot
from safetensors.numpy import save

from policy.fusion import arm
from policy.initial import parameter_shapes
from policy.schema import Schema, load_schema, parse_schema
from stream.codec import encode
from stream.connection import Connection
from tests.kafka import Produced, produce

EXAMPLE_PATH = Path(__file__).parent.parent / "example_schema.toml"
EXAMPLE = load_schema(EXAMPLE_PATH)

Tensors = dict[str, npt.NDArray[np.float64]]


def made_schema(features: int, objectives: int, floors: float = 0.0) -> Schema:
    """A schema of any size with equal baselines; `floors` is their sum."""
    lines = ['policy = "made"', f"features = {[f'f{i}' for i in range(features)]}"]
    for i in range(objectives):
        lines += ["[[objectives]]", f'name = "o{i}"', f"baseline = {1 / objectives!r}"]
        lines += [f"floor = {floors / objectives!r}"]
    lines += ["[[outcomes]]", 'name = "click"', "gain = 1.0", "[attribution]", "window_s = 5"]
    return parse_schema("\n".join(lines))


def made_tensors(schema: Schema, seed: int, *, hidden: int = 8, spread: float = 0.5) -> Tensors:
    """Parameters that have learned something: nothing is zero and the gate is half open."""
    generator = np.random.default_rng(seed)
    shapes = parameter_shapes(schema, hidden)
    tensors = {name: generator.normal(0, spread, shape) for name, shape in shapes.items()}
    tensors["feature_scale"] = generator.uniform(0.5, 2, shapes["feature_scale"])
    tensors["gate"] = np.array([0.5])
    tensors["mean_floor"] = generator.uniform(1e-9, 0.02 / schema.n_objectives, schema.n_objectives)
    return tensors


def made_snapshot(
    version: int,
    *,
    epoch: int = 1,
    schema: Schema = EXAMPLE,
    tensors: Mapping[str, npt.NDArray[np.generic]] | None = None,
) -> ParameterSnapshot:
    """A snapshot that is good unless its tensors are not; the version is the tensors' seed."""
    chosen = made_tensors(schema, version) if tensors is None else tensors
    parameters = save(dict(chosen))
    return ParameterSnapshot(
        policy=schema.policy,
        epoch=epoch,
        version=version,
        parent=max(version - 1, 0),
        schema_digest=schema.digest,
        parameters=parameters,
        parameters_sha256=hashlib.sha256(parameters).digest(),
        slot=1000 + version,
        slot_ms=250,
    )


def key_of(snapshot: ParameterSnapshot) -> bytes:
    """Key of the snapshot's Kafka record."""
    return f"{snapshot.policy}/{snapshot.epoch}/{snapshot.version}".encode()


def publish(connection: Connection, topic: str, snapshots: Iterable[ParameterSnapshot]) -> None:
    """Write snapshots to the parameters topic as the learner does."""
    produce(connection, topic, [Produced(encode(s), key_of(s)) for s in snapshots])


def unit_in(wanted: "Arm.ValueType", schema: Schema = EXAMPLE) -> str:
    """A unit of the wanted arm."""
    return next(f"user-{i}" for i in range(10_000) if arm(schema, f"user-{i}") == wanted)


POLICY_UNIT = unit_in(ARM_POLICY)
HOLDOUT_UNIT = unit_in(ARM_HOLDOUT)


def made_context(
    number: int = 0, *, unit_id: str = POLICY_UNIT, schema: Schema = EXAMPLE
) -> Context:
    """A good context; the number makes its request_id and its features."""
    features = np.random.default_rng(number).normal(size=schema.n_features).astype(np.float32)
    return Context(
        policy=schema.policy,
        request_id=f"request-{number}",
        unit_id=unit_id,
        features=features.tolist(),
    )
