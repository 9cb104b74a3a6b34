"""The operators' port of a process: /metrics, /health and what else it has to tell, on loopback."""

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from grade.v1.refused_pb2 import Reason
from prometheus_client import REGISTRY, make_wsgi_app
from prometheus_client.registry import Collector

from policy.errors import SettingsError

Page = Callable[[], Any]


class AdminServer:
    """Serves /metrics, /health and further JSON pages from a thread of its own.

    Args:
        port: port to listen on; 0 takes a free one.
        health: returns a JSON-able mapping; its `status` is "ok" or something else. Anything but
            "ok" is answered with 503.
        pages: further paths, such as `{"/swaps": server.swaps}`, each answered as JSON.
        host: address to listen on.
        registry: what /metrics tells; this process's metrics by default.

    Raises:
        SettingsError: on `start`, if the port is taken.
    """

    def __init__(
        self,
        port: int,
        health: Callable[[], Mapping[str, Any]],
        pages: Mapping[str, Page] | None = None,
        host: str = "127.0.0.1",
        registry: Collector = REGISTRY,
    ) -> None:
        self._address = (host, port)
        self._health = health
        self._pages = dict(pages or {})
        self._metrics = make_wsgi_app(registry)
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._server is None:
            return self._address[1]
        return int(self._server.server_port)

    def start(self) -> Self:
        """Listen and answer until `stop`."""
        host, port = self._address
        try:
            self._server = make_server(
                host, port, self._answer, server_class=_ThreadingServer, handler_class=_QuietHandler
            )
        except OSError as error:
            raise SettingsError(
                f"admin port: expected a free port on {host}, seen {port} in use "
                f"({error.strerror}); choose another, or 0 for any",
                Reason.REASON_UNAVAILABLE,
            ) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.2},
            name="admin",
            daemon=True,
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop answering and free the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            metrics: Iterable[bytes] = self._metrics(environ, start_response)
            return metrics
        status, content = "200 OK", None
        if path == "/health":
            content = dict(self._health())
            if content.get("status") != "ok":
                status = "503 Service Unavailable"
        elif path in self._pages:
            content = self._pages[path]()
        else:
            status = "404 Not Found"
            content = {"expected": ["/metrics", "/health", *self._pages], "seen": path}
        body = json.dumps(content, default=str).encode()
        start_response(
            status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        )
        return [body]


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Operators poll every second; their requests are not worth a line each."""
