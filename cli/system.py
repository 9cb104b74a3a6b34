"""The processes of one system on this machine, and how to tell that they are ready."""

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cli.policy_option import settings_of_each_policy
from cli.settings import Settings, environment_of
from cli.supervisor import ProcessPlan, Supervisor
from monitor.watch import ask
from policy.errors import GradeError

START_TIMEOUT_S = 60.0


FIRST_PORT, LAST_PORT = 20_000, 32_000
"""Below those that a kernel gives to outgoing connections: none of them can take a port away before
a process listens on it."""

# Every process walks from a place of its own, so that two that look at once find different ports.
_next_ports = itertools.count(os.getpid() * 101)


def free_ports(count: int) -> list[int]:
    """Ports on loopback that were free a moment ago; this process never finds them again soon.

    Raises:
        GradeError: there are not so many.
    """
    found: list[int] = []
    for number in itertools.islice(_next_ports, LAST_PORT - FIRST_PORT):
        if len(found) == count:
            return found
        port = FIRST_PORT + number % (LAST_PORT - FIRST_PORT)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            found.append(port)
    raise GradeError(
        f"expected {count} free ports from {FIRST_PORT} to {LAST_PORT}, seen {len(found)}"
    )


def process_plans(settings: Settings, join_workers: int) -> list[ProcessPlan]:
    """The server, and for each policy its join workers and its learner; in the order of starting.

    Args:
        settings: what the processes read; join workers after the first, and join and learner of
            policies after the first, take free admin ports.
        join_workers: number of join workers of each policy, at least 1.
    """
    plans = [
        ProcessPlan("serve", ["serve"], environment_of(settings), settings.serve_admin_port),
    ]
    of_each = settings_of_each_policy(settings)
    for place, (policy, own) in enumerate(of_each.items()):
        environment = environment_of(own)
        if place == 0:
            joins = [settings.join_admin_port, *free_ports(join_workers - 1)]
            learn = settings.learn_admin_port
        else:
            *joins, learn = free_ports(join_workers + 1)
        of = f"-{policy}" if len(of_each) > 1 else ""
        for number, port in enumerate(joins, start=1):
            name = f"join{of}" if join_workers == 1 else f"join{of}-{number}"
            admin = {"GRADE_JOIN_ADMIN_PORT": str(port)}
            plans.append(ProcessPlan(name, ["join"], {**environment, **admin}, port))
        admin = {"GRADE_LEARN_ADMIN_PORT": str(learn)}
        plans.append(ProcessPlan(f"learn{of}", ["learn"], {**environment, **admin}, learn))
    return plans


def admin_ports(plans: Sequence[ProcessPlan]) -> dict[str, int]:
    """Admin port by name of the process."""
    return {plan.name: plan.admin_port for plan in plans if plan.admin_port is not None}


def wait_until_healthy(
    ports: Mapping[str, int], supervisor: Supervisor, timeout_s: float = START_TIMEOUT_S
) -> None:
    """Wait until every process answers /health with "ok".

    Raises:
        GradeError: naming the process that did not become healthy, with its last answer.
    """
    deadline = time.monotonic() + timeout_s
    for name, port in ports.items():
        answer: Any = None
        while answer is None or answer.get("status") != "ok":
            if time.monotonic() > deadline:
                raise GradeError(
                    f"{name}: expected to be healthy within {timeout_s:.0f} s, "
                    f"seen {answer or 'no answer'}; the log tells more: {supervisor.log_path}"
                )
            supervisor.keep_running()
            time.sleep(0.05)  # polling another process
            answer = ask(port, "/health")
