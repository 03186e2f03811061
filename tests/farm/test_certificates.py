"""Certificates of the balancers, from the pillar and by ACME, exchanged while visitors come."""

import contextlib
import functools
import json
import re
import subprocess

import pytest

from tests.farm.database_farm import apply
from tests.farm.visitors import visitors
from tests.farm.waiting import until
from tests.functional.pebble import Pebble
from tests.lab import network

BALANCERS = ("lb1", "lb2")
SITE, DOMAIN = "newsroom", "newsroom.lab"
TRUSTED = "/usr/local/share/ca-certificates/test-acme.crt"


def balanced(lab, *pillar):
    """Apply the balancers' state, one after the other; what failed, by host."""
    given = [f"pillar={json.dumps(pillar[0])}"] if pillar else []
    found = {host: apply(lab, host, "haproxy", *given)[0] for host in BALANCERS}
    return {host: failed for host, failed in found.items() if failed}


def served(lab, host):
    """The certificate that a balancer shows for the site, in PEM."""
    address = lab.hosts[host].address
    said = lab.on_hub(
        "openssl", "s_client", "-connect", f"{address}:443", "-servername", DOMAIN, input=b""
    )
    return re.search(rb"-----BEGIN.*?END CERTIFICATE-----", said.stdout, re.S)[0].decode()


def issuer(certificate):
    command = ["openssl", "x509", "-noout", "-issuer"]
    done = subprocess.run(command, input=certificate, capture_output=True, text=True, check=True)
    return done.stdout


def of_pebble(lab, host):
    """The certificate that a balancer shows, if it is Pebble's."""
    certificate = served(lab, host)
    return certificate if "Pebble" in issuer(certificate) else None


@contextlib.contextmanager
def handshakes(lab, authority):
    """Visitors of each balancer, with a handshake for each request. Gives them by host."""
    with contextlib.ExitStack() as stack:
        options = {"rate": 15, "connections": "new", "authority": authority}
        yield {
            host: stack.enter_context(
                visitors(lab.lab, f"https://{lab.hosts[host].address}/", **options)
            )
            for host in BALANCERS
        }


def assert_nobody_failed(seen):
    for host, those in seen.items():
        assert those.report["sent"] > 50, (host, those.report)
        assert those.report["failed"] == 0, (host, those.report)


@pytest.fixture
def farms_own(lab, tmp_path):
    """
    The certificates of the farm's own authority, one of each balancer, in a file. Afterwards both
    have the site's from it again.
    """
    path = tmp_path / "farm.crt"
    own = [lab.run(host, "cat", "/etc/haproxy/private/authority.pem").stdout for host in BALANCERS]
    path.write_text("".join(own))
    yield path
    assert not balanced(lab)
    for host in BALANCERS:
        until(30, lambda h=host: "Saltern authority of lab" in issuer(served(lab, h)))


@pytest.fixture
def issued(tmp_path):
    """Makes certificates for the site, by an authority of the tests' own that is in its `.file`."""

    def make(name, *options):
        key, certificate = tmp_path / f"{name}.key", tmp_path / f"{name}.crt"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
        command += ["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", f"/CN={name}"]
        command += ["-keyout", key, "-out", certificate, *options]
        subprocess.run(command, check=True, capture_output=True)
        return {"certificate": certificate.read_text(), "key": key.read_text()}

    make("authority")
    signed = ["-CA", tmp_path / "authority.crt", "-CAkey", tmp_path / "authority.key"]
    signed += ["-addext", f"subjectAltName=DNS:{DOMAIN}", "-addext", "basicConstraints=CA:FALSE"]

    def issue(name):
        return make(name, *signed)

    issue.file = tmp_path / "authority.crt"
    return issue


def in_pillar(made):
    tls = {"tls": {"certificate": "pillar"}}
    return {"sites": {SITE: tls}, "secrets": {"certificates": {SITE: made}}}


def test_a_certificate_from_the_pillar_is_exchanged_unnoticed(lab, farms_own, issued, tmp_path):
    trusted = tmp_path / "both.crt"
    trusted.write_text(farms_own.read_text() + issued.file.read_text())
    first, second = issued("first"), issued("second")
    with handshakes(lab, trusted) as seen:
        for made in (first, second):
            assert not balanced(lab, in_pillar(made))
            for host in BALANCERS:
                until(30, lambda h=host, m=made: served(lab, h) == m["certificate"].strip())
    assert_nobody_failed(seen)
    # A key of another certificate: nothing changes, on the disk neither.
    wrong = balanced(lab, in_pillar({**issued("third"), "key": first["key"]}))
    for host in BALANCERS:
        assert f"haproxy/certificates/{SITE}" in wrong[host]
        lab.run(host, "haproxy", "-c", "-q", "-f", "/etc/haproxy/haproxy.cfg")
        assert served(lab, host) == second["certificate"].strip()


@pytest.fixture
def acme(lab, tmp_path):
    """Pebble on the farm's network, trusted by the balancers; its certificates are due at once."""
    place = functools.partial(network.on_hub, lab.lab.name)
    # Where names lead: to the balancer that is applied first.
    names_at = lab.hosts[BALANCERS[0]].address
    server = Pebble(tmp_path, str(network.HUB_ADDRESS), names_at, days=20, place=place)
    try:
        for host in BALANCERS:
            lab.run(host, "sh", "-c", f"cat >{TRUSTED}", stdin=server.authority.read_text())
            lab.run(host, "update-ca-certificates")
        yield server
    finally:
        server.stop()
        for host in BALANCERS:
            lab.run(host, "rm", "-f", TRUSTED)
            lab.run(host, "update-ca-certificates", "--fresh")


@pytest.mark.drill
def test_certificates_are_fetched_and_renewed_by_acme_unnoticed(lab, farms_own, acme, tmp_path):
    trusted = tmp_path / "trusted.crt"
    trusted.write_text(farms_own.read_text() + acme.root())
    pillar = {
        "sites": {SITE: {"tls": {"certificate": "acme"}}},
        "overrides": {"haproxy": {"acme": {"directory": acme.directory}}},
    }
    with handshakes(lab, trusted) as seen:
        assert not balanced(lab, pillar)
        first = {host: until(30, functools.partial(of_pebble, lab, host)) for host in BALANCERS}
        # Each renews by the unit that the timer starts, while names lead to the other one.
        for host, other in zip(BALANCERS, reversed(BALANCERS), strict=True):
            acme.move_names(lab.hosts[other].address)
            lab.run(host, "systemctl", "start", "saltern-certificates")
            until(30, lambda h=host: served(lab, h) != first[h])
            assert of_pebble(lab, host)
            asked = lab.run(other, "journalctl", "-q", "-o", "cat", "-t", "haproxy", "--since=-60s")
            assert "acme-challenge" in asked.stdout
    assert_nobody_failed(seen)
