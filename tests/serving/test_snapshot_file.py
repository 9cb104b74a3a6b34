"""The last good snapshot on disk: it comes back whole or is refused."""

from pathlib import Path

import pytest

from policy.errors import FileNotWritten, SnapshotRefused
from serving.snapshot_file import FORMAT, read_snapshot, write_snapshot
from tests.serving.parameters import made_snapshot


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "example.snapshot"
    write_snapshot(path, made_snapshot(1))
    write_snapshot(path, made_snapshot(2))
    assert read_snapshot(path) == made_snapshot(2)
    assert [p.name for p in path.parent.iterdir()] == ["example.snapshot"]


def test_no_file_is_no_snapshot(tmp_path: Path) -> None:
    assert read_snapshot(tmp_path / "example.snapshot") is None


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "example.snapshot"
    write_snapshot(path, made_snapshot(1))
    whole = path.read_bytes()
    for length in (0, 1, len(FORMAT) - 1, len(FORMAT), len(FORMAT) + 31, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(SnapshotRefused, match=r"example\.snapshot to") as refused:
            read_snapshot(path)
        assert refused.value.check == "file"


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "example.snapshot"
    write_snapshot(path, made_snapshot(1))
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(SnapshotRefused, match=f"checksum, seen {len(content)} bytes that do not"):
        read_snapshot(path)


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotRefused, match="to be readable, seen Is a directory"):
        read_snapshot(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "example.snapshot"
    path.mkdir()
    with pytest.raises(
        FileNotWritten, match=r"example\.snapshot: expected to write [\d,]+ bytes, seen: Is a dir"
    ):
        write_snapshot(path, made_snapshot(1))
    assert list(tmp_path.iterdir()) == [path]
