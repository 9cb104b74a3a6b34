"""Ports for processes that are about to start."""

import socket

from cli.system import FIRST_PORT, LAST_PORT, free_ports


def test_ports_are_free_all_different_and_not_found_again() -> None:
    first, second = free_ports(3), free_ports(3)
    assert len({*first, *second}) == 6
    for port in (*first, *second):
        assert FIRST_PORT <= port < LAST_PORT
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
    assert free_ports(0) == []


def test_a_port_that_is_listened_on_is_passed_over() -> None:
    (before,) = free_ports(1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", before + 2))
        listener.listen()
        assert before + 2 not in free_ports(3)
