"""`grade demo`: the whole loop on this machine, with simulated users and a live view."""

import importlib.resources
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.live import Live

from cli.clean_stop import clean_stop
from cli.demo_boundaries import PlannedBoundaries
from cli.settings import Settings, environment_of, load_settings
from cli.supervisor import Supervisor
from cli.system import admin_ports, free_ports, process_plans, wait_until_healthy
from cli.uplift import as_json, sentence
from cli.wiring import topic_plan
from evaluation.confidence import LEVEL
from evaluation.logged_groups import Span, comparable_digests, observed, read_groups
from evaluation.uplift import looks
from monitor.summary import show, summarise, without_nan
from monitor.terminal import draw, number
from monitor.watch import LoopWatch, Picture, ask
from policy.durable_file import replace_file, writing
from policy.errors import FileNotWritten, GradeError, SettingsError, TooLittleData
from policy.schema import Schema, load_schema
from stream.broker import LocalBroker
from stream.connection import Connection
from stream.generations import read_generations
from stream.reconcile import TopicContent, reconcile
from stream.topics import Topics, create

SETTLE_LIMIT_S = 60.0
REFRESH_S = 0.5
QUIET_S = 1.5
"""All is learned when nothing has been open or unread for so long; ticks go on for ever."""
IDLE_UNREAD = 8
LINE_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Play:
    """What is played against the system."""

    seconds: float
    rate: float
    """Requests per second."""
    seed: int
    drift_at: float | None
    """Second at which all users change their taste."""
    join_workers: int
    boundaries_at: Sequence[float]
    """Seconds at which a new generation begins."""


def demo(
    seconds: Annotated[float, typer.Option(min=5, help="Length of the traffic.")] = 90.0,
    rate: Annotated[float, typer.Option(min=1, help="Requests per second.")] = 300.0,
    seed: Annotated[int, typer.Option(help="Seed of the simulated world.")] = 0,
    drift_at: Annotated[
        float | None,
        typer.Option(min=0, help="Second at which all users change their taste; none by default."),
    ] = None,
    join_workers: Annotated[int, typer.Option(min=1, help="Join workers.")] = 1,
    boundary_at: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            help="Second at which a new generation begins: first with a longer attribution window, "
            "then with dearer orders, and so on. May be given several times; none by default.",
        ),
    ] = None,
    data_dir: Annotated[
        Path, typer.Option(help="Folder for everything on disk; emptied at the start.")
    ] = Path(".grade/demo"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the summary's figures to this file.")
    ] = None,
    picture_file: Annotated[
        Path | None, typer.Option("--picture", help="Write the last live view to this SVG file.")
    ] = None,
) -> None:
    """Bring up the whole system, play simulated users against it, and show what it learned.

    Starts a real Kafka, the policy server, the join and the learner on free ports, then a simulated
    marketplace that asks for weights, shows items and reports what its users do. Afterwards every
    group and every version is recomputed from the topics and compared. Ctrl-C stops everything.
    """
    console = Console()
    if any(each >= seconds for each in boundary_at or ()):
        raise SettingsError(
            f"--boundary-at: expected seconds before the traffic's end at {seconds:g}, seen "
            f"{max(boundary_at or ()):g}"
        )
    marketplace = importlib.resources.files("simulator") / "marketplace.toml"
    with clean_stop(console, 130) as stack:
        _empty(data_dir)
        schema_path = data_dir.resolve() / "policy.toml"
        schema_path.write_bytes(marketplace.read_bytes())
        ports = free_ports(5)
        settings = load_settings(
            {
                "schema_path": schema_path,
                "data_dir": data_dir.resolve(),
                "bootstrap_servers": f"127.0.0.1:{ports[0]}",
                "serve_port": ports[1],
                "serve_admin_port": ports[2],
                "join_admin_port": ports[3],
                "learn_admin_port": ports[4],
                "simulate_admin_port": 0,
            }
        )
        play = Play(seconds, rate, seed, drift_at, join_workers, boundary_at or ())
        figures = _run(stack, console, settings, play, picture_file)
    console.print(show(figures))
    if json_file is not None:
        text = json.dumps(without_nan(figures), indent=2)
        replace_file(json_file, f"{text}\n".encode())
    wrong = [name for name in ("groups_lost", "groups_applied_twice") if figures[name]]
    wrong += [name for name in ("conserved", "reconciled") if not figures[name]]
    if wrong:
        raise GradeError(f"expected books that balance, seen otherwise in {', '.join(wrong)}")


