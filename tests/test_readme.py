"""The README's walk through is run as it stands, against the running system."""

import re
from pathlib import Path

from cli.main import VERBS
from stream.connection import Connection
from tests.system import running_system

README = Path(__file__).parent.parent / "README.md"
SCHEMA = README.parent / "docs" / "schema.md"


def test_the_walk_through_works(connection: Connection, tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    (schema,) = re.findall(r"^```toml\n(.*?)^```", SCHEMA.read_text("utf-8"), re.M | re.S)
    schema = schema.replace("share = 0.05", "share = 0.0")  # or one unit in twenty is not learned
    with running_system(connection, tmp_path, text=schema) as system:
        for said, real in {
            "127.0.0.1:19092": connection.bootstrap_servers,
            "127.0.0.1:50051": system.target,
            'Topics("grade")': f'Topics("{system.settings.topic_prefix}")',
        }.items():
            assert said in code
            code = code.replace(said, real)
        exec(compile(code, str(README), "exec"), {})
        system.await_applied(1)
        report = system.stop_and_reconcile()
    assert report.ok
    assert (report.groups, report.conversions.used) == (1, 1)


def test_every_command_named_exists() -> None:
    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    verbs = re.findall(r"(?:\.venv/bin/|`)grade ([a-z]+)", text)
    assert {"up", "reconcile", "replay"} <= set(verbs) <= set(VERBS)
    for target in re.findall(r"^make ([a-z]+)", text, re.M):
        assert f"\n{target}: " in makefile
