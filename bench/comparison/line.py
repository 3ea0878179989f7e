"""A line with a round trip of its own between two network namespaces: the client's and the server's.

The kernel's netem does it where there is one. Else two TUN devices are joined by a process that holds each packet back: TCP with its windows and
acknowledgements is the kernel's own on both sides; packets come as large as the kernel's segmentation offload makes them, cut for Ethernet's 1,500 bytes.
"""

import collections
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

# For benchmarks of networks (RFC 2544); nothing else routes there.
SERVER, CLIENT = "198.18.233.1", "198.18.233.2"
PREFIX = "immich-backup-bench"

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4
PACKET_BYTES_MAX = 1 << 17
# What may be on its way in one direction: 20 ms at 25 Gbit/s.
IN_FLIGHT_BYTES_MAX = 64 << 20
PACKETS_IN_FLIGHT_MAX = 100_000
# Read at a time, so that what is due goes out in time.
PACKETS_READ_MAX = 32

REFUSED = """
import socket, sys, time
took = []
for _ in range(5):
    begun = time.monotonic()
    try:
        socket.create_connection((sys.argv[1], 1), 5)
    except ConnectionRefusedError:
        took.append(time.monotonic() - begun)
print(min(took) * 1000)
"""


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=not check)


class Line:
    """Namespaces and the line between them, gone after `close`."""

    def __init__(self, round_trip_ms: int):
        self.round_trip_ms = round_trip_ms
        self.server_space, self.client_space = (f"{PREFIX}-{os.getpid()}-{side}" for side in ["server", "client"])
        self.forwarder = None
        self.kind = ""

    def open(self):
        if os.geteuid() != 0:
            raise PermissionError("only root can make a line of its own")
        remove_leftovers()
        delay_ms = self.round_trip_ms / 2
        names = [f"ibb{os.getpid()}{end}" for end in "sc"]
        spaces = [self.server_space, self.client_space]
        try:
            for space in spaces:
                ip("netns", "add", space)
                ip("-n", space, "link", "set", "lo", "up")
            if has_netem(self.server_space):
                self.kind = "tc netem"
                ip("link", "add", names[0], "netns", spaces[0], "type", "veth", "peer", "name", names[1], "netns", spaces[1])
            else:
                self.kind = "a forwarder between two TUN devices (this kernel has no netem)"
                ends = [tun(name) for name in names]
                for name, space in zip(names, spaces):
                    ip("link", "set", name, "netns", space)
                forward = [sys.executable, str(Path(__file__).resolve()), *map(str, ends), str(delay_ms / 1_000)]
                self.forwarder = subprocess.Popen(forward, pass_fds=ends, stdin=subprocess.DEVNULL, start_new_session=True)
                for end in ends:
                    os.close(end)
            for name, space, own, other in zip(names, spaces, [SERVER, CLIENT], [CLIENT, SERVER]):
                ip("-n", space, "addr", "add", f"{own}/30", "dev", name)
                ip("-n", space, "link", "set", name, "mtu", "1500", "up")
                if self.forwarder is None:
                    netem = ["netem", "delay", f"{delay_ms}ms", "limit", str(PACKETS_IN_FLIGHT_MAX)]
                    subprocess.run(["tc", "-n", space, "qdisc", "add", "dev", name, "root", *netem], check=True)
        except BaseException:
            self.close()
            raise

    def round_trip(self):
        """What it takes to be refused a connection, in ms: the best of some."""
        answer = subprocess.run([*self.of_client(), sys.executable, "-c", REFUSED, SERVER], check=True, capture_output=True, text=True)
        return float(answer.stdout)

    def of_server(self):
        return ["ip", "netns", "exec", self.server_space]

    def of_client(self):
        return ["ip", "netns", "exec", self.client_space]

    def close(self):
        if self.forwarder is not None:
            self.forwarder.kill()
            self.forwarder.wait()
            self.forwarder = None
        for space in [self.server_space, self.client_space]:
            ip("netns", "del", space, check=False)


def remove_leftovers():
    """Namespaces of benchmarks that were killed; each bears the number of its process."""
    for space in subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout.splitlines():
        found = re.match(rf"{PREFIX}-(\d+)-", space)
        if found and not Path("/proc", found[1]).exists():
            ip("netns", "del", space.split()[0], check=False)


def has_netem(space):
    tried = subprocess.run(["tc", "-n", space, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"], capture_output=True)
    if tried.returncode == 0:
        subprocess.run(["tc", "-n", space, "qdisc", "del", "dev", "lo", "root"], check=True)
    return tried.returncode == 0


def tun(name):
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(end, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    return end


def forward(ends, delay):
    """Hands packets from each end to the other, each after `delay` seconds. Ends with its parent."""
    waiting = {end: collections.deque() for end in ends}
    in_flight = dict.fromkeys(ends, 0)
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    parent = os.getppid()
    while os.getppid() == parent:
        now = time.monotonic()
        due = min((queue[0][0] for queue in waiting.values() if queue), default=now + 1)
        readable, _, _ = select.select(ends, [], [], max(0, due - now))
        for end in readable:
            try:
                for _ in range(PACKETS_READ_MAX):
                    packet = os.read(end, PACKET_BYTES_MAX)
                    # As a router whose queue is full.
                    if in_flight[end] < IN_FLIGHT_BYTES_MAX:
                        waiting[end].append((time.monotonic() + delay, packet))
                        in_flight[end] += len(packet)
            except BlockingIOError:
                pass
        now = time.monotonic()
        for end, queue in waiting.items():
            while queue and queue[0][0] <= now:
                _, packet = queue.popleft()
                in_flight[end] -= len(packet)
                try:
                    os.write(other[end], packet)
                except (BlockingIOError, OSError):
                    # Lost on the way, as packets are.
                    continue


if __name__ == "__main__":
    forward([int(sys.argv[1]), int(sys.argv[2])], float(sys.argv[3]))
