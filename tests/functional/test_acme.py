"""A certificate by ACME: a real ACME server asks the real HAProxy for the proof."""

import os
import signal
import subprocess
import sys

import pytest

from tests.functional import road as roads
from tests.functional.pebble import Pebble
from tests.functional.road import BALANCER, until

TOOL = roads.CHECKOUT / "salt" / "haproxy" / "files" / "certificates.py"


@pytest.fixture
def acme(tmp_path):
    """Pebble, which finds every name at the balancer."""
    server = Pebble(tmp_path, "127.55.0.51", BALANCER, (roads.WEB, roads.TLS))
    yield server
    server.stop()


@pytest.fixture
def road(tmp_path, acme):
    told = roads.pillar(
        {"tls": {"certificate": "acme", "force": True}},
        haproxy={"acme": {"directory": acme.directory, "contact": "ops@paper.lab"}},
    )
    made = subprocess.run(["openssl", "genrsa", "2048"], capture_output=True, text=True, check=True)
    told["secrets"] = {"haproxy": {"acme_account_key": made.stdout}}
    for name in ("certificates", "private"):
        (tmp_path / name).mkdir()
    modules = roads.functions("lb1", told, tmp_path)
    plan = roads.render(modules, "haproxy/files/certificates.json")
    (tmp_path / "certificates.json").write_text(plan)
    (tmp_path / "private" / "acme_account_key.pem").write_text(made.stdout)
    road = roads.Road(tmp_path, told)
    yield road
    road.stop()


def certificates(road, acme, *options):
    """Run the real tool in the road's folder; a reload goes to the road's HAProxy."""
    script = f"""
import importlib.util, os, pathlib, sys
spec = importlib.util.spec_from_file_location("tool", {str(TOOL)!r})
tool = importlib.util.module_from_spec(spec); spec.loader.exec_module(tool)
folder = pathlib.Path({str(road.folder)!r})
tool.FOLDER, tool.PRIVATE, tool.PLAN = (
    folder / "certificates", folder / "private", folder / "certificates.json")
run = tool.run
tool.run = lambda *c: print("reload") if c[0] == "systemctl" else run(*c)
sys.exit(tool.main())
"""
    return subprocess.run(
        [sys.executable, "-c", script, *options],
        capture_output=True, text=True, env={**os.environ, "SSL_CERT_FILE": str(acme.authority)},
    )  # fmt: skip


def issuer(domain):
    shown = subprocess.run(
        ["openssl", "s_client", "-connect", f"{BALANCER}:{roads.TLS}", "-servername", domain],
        input="", capture_output=True, text=True,
    )  # fmt: skip
    return next(line for line in shown.stdout.splitlines() if line.startswith("issuer="))


def test_a_certificate_is_fetched_and_renewed(road, acme):
    first = certificates(road, acme, "--first")
    assert first.returncode == 0, first.stderr
    road.start(accelerators=("cache1",))
    assert "Pebble" not in issuer("paper.lab")

    fetched = certificates(road, acme)
    assert fetched.returncode == 0, fetched.stderr
    assert fetched.stdout.splitlines() == ["reload", "paper: a new certificate from acme"][::-1]
    road.processes["lb1"].send_signal(signal.SIGUSR2)
    until(lambda: "Pebble" in issuer("paper.lab"))
    assert "Pebble" in issuer("www.paper.lab"), "all names are in it"

    again = certificates(road, acme)
    assert (again.returncode, again.stdout) == (0, ""), "nothing is due"


def test_what_the_server_says_reaches_the_operator(road, acme):
    # Nobody answers at the balancer's address.
    failed = certificates(road, acme)
    assert failed.returncode == 1
    assert "paper: acme-tiny failed:" in failed.stderr
