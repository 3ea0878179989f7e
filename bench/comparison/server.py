"""A SeaweedFS of the benchmark's own, new for each turn of a program."""

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

START_SECONDS_MAX = 60
BUCKET, KEY, SECRET, REGION = "bench", "AKBENCH", "SKBENCH", "us-east-1"
# A counter of Prometheus: name, labels, value.
COUNTER = re.compile(r"^(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)


class Server:
    """S3 with its store in `folder`; `prefix` is put before the command (to run it in a namespace), `address` is where it listens."""

    def __init__(self, weed: Path, folder: Path, port: int, address="127.0.0.1", prefix=()):
        self.weed, self.folder, self.port, self.address, self.prefix = weed, folder, port, address, list(prefix)
        self.process = None

    @property
    def endpoint(self):
        return f"http://{self.address}:{self.port}"

    def start(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        port, options = self.port, []
        for name in ["s3", "master", "volume", "filer"]:
            options += [f"-{name}.port={port}", f"-{name}.port.grpc={port + 10_000}"]
            port += 1
        options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", f"-metricsPort={port}", f"-metricsIp={self.address}"]
        command = [*self.prefix, self.weed, "-logtostderr", "mini", f"-dir={self.folder}", f"-ip={self.address}", f"-ip.bind={self.address}"]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.folder), "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        with open(self.folder.with_suffix(".log"), "wb") as log:
            self.process = subprocess.Popen(
                [*command, f"-bucket={BUCKET}", *options], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.metrics = f"http://{self.address}:{port}/metrics"

    def wait(self, is_ready):
        """Returns once it takes objects."""
        until = time.monotonic() + START_SECONDS_MAX
        while not is_ready():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server does not start: see {self.folder.with_suffix('.log')}")
            time.sleep(0.2)

    def counts(self):
        """Requests so far by kind, and bytes of objects that came in."""
        text = subprocess.run([*self.prefix, "curl", "-sS", "--max-time", "20", self.metrics], check=True, capture_output=True, text=True).stdout
        requests, received = {}, 0
        for name, labels, value in COUNTER.findall(text):
            if name == "SeaweedFS_s3_request_total":
                kind = re.search(r'type="(\w+)"', labels)
                kind = kind[1] if kind else "other"
                requests[kind] = requests.get(kind, 0) + int(float(value))
            elif name == "SeaweedFS_s3_bucket_traffic_received_bytes_total":
                received += int(float(value))
        return requests, received

    def stop(self):
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
        shutil.rmtree(self.folder, ignore_errors=True)
