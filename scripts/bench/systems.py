"""The systems that are measured, behind one shape: two trees, `start`, `settle`, `stop`.

`near` is where the work is done, `far` where it must show. A system that runs once (tar, rsync, unison) works in `settle`;
one that stays (pleach, syncthing, lsyncd, the loop) works from `start` on, and `settle` waits for it. All go over the
loopback; tar, rsync, lsyncd, the loop and unison through our own sshd with a connection that is already open.
"""
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.request

import machine
import trees
from nodes import Node, free_port

PACKAGES = ["rsync", "lsyncd", "unison", "syncthing", "openssh-server", "openssh-client", "inotify-tools"]
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


class Missing(Exception):
    """A program of this system is not installed."""


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            raise Missing(f"{os.path.basename(program)} is not installed")


class Ssh:
    """An sshd of our own with fresh keys, and a client that keeps one connection open."""

    def __init__(self, folder):
        need(SSHD, "ssh", "ssh-keygen")
        self.folder, port = folder, free_port()
        os.makedirs(folder, mode=0o700)
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/{key}"], check=True)
        shutil.copy(f"{folder}/user.pub", f"{folder}/authorized")
        trees.write(f"{folder}/sshd_config", (
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
            f"PidFile {folder}/sshd.pid\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n"
            "MaxSessions 100\nMaxStartups 100\n").encode())
        trees.write(f"{folder}/config", (
            f"Host bench\n HostName 127.0.0.1\n Port {port}\n IdentityFile {folder}/user\n IdentitiesOnly yes\n"
            f" UserKnownHostsFile {folder}/known\n StrictHostKeyChecking no\n LogLevel ERROR\n ControlMaster auto\n"
            f" ControlPath {folder}/master\n ControlPersist 600\n Compression no\n").encode())
        self.client = ["ssh", "-F", f"{folder}/config"]
        self.daemon = machine.start([SSHD, "-D", "-e", "-f", f"{folder}/sshd_config"], f"{folder}/log")
        machine.until(lambda: subprocess.run([*self.client, "bench", "true"], capture_output=True).returncode == 0, 0.05)

    def stop(self):
        subprocess.run([*self.client, "-O", "exit", "bench"], capture_output=True)
        machine.stop(self.daemon)


class System:
    """Two empty trees and what is the same for all."""

    name, both_ways, needs_ssh = "", False, True

    def __init__(self, lab):
        self.lab, self.dir, self.process = lab, lab.fresh(self.name), None
        self.near, self.far, self.log = (os.path.join(self.dir, part) for part in ("near", "far", "log"))
        os.mkdir(self.near)
        os.mkdir(self.far)
        self.ssh = lab.ssh() if self.needs_ssh else None

    def start(self, live=False):
        """Begins; `live`: it must notice changes by itself from now on."""

    def settle(self, entries=None):
        """Returns once the far side has everything; of a tree of so many entries, where that is known."""
        machine.until(lambda: trees.entries(self.near) == trees.entries(self.far), 0.2)

    def durable(self):
        """Returns once what the far side has is on its disk."""
        machine.sync_disk(self.far)

    def pids(self):
        return []

    def stop(self):
        machine.stop(self.process)
        self.process = None

    def run(self, command, **more):
        with open(self.log, "ab") as out:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **more)
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: {tail(self.log)}")


def tail(log):
    """The last lines of a log, for a message."""
    with open(log, errors="replace") as f:
        return " / ".join(line.strip() for line in f.readlines()[-4:])


class Pleach(System):
    """Two agents, the near one dials; with a relay between them the line can be cut."""

    name, both_ways, needs_ssh = "pleach", True, False

    def __init__(self, lab, receivers=1, relay=None):
        self.lab, self.dir = lab, lab.fresh(self.name)
        self.nodes = [Node(lab.exe, self.dir, name) for name in ("near", "far", "far2", "far3")[:receivers + 1]]
        near, self.fars = self.nodes[0], [node.tree for node in self.nodes[1:]]
        self.near, self.far, self.relay = near.tree, self.fars[0], None
        for node in self.nodes[1:]:
            port = node.port
            if relay:
                self.relay = relay(port)
                node.port = self.relay.port
            near.knows(node, True)
            node.port = port
            node.knows(near, False)

    def start(self, live=False):
        for node in self.nodes:
            node.agent = subprocess.Popen([node.exe, "agent", "--config", node.config], start_new_session=True,
                                          stderr=open(os.path.join(node.dir, "log"), "a"))
        for node in self.nodes:
            self.answers(node)

    @staticmethod
    def answers(node):
        def ready():
            if node.agent.poll() is not None:
                raise RuntimeError(f"the agent {node.name} ended: {tail(os.path.join(node.dir, 'log'))}")
            return node.status() is not None
        machine.until(ready, 0.01)

    def status(self, at=0):
        node = self.nodes[at]
        if (row := node.status()) is None:
            raise RuntimeError(f"the agent {node.name} does not answer: {tail(os.path.join(node.dir, 'log'))}")
        return row

    def settle(self, entries=None):
        if entries is not None:
            machine.until(lambda: all(self.status(i + 1)["entries"] >= entries for i in range(len(self.fars))), 0.05)
            machine.until(lambda: all(self.status(i)["in_sync"] for i in range(len(self.nodes))), 0.05)
        else:
            self.durable()

    def durable(self):
        for node in (*self.nodes, self.nodes[0]):
            node.run("wait", "--timeout", "3600")

    def pids(self):
        return [node.agent.pid for node in self.nodes if node.agent]

    def stop(self):
        for node in self.nodes:
            machine.stop(node.agent, 60)
            node.agent = None
        if self.relay:
            self.relay.cut()


