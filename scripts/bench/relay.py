"""A line that can be cut: a relay for TCP on loopback, which counts what it carries."""
import contextlib
import socket
import threading
import time


class Relay:
    """Takes connections on a port of its own and carries them to another."""

    def __init__(self, to):
        self.to, self.bytes, self.opened, self.first, self.lines = to, 0, False, None, []
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()
        self.open()

    def open(self):
        """Lets the line through from now on."""
        self.opened, self.first = True, None

    def cut(self):
        """Breaks what is connected and lets nothing through."""
        with self.lock:
            self.opened = False
            lines, self.lines = self.lines, []
        for line in lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def accept(self):
        while True:
            near, _ = self.listener.accept()
            with self.lock:
                if not self.opened:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self.to))
                except OSError:
                    near.close()
                    continue
                self.first = self.first or time.perf_counter()
                self.lines += [near, far]
            for source, target in ((near, far), (far, near)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self.carry, args=(source, target), daemon=True).start()

    def carry(self, source, target):
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 18):
                target.sendall(piece)
                with self.lock:
                    self.bytes += len(piece)
        for line in (source, target):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
