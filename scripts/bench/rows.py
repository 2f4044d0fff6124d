"""The rows: what each kind of work is, how it is timed, and that the trees are equal afterwards.

A row is a function of the lab and the name of a system; it makes both trees anew, does the work, records what it measured and
raises where the sides differ. What prepares (making trees, starting what stays) is outside of what is timed unless said so.
"""
import contextlib
import multiprocessing
import os
import random
import shlex
import subprocess
import time

import machine
import pushes
import systems
import trees
from relay import Relay

SEED = 20_240_601
CLASSES = {c.name: c for c in (systems.Pleach, systems.Tar, systems.Rsync, systems.Unison, systems.Syncthing, systems.Loop, systems.Lsyncd)}
SIZES = {
    "small": {"files": 3_000, "large": (4, 32 << 20), "edits": 10, "burst": 1_000, "delta": 64 << 20, "rename": (500, 100_000),
              "overtake": 256 << 20, "restart-200k": 20_000, "restart-1m": 50_000, "reconnect": 100, "idle_s": 5, "fan": (1_000, 32 << 20), "budget_s": 20},
    "full": {"files": 60_000, "large": (4, 512 << 20), "edits": 200, "burst": 10_000, "delta": 1 << 30, "rename": (5_000, 100_000),
             "overtake": 2 << 30, "restart-200k": 200_000, "restart-1m": 1_000_000, "reconnect": 1_000, "idle_s": 60, "fan": (10_000, 256 << 20),
             "budget_s": 120},
}


class Differ(Exception):
    """The two sides are not equal afterwards."""


@contextlib.contextmanager
def running(system):
    """A system that is stopped at the end, whatever happens."""
    try:
        yield system
    finally:
        system.stop()


def verify(lab, system, far=None, sample=None):
    """Both sides hold the same; a system that stays may still be at it, as long as the row's limit allows."""
    far = far or system.far
    while what := trees.difference(system.near, far, sample):
        if not (system.pids() or system.process):
            raise Differ(what)
        lab.note(f"{system.name}: not equal yet: {what}")
        time.sleep(1)


class Timed:
    """The stopwatch of one piece of work: seconds, bytes on the wire, processor time of a system's own processes."""

    def __init__(self, system):
        self.system, self.wire = system, machine.wire_bytes()
        self.processor = machine.processor_seconds(system.pids())
        self.begun = time.perf_counter()

    def seconds(self):
        return time.perf_counter() - self.begun

    def record(self, lab, what, seconds):
        lab.record(what, "s", seconds)
        if lab.alone:
            lab.record(f"{what}, on the wire", "MB", (machine.wire_bytes() - self.wire) / 1e6)
        if self.system.pids():
            lab.record(f"{what}, processor", "cpu s", machine.processor_seconds(self.system.pids()) - self.processor)


def all_there(folder, sizes):
    """A condition: every path has its size. Looks at each only once it was there; nothing is looked at twice."""
    left = sorted(sizes.items(), reverse=True)

    def ready():
        while left:
            try:
                if os.stat(os.path.join(folder, left[-1][0])).st_size != left[-1][1]:
                    return False
            except OSError:
                return False
            left.pop()
        return True
    return ready


def initial(lab, name, fill, **more):
    """A first sync, from the start of the system to all being there; and until it is on disk."""
    with running(lab.make(name, **more)) as system:
        fill(system.near)
        lab.level()
        count, timed = len(trees.entries(system.near)), Timed(system)
        system.start()
        system.settle(count)
        seconds = timed.seconds()
        timed.record(lab, "all there", seconds)
        system.durable()
        lab.record("all there and on disk", "s", timed.seconds())
        for far in getattr(system, "fars", [system.far]):
            verify(lab, system, far)


def initial_small(lab, name):
    initial(lab, name, lambda near: trees.small_files(near, lab.sizes["files"], SEED))


def initial_large(lab, name):
    count, size = lab.sizes["large"]
    initial(lab, name, lambda near: [trees.large_file(os.path.join(near, f"large-{i}"), size, SEED + i) for i in range(count)])


