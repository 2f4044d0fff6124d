"""The systems that push to a real rsync daemon, which asks for a password: pleach, the loop and lsyncd."""
import os
import subprocess
import sys

import machine
import systems
import trees
from nodes import Node, free_port


class Daemon:
    """An rsync daemon of our own with one module, whose log tells each push."""

    def __init__(self, folder, tree):
        systems.need("rsync")
        self.secret, self.log = os.path.join(folder, "password"), os.path.join(folder, "rsyncd.log")
        port, config, secrets = free_port(), os.path.join(folder, "rsyncd.conf"), os.path.join(folder, "secrets")
        for path, text in ((self.secret, "very secret\n"), (secrets, "rsync_backup:very secret\n")):
            trees.write(path, text.encode())
            os.chmod(path, 0o600)
        who = "uid = 0\ngid = 0\n" if os.geteuid() == 0 else ""
        trees.write(config, (
            f"port = {port}\naddress = 127.0.0.1\npid file = {folder}/rsyncd.pid\nlog file = {self.log}\nuse chroot = no\n{who}"
            f"munge symlinks = no\n[backup]\npath = {tree}\nread only = no\nauth users = rsync_backup\nsecrets file = {secrets}\n").encode())
        self.address = f"rsync://rsync_backup@127.0.0.1:{port}/backup"
        self.process = machine.start(["rsync", "--daemon", "--no-detach", "--config", config], os.path.join(folder, "rsyncd.err"))
        asked = ["rsync", f"--password-file={self.secret}", f"{self.address}/"]
        machine.until(lambda: subprocess.run(asked, capture_output=True).returncode == 0, 0.05)

    def pushes(self):
        """How often somebody has pushed so far."""
        with open(self.log, errors="replace") as f:
            return sum(" rsync to backup/" in line for line in f)


class Pusher(systems.System):
    """A tree that is pushed; the far side is the module's directory."""

    needs_ssh = False

    def __init__(self, lab):
        super().__init__(lab)
        self.daemon = Daemon(self.dir, self.far)

    def stop(self):
        super().stop()
        machine.stop(self.daemon.process)


class Pleach(Pusher):
    """One agent with the daemon as its peer."""

    name = "pleach"

    def __init__(self, lab):
        super().__init__(lab)
        self.node = Node(lab.exe, self.dir, "node")
        self.near = self.node.tree
        with open(self.node.config, "a") as f:
            f.write(f'\n[[peer]]\nname = "backup"\naddress = "{self.daemon.address}"\npassword_file = "{self.daemon.secret}"\n')

    def start(self, live=False):
        self.node.start()

    def settle(self, entries=None):
        self.node.run("wait", "--timeout", "600")

    def pids(self):
        return [self.node.agent.pid] if self.node.agent else []

    def stop(self):
        self.node.stop()
        super().stop()


class Loop(Pusher):
    """The loop that people write themselves, tuned, to the daemon."""

    name = "inotify+rsync"

    def __init__(self, lab):
        systems.need("inotifywait", "rsync")
        super().__init__(lab)

    def start(self, live=False):
        self.run(["rsync", "-a", f"--password-file={self.daemon.secret}", f"{self.near}/", f"{self.daemon.address}/"])
        ready, loop = os.path.join(self.dir, "ready"), os.path.join(os.path.dirname(__file__), "loop")
        self.process = machine.start([sys.executable, loop, self.near, f"{self.daemon.address}/", "", ready], self.log,
                                     env={**os.environ, "RSYNC_PASSWORD": "very secret"})
        machine.until(lambda: os.path.exists(ready), 0.01)


class Lsyncd(Pusher):
    """lsyncd with no delay, to the daemon."""

    name = "lsyncd"

    def __init__(self, lab):
        systems.need("lsyncd", "rsync")
        super().__init__(lab)

    def start(self, live=False):
        self.process = systems.start_lsyncd(self, f"{self.daemon.address}/", f'password_file = "{self.daemon.secret}"')


CLASSES = {c.name: c for c in (Pleach, Loop, Lsyncd)}
