"""What the examples have beside the nodes: rsync daemons with modules, users and secrets, and nginx."""
import http.client
import os
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from nodes import free_port  # noqa: E402


def need(program, package):
    if subprocess.run(["sh", "-c", f"command -v {program}"], stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(f"this example needs {program}: apt-get install {package}")


def until(what, limit=30.0):
    """Waits until `what()` holds; the seconds that it took."""
    begun = time.perf_counter()
    while not what():
        if time.perf_counter() - begun > limit:
            raise SystemExit(f"it did not come to pass within {limit:g} s")
        time.sleep(0.002)
    return time.perf_counter() - begun


class Process:
    """A program that lives as long as the example."""

    def __init__(self, line, port):
        self.process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        until(lambda: answers(port))

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()


def answers(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


class RsyncDaemon:
    """An rsync daemon with one module, as the backup and web servers of such set-ups have it."""

    def __init__(self, base, module, user):
        self.dir, self.module, self.user, self.port = os.path.join(base, f"rsyncd-{module}"), module, user, free_port()
        self.tree = os.path.join(self.dir, module)
        self.password = os.path.join(self.dir, "password")
        os.makedirs(self.tree)
        self._private("secrets", f"{user}:{user}-secret\n")
        self._private("password", f"{user}-secret\n")
        own = "uid = root\ngid = root\n" if os.geteuid() == 0 else ""
        with open(os.path.join(self.dir, "rsyncd.conf"), "w") as f:
            f.write(f"port = {self.port}\naddress = 127.0.0.1\nuse chroot = no\nmax connections = 10\npid file = {self.dir}/pid\n"
                    f"[{module}]\npath = {self.tree}\n{own}read only = no\nmunge symlinks = no\nlist = false\nauth users = {user}\n"
                    f"secrets file = {self.dir}/secrets\n")
        self.process = None

    def _private(self, name, text):
        with open(os.path.join(self.dir, name), "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
            f.write(text)

    def start(self):
        line = ["rsync", "--daemon", "--no-detach", f"--config={self.dir}/rsyncd.conf"]
        self.process = Process(line, self.port)

    def stop(self):
        if self.process:
            self.process.stop()
            self.process = None
            # A daemon that was ended leaves it behind, and would not start again.
            if os.path.exists(f"{self.dir}/pid"):
                os.remove(f"{self.dir}/pid")

    def peer(self, more=""):
        """The lines for the config of the node that pushes."""
        return (f'\n[[peer]]\nname = "{self.module}"\naddress = "rsync://{self.user}@127.0.0.1:{self.port}/{self.module}"\n'
                f'password_file = "{self.password}"\ntrees = ["www"]\n{more}')


class Nginx:
    """A web server over a directory, or one that shares requests out to others, and keeps their answers (`caches`)."""

    def __init__(self, base, name, root=None, backends=(), caches=False):
        self.port, self.dir = free_port(), os.path.join(base, f"nginx-{name}")
        os.makedirs(self.dir)
        if root:
            inner = f"server {{ listen 127.0.0.1:{self.port}; root {root}; }}"
        else:
            servers = "".join(f"server 127.0.0.1:{b.port}; " for b in backends)
            # As a CDN does: an answer is kept until somebody asks for it to be fetched anew.
            cache = f"proxy_cache_path {self.dir}/kept keys_zone=kept:1m; " if caches else ""
            kept = "proxy_cache kept; proxy_cache_valid 200 10m; proxy_cache_bypass $http_x_purge; proxy_hide_header X-From; " if caches else ""
            seen = "$upstream_cache_status" if caches else "$upstream_addr"
            inner = (f"{cache}upstream web {{ {servers}}} server {{ listen 127.0.0.1:{self.port}; "
                     f"location / {{ proxy_pass http://web; {kept}add_header X-From {seen} always; }} }}")
        user = "user root;" if os.geteuid() == 0 else ""
        temp = "".join(f"{kind}_temp_path {self.dir}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        with open(f"{self.dir}/nginx.conf", "w") as f:
            f.write(f"daemon off; {user} worker_processes 1; pid {self.dir}/pid; error_log {self.dir}/error.log; "
                    f"events {{}} http {{ access_log off; {temp} {inner} }}")
        self.process = Process(["nginx", "-p", self.dir, "-c", f"{self.dir}/nginx.conf", "-e", f"{self.dir}/error.log"], self.port)

    def get(self, path):
        """Status, body, and which server it came from, or whether it was kept."""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            c.request("GET", path)
            answer = c.getresponse()
            return answer.status, answer.read(), answer.getheader("X-From")
        finally:
            c.close()

    def stop(self):
        self.process.stop()