def fan_out(lab, name):
    """One publisher, three receivers."""
    def fill(near):
        files, size = lab.sizes["fan"]
        trees.small_files(near, files, SEED)
        trees.large_file(os.path.join(near, "large"), size, SEED)
    initial(lab, name, fill, receivers=3)


def latency(lab, name):
    """One small change on a quiet pair, visible on the other side; the four kinds, both ways where the system can."""
    with running(lab.make(name)) as system:
        trees.small_files(system.near, 500, SEED)
        system.start(live=True)
        system.settle()
        ways = [("there", system.near, system.far)] + [("back", system.far, system.near)] * system.both_ways
        pauses = random.Random(SEED)
        for way, near, far in ways:
            ends = time.monotonic() + lab.sizes["budget_s"]
            for i in range(lab.sizes["edits"]):
                if time.monotonic() > ends:
                    lab.note(f"{name}: {i} samples {way} in the time that was given")
                    break
                for kind, milliseconds in four_changes(near, far, f"{way}-{i}", pauses):
                    lab.record(f"{kind}, {way}", "ms", milliseconds)
        verify(lab, system)


def four_changes(near, far, name, pauses):
    """Creates, changes in place, renames and deletes a file of 4 KiB; yields what each took."""
    here, there, moved = os.path.join(near, name), os.path.join(far, name), name + "-moved"

    def holds(data):
        with contextlib.suppress(OSError), open(there, "rb") as f:
            return f.read() == data
        return False
    # Of another size: rsync and unison miss a change within the second of the last one where the size is the same.
    old, new = os.urandom(4096), os.urandom(4097)
    steps = [("create", lambda: trees.write(here, old), lambda: holds(old)),
             ("modify", lambda: trees.write(here, new), lambda: holds(new)),
             ("rename", lambda: os.rename(here, os.path.join(near, moved)),
              lambda: os.path.exists(os.path.join(far, moved)) and not os.path.exists(there)),
             ("delete", lambda: os.remove(os.path.join(near, moved)), lambda: not os.path.exists(os.path.join(far, moved)))]
    for kind, act, ready in steps:
        # Uneven pauses, so that nothing that works by a clock of its own is met at the same point each time.
        time.sleep(pauses.uniform(0.03, 0.09))
        begun = time.perf_counter()
        act()
        machine.until(ready, 0.0002)
        yield kind, (time.perf_counter() - begun) * 1000


def burst(lab, name):
    """Many files at once: from the last write to all being there."""
    with running(lab.make(name)) as system:
        trees.write(os.path.join(system.near, "first"), b"first")
        system.start(live=True)
        if system.pids() or system.process:
            system.settle()
        lab.level()
        timed = Timed(system)
        lab.record("after the last write", "s", write_burst(lab, system))
        timed.record(lab, "from the first write", timed.seconds())
        verify(lab, system)


def overtake(lab, name):
    """A file of 4 KiB, made while a large one is on its way: until it is visible."""
    with running(lab.make(name)) as system:
        trees.write(os.path.join(system.near, "first"), b"first")
        system.start(live=True)
        system.settle()
        size = lab.sizes["overtake"]
        aside, far = os.path.join(system.dir, "aside"), os.path.join(system.far, "big")
        trees.large_file(aside, size, SEED)
        lab.level()
        pauses, timed, made = random.Random(SEED), Timed(system), 0
        os.replace(aside, os.path.join(system.near, "big"))

        def there():
            with contextlib.suppress(OSError):
                return os.stat(far).st_size == size
            return False
        time.sleep(0.2)
        while not there() and timed.seconds() < lab.sizes["budget_s"]:
            data, path = os.urandom(4096), f"small-{made}"
            begun = time.perf_counter()
            trees.write(os.path.join(system.near, path), data)
            machine.until(all_there(system.far, {path: 4096}), 0.0005)
            lab.record("a small one meanwhile", "ms", (time.perf_counter() - begun) * 1000)
            made += 1
            time.sleep(pauses.uniform(0.02, 0.06))
        machine.until(there, 0.005)
        timed.record(lab, "the large one", timed.seconds())
        lab.note(f"{name}: {made} small files while the large one travelled")
        verify(lab, system)


