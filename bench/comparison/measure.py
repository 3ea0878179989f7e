"""Runs a command and says what it took."""

import os
import signal
import subprocess
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

# How often memory is looked at: a peak that is shorter is not seen.
SAMPLE_SECONDS = 0.02
# A command that takes longer than this hangs.
COMMAND_SECONDS_MAX = 3 * 3600
TAIL_BYTES = 4_000


class Failed(Exception):
    """A program did not do what it was asked for: its time counts for nothing."""


@dataclass
class Figures:
    """What one command took."""

    wall: float
    # Until all that it wrote is on disk, for what writes to one.
    durable: float | None
    # Of the process and all that it waited for, user and system.
    cpu: float
    # Highest sum of anonymous memory over the tree of processes that was seen, and the kernel's own highest resident set of one of them.
    anonymous: int
    resident: int
    # By reading calls, of files and, in some programs, of connections; and what had to come from the disk of it.
    read: int
    from_disk: int
    # As the server counted them: by kind, and bytes of objects that it was sent.
    requests: dict[str, int] | None = None
    sent: int | None = None

    def as_json(self):
        return asdict(self)


def run(command, *, environment, folder, log: Path, synced: Path | None = None):
    """Runs `command` to its end. Raises `Failed` where that is not a good one."""
    with open(log, "ab") as said:
        said.write(f"$ {' '.join(map(str, command))}\n".encode())
        said.flush()
        begun_at = said.tell()
        begun = time.monotonic()
        process = subprocess.Popen(command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
    memory = Memory(process.pid)
    memory.start()
    guard = threading.Timer(COMMAND_SECONDS_MAX, end, (process.pid,))
    guard.start()
    try:
        # Left to be looked at: what it read stands in /proc until it is waited for.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        wall = time.monotonic() - begun
        read, from_disk = read_by(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        end(process.pid)
        process.wait()
        raise
    finally:
        guard.cancel()
        memory.stop()
    if process.returncode != 0:
        with open(log, "rb") as said:
            said.seek(max(begun_at, log.stat().st_size - TAIL_BYTES))
            words = said.read().decode(errors="replace")
        raise Failed(f"{command[0]} ended with {process.returncode}:\n{words}")
    durable = None
    if synced is not None:
        subprocess.run(["sync", "-f", synced], check=True)
        durable = time.monotonic() - begun
    return Figures(wall, durable, usage.ru_utime + usage.ru_stime, memory.peak, usage.ru_maxrss * 1024, read, from_disk)


def end(group):
    """Ends a process of ours and all in its group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def read_by(process):
    """Bytes that a process and the children it waited for have read, by calls and from disk."""
    found = dict(line.split(": ") for line in Path(f"/proc/{process}/io").read_text().splitlines())
    return int(found["rchar"]), int(found["read_bytes"])


class Memory(threading.Thread):
    """Watches the anonymous memory of a process and its children."""

    def __init__(self, process):
        super().__init__(daemon=True)
        self.process, self.peak, self.ended = process, 0, threading.Event()

    def run(self):
        while not self.ended.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, sum(map(anonymous, tree(self.process))))

    def stop(self):
        self.ended.set()
        self.join()


def tree(process):
    """A process and all below it."""
    found, left = [], [str(process)]
    while left:
        process = left.pop()
        found.append(process)
        try:
            for thread in os.listdir(f"/proc/{process}/task"):
                with open(f"/proc/{process}/task/{thread}/children", encoding="ascii") as children:
                    left.extend(children.read().split())
        except OSError:
            # It has ended meanwhile.
            continue
    return found


def anonymous(process):
    try:
        with open(f"/proc/{process}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
