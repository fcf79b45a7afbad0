"""A TCP proxy on the loopback interface that cuts its connections after given numbers of bytes to the server."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

__all__ = ["CuttingProxy"]

_BLOCK_BYTES = 64 << 10


class CuttingProxy:
    """Forwards to host:port. The n-th connection is cut once `limits[n]` bytes went to the server, later ones never.

    `forwarded` are the bytes of each connection that reached the server's side.
    """

    def __init__(self, target: str, limits: list[int]) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._limits = list(limits)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self.forwarded: list[int] = []
        self.cuts = 0
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (self._listener, *self._open):
            _shut(each)
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._open += [near, far]
            number = len(self.forwarded)
            self.forwarded.append(0)
            threading.Thread(target=self._up, args=(near, far, number), daemon=True).start()
            threading.Thread(target=_down, args=(far, near), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket, number: int) -> None:
        limit = self._limits[number] if number < len(self._limits) else None
        with contextlib.suppress(OSError):
            while True:
                left = _BLOCK_BYTES if limit is None else min(_BLOCK_BYTES, limit - self.forwarded[number])
                if left == 0:
                    self.cuts += 1
                    break
                block = near.recv(left)
                if not block:
                    break
                far.sendall(block)
                self.forwarded[number] += len(block)
        _shut(near)
        _shut(far)


def _down(far: socket.socket, near: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := far.recv(_BLOCK_BYTES):
            near.sendall(block)
    _shut(near)


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
