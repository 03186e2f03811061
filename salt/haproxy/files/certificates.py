#!/usr/bin/python3
# Managed by Saltern: salt/haproxy/files/certificates.py.
"""
Make, fetch and renew the certificates that this balancer looks after itself.

/etc/haproxy/certificates.json names the sites and where each one's certificate comes from:
`authority` signs here with /etc/haproxy/private/authority_key.pem, `acme` asks an ACME server (by
acme-tiny; HAProxy answers the challenge itself). What is valid for another 30 days, names the
right domains and came from there is left alone. HAProxy is reloaded if anything changed.

  --check   change nothing; exit 1 if there is something to do
  --first   only what HAProxy needs in order to start: sites with ACME get a self-signed one
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path("/etc/haproxy/certificates")
PRIVATE = pathlib.Path("/etc/haproxy/private")
PLAN = pathlib.Path("/etc/haproxy/certificates.json")
RENEW_BEFORE = 30 * 86400  # seconds
AUTHORITY_DAYS = 3650
LEAF_DAYS = 397  # browsers refuse longer ones


class CertificateError(Exception):
    """Something that the operator has to know; its text is the sentence."""


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    options.add_argument("--check", action="store_true")
    options.add_argument("--first", action="store_true")
    options = options.parse_args()
    plan = json.loads(PLAN.read_text())
    due = [name for name in plan["sites"] if is_due(name, plan, options.first)]
    if options.check:
        return 1 if due else 0

    failures = []
    for name in due:
        try:
            renew(name, plan, options.first)
            print(f"{name}: a new certificate from {plan['sites'][name]['source']}")
        except CertificateError as failure:
            failures.append(f"{name}: {failure}")
    if len(failures) < len(due) and not options.first:
        run("systemctl", "reload", "haproxy")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def is_due(name, plan, first):
    """Whether a site needs a new certificate."""
    site, pem, note = plan["sites"][name], FOLDER / f"{name}.pem", note_of(name)
    if not pem.exists():
        return True
    if first and site["source"] == "acme":
        return False  # visitors trust the one that is there rather than one of our own
    if names_of(pem) != set(site["domains"]):
        return True
    if first:
        return False
    if not note.exists() or note.read_text() != origin(pem, name, plan):
        return True
    return not succeeds("openssl", "x509", "-noout", "-checkend", str(RENEW_BEFORE), "-in", pem)


def renew(name, plan, first):
    """Put a new key and certificate of a site into HAProxy's folder."""
    site = plan["sites"][name]
    with tempfile.TemporaryDirectory(dir=PRIVATE) as folder:
        folder = pathlib.Path(folder)
        key, request = folder / "key.pem", folder / "request.pem"
        run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-out", key)  # fmt: skip
        names = ",".join(f"DNS:{domain}" for domain in site["domains"])
        run("openssl", "req", "-new", "-key", key, "-subj", "/", "-addext",
            f"subjectAltName=critical,{names}", "-out", request)  # fmt: skip
        if site["source"] == "authority":
            chain = sign(request, plan["environment"], folder)
        elif first:
            chain = run("openssl", "x509", "-req", "-in", request, "-signkey", key, "-days", "7",
                        "-copy_extensions", "copyall")  # fmt: skip
        else:
            chain = ask_acme(request, plan["acme"])
        pem = FOLDER / f"{name}.pem"
        replace(pem, chain + key.read_text())
        if not first or site["source"] == "authority":
            replace(note_of(name), origin(pem, name, plan))


def note_of(name):
    """The file that says where a site's certificate came from, and which one that was."""
    return PRIVATE / f"{name}.origin"


def origin(pem, name, plan):
    """What is noted of a certificate, if it is from where the plan has it from."""
    source = plan["sites"][name]["source"]
    server = plan["acme"]["directory"] if source == "acme" else ""
    return f"{source} {server} {hashlib.sha256(pem.read_bytes()).hexdigest()}\n"


def sign(request, environment, folder):
    """Sign a request with the environment's own authority; return the chain."""
    key, certificate = PRIVATE / "authority_key.pem", PRIVATE / "authority.pem"
    if not key.exists():
        raise CertificateError(
            "secrets:haproxy:authority_key isn't in this host's pillar. Make one with "
            "`openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` and add it to "
            "secrets/haproxy.sls of the environment."
        )
    of_key = run("openssl", "pkey", "-in", key, "-pubout")
    if not certificate.exists() or public_key_of(certificate) != of_key:
        made = run("openssl", "req", "-x509", "-key", key, "-days", str(AUTHORITY_DAYS),
                   "-subj", f"/O=Saltern/CN=Saltern authority of {environment}",
                   "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
        replace(certificate, made)
    extensions = folder / "extensions"
    extensions.write_text(
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
        "extendedKeyUsage=serverAuth\n"
    )
    signed = run("openssl", "x509", "-req", "-in", request, "-CA", certificate, "-CAkey", key,
                 "-days", str(LEAF_DAYS), "-copy_extensions", "copyall",
                 "-extfile", extensions)  # fmt: skip
    return signed + certificate.read_text()


def ask_acme(request, acme):
    """Have a request signed by the ACME server; return the chain."""
    account = PRIVATE / "acme_account_key.pem"
    if not account.exists():
        raise CertificateError(
            "secrets:haproxy:acme_account_key isn't in this host's pillar. Make one with "
            "`openssl genrsa 4096` and add it to secrets/haproxy.sls of the environment."
        )
    command = ["acme-tiny", "--quiet", "--disable-check", "--account-key", account,
               "--csr", request, "--directory-url", acme["directory"]]  # fmt: skip
    if acme["contact"]:
        command += ["--contact", f"mailto:{acme['contact']}"]
    # acme-tiny leaves the challenge in a folder for a web server; HAProxy needs no such file.
    with tempfile.TemporaryDirectory() as unused:
        return run(*command, "--acme-dir", unused)


def names_of(pem):
    """The host names that a certificate is for."""
    shown = run("openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", pem)
    return set(re.findall(r"DNS:([^,\s]+)", shown))


def public_key_of(pem):
    return run("openssl", "x509", "-noout", "-pubkey", "-in", pem)


def replace(path, text):
    """Write a file that only root may read, whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def succeeds(*command):
    return subprocess.run(command, capture_output=True).returncode == 0


def run(*command):
    """Run a command; return what it prints. Raises CertificateError with its last words."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise CertificateError(f"{command[0]} failed: {words[-1]}")
    return done.stdout


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CertificateError as failure:
        sys.exit(str(failure))
