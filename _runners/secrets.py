"""
The secrets of an environment, encrypted in its pillar files: add one, change who can read them.

They stand in ``pillar/environments/<environment>/secrets/<file>.sls``; ``pillar/top.sls`` says
which roles a file is for, and ``secrets/recipients`` which keys can decrypt.
"""

import functools
import getpass
import os
import pathlib
import re
import secrets
import shutil
import subprocess
import sys

import yaml
from salt.exceptions import CommandExecutionError

_SHEBANG = "#!yaml|gpg"
_MESSAGE = "-----BEGIN PGP MESSAGE-----"


def _in_a_sentence(function):
    """Salt prints a traceback for whatever a runner raises: an error is told instead."""

    @functools.wraps(function)
    def told(*arguments, **options):
        try:
            return function(*arguments, **options)
        except CommandExecutionError as error:
            return {"comment": str(error), "retcode": 1}

    return told


@_in_a_sentence
def init(environment):
    """
    Make this master able to read an environment's secrets: give it a key, if it has none, and name
    that in ``secrets/recipients``. What is encrypted already becomes readable by :func:`rotate`,
    run where a key is that can read it.

    environment
        Which one.

    Returns the key's fingerprint and what to do with it.

    CLI Example:

    .. code-block:: bash

        salt-run secrets.init production
    """
    folder = _folder(environment)
    keys = _keys()
    if not keys.exists():
        keys.mkdir(mode=0o700, parents=True)
    own = _own_key()
    if not own:
        name = f"Saltern master {os.uname().nodename}"
        options = ["--pinentry-mode", "loopback", "--passphrase", ""]
        _gpg(*options, "--quick-generate-key", name, "future-default", "default", "never")
        own = _own_key()
        for path in (keys, *keys.rglob("*")):
            shutil.chown(path, __opts__.get("user") or "root")
    listed = folder / "recipients"
    if own not in _recipients(listed):
        folder.mkdir(parents=True, exist_ok=True)
        with listed.open("a") as file:
            file.write(f"{own}  # {os.uname().nodename}\n")
    return {
        "key": own,
        "recipients": str(listed),
        "do_now": f"copy {keys} to a safe place: without it nobody can read these secrets. Commit "
        "recipients.",
    }


@_in_a_sentence
def add(environment, file, path, generate=False):
    """
    Set a secret. It is read from standard input, or typed without being shown; never from the
    command line, which others can see.

    environment
        Which one.
    file
        The file's name in ``secrets/``: what ``pillar/top.sls`` gives to roles.
    path
        Where it stands below ``secrets:``, with colons: ``postgres:users:newsroom``.
    generate
        Make a random one instead of reading it.

    Returns what was written, without the secret. Fails with a sentence if no role is
    given the file, there are no recipients, or nothing was typed.

    CLI Example:

    .. code-block:: bash

        salt-run secrets.add production postgres postgres:users:newsroom generate=True
        salt-run secrets.add production haproxy haproxy:authority_key < authority.key
    """
    folder = _folder(environment)
    _check_readers(file)
    steps = [step for step in str(path).split(":") if step]
    if not steps:
        raise CommandExecutionError("Name the secret, as in postgres:users:newsroom.")
    recipients = _needed_recipients(folder)
    target = folder / f"{file}.sls"
    head, content = _load(target, file)
    where = content.setdefault("secrets", {})
    for step in steps[:-1]:
        where = where.setdefault(step, {})
        if not isinstance(where, dict):
            raise CommandExecutionError(f"{target}: {step} is a secret and can't hold others.")
    known = steps[-1] in where
    value = secrets.token_urlsafe(32) if generate else _typed(path)
    where[steps[-1]] = _encrypted(value, recipients)
    _store(target, head, content)
    done = "replaced" if known else "added"
    return f"{path} was {done} in {target}, encrypted for {len(recipients)} keys."