class Tar(System):
    """`tar | ssh | tar`: what the machine can carry; it knows nothing of what is there already."""

    name = "tar"

    def __init__(self, lab):
        need("tar")
        super().__init__(lab)

    def settle(self, entries=None):
        line = f"tar -C {shlex.quote(self.near)} -cf - . | {shlex.join(self.ssh.client)} bench tar -C {shlex.quote(self.far)} -xf -"
        self.run(["bash", "-o", "pipefail", "-c", line])


class Rsync(System):
    """rsync -a --delete over ssh, once for each `settle`; to several receivers at the same time."""

    name = "rsync"

    def __init__(self, lab, receivers=1):
        need("rsync")
        super().__init__(lab)
        self.fars = [self.far] + [f"{self.far}{i}" for i in range(2, receivers + 1)]
        for far in self.fars[1:]:
            os.mkdir(far)

    def settle(self, entries=None):
        failed = []

        def push(far):
            try:
                self.run(["rsync", "-a", "--delete", "-e", shlex.join(self.ssh.client), f"{self.near}/", f"bench:{far}/"])
            except RuntimeError as error:
                failed.append(error)
        runs = [threading.Thread(target=push, args=(far,)) for far in self.fars]
        for thread in runs:
            thread.start()
        for thread in runs:
            thread.join()
        if failed:
            raise failed[0]


class Unison(System):
    """Unison over ssh: once for each `settle`, or repeating, by its watcher where there is one, else every second."""

    name, both_ways = "unison", True

    def __init__(self, lab):
        need("unison")
        super().__init__(lab)
        archives = [os.path.join(self.dir, f"archive-{side}") for side in ("near", "far")]
        for folder in archives:
            os.mkdir(folder)
        self.environment = {**os.environ, "UNISON": archives[0]}
        self.command = ["unison", self.near, f"ssh://bench/{self.far}", "-sshargs", f"-F {self.ssh.folder}/config",
                        "-servercmd", f"env UNISON={archives[1]} unison", "-ui", "text", "-batch", "-times", "-owner", "-group",
                        "-confirmbigdel=false", "-logfile", os.path.join(self.dir, "unison.log"), "-silent"]

    def start(self, live=False):
        if live:
            self.run(self.command, env=self.environment)
            how = "watch" if shutil.which("unison-fsmonitor") else "1"
            self.process = machine.start([*self.command, "-repeat", how], self.log, env=self.environment)
            time.sleep(2)

    def settle(self, entries=None):
        if self.process:
            super().settle(entries)
        else:
            self.run(self.command, env=self.environment)


class Loop(Rsync):
    """What people write themselves: inotifywait, and rsync of just the paths that changed, over the open connection."""

    name = "inotify+rsync"

    def __init__(self, lab):
        need("inotifywait")
        super().__init__(lab)

    def start(self, live=False):
        super().settle()
        ready = os.path.join(self.dir, "ready")
        self.process = machine.start([sys.executable, os.path.join(os.path.dirname(__file__), "loop"), self.near, f"bench:{self.far}/",
                                      shlex.join(self.ssh.client), ready], self.log)
        machine.until(lambda: os.path.exists(ready), 0.01)

    def settle(self, entries=None):
        System.settle(self, entries)


class Lsyncd(System):
    """lsyncd with rsync over the open connection and no delay."""

    name = "lsyncd"

    def __init__(self, lab):
        need("lsyncd", "rsync")
        super().__init__(lab)

    def start(self, live=False):
        shell = os.path.join(self.dir, "shell")
        trees.write(shell, f"#!/bin/sh\nexec {shlex.join(self.ssh.client)} \"$@\"\n".encode())
        os.chmod(shell, 0o755)
        self.process = start_lsyncd(self, f"bench:{self.far}", f'rsh = "{shell}"')


