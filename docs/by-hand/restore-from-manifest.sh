#!/usr/bin/env bash
# Restores the newest snapshot that the newest copy of the manifest knows, without immich-backup.
# Usage: restore-from-manifest.sh REPOSITORY TARGET
# Needs: zstd, sqlite3, python3. Later snapshots are in the log alone: see restore-from-log.py, also after a repair of the log until there is a new copy.
set -euo pipefail
repository=$1 target=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

copies=("$repository"/manifests/*.db.zst)
# Since a repair, earlier copies may know what does not count any more. What opens an epoch has no number behind its own; those of the newest come last.
opened=$(basename -a "$repository"/log/9*.ndjson.zst 2>/dev/null | sed -nE 's/^(9[0-9]{9})(-opening-.*)?\.ndjson\.zst$/\1/p' | tail -n 1)
if [[ -n $opened && $(basename "${copies[-1]}") != "$opened"-* ]]; then
  echo "the log was repaired, and there is no copy of the manifest since: use restore-from-log.py" >&2
  exit 1
fi
zstd --quiet --decompress "${copies[-1]}" -o "$work/manifest.db"

# Keys and paths hold no tab and no newline: control characters are percent-encoded.
sqlite3 -readonly -separator $'\t' "$work/manifest.db" "
  SELECT object_key, file_path, mtime_ns, mode, checksum
    FROM versions JOIN (SELECT max(sequence) AS last FROM snapshots)
   WHERE since <= last AND (until IS NULL OR until > last)" >"$work/files"

python3 - "$repository" "$target" "$work/files" <<'PYTHON'
import hashlib, os, shutil, sys
from urllib.parse import unquote_to_bytes

repository, target, files = (os.fsencode(argument) for argument in sys.argv[1:])
for line in open(files, encoding="utf-8", newline="\n"):
    key, path, mtime_ns, mode, checksum = line.rstrip("\n").split("\t")
    # A path keeps its bytes but for a few, which are written as %XX. Keys stand as they are.
    path = unquote_to_bytes(path)
    assert not any(part in (b"", b".", b"..") for part in path.split(b"/")), path
    source, copy = os.path.join(repository, os.fsencode(key)), os.path.join(target, path)
    os.makedirs(os.path.dirname(copy), exist_ok=True)
    shutil.copyfile(source, copy)
    digest = hashlib.sha256()
    with open(copy, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    assert digest.hexdigest() == checksum, path
    os.chmod(copy, int(mode))
    os.utime(copy, ns=(int(mtime_ns), int(mtime_ns)))
PYTHON
echo "restored $(wc -l <"$work/files") files"