def push_latency(lab, name):
    """One change of a file in a tree of a thousand, visible on the disk of an rsync daemon."""
    with running(lab.make(name, pushes.CLASSES)) as system:
        paths = [f"d{i % 20}/f{i}" for i in range(1_000)]
        for path in paths:
            os.makedirs(os.path.dirname(os.path.join(system.near, path)), exist_ok=True)
            trees.write(os.path.join(system.near, path), os.urandom(4096))
        system.start(live=True)
        system.settle()
        pauses, ends = random.Random(SEED), time.monotonic() + lab.sizes["budget_s"]
        for i in range(lab.sizes["edits"]):
            if time.monotonic() > ends:
                lab.note(f"{name}: {i} samples in the time that was given")
                break
            # Of another size: rsync misses a change within the second of the last one where the size is the same.
            data, there = os.urandom(4097 + i), os.path.join(system.far, paths[i])

            def holds():
                with contextlib.suppress(OSError), open(there, "rb") as f:
                    return f.read() == data
                return False
            time.sleep(pauses.uniform(0.2, 0.4))
            begun = time.perf_counter()
            trees.write(os.path.join(system.near, paths[i]), data)
            machine.until(holds, 0.0005)
            lab.record("visible there", "ms", (time.perf_counter() - begun) * 1000)
        verify(lab, system)


def push_burst(lab, name):
    """Many files at once to an rsync daemon: from the last write to all being there, and in how many pushes."""
    with running(lab.make(name, pushes.CLASSES)) as system:
        trees.write(os.path.join(system.near, "first"), b"first")
        system.start(live=True)
        system.settle()
        lab.level()
        before, seconds = system.daemon.pushes(), write_burst(lab, system)
        lab.record("after the last write", "s", seconds)
        verify(lab, system)
        lab.record("pushes", "", system.daemon.pushes() - before)


def write_burst(lab, system):
    """Writes many files; the seconds from the last write until all are there."""
    data, sizes = os.urandom(8192), {}
    for i in range(lab.sizes["burst"]):
        folder = f"burst-{i // 100:03}"
        if i % 100 == 0:
            os.mkdir(os.path.join(system.near, folder))
        path = f"{folder}/{i:05}"
        trees.write(os.path.join(system.near, path), data[i % 4096:i % 4096 + 4096])
        sizes[path] = 4096
    written = time.perf_counter()
    if system.pids() or system.process:
        machine.until(all_there(system.far, sizes), 0.002)
    else:
        system.settle()
    return time.perf_counter() - written