def start_lsyncd(system, target, rsync):
    """lsyncd with no delay, once it is done with what was there."""
    config = os.path.join(system.dir, "lsyncd.lua")
    trees.write(config, (
        f'settings {{ nodaemon = true, logfile = "{system.log}", inotifyMode = "CloseWrite or Modify" }}\n'
        f'sync {{ default.rsync, source = "{system.near}", target = "{target}", delay = 0,\n'
        f'  rsync = {{ archive = true, {rsync} }} }}\n').encode())
    trees.write(system.log, b"")
    process = machine.start(["lsyncd", config], system.log)

    def ready():
        with open(system.log) as f:
            return "of initial startup" in (text := f.read()) or "finished" in text
    machine.until(ready, 0.05)
    return process


class Syncthing(System):
    """Two syncthings that know only each other; the shortest delay that its watcher takes, no rescans."""

    name, both_ways, needs_ssh = "syncthing", True, False

    def __init__(self, lab):
        need("syncthing")
        super().__init__(lab)
        self.sides = [{"tree": tree, "home": os.path.join(self.dir, f"home{i}"), "gui": free_port(), "port": free_port()}
                      for i, tree in enumerate((self.near, self.far))]
        for side in self.sides:
            self.run(["syncthing", "generate", "--home", side["home"], "--no-default-folder", "--skip-port-probing"])
            with open(os.path.join(side["home"], "config.xml")) as f:
                side["id"] = re.search(r'<device id="([A-Z0-9-]+)"', f.read()).group(1)
        for side in self.sides:
            trees.write(os.path.join(side["home"], "config.xml"), self.config(side).encode())

    def config(self, side):
        devices = "".join(f'<device id="{other["id"]}" name="{other["port"]}" compression="never">'
                          f'<address>tcp://127.0.0.1:{other["port"]}</address></device>' for other in self.sides)
        members = "".join(f'<device id="{other["id"]}"></device>' for other in self.sides)
        return (f'<configuration version="35"><folder id="bench" path="{side["tree"]}" type="sendreceive" rescanIntervalS="0" '
                f'fsWatcherEnabled="true" fsWatcherDelayS="1" ignorePerms="false">{members}</folder>{devices}'
                f'<gui enabled="true" tls="false"><address>127.0.0.1:{side["gui"]}</address><apikey>bench</apikey></gui>'
                f'<options><listenAddress>tcp://127.0.0.1:{side["port"]}</listenAddress>'
                '<globalAnnounceEnabled>false</globalAnnounceEnabled><localAnnounceEnabled>false</localAnnounceEnabled>'
                '<relaysEnabled>false</relaysEnabled><natEnabled>false</natEnabled><startBrowser>false</startBrowser>'
                '<autoUpgradeIntervalH>0</autoUpgradeIntervalH><urAccepted>-1</urAccepted>'
                '<crashReportingEnabled>false</crashReportingEnabled><reconnectionIntervalS>1</reconnectionIntervalS>'
                '</options></configuration>')

    def start(self, live=False):
        for i, side in enumerate(self.sides):
            side["process"] = machine.start(["syncthing", "serve", "--home", side["home"], "--no-browser", "--no-restart",
                                             "--no-upgrade"], f"{self.log}{i}", env={**os.environ, "HOME": side["home"]})
        if live:
            machine.until(lambda: all(self.ask(side).get("state") == "idle" for side in self.sides), 0.1)
            machine.until(lambda: self.connected(), 0.1)
            time.sleep(2)

    def get(self, side, what):
        asked = urllib.request.Request(f"http://127.0.0.1:{side['gui']}/rest/{what}", headers={"X-API-Key": "bench"})
        with contextlib.suppress(OSError), urllib.request.urlopen(asked, timeout=30) as answer:
            return json.load(answer)
        if side["process"].poll() is not None:
            raise RuntimeError(f"syncthing ended: {tail(self.log + '0')}")
        return {}

    def ask(self, side):
        return self.get(side, "db/status?folder=bench")

    def connected(self):
        rows = self.get(self.sides[0], "system/connections").get("connections", {})
        return rows.get(self.sides[1]["id"], {}).get("connected", False)

    def settle(self, entries=None):
        if entries is None:
            return super().settle()

        def done():
            held = [self.ask(side) for side in self.sides]
            return all(row.get("state") == "idle" and row.get("needTotalItems") == 0 and
                       row.get("localFiles", 0) + row.get("localDirectories", 0) >= entries for row in held)
        machine.until(done, 0.1)

    def pids(self):
        return [side["process"].pid for side in self.sides if side.get("process")]

    def stop(self):
        for side in self.sides:
            machine.stop(side.pop("process", None))


def versions(exe):
    """Each program's version, or None."""
    asked = {"pleach": (exe, "--version"), "rsync": ("rsync", "--version"), "lsyncd": ("lsyncd", "--version"), "tar": ("tar", "--version"),
             "unison": ("unison", "-version"), "syncthing": ("syncthing", "--version"), "ssh": ("ssh", "-V"),
             "inotifywait": ("inotifywait", "--help"), "unison-fsmonitor": ("unison-fsmonitor", "--version")}
    return {name: machine.first_line(*command) for name, command in asked.items()}
