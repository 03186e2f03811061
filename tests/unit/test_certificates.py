"""saltern-certificates with the real openssl: what is due, what is made, what is said."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

SOURCE = pathlib.Path(__file__).parents[2] / "salt" / "haproxy" / "files" / "certificates.py"


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """The script, with its folders below a temporary one and nothing of systemd."""
    spec = importlib.util.spec_from_file_location("certificates", SOURCE)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    for name in ("FOLDER", "PRIVATE"):
        monkeypatch.setattr(found, name, tmp_path / name.lower())
        getattr(found, name).mkdir()
    monkeypatch.setattr(found, "PLAN", tmp_path / "plan.json")
    run = found.run
    found.reloads = []

    def without_systemd(*command):
        return found.reloads.append(command) if command[0] == "systemctl" else run(*command)

    monkeypatch.setattr(found, "run", without_systemd)
    return found


def plan(tool, **sites):
    acme = {"directory": "https://acme.lab/dir", "contact": None}
    tool.PLAN.write_text(json.dumps({"environment": "lab", "sites": sites, "acme": acme}))


def site(*domains, source="authority"):
    return {"source": source, "domains": list(domains)}


def call(tool, *options):
    sys.argv = ["saltern-certificates", *options]
    return tool.main()


@pytest.fixture
def authority(tool):
    tool.PRIVATE.joinpath("authority_key.pem").write_text(
        tool.run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    )


def test_an_authority_signs_for_each_site(tool, authority):
    plan(tool, paper=site("paper.lab", "www.paper.lab"), other=site("other.lab"))
    assert call(tool, "--check") == 1
    assert call(tool) == 0
    assert tool.reloads == [("systemctl", "reload", "haproxy")]
    for name, domain in (("paper", "www.paper.lab"), ("other", "other.lab")):
        pem = tool.FOLDER / f"{name}.pem"
        assert pem.stat().st_mode & 0o777 == 0o600
        checked = subprocess.run(
            ["openssl", "verify", "-CAfile", tool.PRIVATE / "authority.pem",
             "-purpose", "sslserver", "-verify_hostname", domain, pem],
            capture_output=True, text=True,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stderr


def test_what_is_good_is_left_alone(tool, authority):
    plan(tool, paper=site("paper.lab", "www.paper.lab"))
    call(tool)
    before = tool.FOLDER.joinpath("paper.pem").read_text()
    assert call(tool, "--check") == 0
    assert call(tool, "--first", "--check") == 0
    assert call(tool) == 0
    assert tool.FOLDER.joinpath("paper.pem").read_text() == before
    assert len(tool.reloads) == 1


def test_another_domain_or_the_end_of_its_time_makes_it_due(tool, authority, monkeypatch):
    plan(tool, paper=site("paper.lab"))
    call(tool)
    plan(tool, paper=site("paper.lab", "new.paper.lab"))
    assert call(tool, "--check") == 1
    call(tool)
    assert call(tool, "--check") == 0
    monkeypatch.setattr(tool, "RENEW_BEFORE", (tool.LEAF_DAYS + 1) * 86400)
    assert call(tool, "--check") == 1


def test_a_site_with_acme_begins_with_one_of_its_own(tool):
    plan(tool, paper=site("paper.lab", source="acme"))
    assert call(tool, "--first") == 0
    assert tool.FOLDER.joinpath("paper.pem").exists()
    assert not tool.reloads
    assert call(tool, "--first", "--check") == 0
    assert call(tool, "--check") == 1, "the real one is still to be fetched"
    plan(tool, paper=site("paper.lab", "new.paper.lab", source="acme"))
    assert call(tool, "--first", "--check") == 0, "a good one is not replaced by one of its own"


def test_another_source_makes_it_due(tool, authority):
    plan(tool, paper=site("paper.lab"))
    call(tool)
    plan(tool, paper=site("paper.lab", source="acme"))
    assert call(tool, "--check") == 1
    assert call(tool, "--first", "--check") == 0, "HAProxy can start with the one that is there"
    plan(tool, paper=site("paper.lab"))
    assert call(tool, "--check") == 0
    # As after a time with one from the pillar, by the same name.
    pem = tool.FOLDER / "paper.pem"
    tool.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-subj", "/", "-addext", "subjectAltName=DNS:paper.lab", "-days", "90",
             "-keyout", pem.with_suffix(".key"), "-out", pem)  # fmt: skip
    assert call(tool, "--check") == 1


def test_a_missing_key_is_named(tool, capsys):
    plan(tool, paper=site("paper.lab"), other=site("other.lab", source="acme"))
    assert call(tool) == 1
    said = capsys.readouterr().err
    assert "paper: secrets:haproxy:authority_key isn't in this host's pillar" in said
    assert "other: secrets:haproxy:acme_account_key isn't in this host's pillar" in said
    assert not tool.reloads
