"""docker-compose.yml uses only what the command line really has.

No Docker engine is needed: the file is read, and every command, setting and port in it is checked
against the code.
"""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.main import VERBS, command_line
from cli.settings import CONFIG_VARIABLE, ENVIRONMENT_PREFIX, Settings

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


def options_of(verb: str) -> set[str]:
    """Every option that a verb's function declares."""
    app = command_line(verb)
    found: set[str] = set()
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            assert command.callback is not None
            found |= {command.name or command.callback.__name__}
    for command in app.registered_commands:
        if command.name == verb and command.callback is not None:
            source = inspect.getsource(command.callback)
            found |= set(re.findall(r'"(--[a-z-]+)"', source))
            found |= {
                f"--{name.replace('_', '-')}"
                for name in inspect.signature(command.callback).parameters
            }
    return found


def test_the_system_is_complete() -> None:
    verbs = [service["command"][0] for service in OURS.values()]
    assert sorted(verbs) == ["join", "join", "learn", "serve", "simulate", "topics"]
    assert SERVICES["kafka"]["image"] == "apache/kafka:4.3.1"


@pytest.mark.parametrize("name", sorted(OURS))
def test_commands_exist(name: str) -> None:
    verb, *words = OURS[name]["command"]
    assert verb in VERBS
    known = options_of(verb)
    for word in words:
        if word.startswith("--") or (verb == "topics"):
            assert word in known, f"{verb} has {sorted(known)}"


@pytest.mark.parametrize("name", sorted(OURS))
def test_settings_exist_and_are_valid(name: str) -> None:
    environment = OURS[name]["environment"]
    given = {}
    for variable, value in environment.items():
        assert variable != CONFIG_VARIABLE
        setting = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        assert setting in Settings.model_fields, variable
        given[setting] = value
    Settings(**given)


@pytest.mark.parametrize("name", sorted(OURS))
def test_ports_are_those_that_the_process_listens_on_and_stay_on_loopback(name: str) -> None:
    defaults = Settings()
    listening = {
        "serve": {defaults.serve_port, defaults.serve_admin_port},
        "join": {defaults.join_admin_port},
        "learn": {defaults.learn_admin_port},
        "simulate": {defaults.simulate_admin_port},
    }
    verb = OURS[name]["command"][0]
    for mapping in OURS[name].get("ports", []):
        address, host_port, port = mapping.split(":")
        assert address == "127.0.0.1"
        assert int(host_port) == int(port)
        assert int(port) in listening[verb]
    check = OURS[name].get("healthcheck")
    if verb in listening:
        assert check is not None
        port = re.search(r"127\.0\.0\.1:(\d+)/health", " ".join(check["test"]))
        assert port is not None
        assert int(port.group(1)) in listening[verb]


def test_mounted_files_exist_and_volumes_are_declared() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).is_file(), source
            else:
                assert source in COMPOSE["volumes"]


def test_nothing_waits_for_a_service_that_is_not_there() -> None:
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other]


def test_the_image_holds_every_package() -> None:
    copied = set(
        re.findall(r"^COPY (\w+) \w+$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    )
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert copied == packages | {"proto"}
