"""Cutting a server's connections, once it owes nobody an answer.

A gRPC server that is stopped answers the calls which arrive at that very moment with a bare CANCELLED, as if their callers had
given up, and no client repeats those. A connection that breaks is UNAVAILABLE to all of its callers, which clients do
repeat. So the connections are cut first, below gRPC.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cut"]

_DESCRIPTORS = Path("/proc/self/fd")


def cut(addresses: list[str]) -> int:
    """Break every connection to these addresses of this process; returns how many were cut.

    An address is host:port, of which the port counts, or unix:path. What the kernel was given to send is still sent.
    """
    ports = {int(a.rpartition(":")[2]) for a in addresses if a and not a.startswith("unix:")}
    paths = {os.path.abspath(a.removeprefix("unix:")) for a in addresses if a.startswith("unix:")}
    count = 0
    for own in _sockets():
        with own:
            name = own.getsockname()
            here = name[1] in ports if own.family in (socket.AF_INET, socket.AF_INET6) else _path(name) in paths
            listens = own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if here and not listens:
                with contextlib.suppress(OSError):  # it is gone already
                    own.shutdown(socket.SHUT_RDWR)
                    count += 1
    return count


def _path(name: str | bytes) -> str:
    return os.path.abspath(os.fsdecode(name)) if name else ""


def _sockets() -> Iterator[socket.socket]:
    """A descriptor of our own for each internet or unix stream socket of this process; none where there is no /proc."""
    if not _DESCRIPTORS.is_dir():
        return
    for entry in os.listdir(_DESCRIPTORS):
        try:
            descriptor = os.dup(int(entry))
        except OSError:  # closed since it was listed
            continue
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            continue
        found = socket.socket(fileno=descriptor)
        if found.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) and found.type == socket.SOCK_STREAM:
            yield found
        else:
            found.close()
