"""Trees made from a seed, and what they hold: the same bytes for every system of a run."""
import hashlib
import os
import random

# What systems keep of their own at the top of a tree.
OWN = {".pleach", ".stfolder", ".stversions", ".stignore"}


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def small_files(top, count, seed, mean=11_700, per_folder=100):
    """`count` files in folders of a hundred, sizes spread from 0 to some 40 KiB around a mean, contents random."""
    random_, made = random.Random(seed), 0
    pool = random_.randbytes(4 << 20)
    for i in range(count):
        if i % per_folder == 0:
            folder = os.path.join(top, f"p{i // (per_folder * 20):03}", f"d{i // per_folder:05}")
            os.makedirs(folder)
        size = min(int(random_.expovariate(1 / mean)), 1 << 20)
        at = random_.randrange(len(pool) - size)
        write(os.path.join(folder, f"file-{i:06}"), b"%016x" % random_.getrandbits(64) + pool[at:at + size])
        made += size + 16
    return made


def large_file(path, size, seed):
    """A file of random bytes that no compression makes smaller."""
    random_ = random.Random(seed)
    with open(path, "wb") as f:
        while size:
            piece = min(size, 8 << 20)
            f.write(random_.randbytes(piece))
            size -= piece


def many_entries(top, entries, seed, per_folder=100):
    """`entries` files and folders with the same times wherever they are made; nine of ten files are empty, for the disk's
    sake, the others have 1 to 200 bytes."""
    random_, made, moment = random.Random(seed), 0, 1_700_000_000_000_000_000
    while made < entries:
        folder = os.path.join(top, f"p{made // 20_000:03}", f"d{made:07}")
        made += 1 + (not os.path.isdir(os.path.dirname(folder)))
        os.makedirs(folder)
        for i in range(min(per_folder, entries - made)):
            path = os.path.join(folder, f"f{i:02}")
            write(path, b"" if random_.random() < 0.9 else random_.randbytes(random_.randrange(1, 200)))
            os.utime(path, ns=(moment, moment + made))
            made += 1
    for folder, _, _ in os.walk(top, topdown=False):
        os.utime(folder, ns=(moment, moment))


def entries(top):
    """Every path below a tree with its kind and size, without what systems keep of their own."""
    held, stack = {}, [""]
    while stack:
        at = stack.pop()
        with os.scandir(os.path.join(top, at)) as rows:
            for row in rows:
                path = os.path.join(at, row.name)
                if path in OWN:
                    continue
                if row.is_dir(follow_symlinks=False):
                    held[path] = ("d", 0)
                    stack.append(path)
                else:
                    held[path] = ("f", row.stat(follow_symlinks=False).st_size)
    return held


def content(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "blake2b").digest()


def difference(near, far, sample=None):
    """What differs between two trees, or None. Contents are compared too: all, or those of `sample` in a tree so large."""
    ours, theirs = entries(near), entries(far)
    for path in ours.keys() | theirs.keys():
        if ours.get(path) != theirs.get(path):
            return f"{path}: {ours.get(path)} here, {theirs.get(path)} there"
    for path in ours if sample is None else sample:
        if ours[path][0] == "f" and content(os.path.join(near, path)) != content(os.path.join(far, path)):
            return f"{path}: contents differ"
    return None
