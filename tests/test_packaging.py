"""What a user installs: the wheel alone, in an environment of its own."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert {top for top in tops if not top.endswith(".dist-info")} == packages | {"grade"}


def test_serving_join_and_client_work_without_torch(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    uv = Path(sys.executable).parent / "uv"
    # The lock is a constraint here: the same versions, but only what the wheel itself asks for.
    run(uv, "pip", "install", "--python", python, "-c", ROOT / "requirements.lock", wheel)
    modules = "serving.server, stream.app, grade_client, cli.main"
    loaded = run(
        python,
        "-c",
        f"import sys, importlib.util, {modules}; print(importlib.util.find_spec('torch'))",
        cwd=tmp_path,
    )
    assert loaded.strip() == "None"
    assert "demo" in run(tmp_path / "venv" / "bin" / "grade", "--help", cwd=tmp_path)
    imported = "import cli.serve, cli.join, cli.topics, cli.config"
    run(python, "-c", imported, cwd=tmp_path)


def test_the_lock_names_no_registry() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    assert "--hash=sha256:" in lock