def _run(
    stack: ExitStack,
    console: Console,
    settings: Settings,
    play: Play,
    picture_file: Path | None,
) -> dict[str, Any]:
    """Start everything, watch the traffic to its end, stop, reconcile; the summary's figures."""
    connection = Connection(settings.bootstrap_servers, client_id="grade-demo")
    topics = Topics(settings.topic_prefix)
    schema = load_schema(settings.schema_path)
    with console.status("starting Kafka") as status:
        local = LocalBroker(
            settings.data_dir / "kafka",
            int(settings.bootstrap_servers.rpartition(":")[2]),
            progress=status.update,
        )
        stack.callback(local.down)
        local.up()
        create(connection, topic_plan(settings, schema))
        status.update("starting server, join and learner")
        plans = process_plans(settings, play.join_workers)
        running = stack.enter_context(Supervisor(plans, settings.data_dir / "grade.log"))
        ports = admin_ports(plans)
        wait_until_healthy(ports, running)
    console.print(
        f"policy server at 127.0.0.1:{settings.serve_port}, "
        f"health at http://127.0.0.1:{settings.serve_admin_port}/health, log: {running.log_path}"
    )
    status_file = settings.data_dir / "traffic.json"
    boundaries = PlannedBoundaries(connection, settings, play.boundaries_at)
    with LoopWatch(connection, topics, ports, status_file) as watch:
        traffic = stack.enter_context(_traffic(settings, play, status_file, running.log_path))
        _watch(console, boundaries, watch, running, traffic, picture_file)
        swaps = ask(settings.serve_admin_port, "/swaps") or []
        latency = watch.latency
    if traffic.returncode != 0:
        raise GradeError(
            f"simulate: expected exit code 0, seen {traffic.returncode}; "
            f"the log tells more: {running.log_path}"
        )
    running.stop()
    with console.status("recomputing every group and version from the topics") as status:
        report = reconcile(
            read_generations(connection, topics, schema.policy),
            TopicContent(connection, topics),
            tell=status.update,
        )
    for difference in [*report.unconserved, *report.differences][:10]:
        console.print(f"DIFFERENCE: {difference}", markup=False)
    played = json.loads((settings.data_dir / "played.json").read_text(encoding="utf-8"))
    for begun, told in enumerate(["the demo's own settings", *boundaries.begun], start=1):
        console.print(f"generation {begun}: {told}", soft_wrap=True, markup=False, highlight=False)
    figures = summarise(report, latency, swaps, played, np.load(settings.data_dir / "calls.npy"))
    figures["uplift"] = _uplift(console, connection, topics, schema)
    return figures | {"generations": boundaries.generation}


def _uplift(
    console: Console, connection: Connection, topics: Topics, schema: Schema
) -> dict[str, Any] | None:
    """Policy against holdout, over everything that was played; None if that is too little."""
    comparable = comparable_digests(schema, read_generations(connection, topics, schema.policy))
    requests, _ = observed(read_groups(connection, topics), schema, comparable, Span())
    try:
        found = looks(requests)
    except TooLittleData as little:
        console.print(f"no uplift: {little}", soft_wrap=True, markup=False, highlight=False)
        return None
    console.print(sentence(found[-1], LEVEL), soft_wrap=True, markup=False, highlight=False)
    return as_json(found, LEVEL)


