"""Ctrl-C and SIGTERM at any moment: everything that was started is stopped, once and completely."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import typer
from rich.console import Console

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def clean_stop(console: Console, exit_code: int) -> Iterator[ExitStack]:
    """An exit stack that is unwound by the end of the block or by SIGINT or SIGTERM.

    While it unwinds further signals are ignored: a second Ctrl-C must not leave processes behind.

    Args:
        console: is told that everything stops.
        exit_code: of the command, if a signal ended it.
    """
    stack = ExitStack()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield stack
    except KeyboardInterrupt:
        with _ignored():
            console.print("\nstopping everything")
            stack.close()
            console.print("stopped")
        raise typer.Exit(exit_code) from None
    finally:
        with _ignored():
            stack.close()
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _ignored() -> Iterator[None]:
    before = {name: signal.signal(name, signal.SIG_IGN) for name in SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
