"""A TCP proxy that can be cut off or slowed down, as networks are; for tests of outages."""

import contextlib
import re
import socket
import threading
import time

BLOCK = 16_384  # bytes


def without_conditions(data):
    """Rename the headers that state conditions, so that an S3 server behind a proxy knows of none."""
    return re.sub(rb"(?i)\bif-(?=(none-)?match:)", b"no-", data)


class Proxy:
    """Passes connections to `target` (HOST, PORT) on; `port` stays the same while it is down and up again.

    `rewrite` may change the bytes on their way to the target.
    """

    def __init__(self, target, rewrite=lambda data: data, *, host="127.0.0.1", port=0):
        self._target, self._rewrite, self._lock = target, rewrite, threading.Lock()
        self._open, self._listener, self._host, self.port = set(), None, host, port
        self.bytes_per_second, self.latency_s = None, 0.0
        self.num_connections = 0
        self.up()

    def up(self):
        """Take connections."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._host, self.port))
        listener.listen(128)
        self.port, self._listener = listener.getsockname()[1], listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def down(self):
        """Refuse connections, and cut those there are."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def slow(self, bytes_per_second=1_000_000, latency_s=0.5):
        """Pass everything on late and slowly; `slow(None, 0)` ends that."""
        self.bytes_per_second, self.latency_s = bytes_per_second, latency_s

    def _accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client, contextlib.suppress(OSError), socket.create_connection(self._target, timeout=20) as server:
            server.settimeout(None)
            with self._lock:
                self._open |= {client, server}
                self.num_connections += 1
            try:
                back = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
                back.start()
                self._pass_on(client, server, self._rewrite)
                back.join()
            finally:
                with self._lock:
                    self._open -= {client, server}

    def _pass_on(self, source, target, change=lambda data: data):
        fresh = True
        with contextlib.suppress(OSError):
            while data := source.recv(BLOCK):
                if fresh and self.latency_s:
                    time.sleep(self.latency_s / 2)  # each way half
                fresh = len(data) < BLOCK  # the next block is an answer or a request of its own
                if self.bytes_per_second:
                    time.sleep(len(data) / self.bytes_per_second)
                target.sendall(change(data))
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
