"""The tutorial is followed word for word, in an empty folder, on a real Kafka.

Its code blocks are run in order; what a `text` block shows must be seen. A word after the language
says how a `sh` block is run:

    by-hand     not here: it makes what the test runs in
    background  in another terminal, until the block that is marked `stop`
    again       until it shows what it must, as the text says that it takes a while
    fails       it must end with an error
    stop        what runs in the background is interrupted first, and must end well
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cli.system import free_ports
from stream.broker import LocalBroker
from tests.kafka import await_until

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
EXAMPLES = ROOT / "examples" / "tutorial"


class Block(NamedTuple):
    """One code block."""

    line: int
    language: str
    manner: str
    code: str


def blocks() -> list[Block]:
    text = TUTORIAL.read_text("utf-8")
    return [
        Block(text.count("\n", 0, found.start()) + 1, found[1], (found[2] or "").strip(), found[3])
        for found in re.finditer(r"^```(\w+)( [\w-]+)?\n(.*?)^```$", text, re.M | re.S)
    ]


def files() -> dict[str, str]:
    """The files that the reader is asked to save, by the name in their first line."""
    found = {}
    for block in blocks():
        if block.language in ("toml", "python"):
            named = re.match(r"# ([\w.]+): ", block.code)
            assert named, f"line {block.line}: a file without its name in the first line"
            found[named[1]] = block.code
    return found


def missing_line(expected: str, output: str) -> str | None:
    """The first line of what must be seen that the output does not have, in its place."""
    lines = iter([" ".join(line.split()) for line in output.splitlines()])
    for line in expected.splitlines():
        words = [re.escape(part) for part in " ".join(line.split()).split("…")]
        if line.strip() != "…" and not any(re.search(".*".join(words), seen) for seen in lines):
            return line
    return None


class Reader:
    """Somebody who follows the tutorial in a folder of their own.

    Args:
        folder: empty.
    """

    def __init__(self, folder: Path) -> None:
        kafka, serve, *admin = free_ports(5)
        self._folder = folder
        self._others = {"127.0.0.1:19092": f"127.0.0.1:{kafka}", ":50051": f":{serve}"}
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GRADE_BOOTSTRAP_SERVERS": f"127.0.0.1:{kafka}",
            "GRADE_SERVE_PORT": str(serve),
            "GRADE_SERVE_ADMIN_PORT": str(admin[0]),
            "GRADE_JOIN_ADMIN_PORT": str(admin[1]),
            "GRADE_LEARN_ADMIN_PORT": str(admin[2]),
        }
        self._background: subprocess.Popen[bytes] | None = None

    def follow(self, block: Block, expected: str) -> None:
        """Do what a block says.

        Args:
            block: any block but `text`.
            expected: the `text` block that follows it, or nothing.
        """
        code, expected = self._translated(block.code), self._translated(expected)
        if block.language in ("toml", "python"):
            name = block.code.removeprefix("# ").partition(":")[0]
            (self._folder / name).write_text(code, encoding="utf-8")
        elif block.manner == "background":
            self._start(code, expected)
        elif block.manner == "again":
            await_until(lambda: self._seen(block, code, expected), 90, f"line {block.line}")
        elif block.manner != "by-hand":
            if block.manner == "stop":
                self._interrupt()
            status, output = self._run(code)
            assert (status != 0) == (block.manner == "fails"), f"line {block.line}: {output}"
            absent = missing_line(expected, output)
            assert absent is None, f"line {block.line}: {absent!r} was not seen in\n{output}"

    def end(self) -> None:
        """Stop whatever still runs."""
        if self._background is not None:
            print((self._folder / "background").read_text("utf-8"))
            log = self._folder / ".grade" / "grade.log"
            if log.exists():
                print(log.read_text("utf-8")[-8000:])
            self._interrupt()
        LocalBroker(self._folder / ".grade" / "kafka").down()

    def _translated(self, text: str) -> str:
        for said, real in self._others.items():
            text = text.replace(said, real)
        return text

    def _run(self, code: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", f"{code}\nenv -0 > environment"],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode == 0:  # what was exported stays, as in a terminal
            entries = (self._folder / "environment").read_text("utf-8").split("\0")
            self._environment = dict(each.split("=", 1) for each in entries if each)
        return done.returncode, done.stdout

    def _seen(self, block: Block, code: str, expected: str) -> bool:
        _, output = self._run(code)
        absent = missing_line(expected, output)
        if absent is not None:
            print(f"line {block.line}: no {absent!r} yet in\n{output}")
        return absent is None

    def _start(self, code: str, expected: str) -> None:
        output = self._folder / "background"
        with output.open("wb") as file:
            self._background = subprocess.Popen(
                code.split(),
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        await_until(
            lambda: missing_line(expected, output.read_text("utf-8")) is None, 120, f"{code} to run"
        )

    def _interrupt(self) -> None:
        """Ctrl-C in the other terminal."""
        running, self._background = self._background, None
        assert running is not None, "nothing runs in the background"
        running.send_signal(signal.SIGINT)
        try:
            assert running.wait(60) == 0
        finally:
            running.terminate()  # killed at once it would leave the system behind
            try:
                running.wait(60)
            finally:
                running.kill()
                running.wait()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.end()


@pytest.mark.timeout(600)
def test_following_it_shows_what_it_says(reader: Reader) -> None:
    steps = blocks()
    followed = 0
    for block, after in zip(steps, [*steps[1:], None], strict=True):
        if block.language != "text":
            expected = after.code if after is not None and after.language == "text" else ""
            reader.follow(block, expected)
            followed += 1
    assert followed > 15


def test_what_is_typed_is_in_the_examples_too() -> None:
    shown = files()
    for example in EXAMPLES.iterdir():
        assert shown.pop(example.name) == example.read_text("utf-8"), example.name
    assert list(shown) == ["grade.toml"]


def test_the_programs_are_as_short_as_it_says() -> None:
    shown = files()
    assert len(shown["tier.py"].splitlines()) <= 40
    assert len(shown["listeners.py"].splitlines()) <= 20


def test_a_line_that_must_be_seen_is_missed_unless_it_is_there_in_its_place() -> None:
    output = "│ one │  1.5 │\ntwo\nthree"
    assert missing_line("│ one │ 1.… │\n…\nthree", output) is None
    assert missing_line("two\none", output) == "one"
    assert missing_line("two.", output) == "two."
