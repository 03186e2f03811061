"""Backups in S3: a server of the tests' own (moto behind HAProxy's TLS) on the lab's network."""

import contextlib
import json
import os
import subprocess
import sys
import time

import pytest

from tests.farm.database_farm import BACKUP, SITE, apply, call, caught_up, psql
from tests.lab import network

pytestmark = pytest.mark.drill

NAME, PORT, PLAIN_PORT, BUCKET = "s3.lab", 8444, 8445, "farm-backups"
AUTHORITY = "/etc/ssl/certs/farm-s3.crt"
# The bucket stands in the path; else moto takes the first part of any name for one.
PATHS = {**os.environ, "S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true"}
# moto's own TLS keeps everybody waiting for whoever has connected and says nothing yet.
TLS = """
defaults
    mode http
    timeout connect 5s
    timeout client 5m
    timeout server 5m
listen s3
    bind {address}:{port} ssl crt {pem}
    server moto 127.0.0.1:{plain_port}
"""


@contextlib.contextmanager
def running(lab, command, log):
    """A server in the lab's network, which nothing of it outlives."""
    with log.open("w") as out:
        server = subprocess.Popen(
            network.on_hub(lab.lab.name, command), env=PATHS, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield server
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def bucket(lab, tmp_path):
    """An S3 server that the backup host knows by name and certificate, with an empty bucket."""
    certificate, key = tmp_path / "s3.crt", tmp_path / "s3.key"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={NAME}"
    make += f" -addext subjectAltName=DNS:{NAME} -keyout {key} -out {certificate}"
    subprocess.run(make.split(), check=True, capture_output=True)
    (tmp_path / "s3.pem").write_text(certificate.read_text() + key.read_text())
    (tmp_path / "haproxy.cfg").write_text(
        TLS.format(
            address=network.HUB_ADDRESS, port=PORT, plain_port=PLAIN_PORT, pem=tmp_path / "s3.pem"
        )
    )
    serve = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(PLAIN_PORT)]
    front = ["haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")]
    ask = ["curl", "-sSf", "--noproxy", "*", "--cacert", str(certificate)]
    ask += ["--resolve", f"{NAME}:{PORT}:{network.HUB_ADDRESS}"]
    url = f"https://{NAME}:{PORT}/{BUCKET}"
    with (
        running(lab, serve, tmp_path / "moto") as server,
        running(lab, front, tmp_path / "haproxy"),
    ):
        deadline = time.monotonic() + 60
        while lab.on_hub(*ask, "-X", "PUT", url).returncode:
            assert server.poll() is None, (tmp_path / "moto").read_text()
            assert time.monotonic() < deadline, "the S3 server doesn't answer"
            time.sleep(0.5)
        lab.run(BACKUP, "sh", "-c", f"echo {network.HUB_ADDRESS} {NAME} >>/etc/hosts")
        lab.run(BACKUP, "sh", "-c", f"cat >{AUTHORITY}", stdin=certificate.read_text())
        try:
            yield lambda: lab.on_hub(*ask, f"{url}?list-type=2").stdout.decode()
        finally:
            lab.run(BACKUP, "rm", "-f", AUTHORITY)
            forget = f"sed '/{NAME}/d' /etc/hosts >/tmp/h; cat /tmp/h >/etc/hosts"
            lab.run(BACKUP, "sh", "-c", forget)


def test_backups_go_to_a_bucket_and_come_back(lab, bucket):
    store = {"bucket": BUCKET, "endpoint": NAME, "port": PORT, "authority": AUTHORITY}
    keys = {"backup": {"s3": {"key": "farm-key", "secret": "farm-secret-key"}}}
    pillar = json.dumps({"overrides": {"backup": {"s3": store}}, "secrets": keys})
    psql(lab, "db1", "DROP TABLE IF EXISTS farm_s3")
    psql(lab, "db1", "CREATE TABLE farm_s3 AS SELECT generate_series(1, 300) AS n")
    psql(lab, "db1", f"ALTER TABLE farm_s3 OWNER TO {SITE}")
    caught_up(lab, "db2")
    try:
        failed, _changed = apply(lab, BACKUP, "backup", f"pillar={pillar}")
        assert not failed
        made = call(lab, BACKUP, "backup.run", "full")
        assert made["ok"], made
        dumped = call(lab, BACKUP, "backup.run", "dump")
        assert dumped["ok"], dumped
        assert f"pgbackrest/backup/farm/{made['label']}" in bucket()
        assert "dumps/snapshots/" in bucket()
        verified = call(lab, BACKUP, "backup.verify")
        assert verified["ok"], verified
        assert verified["backup"] == made["label"]
        psql(lab, "db1", "DROP TABLE farm_s3")
        time.sleep(2)
        moment = f"time={verified['at'].replace('T', ' ').replace('Z', '+00')}"
        back = call(lab, BACKUP, "backup.restore", SITE, "table=farm_s3", moment)
        assert back["rows"] == 300, back
        failed, changed = apply(lab, BACKUP, "backup", f"pillar={pillar}")
        assert (failed, changed) == ({}, {})
    finally:
        psql(lab, "db1", "DROP TABLE IF EXISTS farm_s3")
        apply(lab, BACKUP, "backup")
        # What went to the bucket meanwhile is missing in the host's own chain: begin a new one.
        call(lab, BACKUP, "backup.run", "full")
