"""The programs: how each is asked for the same work.

Each is used as its manual says, with its defaults. Those that chunk, compress and encrypt do so: it is what their users get.
"""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from . import server as s3

# What is done, in this order, and how tables call it.
WORKS = {
    "first": "first backup",
    "again": "again, nothing changed",
    "changed": "again, 1 % changed",
    "verify": "verify",
    "read": "verify, reading",
    "restore": "restore",
}
PASSWORD = "bench"


@dataclass
class Place:
    """Where a turn of one program happens: all of it is gone after the turn."""

    library: Path
    work: Path
    server: s3.Server | None
    # Put before each command, to run it in a namespace.
    prefix: list[str]
    programs: dict[str, str]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def repository(self):
        return self.work / "repository"

    @property
    def target(self):
        return self.work / "restored"

    @property
    def caches(self):
        return self.work / "caches"


class Tool:
    """One program. A work that it has not is `None`."""

    name = ""
    # Where it can store: "directory", "s3".
    places = ("directory", "s3")

    def __init__(self, place: Place):
        self.place = place
        self.program = place.programs.get(self.name, self.name)
        self.environment = {}
        self.prepare()

    def prepare(self):
        """Makes ready what is not measured."""

    def commands(self):
        """The command of each work."""
        raise NotImplementedError

    def restored(self):
        """Where the restored library is."""
        return self.place.target

    def quietly(self, *command):
        environment = {**self.place.environment, **self.environment}
        done = subprocess.run([*self.place.prefix, *command], env=environment, cwd=self.place.work, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout


class ImmichBackup(Tool):
    name = "immich-backup"

    def prepare(self):
        place = self.place
        url = f"s3://{s3.BUCKET}/ours?endpoint={place.server.endpoint}" if place.server else place.repository
        self.common = ["--repository", str(url), "--state-dir", str(place.caches / "state"), "--quiet"]
        self.url = str(url)
        self.quietly(self.program, "init", *self.common)

    def commands(self):
        place, common = self.place, self.common
        backup = [self.program, "backup", *common, "--library", str(place.library)]
        return {
            "first": backup,
            "again": backup,
            "changed": backup,
            "verify": [self.program, "verify", *common],
            "read": [self.program, "verify", "--read-data", *common],
            "restore": [self.program, "restore", *common, "--to", str(place.target)],
        }

    def beside(self, work):
        """The bare loop that this work is compared with: its name and its command."""
        programs = self.place.programs
        if work == "again":
            return "bare walk", [programs["bare-walk"], str(self.place.library)]
        if work == "verify":
            return "bare listing", [programs["bare-list"], self.url]
        return None


class BarePuts(Tool):
    """The same objects, read, hashed and created by the same code: no log, no manifest."""

    name = "bare puts"
    places = ("s3",)

    def commands(self):
        url = f"s3://{s3.BUCKET}/bare?endpoint={self.place.server.endpoint}"
        return {"first": [self.place.programs["bare-puts"], url, str(self.place.library), str(default_workers())]}


def default_workers():
    """As many as immich-backup has if nobody says how many."""
    return 4


class Restic(Tool):
    name = "restic"

    def prepare(self):
        place = self.place
        repository = f"s3:{place.server.endpoint}/{s3.BUCKET}/restic" if place.server else str(place.repository)
        self.environment = {"RESTIC_PASSWORD": PASSWORD, "RESTIC_CACHE_DIR": str(place.caches), "RESTIC_REPOSITORY": repository}
        self.quietly(self.program, "init", "--quiet")

    def commands(self):
        # By the name of the folder alone: what is restored then lies below it.
        backup = [self.program, "backup", "--quiet", str(self.place.library)]
        return {
            "first": backup,
            "again": backup,
            "changed": backup,
            "verify": [self.program, "check", "--quiet"],
            "read": [self.program, "check", "--read-data", "--quiet"],
            "restore": [self.program, "restore", "latest", "--quiet", "--target", str(self.place.target)],
        }

    def restored(self):
        return self.place.target / self.place.library.relative_to("/")


class Rustic(Tool):
    name = "rustic"

    def prepare(self):
        place = self.place
        self.environment = {"RUSTIC_PASSWORD": PASSWORD, "RUSTIC_CACHE_DIR": str(place.caches), "RUSTIC_REPOSITORY": str(place.repository)}
        if place.server:
            options = {"bucket": s3.BUCKET, "root": "/rustic", "endpoint": place.server.endpoint, "region": s3.REGION}
            options |= {"access_key_id": s3.KEY, "secret_access_key": s3.SECRET}
            lines = ['[repository]', 'repository = "opendal:s3"', "[repository.options]", *(f'{name} = "{value}"' for name, value in options.items())]
            folder = place.work / "config" / "rustic"
            folder.mkdir(parents=True)
            (folder / "rustic.toml").write_text("\n".join(lines) + "\n")
            self.environment |= {"XDG_CONFIG_HOME": str(folder.parent)}
            del self.environment["RUSTIC_REPOSITORY"]
        self.quietly(self.program, "init", "--log-level", "error")

    def commands(self):
        quiet = [self.program, "--no-progress", "--log-level", "error"]
        backup = [*quiet, "backup", str(self.place.library)]
        return {
            "first": backup,
            "again": backup,
            "changed": backup,
            "verify": [*quiet, "check"],
            "read": [*quiet, "check", "--read-data"],
            "restore": [*quiet, "restore", f"latest:{self.place.library}", str(self.place.target)],
        }


class Borg(Tool):
    name = "borg"
    places = ("directory",)

    def prepare(self):
        place = self.place
        self.environment = {"BORG_PASSPHRASE": PASSWORD, "BORG_BASE_DIR": str(place.caches), "BORG_REPO": str(place.repository)}
        place.target.mkdir()
        self.quietly(self.program, "init", "--encryption", "repokey-blake2")

    def commands(self):
        create = [self.program, "create", "--stats"]
        library = str(self.place.library)
        return {
            "first": [*create, "::first", library],
            "again": [*create, "::again", library],
            "changed": [*create, "::changed", library],
            "verify": [self.program, "check"],
            "read": [self.program, "check", "--verify-data"],
            "restore": ["env", "-C", str(self.place.target), self.program, "extract", "::changed"],
        }

    def restored(self):
        return self.place.target / self.place.library.relative_to("/")


class Rclone(Tool):
    name = "rclone"

    def prepare(self):
        place = self.place
        config = place.work / "rclone.conf"
        config.touch()
        self.environment = {"RCLONE_CONFIG": str(config), "RCLONE_CACHE_DIR": str(place.caches)}
        self.there = str(place.repository)
        if place.server:
            self.environment |= {"RCLONE_S3_PROVIDER": "SeaweedFS", "RCLONE_S3_ENV_AUTH": "true", "RCLONE_S3_ENDPOINT": place.server.endpoint}
            self.environment |= {"RCLONE_S3_NO_CHECK_BUCKET": "true"}
            self.there = f":s3:{s3.BUCKET}/rclone"

    def commands(self):
        library, there = str(self.place.library), self.there
        copy = [self.program, "copy", library, there]
        return {
            "first": copy,
            "again": copy,
            "changed": copy,
            "verify": [self.program, "check", "--size-only", library, there],
            "read": [self.program, "check", "--download", library, there],
            "restore": [self.program, "copy", there, str(self.place.target)],
        }


class Aws(Tool):
    name = "aws s3 sync"
    places = ("s3",)

    def prepare(self):
        self.environment = {"AWS_ENDPOINT_URL": self.place.server.endpoint, "AWS_CONFIG_FILE": os.devnull}

    def commands(self):
        sync = [self.place.programs["aws"], "s3", "sync", "--only-show-errors"]
        library, there = str(self.place.library), f"s3://{s3.BUCKET}/aws"
        return {
            "first": [*sync, library, there],
            "again": [*sync, library, there],
            "changed": [*sync, library, there],
            "verify": [*sync, "--dryrun", library, there],
            "restore": [*sync, there, str(self.place.target)],
        }


class Papers(Tool):
    name = "papers.py"
    places = ("s3",)

    def prepare(self):
        self.environment = {"AWS_ENDPOINT_URL": self.place.server.endpoint, "AWS_CONFIG_FILE": os.devnull}

    def commands(self):
        run = [self.place.programs["papers-python"], str(Path(__file__).parents[1] / "papers.py")]
        rest = [s3.BUCKET, "papers", str(self.place.work / "papers.db")]
        backup = [*run, "backup", str(self.place.library), *rest]
        others = {name: [*run, name, str(self.place.target), *rest] for name in ["verify", "read", "restore"]}
        return {"first": backup, "again": backup, "changed": backup, **others}


class Copy(Tool):
    """`cp` by two processes, and one barrier."""

    name = "cp"
    places = ("directory",)

    def commands(self):
        library, repository, target = (str(path) for path in [self.place.library, self.place.repository, self.place.target])
        # Two that make the same folder at once stumble over one another, so folders come first.
        folders = 'mkdir -p "$2" && cd "$1" && find . -type d -print0 | (cd "$2" && xargs -0 mkdir -p)'
        files = 'find . -type f -print0 | xargs -0 -P 2 -n 500 cp --parents --preserve=timestamps -t "$2"'
        copy = f'{folders} && {files} && sync -f "$2"'
        return {
            "first": ["bash", "-o", "pipefail", "-c", copy, "cp", library, repository],
            "read": ["diff", "-rq", library, repository],
            "restore": ["bash", "-o", "pipefail", "-c", copy, "cp", repository, target],
        }


TOOLS = {tool.name: tool for tool in [ImmichBackup, BarePuts, Rclone, Restic, Rustic, Borg, Aws, Papers, Copy]}
BARE = ["bare puts", "bare walk", "bare listing"]