@contextmanager
def _traffic(
    settings: Settings, play: Play, status_file: Path, log_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The simulated marketplace as a process; stopped at the end if it still runs."""
    command = [
        *(sys.executable, "-m", "cli.main", "simulate"),
        *("--target", f"127.0.0.1:{settings.serve_port}"),
        *("--rate", str(play.rate), "--duration-s", str(play.seconds), "--seed", str(play.seed)),
        *("--status-file", str(status_file)),
        *("--json", str(settings.data_dir / "played.json")),
        *("--calls", str(settings.data_dir / "calls.npy")),
    ]
    if play.drift_at is not None:
        command += ["--drift-at-s", str(play.drift_at)]
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment_of(settings)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(20)


def _watch(
    console: Console,
    boundaries: PlannedBoundaries,
    watch: LoopWatch,
    running: Supervisor,
    traffic: subprocess.Popen[bytes],
    picture_file: Path | None,
) -> None:
    """Show the loop until the traffic has ended and everything it caused is learned and served."""
    objectives = [objective.name for objective in boundaries.schema.objectives]
    deadline = decided_at = math.inf
    line_at = 0.0
    busy_at = time.monotonic()
    with Live(console=console, auto_refresh=False, transient=picture_file is None) as live:
        while True:
            running.keep_running()
            picture = watch.refresh()
            told = boundaries.keep(picture.traffic.get("elapsed_s", 0.0))
            if told is not None:
                console.print(told, soft_wrap=True, markup=False, highlight=False)
            title = (
                f"GRADE · policy {boundaries.schema.policy} · generation {boundaries.generation}"
            )
            if console.is_terminal:
                live.update(draw(picture, objectives, title), refresh=True)
            elif time.monotonic() >= line_at:
                line_at = time.monotonic() + LINE_EVERY_S
                console.print(_line(picture), soft_wrap=True, highlight=False)
            time.sleep(REFRESH_S)  # the view must not take the machine from what it shows
            if traffic.poll() is None:
                continue
            if deadline == math.inf:
                deadline = time.monotonic() + SETTLE_LIMIT_S
                # By then the frontier has passed the last record: every fate is known.
                schema = boundaries.schema
                decided_at = time.monotonic() + (schema.window_ms + schema.early_ms) / 1000
            if picture.unread > IDLE_UNREAD or picture.open_groups or watch.latency.waiting:
                busy_at = time.monotonic()
            if time.monotonic() > min(deadline, max(busy_at, decided_at) + QUIET_S):
                break
    if picture_file is not None:
        recorder = Console(record=True, width=100, file=io.StringIO())
        recorder.print(draw(picture, objectives, title))
        svg = recorder.export_svg(title="make demo")
        # A picture in a README must not fetch fonts from elsewhere.
        svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
        try:
            replace_file(picture_file, svg.encode())
        except FileNotWritten as error:  # the run is worth more than its picture
            console.print(f"--picture: {error}", style="yellow", markup=False)


def _line(picture: Picture) -> str:
    traffic = picture.traffic
    curve = [point["recovered"] for point in traffic.get("curve", [])]
    known = [value for value in curve if value is not None]
    return (
        f"{traffic.get('elapsed_s', 0.0):5.0f} s  requests {traffic.get('decisions', 0):,}  "
        f"groups {picture.groups:,}  versions {picture.versions_published:,} published "
        f"{picture.versions_served:,} served  "
        f"close → served p99 {number(picture.close_to_served_p99_ms, ' ms')}  "
        f"recovered {number(known[-1] if known else None, digits=2)}"
    )


def _empty(folder: Path) -> None:
    """Remove what an earlier demo left; a folder that no demo made is left alone.

    Raises:
        GradeError: the folder has something else in it.
    """
    mark = folder / ".grade-demo"
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise GradeError(
            f"--data-dir: expected an empty folder or one of an earlier demo, seen {folder}"
        )
    if (folder / "kafka").exists():
        LocalBroker(folder / "kafka").down()  # left running by a demo that was killed
    shutil.rmtree(folder, ignore_errors=True)
    with writing(folder, 0):
        folder.mkdir(parents=True)
        mark.touch()
