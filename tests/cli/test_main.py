"""The command line tells what there is without loading it."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner

import cli.main
from cli.main import VERBS, command_line


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments], capture_output=True, text=True, check=False
    )


def test_help_lists_every_verb() -> None:
    done = run("--help")
    assert done.returncode == 0
    for verb in VERBS:
        assert f" {verb} " in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    done = CliRunner().invoke(command_line(verb), [verb, "--help"], prog_name="grade")
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"Usage: grade {verb}" in done.stdout


def test_a_verb_has_help_as_a_process_too() -> None:
    done = run("export", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: grade export" in done.stdout


def every_help(command: Any, path: str) -> Iterator[tuple[str, str]]:
    """All that a command and those below it say of themselves."""
    yield path, command.help or ""
    for parameter in command.params:
        yield f"{path} {parameter.name}", getattr(parameter, "help", None) or ""
    for name, below in getattr(command, "commands", {}).items():
        yield from every_help(below, f"{path} {name}")


@pytest.mark.parametrize("verb", VERBS)
def test_no_help_has_brackets_that_the_terminal_would_swallow(verb: str) -> None:
    """Rich takes a word in square brackets for a style."""
    whole: Any = typer.main.get_command(command_line(verb))
    told = dict(every_help(whole.commands[verb], verb))
    assert len("".join(told.values())) > 50
    assert {place: text for place, text in told.items() if "[" in text} == {}


def test_ctrl_c_while_a_verb_is_imported_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(wanted: str | None) -> typer.Typer:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.main, "command_line", interrupted)
    monkeypatch.setattr(sys, "argv", ["grade"])
    with pytest.raises(SystemExit) as ended:
        cli.main.main()
    assert ended.value.code == 130


def test_an_unknown_verb_is_refused() -> None:
    done = run("sevre")
    assert done.returncode == 2
    assert "No such command 'sevre'" in done.stderr


def test_help_loads_neither_torch_nor_faust_nor_kafka() -> None:
    code = (
        "import sys; from cli.main import command_line; command_line(None); "
        "sys.exit(sorted({'torch', 'faust', 'kafka', 'grpc'} & set(sys.modules)).__repr__() "
        "if {'torch', 'faust', 'kafka', 'grpc'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
