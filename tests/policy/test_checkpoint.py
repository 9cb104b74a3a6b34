from pathlib import Path

import numpy as np
import pytest

from policy.checkpoint import AHEAD, Tensors, digest, load, write
from policy.errors import CheckpointRefused


def tensors(value: float = 0.0) -> Tensors:
    return {
        "wide": np.arange(6, dtype=np.float64).reshape(2, 3) + value,
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "count": np.array([7], dtype=np.int64),
        "step": np.array(3.0, dtype=np.float32),
        "none": np.zeros((0, 4), dtype=np.float64),
    }


def metadata(version: int, epoch: int = 1) -> dict[str, str]:
    return {"epoch": str(epoch), "version": str(version), "note": "snow ☃"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "folder", tensors(), metadata(3), keep=2)
    assert path.name == "00000001-000000000003.ckpt"
    loaded = load(path)
    assert loaded.metadata == metadata(3)
    for name, tensor in tensors().items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert loaded.tensors[name].shape == tensor.shape
        assert loaded.tensors[name].tobytes() == np.ascontiguousarray(tensor).tobytes()
    assert loaded.tensors.keys() == tensors().keys()


def test_the_oldest_go_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "00000001-000000000009.tmp").write_text("a crash left this")
    for version in range(1, 6):
        write(tmp_path, tensors(), metadata(version), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000001-000000000004.ckpt",
        "00000001-000000000005.ckpt",
        "notes.txt",
    ]
    with pytest.raises(ValueError, match="expected at least 1 checkpoint to be kept, seen 0"):
        write(tmp_path, tensors(), metadata(6), keep=0)


def test_later_checkpoints_do_not_push_out_what_is_written(tmp_path: Path) -> None:
    for version in range(996, 1001):
        write(tmp_path, tensors(), metadata(version), keep=5)
    for version in (1, 2, 3):
        path = write(tmp_path, tensors(), metadata(version), keep=2)
        assert load(path).metadata == metadata(version)
    assert sorted(int(path.stem[9:]) for path in tmp_path.iterdir()) == [2, 3, *range(996, 1001)]


def test_as_many_stay_that_were_set_aside(tmp_path: Path) -> None:
    for version in range(4, 8):
        (tmp_path / f"00000001-{version:012d}{AHEAD}").write_text("ahead")
    write(tmp_path, tensors(), metadata(1), keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000001-000000000001.ckpt",
        *(f"00000001-00000000000{version}.ahead" for version in (5, 6, 7)),
    ]


def test_writing_a_version_again_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, tensors(), metadata(1), keep=2)
    path = write(tmp_path, tensors(1.0), metadata(1), keep=2)
    assert load(path).tensors["wide"][0, 0] == 1.0
    assert len(list(tmp_path.iterdir())) == 1


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, tensors(), metadata(1), keep=1)
    sound = path.read_bytes()
    for place in range(0, len(sound), 7):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x10]) + sound[place + 1 :])
        with pytest.raises(CheckpointRefused, match=r"000000000001\.ckpt: expected"):
            load(path)
    path.write_bytes(sound)
    load(path)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_cut_file_is_refused(tmp_path: Path, length: int) -> None:
    path = write(tmp_path, tensors(), metadata(1), keep=1)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointRefused, match="expected a checkpoint, seen"):
        load(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="expected a checkpoint, seen"):
        load(tmp_path / "00000001-000000000001.ckpt")


def test_the_digest_names_content_and_not_order_or_layout() -> None:
    one = tensors()
    other = {name: np.array(one[name], order="F") for name in reversed(one)}
    assert digest(one) == digest(other)
    assert digest(one) != digest(tensors(1e-300 + 1.0))
    assert digest(one) != digest(one, {"epoch": "1"})
    assert digest({"a": np.zeros(4)}) != digest({"a": np.zeros((2, 2))})
    assert digest({"a": np.zeros(4)}) != digest({"b": np.zeros(4)})
    assert digest({"a": np.zeros(2)}) != digest({"a": np.zeros(4, dtype=np.float32)})
