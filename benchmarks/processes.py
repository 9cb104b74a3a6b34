"""What the benchmarks need to know of processes on this machine."""

import os
import socket
import subprocess
from pathlib import Path


def free_port() -> int:
    """A port on loopback that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def cpu_s(pid: int) -> float:
    """CPU seconds, user's and system's, that a running process has used, to a hundredth."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.is_file():
        fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    # macOS has no /proc: [[hours:]minutes:]seconds.
    told = subprocess.run(
        ["ps", "-o", "time=", "-p", str(pid)], capture_output=True, text=True, check=True
    )
    total = 0.0
    for part in told.stdout.strip().split(":"):
        total = total * 60 + float(part)
    return total