def delta(lab, name):
    """A large file: a byte changed in place, a mebibyte in front (a new file renamed over it), a mebibyte appended."""
    with running(lab.make(name)) as system:
        big, far = (os.path.join(tree, "big") for tree in (system.near, system.far))
        trees.large_file(big, lab.sizes["delta"], SEED)
        system.start()
        system.settle(1 if system.pids() else None)
        system.durable()
        extra = random.Random(SEED + 1).randbytes(1 << 20)

        def byte():
            with open(big, "r+b") as f:
                f.seek(lab.sizes["delta"] // 2)
                was = f.read(1)
                f.seek(-1, os.SEEK_CUR)
                f.write(bytes([was[0] ^ 1]))

        def front():
            os.replace(os.path.join(system.dir, "new"), big)

        def end():
            with open(big, "ab") as f:
                f.write(extra[::-1])

        def same():
            ours = os.stat(big)
            with contextlib.suppress(OSError):
                theirs = os.stat(far)
                return (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)
            return False
        for what, change in (("1 byte changed", byte), ("1 MiB in front", front), ("1 MiB at the end", end)):
            if change is front:
                with open(os.path.join(system.dir, "new"), "wb") as new, open(big, "rb") as old:
                    new.write(extra)
                    while piece := old.read(8 << 20):
                        new.write(piece)
            machine.level(False)
            timed = Timed(system)
            change()
            if system.pids():
                machine.until(same, 0.001)
            else:
                system.settle()
            timed.record(lab, what, timed.seconds())
            verify(lab, system)
            system.durable()


def rename(lab, name):
    """A whole directory gets another name."""
    with running(lab.make(name)) as system:
        files, mean = lab.sizes["rename"]
        trees.small_files(os.path.join(system.near, "set"), files, SEED, mean)
        count = len(trees.entries(system.near))
        system.start()
        system.settle(count)
        system.durable()
        lab.level()
        sizes = {path.replace("set/", "renamed/", 1): size for path, (kind, size) in trees.entries(system.near).items() if kind == "f"}
        old, ready = os.path.join(system.far, "set"), all_there(system.far, sizes)
        timed = Timed(system)
        os.rename(os.path.join(system.near, "set"), os.path.join(system.near, "renamed"))
        if system.pids() or system.process:
            machine.until(lambda: ready() and not os.path.exists(old), 0.002)
        else:
            system.settle()
        timed.record(lab, "renamed", timed.seconds())
        verify(lab, system)


def equal_pair(lab, name, count, **more):
    """A system whose two sides already hold the same `count` entries, made side by side."""
    system = lab.make(name, **more)
    makers = [multiprocessing.Process(target=trees.many_entries, args=(tree, count, SEED)) for tree in (system.near, system.far)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    return system


def paired(lab, count):
    """Two agents with such trees and a line that can be cut, kept for the rows that need them."""
    if count not in lab.kept:
        system = lab.kept[count] = equal_pair(lab, "pleach", count, relay=Relay)
        begun = time.perf_counter()
        system.start()
        system.durable()
        lab.note(f"pleach: {count} equal entries a side paired in {time.perf_counter() - begun:.1f} s")
    return lab.kept[count]


def walk(top):
    """Seconds of one walk that stats every entry, two `find` at a time over the folders at the top."""
    begun = time.perf_counter()
    tops = f"find {shlex.quote(top)} -mindepth 1 -maxdepth 1 -name 'p*' -print0"
    subprocess.run(f"{tops} | xargs -0 -P2 -I% find % -links 0", shell=True, check=True)
    return time.perf_counter() - begun


def restart(lab, count):
    """An agent starts again on a tree that did not change; against a walk of it. Caches warm, then dropped where allowed."""
    system = paired(lab, count)
    near = system.nodes[0]
    for caches in ("warm", "cold") if lab.drops else ("warm",):
        machine.stop(near.agent, 60)
        walk(system.near)
        for what in ("walk", "pleach"):
            machine.level(caches == "cold")
            if what == "walk":
                lab.record(f"caches {caches}", "s", walk(system.near), "walk")
                continue
            begun = time.perf_counter()
            near.agent = subprocess.Popen([near.exe, "agent", "--config", near.config], start_new_session=True,
                                          stderr=open(os.path.join(near.dir, "log"), "a"))
            system.answers(near)
            machine.until(lambda: system.status()["state"] == "watching", 0.02)
            lab.record(f"caches {caches}, until it watches", "s", time.perf_counter() - begun)
            machine.until(lambda: system.status()["in_sync"], 0.02)
            lab.record(f"caches {caches}", "s", time.perf_counter() - begun)
    near.run("wait", "--timeout", "3600")
    time.sleep(min(35, lab.sizes["idle_s"]))
    lab.record("memory after it", "MiB", machine.memory_mib(near.agent.pid))
    lab.record("memory at most", "MiB", machine.memory_mib(near.agent.pid, "VmHWM"))
    before, wire = machine.processor_seconds([near.agent.pid]), machine.wire_bytes()
    time.sleep(lab.sizes["idle_s"])
    lab.record("idle, of a core", "%", (machine.processor_seconds([near.agent.pid]) - before) * 100 / lab.sizes["idle_s"])
    if lab.alone:
        lab.record("idle, on the wire twice", "MB/h", (machine.wire_bytes() - wire) * 3600 / lab.sizes["idle_s"] / 1e6)
    if near.agent.poll() is not None:
        raise Differ("the agent ended")


def changes(top, count, seed, side):
    """Seven of ten edits, two new files, one deletion, on paths of this side's own; what each path then holds."""
    random_ = random.Random(seed)
    paths = sorted(p for p, (kind, _) in trees.entries(top).items() if kind == "f" and (hash_of(p) & 1) == side)
    held = {}
    for i, path in enumerate(random_.sample(paths, count)):
        if i % 10 == 9:
            os.remove(os.path.join(top, path))
            held[path] = None
            continue
        if i % 10 >= 7:
            path = f"{path}-new-{side}"
        held[path] = random_.randbytes(150)
        trees.write(os.path.join(top, path), held[path])
    return held


def hash_of(path):
    return int.from_bytes(path.encode()[-2:], "big") // 3


def shows(top, held):
    """A condition: these paths hold this; each is looked at until it does."""
    left = list(held.items())

    def ready():
        while left:
            path, data = os.path.join(top, left[-1][0]), left[-1][1]
            if data is None and os.path.exists(path):
                return False
            try:
                if data is not None and open(path, "rb").read() != data:
                    return False
            except OSError:
                return False
            left.pop()
        return True
    return ready


def reconnect(lab, name, count):
    """Both sides change while the line is cut; from the line's return until each shows what the other did."""
    if name == "pleach":
        system = paired(lab, count)
        system.relay.cut()
        machine.until(lambda: not system.status()["in_sync"], 0.05)
    else:
        system = equal_pair(lab, name, count)
        begun = time.perf_counter()
        system.settle()
        lab.note(f"{name}: {count} equal entries a side paired in {time.perf_counter() - begun:.1f} s")
    lab.tries = getattr(lab, "tries", 0) + 1
    held = [changes(tree, lab.sizes["reconnect"], SEED + lab.tries * 2 + side, side) for side, tree in enumerate((system.near, system.far))]
    if name != "pleach":
        timed = Timed(system)
        system.settle()
        timed.record(lab, "both show all", timed.seconds())
    else:
        seen = None
        while seen != (seen := [system.status(i)["seq"] for i in (0, 1)]):
            time.sleep(1.5)
        carried, timed = system.relay.bytes, Timed(system)
        system.relay.open()
        there, back = shows(system.far, held[0]), shows(system.near, held[1])
        machine.until(lambda: there() and back(), 0.005)
        seconds = timed.seconds()
        lab.record("both show all", "s", seconds)
        lab.record("both show all, after it is connected", "s", seconds - (system.relay.first - timed.begun))
        lab.record("both show all, on the wire", "MB", (system.relay.bytes - carried) / 1e6)
        lab.record("both show all, processor", "cpu s", machine.processor_seconds(system.pids()) - timed.processor)
        system.durable()
    changed = [path for side in held for path, data in side.items() if data is not None]
    verify(lab, system, sample=None if count <= 100_000 else changed)


# Row: what it does, with which systems, and the seconds that a system has for it (small, full).
FIRST = ["pleach", "tar", "rsync", "unison", "syncthing"]
ROWS = {
    "initial-small": (initial_small, FIRST, (180, 1200)),
    "initial-large": (initial_large, FIRST, (180, 900)),
    "latency": (latency, ["pleach", "inotify+rsync", "lsyncd", "unison", "syncthing"], (180, 900)),
    "burst": (burst, ["pleach", "inotify+rsync", "lsyncd", "rsync", "unison", "syncthing"], (120, 600)),
    "overtake": (overtake, ["pleach", "inotify+rsync", "lsyncd", "syncthing"], (180, 600)),
    "push-latency": (push_latency, list(pushes.CLASSES), (180, 600)),
    "push-burst": (push_burst, list(pushes.CLASSES), (180, 600)),
    "delta": (delta, ["pleach", "rsync", "unison"], (180, 900)),
    "rename": (rename, ["pleach", "rsync", "unison", "syncthing"], (120, 600)),
    "restart-200k": (lambda lab, _: restart(lab, lab.sizes["restart-200k"]), ["pleach"], (180, 1200)),
    "reconnect-200k": (lambda lab, name: reconnect(lab, name, lab.sizes["restart-200k"]), ["pleach", "unison"], (180, 1200)),
    "restart-1m": (lambda lab, _: restart(lab, lab.sizes["restart-1m"]), ["pleach"], (300, 3600)),
    "reconnect-1m": (lambda lab, name: reconnect(lab, name, lab.sizes["restart-1m"]), ["pleach", "unison"], (300, 3600)),
    "fan-out": (fan_out, ["pleach", "rsync"], (180, 900)),
}
