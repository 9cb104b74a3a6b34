"""Each thing that can be wrong with a snapshot is refused by its check, with a sentence."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from grade.v1.parameters_pb2 import ParameterSnapshot
from safetensors.numpy import save

from policy.errors import SnapshotRefused
from policy.schema import parse_schema
from serving.snapshot import load_policy
from tests.serving.parameters import EXAMPLE, Tensors, made_snapshot, made_tensors

Spoil = Callable[[Tensors], object]

OTHER_SCHEMA = parse_schema(EXAMPLE.toml.replace("gain = 5.0", "gain = 6.0"))


def _spoiled(spoil: Spoil) -> ParameterSnapshot:
    tensors = made_tensors(EXAMPLE, 1)
    spoil(tensors)
    return made_snapshot(7, tensors=tensors)


def _with_parameters(parameters: bytes) -> ParameterSnapshot:
    snapshot = made_snapshot(7)
    snapshot.parameters = parameters
    snapshot.parameters_sha256 = hashlib.sha256(parameters).digest()
    return snapshot


def _set(name: str, value: object) -> Spoil:
    return lambda tensors: tensors.update({name: np.asarray(value)})


def _poke(name: str, value: float) -> Spoil:
    return lambda tensors: tensors[name].reshape(-1).__setitem__(0, value)


def _scaled(names: list[str], factor: float) -> Spoil:
    return lambda tensors: tensors.update({name: tensors[name] * factor for name in names})


def test_a_good_snapshot_becomes_a_policy() -> None:
    policy = load_policy(made_snapshot(7, epoch=3), EXAMPLE)
    assert (policy.order, policy.slot, policy.slot_ms) == ((3, 7), 1007, 250)


@pytest.mark.parametrize(
    ("spoil", "check", "message"),
    [
        (lambda t: t.pop("gate"), "tensors", "seen none named gate"),
        (_set("further", [1.0]), "tensors", "seen further ones named further"),
        (_set("mean_bias", [0.0, 0.0]), "tensors", r"mean_bias of float64\[3\], seen float64\[2\]"),
        (_set("gate", 0.5), "tensors", r"gate of float64\[1\], seen float64\[\]"),
        (lambda t: t.pop("hidden0_weight"), "tensors", "seen none named hidden0_weight"),
        (
            _set("gate", np.array([0.5], dtype=np.float32)),
            "tensors",
            r"gate of float64\[1\], seen float32\[1\]",
        ),
        (_set("hidden0_weight", np.zeros((0, 3))), "tensors", "1 to 4096 hidden units, seen 0"),
        (_set("hidden0_weight", np.zeros((4097, 3))), "tensors", "hidden units, seen 4097"),
        (_set("hidden0_weight", 1.0), "tensors", "hidden units, seen 0"),
        (_poke("hidden1_weight", np.nan), "finite", r"in hidden1_weight, seen nan at \[0, 0\]"),
        (_poke("static_logits", np.inf), "finite", r"in static_logits, seen inf at \[0\]"),
        (_poke("feature_scale", 0.0), "bounds", r"feature_scale in \[1e-30, 1e\+30\], seen \[0, "),
        (_poke("feature_scale", -1.0), "bounds", r"feature_scale in .* seen \[-1, "),
        (_poke("gate", 1.5), "bounds", r"gate in \[0, 1\], seen \[1.5, 1.5\]"),
        (_poke("gate", -0.1), "bounds", r"gate in \[0, 1\]"),
        (_poke("mean_bias", 1e4), "bounds", r"mean_bias in \[-1000, 1000\]"),
        (_poke("feature_mean", -1e31), "bounds", "feature_mean in"),
        (
            _scaled(["hidden0_weight", "hidden1_weight", "mean_weight"], 100.0),
            "bounds",
            r"logits up to 100000, seen \d",
        ),
    ],
)
def test_bad_tensors(spoil: Spoil, check: str, message: str) -> None:
    with pytest.raises(SnapshotRefused, match=message) as refused:
        load_policy(_spoiled(spoil), EXAMPLE)
    assert refused.value.check == check


def test_wrong_checksum() -> None:
    snapshot = made_snapshot(7)
    snapshot.parameters = snapshot.parameters[:-1] + b"\x01"
    with pytest.raises(SnapshotRefused, match=r"expected sha256 [0-9a-f]{16}… of the") as refused:
        load_policy(snapshot, EXAMPLE)
    assert refused.value.check == "checksum"


def test_missing_checksum() -> None:
    snapshot = made_snapshot(7)
    snapshot.parameters_sha256 = b""
    with pytest.raises(SnapshotRefused, match="expected sha256 none of the parameters, seen "):
        load_policy(snapshot, EXAMPLE)


@pytest.mark.parametrize(
    "parameters",
    [
        b"",
        b"not safetensors",
        save(made_tensors(EXAMPLE, 1))[:-8],
        save(made_tensors(EXAMPLE, 1))[:100],
        b"\xff" * 8 + b"{}",
    ],
)
def test_truncated_or_foreign_bytes(parameters: bytes) -> None:
    with pytest.raises(SnapshotRefused, match="expected a safetensors file, seen") as refused:
        load_policy(_with_parameters(parameters), EXAMPLE)
    assert refused.value.check == "tensors"


def test_a_type_that_numpy_does_not_have() -> None:
    header = b'{"gate":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    file = len(header).to_bytes(8, "little") + header + b"\0\0"
    with pytest.raises(SnapshotRefused) as refused:
        load_policy(_with_parameters(file), EXAMPLE)
    assert refused.value.check == "tensors"


def test_other_schema() -> None:
    with pytest.raises(SnapshotRefused, match="expected schema digest") as refused:
        load_policy(made_snapshot(7, schema=OTHER_SCHEMA), EXAMPLE)
    assert refused.value.check == "schema"


def test_other_policy() -> None:
    snapshot = made_snapshot(7)
    snapshot.policy = "other"
    with pytest.raises(SnapshotRefused, match="expected 'example', seen 'other'") as refused:
        load_policy(snapshot, EXAMPLE)
    assert refused.value.check == "policy"


@pytest.mark.parametrize(("epoch", "version"), [(0, 1), (1, 0)])
def test_numbers_that_no_learner_gives(epoch: int, version: int) -> None:
    with pytest.raises(SnapshotRefused, match=f"seen epoch {epoch}, version {version}") as refused:
        load_policy(made_snapshot(version, epoch=epoch), EXAMPLE)
    assert refused.value.check == "version"
