"""Nodes on this machine for the demo and the benchmarks: a directory, a config and an agent each."""
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def binary():
    """The release binary, built unless $PLEACH names one."""
    if os.environ.get("PLEACH"):
        return os.environ["PLEACH"]
    subprocess.run(["cargo", "build", "--release", "--locked", "-p", "pleach-agent"], cwd=TOP, check=True)
    return os.path.join(os.environ.get("CARGO_TARGET_DIR") or os.path.join(TOP, "target"), "release", "pleach")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def open_dir(path):
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


class Node:
    """One node with one tree `www`."""

    def __init__(self, exe, base, name, log="warn"):
        self.exe, self.name, self.dir = exe, name, os.path.join(base, name)
        self.tree, self.config, self.port = os.path.join(self.dir, "www"), os.path.join(self.dir, "pleach.toml"), free_port()
        self.agent = None
        os.makedirs(self.tree)
        with open(self.config, "w") as f:
            f.write(f'[node]\nname = "{name}"\nlisten = "127.0.0.1:{self.port}"\nstate = "{self.dir}/state"\nlog = "{log}"\n\n'
                    f'[[tree]]\nname = "www"\npath = "{self.tree}"\n')
        self.key = " ".join(self.run("key").split()[:2])

    def knows(self, other, dials):
        """Names another node as a peer, with its address where this one dials."""
        address = f'address = "pleach://127.0.0.1:{other.port}"\n' if dials else ""
        with open(self.config, "a") as f:
            f.write(f'\n[[peer]]\nname = "{other.name}"\n{address}key = "{other.key}"\n')

    def start(self):
        log = open(os.path.join(self.dir, "log"), "a")
        self.agent = subprocess.Popen([self.exe, "agent", "--config", self.config], stderr=log)
        while self.status() is None:
            if self.agent.poll() is not None:
                raise SystemExit(f"{self.name} ended: see {self.dir}/log")
            time.sleep(0.02)

    def status(self):
        """The tree's row of `pleach status --json`; none where no agent answers. Asked for without a process, which would weigh
        on what is measured where it is asked for again and again."""
        try:
            with socket.socket(socket.AF_UNIX) as to, open_dir(os.path.join(self.dir, "state")) as state:
                # Its path may be longer than a socket's can be.
                to.connect(f"/proc/self/fd/{state}/control.sock")
                to.sendall(b'{"pleach":1}\n{"do":"status"}\n')
                for line in to.makefile():
                    if row := json.loads(line).get("row"):
                        return row["trees"][0]
        except (FileNotFoundError, ConnectionError):
            pass
        return None

    def run(self, command, *args):
        """A command against this node; its standard output."""
        line = [self.exe, command, "--config", self.config, *args]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    def stop(self):
        if self.agent:
            self.agent.terminate()
            self.agent.wait()
            self.agent = None


class Nodes:
    """Nodes in a temporary folder, which goes with them."""

    def __init__(self, names, links, log="warn"):
        """`links`: pairs of names, the first dials the second."""
        self.base = tempfile.mkdtemp(prefix="pleach-")
        exe = binary()
        self.all = {name: Node(exe, self.base, name, log) for name in names}
        for near, far in links:
            self.all[near].knows(self.all[far], True)
            self.all[far].knows(self.all[near], False)

    def __getitem__(self, name):
        return self.all[name]

    def __enter__(self):
        return self

    def start(self):
        for node in self.all.values():
            node.start()

    def __exit__(self, *_):
        for node in self.all.values():
            node.stop()
        shutil.rmtree(self.base, ignore_errors=True)


def until_there(path, content, limit=30.0):
    """Seconds until a file has this content."""
    begun = time.perf_counter()
    while True:
        try:
            with open(path, "rb") as f:
                if f.read() == content:
                    return time.perf_counter() - begun
        except FileNotFoundError:
            pass
        time.sleep(0.0002)
        if time.perf_counter() - begun > limit:
            raise SystemExit(f"{path} did not come within {limit:g} s")
