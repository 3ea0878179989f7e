"""The files that are backed up: made, changed, and compared with what was restored."""

import hashlib
import os
import random
import uuid
from dataclasses import dataclass
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
# One file in a hundred is changed.
CHANGED_EVERY = 100


@dataclass(frozen=True)
class Workload:
    """How many files of which size; their bytes cannot be compressed, and no two files are alike."""

    name: str
    files: int
    # From, to.
    file_bytes: tuple[int, int]
    large: int = 0
    large_bytes: int = 0

    def title(self):
        low, high = self.file_bytes
        size = f"{low // KIB} KiB" if low == high else f"{low} to {high} bytes"
        large = f" and {self.large} of {self.large_bytes // MIB} MiB" if self.large else ""
        return f"{self.files:,} files of {size}{large}"


FULL = {
    "photos": Workload("photos", 5_000, (200 * KIB, 200 * KIB), 2, 512 * MIB),
    "tiny": Workload("tiny", 200_000, (200, 2_000)),
    "million": Workload("million", 1_000_000, (20, 200)),
}
QUICK = {
    "photos": Workload("photos", 120, (20 * KIB, 20 * KIB), 1, 40 * MIB),
    "tiny": Workload("tiny", 1_000, (200, 2_000)),
    "million": Workload("million", 2_000, (20, 200)),
}


class Library:
    """A folder with the layout of Immich's: two levels of 256 folders below each user."""

    def __init__(self, root: Path, workload: Workload):
        self.root, self.workload = root, workload
        self.source = random.Random(20260115)
        self.small: list[Path] = []
        # By path: SHA-256 of what is there.
        self.contents: dict[str, str] = {}
        self.bytes = 0

    def make(self):
        user = uuid.UUID(bytes=self.source.randbytes(16))
        top = self.root / "upload" / str(user)
        made = set()
        work = self.workload
        for number in range(work.files + work.large):
            name = str(uuid.UUID(bytes=self.source.randbytes(16)))
            folder = top / name[:2] / name[2:4]
            if folder not in made:
                folder.mkdir(parents=True, exist_ok=True)
                made.add(folder)
            if number < work.files:
                path = folder / f"{name}.jpg"
                self._write(path, self.source.randint(*work.file_bytes))
                self.small.append(path)
            else:
                self._write(folder / f"{name}.mov", work.large_bytes)

    def change(self):
        """Gives one small file in a hundred new bytes, as many as it had: always the same files, never the same bytes."""
        for path in self.small[::CHANGED_EVERY]:
            self.bytes -= path.stat().st_size
            self._write(path, path.stat().st_size)

    def _write(self, path, size):
        digest, left = hashlib.sha256(), size
        with open(path, "wb") as file:
            while left > 0:
                piece = self.source.randbytes(min(left, MIB))
                digest.update(piece)
                file.write(piece)
                left -= len(piece)
        self.contents[path.relative_to(self.root).as_posix()] = digest.hexdigest()
        self.bytes += size

    def read(self):
        """Brings all of it into the page cache."""
        for path in self.contents:
            with open(self.root / path, "rb", buffering=0) as file:
                while file.read(MIB):
                    pass

    def differences(self, restored: Path):
        """What is wrong with a restored tree, a line each; empty where every file is there with its bytes, and nothing else is."""
        wrong, met = [], 0
        for folder, _, names in os.walk(restored):
            for name in names:
                path = Path(folder, name)
                place = path.relative_to(restored).as_posix()
                expected = self.contents.get(place)
                # Immich looks for these files where its folders are; immich-backup makes those that are missing.
                if expected is None and name == ".immich":
                    continue
                met += 1
                if expected is None:
                    wrong.append(f"{place} was never there")
                elif sha256_of(path) != expected:
                    wrong.append(f"{place} has other bytes")
        if met < len(self.contents):
            wrong.append(f"{len(self.contents) - met} of {len(self.contents)} files are missing")
        return wrong


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(MIB):
            digest.update(piece)
    return digest.hexdigest()
