"""Jars come whole and genuine or not at all; served by a Maven repository of the test's own."""

import gc
import hashlib
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from policy.errors import BrokerError
from stream.broker_jars import ENDPOINT, LOCK, Jar, fetch_jars, read_lock

# jgo leaves the connection of a refused download to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

CONTENT = b"the genuine bytes of a jar"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Served:
    """A Maven repository over HTTP that holds one jar."""

    def __init__(self, folder: Path, port: int) -> None:
        self.jar = Jar("org.example", "thing", "1.0", hashlib.sha256(CONTENT).hexdigest())
        self.file = folder / "org" / "example" / "thing" / "1.0" / "thing-1.0.jar"
        self.file.parent.mkdir(parents=True)
        self.file.write_bytes(CONTENT)
        self.sources = {"test": f"http://127.0.0.1:{port}"}
        self.told: list[str] = []

    def fetch(self, repository: Path) -> list[Path]:
        return fetch_jars(
            [self.jar], progress=self.told.append, repository=repository, sources=self.sources
        )


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    folder = tmp_path / "remote"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Served(folder, server.server_port)
        server.shutdown()
        thread.join()
    gc.collect()


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_lock_names_every_jar_by_coordinate_and_checksum_and_no_address() -> None:
    jars = read_lock()
    assert len(jars) == 46
    assert all(re.fullmatch("[0-9a-f]{64}", jar.sha256) for jar in jars)
    text = LOCK.read_text(encoding="utf-8")
    assert "://" not in text
    for coordinate in ENDPOINT.split("+"):
        assert f"\n{coordinate} " in text


def test_missing_jars_are_downloaded_once(served: Served, tmp_path: Path) -> None:
    local = tmp_path / "local"
    (path,) = served.fetch(local)
    assert path == local / "org/example/thing/1.0/thing-1.0.jar"
    assert path.read_bytes() == CONTENT
    assert files_below(local) == [path]
    told = len(served.told)
    assert told > 0
    served.file.unlink()
    assert served.fetch(local) == [path]
    assert len(served.told) == told


def test_a_broken_local_jar_is_replaced(served: Served, tmp_path: Path) -> None:
    local = tmp_path / "local"
    (path,) = served.fetch(local)
    path.write_bytes(CONTENT[:10])
    assert served.fetch(local) == [path]
    assert path.read_bytes() == CONTENT


def test_a_wrong_checksum_names_the_jar_and_leaves_nothing(served: Served, tmp_path: Path) -> None:
    local = tmp_path / "local"
    served.file.write_bytes(b"something else")
    with pytest.raises(BrokerError) as refused:
        served.fetch(local)
    text = str(refused.value)
    assert text.startswith(f"thing-1.0.jar: expected sha256 {served.jar.sha256}, seen ")
    assert hashlib.sha256(b"something else").hexdigest() in text
    assert files_below(local) == []


def test_a_jar_that_is_not_there_is_named(served: Served, tmp_path: Path) -> None:
    served.file.unlink()
    with pytest.raises(BrokerError, match=r"^thing-1\.0\.jar: expected to be downloaded"):
        served.fetch(tmp_path / "local")


def test_an_unreachable_source_is_a_sentence(served: Served, tmp_path: Path) -> None:
    served.sources = {"test": "http://127.0.0.1:9"}
    with pytest.raises(BrokerError, match="check the network and start again"):
        served.fetch(tmp_path / "local")
