"""The jars of the local broker: from Maven Central through jgo, held to committed checksums.

`broker_jars.lock` names every jar by its Maven coordinate and sha256. Only those go on the class
path. After a change of `ENDPOINT`, `python -m stream.broker_jars` resolves the lock anew.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from policy.durable_file import writing
from policy.errors import BrokerError

if TYPE_CHECKING:
    from jgo.maven import MavenContext

KAFKA_VERSION = "4.3.1"
# slf4j-simple, not -nop: when the broker does not start, its last log lines tell why.
ENDPOINT = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
LOCK = Path(__file__).with_suffix(".lock")

Progress = Callable[[str], None]

_DOWNLOADS_AT_ONCE = 4


class Jar(NamedTuple):
    """One jar that the broker needs."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.artifact}-{self.version}.jar"

    @property
    def path(self) -> Path:
        """Path within a Maven repository."""
        return Path(*self.group.split("."), self.artifact, self.version, self.name)


def read_lock(path: Path = LOCK) -> list[Jar]:
    """The jars of a lock file, one `group:artifact:version sha256` a line."""
    jars = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            coordinate, sha256 = line.split()
            group, artifact, version = coordinate.split(":")
            jars.append(Jar(group, artifact, version, sha256))
    return jars


def fetch_jars(
    jars: Sequence[Jar],
    *,
    progress: Progress,
    repository: Path | None = None,
    sources: dict[str, str] | None = None,
) -> list[Path]:
    """Paths of the jars, downloading those that are missing or broken.

    A download becomes visible only whole and checked, so one that was interrupted leaves nothing.

    Args:
        jars: what is needed.
        progress: is told sentences about what takes time.
        repository: local Maven repository; None takes the user's own (`~/.m2/repository`).
        sources: name and address of Maven repositories to download from; None takes Maven Central.

    Raises:
        BrokerError: a jar could not be downloaded, or is not the one that was locked.
    """
    if repository is None:
        repository = _user_repository()
    missing = [jar for jar in jars if not _is_genuine(repository / jar.path, jar)]
    if missing:
        progress(f"downloading Apache Kafka {KAFKA_VERSION}: {len(missing)} jars, once")
        with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
            running = [pool.submit(_download, jar, repository, sources) for jar in missing]
            try:
                for count, finished in enumerate(as_completed(running), start=1):
                    name = finished.result()
                    if count % 10 == 0 or count == len(missing):
                        progress(f"downloaded {count} of {len(missing)} jars ({name})")
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [repository / jar.path for jar in jars]


def resolve_lock() -> str:
    """Contents of a lock file for `ENDPOINT` as Maven Central resolves it today."""
    import jgo

    resolved = jgo.build(ENDPOINT, update=True).lockfile
    if resolved is None:
        raise BrokerError(f"{ENDPOINT}: expected jgo to write a lock, seen none")
    dependencies = resolved.dependencies
    lines = sorted(f"{d.groupId}:{d.artifactId}:{d.version} {d.sha256}" for d in dependencies)
    return "\n".join([f"# {ENDPOINT}, by `python -m stream.broker_jars`", *lines, ""])


def _user_repository() -> Path:
    from jgo.config import GlobalSettings

    return Path(GlobalSettings.load().repo_cache)


def _download(jar: Jar, repository: Path, sources: dict[str, str] | None) -> str:
    target = repository / jar.path
    with writing(target, 0):
        target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the replacement below stays within one file system.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as temporary:
        context = _context(Path(temporary), sources)
        artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
        try:
            found = Path(artifact.resolve())
        except Exception as error:  # jgo lets through whatever its HTTP library raises
            raise BrokerError(
                f"{jar.name}: expected to be downloaded from Maven Central, seen: {error}; "
                "check the network and start again"
            ) from error
        seen = _sha256(found)
        if seen != jar.sha256:
            raise BrokerError(
                f"{jar.name}: expected sha256 {jar.sha256}, seen {seen} in what was downloaded; "
                "the download broke off or is not the genuine file; start again"
            )
        os.replace(found, target)
    return jar.name


def _context(cache: Path, sources: dict[str, str] | None) -> "MavenContext":
    from jgo.maven import MavenContext

    return MavenContext(repo_cache=cache, local_repos=[], remote_repos=sources, timeout=30)


def _is_genuine(path: Path, jar: Jar) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return _sha256(path) == jar.sha256
    return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    LOCK.write_text(resolve_lock(), encoding="utf-8")
    sys.stdout.write(f"{LOCK}: {len(read_lock())} jars\n")
