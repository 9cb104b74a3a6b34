"""The operators' port answers over a real socket."""

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from cli.admin import AdminServer
from policy.errors import SettingsError


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_metrics_and_pages() -> None:
    state: dict[str, Any] = {"status": "ok", "version": 3}
    with AdminServer(0, lambda: state, {"/swaps": lambda: [1, 2]}) as admin:
        assert get(admin.port, "/health") == (200, '{"status": "ok", "version": 3}')
        state["status"] = "starting"
        assert get(admin.port, "/health")[0] == 503
        assert get(admin.port, "/swaps") == (200, "[1, 2]")
        status, text = get(admin.port, "/metrics")
        assert status == 200
        assert "# HELP python_info" in text
        status, text = get(admin.port, "/nothing")
        assert status == 404
        assert json.loads(text)["expected"] == ["/metrics", "/health", "/swaps"]


def test_a_taken_port_is_named() -> None:
    with AdminServer(0, lambda: {"status": "ok"}) as first:
        with pytest.raises(SettingsError, match=f"seen {first.port} in use"):
            AdminServer(first.port, lambda: {"status": "ok"}).start()
