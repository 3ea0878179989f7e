#!/usr/bin/env python3
"""Restores a snapshot from the log alone, without immich-backup and without a manifest.

Usage: restore-from-log.py REPOSITORY TARGET [SNAPSHOT]
SNAPSHOT is the beginning of its id; the newest one, if it is not given. Needs: zstd.
"""
import hashlib, json, os, shutil, subprocess, sys
from urllib.parse import unquote_to_bytes


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


repository, target = sys.argv[1:3]
wanted = sys.argv[3] if len(sys.argv) > 3 else ""
standing, snapshot, found = {}, None, None
previous = sha256(os.path.join(repository, "format.json"))
for name in sorted(os.listdir(os.path.join(repository, "log"))):
    entry = os.path.join(repository, "log", name)
    lines = subprocess.run(["zstd", "-dc", entry], check=True, stdout=subprocess.PIPE).stdout
    header, *facts = (json.loads(line) for line in lines.decode().splitlines())
    assert header["previous_sha256"] == previous, f"{name} does not follow the entry before it"
    previous = sha256(entry)
    for fact in facts:
        where = fact.get("external"), fact.get("path")
        if fact["fact"] == "stored":
            standing[where] = fact
        elif fact["fact"] == "archived":
            standing.pop(where, None)
        elif fact["fact"] == "snapshot" and header["run"].startswith(wanted):
            snapshot, found = header["run"], dict(standing)
assert found is not None, "there is no such snapshot"

for (external, text), fact in found.items():
    # A path keeps its bytes but for a few, which are written as %XX. Keys stand as they are.
    path = unquote_to_bytes(text)
    assert not any(part in (b"", b".", b"..") for part in path.split(b"/")), path
    place = f"external/{external}/" if external else ""
    key = fact.get("key", f"{place or 'library/'}{text}")
    copy = os.path.join(os.fsencode(target), os.fsencode(place), path)
    os.makedirs(os.path.dirname(copy), exist_ok=True)
    shutil.copyfile(os.path.join(repository, key), copy)
    assert sha256(copy) == fact["sha256"], path
    os.chmod(copy, fact["mode"] & 0o777)
    os.utime(copy, ns=(fact["mtime_ns"], fact["mtime_ns"]))
print(f"restored {len(found)} files of snapshot {snapshot}")
