"""Files are replaced whole, or the sentence says what could not be written.

A full disk is in tests/operations/test_full_disk.py.
"""

from pathlib import Path

import pytest

from policy.durable_file import replace_file, writing
from policy.errors import FileNotWritten


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_and_leaves_nothing_beside_it(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "new" / "folder" / "file"
    for content in (b"first", b"second", b""):
        replace_file(file, content, durable=durable)
        assert file.read_bytes() == content
    assert list(file.parent.iterdir()) == [file]


def test_what_cannot_be_written_is_named_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below"
    with pytest.raises(FileNotWritten) as refused:
        replace_file(below, b"x" * 1234)
    assert str(refused.value).startswith(f"{below}: expected to write 1,234 bytes, seen: ")
    assert str(refused.value).endswith(" bytes free there)")


def test_a_folder_in_its_place_stays(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileNotWritten, match="seen: Is a directory"):
        replace_file(tmp_path / "taken", b"content")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="mine"), writing(Path("file"), 0):
        raise ValueError("mine")