@_in_a_sentence
def rotate(environment):
    """
    Encrypt all secrets of an environment anew, for the keys that ``secrets/recipients`` names now;
    what stands there in plain text is encrypted, too. The secrets stay the same: who could read
    them once knows them until they are replaced by :func:`add`.

    environment
        Which one.

    Returns a dictionary from file to the number of values. Fails with a sentence, with
    nothing changed, if one can't be decrypted here.

    CLI Example:

    .. code-block:: bash

        salt-run secrets.rotate production
    """
    folder = _folder(environment)
    recipients = _needed_recipients(folder)
    new = {}
    for target in sorted(folder.glob("*.sls")):
        head, content = _load(target, target.stem)
        count = []
        new[target] = (head, _each(content, lambda v: _again(v, recipients), count), len(count))
    for target, (head, content, _) in new.items():
        _store(target, head, content)
    return {target.name: count for target, (_, _, count) in new.items()}


def _folder(environment):
    pillar = pathlib.Path(__opts__["pillar_roots"]["base"][0], "environments")
    known = sorted(path.name for path in pillar.glob("*/"))
    if environment not in known:
        raise CommandExecutionError(
            f"There is no environment {environment!r}. There are {', '.join(known)}."
        )
    return pillar / environment / "secrets"


def _check_readers(file):
    top = pathlib.Path(__opts__["pillar_roots"]["base"][0], "top.sls")
    known = re.findall(r"^  '([\w-]+)': \[", top.read_text(), re.M)
    if file not in known:
        raise CommandExecutionError(
            f"{top} gives {file!r} to no role: add it to its table first. "
            f"Files: {', '.join(known)}."
        )


def _keys():
    return pathlib.Path(__opts__.get("gpg_keydir") or "/etc/salt/gpgkeys")


def _gpg(*arguments, given=None):
    """Run gpg; what it is given goes in by standard input."""
    done = subprocess.run(
        ["gpg", "--homedir", str(_keys()), "--batch", "--no-tty", "--quiet", *arguments],
        input=given,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("gpg:")]
        raise CommandExecutionError("; ".join(said[-2:]) or "gpg failed.")
    return done.stdout


def _own_key():
    """The fingerprint of this master's own key, or nothing."""
    listed = _gpg("--with-colons", "--list-secret-keys")
    return next((line.split(":")[9] for line in listed.splitlines() if line[:4] == "fpr:"), None)


def _recipients(listed):
    """The fingerprints of a file of recipients."""
    if not listed.exists():
        return []
    lines = (line.partition("#")[0].strip() for line in listed.read_text().splitlines())
    return [line for line in lines if line]


def _needed_recipients(folder):
    found = _recipients(folder / "recipients")
    if not found:
        raise CommandExecutionError(
            f"{folder / 'recipients'} names no key to encrypt for: "
            f"salt-run secrets.init {folder.parent.name}"
        )
    return found


def _typed(path):
    shown = sys.stdin.isatty()
    value = getpass.getpass(f"{path}: ") if shown else sys.stdin.read().rstrip("\n")
    if not value:
        raise CommandExecutionError("Nothing was typed: give the secret on standard input.")
    return value


def _encrypted(value, recipients):
    named = [word for key in recipients for word in ("--recipient", key)]
    return _gpg("--armor", "--trust-model", "always", *named, "--encrypt", given=value)


def _again(value, recipients):
    plain = _gpg("--decrypt", given=value) if _MESSAGE in value else value
    return _encrypted(plain, recipients)


def _each(content, change, count):
    """A structure with each of its texts changed."""
    if isinstance(content, dict):
        return {key: _each(value, change, count) for key, value in content.items()}
    if isinstance(content, list):
        return [_each(value, change, count) for value in content]
    if content is None:
        return None
    count.append(content)
    return change(str(content))


def _load(target, name):
    """The comment at the head of a file of secrets, and what stands in it."""
    if not target.exists():
        return [f"# Secrets of the file {name!r}: pillar/top.sls says who is told them."], {}
    text = target.read_text()
    head = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("#!"):
            head.append(line)
    return head, yaml.safe_load(text) or {}


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are."""


def _written(dumper, text):
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _written)


def _store(target, head, content):
    text = "\n".join([_SHEBANG, *head, yaml.dump(content, Dumper=_Dumper, sort_keys=False)])
    fresh = target.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(target)
