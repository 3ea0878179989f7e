#!/usr/bin/env python3
"""Restores a snapshot from the log alone, without immich-backup and without a manifest.

Usage: restore-from-log.py REPOSITORY TARGET [SNAPSHOT]
SNAPSHOT is the beginning of its id; the newest one, if it is not given. Needs: zstd.
"""
import hashlib, json, os, re, shutil, subprocess, sys
from urllib.parse import unquote_to_bytes


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def read(name):
    """An entry: its SHA-256 as stored, its header, its facts."""
    entry = os.path.join(repository, "log", name)
    lines = subprocess.run(["zstd", "-dc", entry], check=True, stdout=subprocess.PIPE).stdout
    header, *facts = (json.loads(line) for line in lines.decode().splitlines())
    return sha256(entry), header, facts


repository, target = sys.argv[1:3]
wanted = sys.argv[3] if len(sys.argv) > 3 else ""
# By epoch and number. After a repair the log goes on in a new epoch: 9000000001.ndjson.zst opens the first, 9000000001-0000000042.ndjson.zst is its entry 42.
entries, openings = {}, {}
NAME = re.compile(r"(?P<number>[0-9]{10})(-(?P<rest>.*))?\.ndjson\.zst", re.DOTALL)


def named(name):
    """What an object is by its name: epoch and number, `None` as number for what opens an epoch; `None` for what is no name of the log."""
    found = NAME.fullmatch(name)
    if not found:
        return None
    number, rest = int(found["number"]), found["rest"]
    if number <= 9_000_000_000:
        return 0, number
    epoch = number - 9_000_000_000
    if rest is None or rest.startswith("opening"):
        return epoch, None
    digits = rest.partition("-")[0]
    return (epoch, int(digits)) if re.fullmatch("[0-9]{10}", digits) else None


for name in sorted(os.listdir(os.path.join(repository, "log"))):
    if (what := named(name)) is None:
        continue
    if what[1] is None:
        openings.setdefault(what[0], []).append(name)
    else:
        entries.setdefault(what, []).append(name)
# Epochs follow one another without a gap. The log is found from its end: what opens the newest epoch names the entry before it, and what does not count any more.
epoch = 0
while epoch + 1 in openings or any(of == epoch + 1 for of, _ in entries):
    epoch += 1
path, rejected = [], set()
while epoch:
    (name,) = [name for name in openings[epoch] if f"log/{name}" not in rejected]
    _, header, facts = read(name)
    assert facts[0]["fact"] == "epoch" and header["epoch"] == epoch > facts[0]["base_epoch"], f"{name} opens no epoch"
    # It has no say in its own epoch, or in later ones.
    keys = (one["key"] for one in facts[0].get("rejected", []))
    rejected |= {key for key in keys if (what := named(key.removeprefix("log/"))) and what[0] < epoch}
    path.insert(0, (header["sequence"], epoch, name))
    epoch = facts[0]["base_epoch"]

standing, snapshot, found, moved = {}, None, None, {}
previous, number, epoch = sha256(os.path.join(repository, "format.json")), 0, 0
while True:
    number += 1
    if path and path[0][0] == number:
        _, epoch, name = path.pop(0)
    else:
        names = [name for name in entries.get((epoch, number), []) if f"log/{name}" not in rejected]
        if not names and not path and not any(of == epoch and later > number for of, later in entries):
            break
        assert len(names) == 1, f"{len(names)} entries of number {number}"
        name = names[0]
    digest, header, facts = read(name)
    assert header["previous_sha256"] == previous, f"{name} does not follow the entry before it"
    assert (header.get("epoch", 0), header["sequence"]) == (epoch, number), f"{name} is another entry"
    previous = digest
    for fact in facts:
        where = fact.get("external"), fact.get("root"), fact.get("path")
        if fact["fact"] == "stored":
            standing[where] = fact
        elif fact["fact"] == "archived":
            standing.pop(where, None)
        elif fact["fact"] == "relocated":
            moved[fact["key"], fact["sha256"]] = fact["to"]
        elif fact["fact"] == "snapshot" and header["run"].startswith(wanted):
            snapshot, found = header["run"], dict(standing)
assert found is not None, "there is no such snapshot"

for (external, root, text), fact in found.items():
    # A path keeps its bytes but for a few, which are written as %XX. Keys stand as they are.
    path = unquote_to_bytes(text)
    assert not any(part in (b"", b".", b"..") for part in path.split(b"/")), path
    place = f"{root}/" if root else f"external/{external}/" if external else ""
    key = fact.get("key", f"{place or 'library/'}{text}")
    while (key, fact["sha256"]) in moved:
        key = moved[key, fact["sha256"]]
    copy = os.path.join(os.fsencode(target), os.fsencode(place), path)
    os.makedirs(os.path.dirname(copy), exist_ok=True)
    shutil.copyfile(os.path.join(repository, key), copy)
    assert sha256(copy) == fact["sha256"], path
    os.chmod(copy, fact["mode"] & 0o777)
    os.utime(copy, ns=(fact["mtime_ns"], fact["mtime_ns"]))
print(f"restored {len(found)} files of snapshot {snapshot}")
