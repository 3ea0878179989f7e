#!/usr/bin/env python3
"""A backup script as papers and blogs have it: boto3, a pool of threads, a manifest in SQLite, every file hashed on every run.

For bench/compare: what somebody writes in an afternoon. `papers.py backup|verify|read|restore FOLDER BUCKET PREFIX MANIFEST`; the endpoint and the keys
come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import hashlib
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

THREADS = 16
PIECE_BYTES = 1 << 20
# Files are sent one thread each; boto3 would start ten more for each large one.
ONE_THREAD = TransferConfig(use_threads=False, multipart_threshold=64 << 20, multipart_chunksize=16 << 20)


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


class Backup:
    def __init__(self, folder, bucket, prefix, manifest):
        self.folder, self.bucket, self.prefix = Path(folder), bucket, prefix
        self.client = boto3.client("s3", config=Config(max_pool_connections=THREADS))
        self.manifest = sqlite3.connect(manifest)
        self.manifest.execute("CREATE TABLE IF NOT EXISTS files(path TEXT PRIMARY KEY, checksum TEXT NOT NULL, size INTEGER NOT NULL)")

    def known(self):
        return {path: (checksum, size) for path, checksum, size in self.manifest.execute("SELECT path, checksum, size FROM files")}

    def backup(self):
        known = self.known()

        def store(path):
            place, checksum = path.relative_to(self.folder).as_posix(), sha256_of(path)
            if known.get(place, ("",))[0] != checksum:
                self.client.upload_file(str(path), self.bucket, f"{self.prefix}/{place}", ExtraArgs={"Metadata": {"sha256": checksum}}, Config=ONE_THREAD)
            return place, checksum, path.stat().st_size

        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        with ThreadPoolExecutor(THREADS) as pool:
            for row in pool.map(store, paths):
                self.manifest.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", row)
        self.manifest.commit()

    def verify(self):
        found = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{self.prefix}/"):
            found.update((entry["Key"].removeprefix(f"{self.prefix}/"), entry["Size"]) for entry in page.get("Contents", []))
        return [place for place, (_, size) in self.known().items() if found.get(place) != size]

    def read(self):
        def is_damaged(entry):
            place, (checksum, _) = entry
            digest = hashlib.sha256()
            for piece in self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{place}")["Body"].iter_chunks(PIECE_BYTES):
                digest.update(piece)
            return None if digest.hexdigest() == checksum else place

        with ThreadPoolExecutor(THREADS) as pool:
            return [place for place in pool.map(is_damaged, self.known().items()) if place]

    def restore(self):
        def fetch(place):
            path = self.folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            self.client.download_file(self.bucket, f"{self.prefix}/{place}", str(path), Config=ONE_THREAD)

        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(fetch, self.known()):
                pass


def main():
    action, *rest = sys.argv[1:]
    backup = Backup(*rest)
    damaged = getattr(backup, {"backup": "backup", "verify": "verify", "read": "read", "restore": "restore"}[action])()
    if damaged:
        sys.exit(f"damaged: {len(damaged)} files, the first is {damaged[0]}")


if __name__ == "__main__":
    main()
