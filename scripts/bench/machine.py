"""The machine under a benchmark: what it is, its caches, its counters, its processes and its clock of last resort."""
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import time

HERTZ = os.sysconf("SC_CLK_TCK")


class TooLong(Exception):
    """A row ran into its time limit."""


@contextlib.contextmanager
def limit(seconds, what):
    """Ends what runs in it after so many seconds; for the main thread."""
    def ring(*_):
        raise TooLong(f"{what}: not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def until(ready, pause=0.001):
    """Waits for a condition; `limit` bounds it."""
    while not ready():
        time.sleep(pause)


def first_line(*command):
    """The first line that a command prints, or None where it is not installed."""
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return (done.stdout.strip() or "?").splitlines()[0].strip()


def describe(folder):
    """What a figure depends on."""
    with open("/proc/cpuinfo") as f:
        models = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
    with open("/proc/meminfo") as f:
        memory = int(f.readline().split()[1]) >> 20
    system = first_line("findmnt", "-n", "-o", "FSTYPE,SOURCE,OPTIONS", "-T", folder)
    with contextlib.suppress(OSError, StopIteration), open("/etc/os-release") as f:
        name = next(line for line in f if line.startswith("PRETTY_NAME=")).split("=", 1)[1].strip().strip('"')
        return {"cores": os.cpu_count(), "processor": models[0] if models else platform.machine(), "memory_gib": memory,
                "kernel": platform.release(), "system": name, "file_system": system}
    return {"cores": os.cpu_count(), "memory_gib": memory, "kernel": platform.release(), "file_system": system}


def load():
    """The load average of the last minute."""
    return os.getloadavg()[0]


def level(drop):
    """Brings caches and disk to the same state before each system: all written, and where allowed nothing cached."""
    os.sync()
    if drop:
        with contextlib.suppress(OSError), open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("3\n")


def sync_disk(folder):
    """Seconds until everything on this file system is on disk."""
    begun = time.perf_counter()
    subprocess.run(["sync", "-f", folder], check=True)
    return time.perf_counter() - begun


def wire_bytes():
    """What went over the loopback so far, both directions, with TCP and IP headers; the namespace is ours alone."""
    with open("/proc/net/dev") as f:
        for line in f:
            name, _, counters = line.partition(":")
            if name.strip() == "lo":
                return int(counters.split()[8])
    return 0


def processor_seconds(groups):
    """User and system time so far of all processes in these groups, named by their first process."""
    ticks = 0
    for pid in filter(str.isdigit, os.listdir("/proc")) if groups else ():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
            if int(fields[2]) in groups:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / HERTZ


def memory_mib(pid, what="VmRSS"):
    """Memory of a process: `VmRSS` now, `VmHWM` at most."""
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith(what + ":"):
                return int(line.split()[1]) / 1024
    return 0.0


def start(command, log, **more):
    """A process in a group of its own."""
    with open(log, "ab") as out:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, **more)


def stop(process, wait=20):
    """Ends a process and its group: first asked, then killed."""
    if process is None:
        return
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def alone(entry, arguments):
    """Runs this program again with network and process numbers of its own, so that the loopback's counters count only what
    we send and nothing outlives us. Without the right to, says so and goes on: bytes on the wire are then not counted."""
    if os.environ.get("BENCH_ALONE"):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return os.environ["BENCH_ALONE"] == "yes"
    unshare = ["unshare", "--net", "--pid", "--fork", "--kill-child=SIGTERM", "--mount-proc"]
    if os.geteuid() == 0 and shutil.which("ip") and subprocess.run([*unshare, "true"], capture_output=True).returncode == 0:
        os.environ["BENCH_ALONE"] = "yes"
        os.execvp(unshare[0], [*unshare, entry, *arguments])
    return False
