"""One port for several server processes (SO_REUSEPORT): one reserves it alone, then shares it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from grade.v1.refused_pb2 import Reason

from policy.errors import SettingsError


@contextmanager
def shared_port(host: str, port: int) -> Iterator[int]:
    """Reserve a port for the processes of one server until the end of the block.

    The port is taken as if it were not to be shared, which fails if anybody else has it, even
    somebody who would share. Only then it is opened to further processes of this user that ask to
    share. The reservation itself does not listen, so it gets no connections.

    Args:
        host: address to listen on.
        port: the port; 0 takes a free one.

    Gives:
        the port.

    Raises:
        SettingsError: ports cannot be shared on this platform, or this address is not free.
    """
    share = getattr(socket, "SO_REUSEPORT", None)
    if share is None:
        raise SettingsError(
            "serve_workers: expected 1, as this platform cannot share a port between processes "
            "(no SO_REUSEPORT), seen more",
            Reason.REASON_UNAVAILABLE,
        )
    with _reserved(host, port) as reservation:
        # Whoever comes now and does not share is refused; so is whoever tries to take it alone.
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        reservation.setsockopt(socket.SOL_SOCKET, share, 1)
        yield int(reservation.getsockname()[1])


def _reserved(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        reservation = socket.socket(family, kind, protocol)
    except OSError as error:
        raise address_taken(host, port, str(error.strerror or error)) from None
    try:
        # Connections that a former server has closed may linger on the port for a minute.
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(address)
    except OSError as error:
        reservation.close()
        raise address_taken(host, port, str(error.strerror or error)) from None
    return reservation


def address_of(host: str, port: int) -> str:
    """The address as gRPC writes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_taken(host: str, port: int, why: str) -> SettingsError:
    """The error that an address cannot be listened on.

    Args:
        host: the address.
        port: the port.
        why: what the operating system said.
    """
    return SettingsError(
        "serve_host and serve_port: expected an address that is free, seen "
        f"{address_of(host, port)}, which cannot be listened on ({why}); choose another port, or "
        "0 for any",
        Reason.REASON_UNAVAILABLE,
    )
