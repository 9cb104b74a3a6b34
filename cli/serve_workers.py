"""`grade serve --workers N`: several server processes on one port, kept running by this one."""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from os import environ
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import structlog

from cli.admin import AdminServer
from cli.settings import Settings, environment_of
from cli.supervisor import FIRST_DELAY_S, HEALTHY_AFTER_S, LONGEST_DELAY_S
from cli.wiring import policies
from cli.workers_view import WorkersView
from serving.shared_port import shared_port

log = structlog.get_logger(__name__)

_LOOK_INTERVAL_S: Final = 0.1
_KILL_AFTER_S: Final = 10.0
"""Beyond the grace period for calls in flight: for the rest of a worker's end."""


def serve_by_workers(
    settings: Settings, stop: threading.Event, tell_port: Callable[[int], None]
) -> int:
    """Keep the workers running until told to stop; then stop all of them at once.

    Args:
        settings: what the workers read.
        stop: ends it.
        tell_port: called with the port once all workers answer requests.

    Returns:
        the port.

    Raises:
        SchemaError: a schema file is wrong.
        SettingsError: the port or the admin port is not free, or ports cannot be shared here.
    """
    policies(settings)  # what is wrong with them is to be told once, not by each worker
    with ExitStack() as stack:
        port = stack.enter_context(shared_port(settings.serve_host, settings.serve_port))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="grade-serve-")))
        settings = settings.model_copy(update={"serve_port": port})
        files = {str(n): folder / f"{n}.port" for n in range(1, settings.serve_workers + 1)}
        view = WorkersView(files)
        admin = AdminServer(
            settings.serve_admin_port,
            view.health,
            {"/swaps": view.swaps},
            host=settings.admin_host,
            registry=view,
        )
        stack.enter_context(admin)
        workers = stack.enter_context(_Workers(settings, files))
        ready = False
        while not stop.wait(_LOOK_INTERVAL_S):
            workers.keep_running()
            if not ready and view.health()["status"] == "ok":
                ready = True
                tell_port(port)
                log.info(
                    "serve_ready",
                    host=settings.serve_host,
                    port=port,
                    admin_port=admin.port,
                    workers=len(files),
                )
        log.info("serve_stopping", workers=len(files), grace_s=settings.serve_grace_s)
    return port


class _Worker:
    """One worker and when it may be started again."""

    def __init__(self, name: str, file: Path) -> None:
        self.name = name
        self.file = file
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.due_at = 0.0
        self.delay_s = FIRST_DELAY_S


class _Workers:
    """The worker processes; their output is this process's.

    Args:
        settings: what they read.
        files: by name of the worker, the file that it writes its admin port to.
    """

    def __init__(self, settings: Settings, files: dict[str, Path]) -> None:
        self._environment = {**environ, **environment_of(settings)}
        self._kill_after_s = settings.serve_grace_s + _KILL_AFTER_S
        self._workers = [_Worker(name, file) for name, file in files.items()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _stop([w.process for w in self._workers if w.process is not None], self._kill_after_s)

    def keep_running(self) -> None:
        """Start whoever is not running and whose delay is over."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.process is None:
                if now >= worker.due_at:
                    self._start(worker)
                continue
            code = worker.process.poll()
            if code is None:
                if now - worker.started_at > HEALTHY_AFTER_S:
                    worker.delay_s = FIRST_DELAY_S
                continue
            log.warning(
                "worker_ended", worker=worker.name, exit_code=code, restart_in_s=worker.delay_s
            )
            worker.file.unlink(missing_ok=True)
            worker.process, worker.due_at = None, now + worker.delay_s
            worker.delay_s = min(2 * worker.delay_s, LONGEST_DELAY_S)

    def _start(self, worker: _Worker) -> None:
        worker.process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", "--worker-file", str(worker.file)],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            # A Ctrl-C in the terminal reaches this process alone, which stops them.
            start_new_session=True,
        )
        worker.started_at = time.monotonic()
        log.info("worker_started", worker=worker.name, pid=worker.process.pid)


def _stop(processes: "Sequence[subprocess.Popen[Any]]", kill_after_s: float) -> None:
    """Stop all at once; the time that they may take runs for all of them together."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + kill_after_s
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("worker_killed", pid=process.pid, after_s=kill_after_s)
            process.kill()
            process.wait()
