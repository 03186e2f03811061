"""
The SSH server: a new configuration takes the place of the old one only if it lets somebody in. The
keys by which this host is known: which are offered, what they are made of, those that are missing.
"""

import contextlib
import pathlib
import re
import shutil
import socket
import subprocess
import time

from salt.exceptions import CommandExecutionError

_LIVE = pathlib.Path("/etc/ssh/sshd_config")
_FORMER = pathlib.Path("/etc/ssh/sshd_config.former")
# The kinds of keys that a host may be known by, and the fewest bits of each.
_LEAST_BITS = {"ED25519": 256, "RSA": 3072}


def active(path):
    """
    Whether the server is up and works by a configuration.

    path
        The configuration.

    Returns ``True`` or ``False``.

    CLI Example:

    .. code-block:: bash

        salt '*' sshd.active /etc/saltern/sshd_config
    """
    wanted = pathlib.Path(path)
    return (
        wanted.exists()
        and _LIVE.exists()
        and wanted.read_bytes() == _LIVE.read_bytes()
        and __salt__["service.status"]("ssh")
        and __salt__["service.enabled"]("ssh")
    )


def configure(path, patience=10):
    """
    Have the server work by a configuration; put the old one back if a fresh connection isn't
    answered then. Sessions go on in either case.

    path
        The configuration, complete.
    patience
        Seconds in which the server has to answer on each port that the configuration names.

    Returns ``{"ports": [...]}``. Raises ``CommandExecutionError`` if the old one is in use again.

    CLI Example:

    .. code-block:: bash

        salt '*' sshd.configure /etc/saltern/sshd_config
    """
    _run("/usr/sbin/sshd", "-t", "-f", path)
    ports = _ports(path)
    shutil.copy2(_LIVE, _FORMER)
    _install(path)
    silent = [port for port in ports if not answers(port, patience)]
    if silent:
        _install(_FORMER)
        raise CommandExecutionError(
            f"With {path} sshd doesn't answer on port {silent[0]}. The configuration before it is "
            "in use again. See why with: journalctl -u ssh -n 50"
        )
    return {"ports": ports}


def answers(port=22, patience=10):
    """
    Whether a fresh connection to this host's private address is greeted by an SSH server.

    port
        Its port.
    patience
        Seconds that it may take.

    Returns ``True`` or ``False``.

    CLI Example:

    .. code-block:: bash

        salt '*' sshd.answers 22
    """
    deadline = time.monotonic() + float(patience)
    while True:
        with contextlib.suppress(OSError):
            where = __salt__["inventory.address"](), int(port)
            with socket.create_connection(where, timeout=3) as connection:
                if connection.recv(8).startswith(b"SSH-2.0"):
                    return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def host_keys():
    """
    The keys that the server offers, as its configuration has it.

    Returns a dictionary from file to ``kind`` (``ED25519``, ``RSA``, …), ``bits``, ``fingerprint``
    (``SHA256:…``) and ``weak``: what is wrong with it, or nothing. Files that aren't there are
    left out, as the server leaves them out. Raises ``CommandExecutionError`` if the server refuses
    its configuration.

    CLI Example:

    .. code-block:: bash

        salt '*' sshd.host_keys
    """
    files = re.findall(r"^hostkey (.+)$", _run("/usr/sbin/sshd", "-T"), re.M)
    return {file: _key(file) for file in files if pathlib.Path(file).exists()}


def fingerprints():
    """
    What to compare with what ``ssh`` shows at the first login on this host.

    Returns a dictionary from the key's kind, as ``ssh`` calls it, to its fingerprint:
    ``{"ED25519": "SHA256:…"}``. Raises ``CommandExecutionError`` as :func:`host_keys` does.

    CLI Example:

    .. code-block:: bash

        salt 'app1' sshd.fingerprints
    """
    return {key["kind"]: key["fingerprint"] for key in host_keys().values() if key["kind"]}


def lacking(keys):
    """
    Which of the keys that a host should have have to be made.

    keys
        A dictionary from a key's type, as ``ssh-keygen`` calls it (``ed25519``, ``rsa``), to its
        file.

    Returns a dictionary from file to what is wrong with it. A good key isn't among them.

    CLI Example:

    .. code-block:: bash

        salt '*' sshd.lacking '{rsa: /etc/ssh/ssh_host_rsa_key}'
    """
    found = {}
    for file in keys.values():
        if not pathlib.Path(file).exists():
            found[file] = "isn't there"
        elif wrong := _key(file)["weak"]:
            found[file] = wrong
    return found


def make_keys(keys):
    """
    Make those of a host's keys that are missing or weak. A good key stays; a weak one is kept
    beside the new one, as ``<file>.weak``. The server goes on with what it has until it is
    reloaded.

    keys
        As for :func:`lacking`.

    Returns a dictionary from file to the fingerprint of the new key. Raises
    ``CommandExecutionError`` if one can't be made.

    CLI Example:

    .. code-block:: bash

        salt '*' sshd.make_keys '{ed25519: /etc/ssh/ssh_host_ed25519_key}'
    """
    made = {}
    wrong = lacking(keys)
    for kind, file in keys.items():
        if file not in wrong:
            continue
        path, fresh = pathlib.Path(file), pathlib.Path(f"{file}.new")
        fresh.unlink(missing_ok=True)
        size = ["-b", str(_LEAST_BITS["RSA"])] if kind == "rsa" else []
        _run("ssh-keygen", "-q", "-t", kind, *size, "-N", "", "-C", __opts__["id"], "-f", fresh)
        if path.exists():
            shutil.copy2(path, f"{file}.weak")
        fresh.replace(path)
        pathlib.Path(f"{fresh}.pub").replace(f"{file}.pub")
        made[file] = _key(file)["fingerprint"]
    return made


def _key(file):
    """What a key is, told by its private part: that is what the server shows."""
    try:
        public = _run("ssh-keygen", "-y", "-P", "", "-f", file)
    except CommandExecutionError:
        return {"kind": None, "bits": 0, "fingerprint": None, "weak": "can't be read as a key"}
    shown = _run("ssh-keygen", "-l", "-E", "sha256", "-f", "-", said=public)
    bits, fingerprint, kind = re.match(r"(\d+) (\S+) .*\((\S+)\)$", shown.strip()).groups()
    weak = int(bits) < _LEAST_BITS.get(kind, float("inf"))
    return {
        "kind": kind,
        "bits": int(bits),
        "fingerprint": fingerprint,
        "weak": f"is {kind} of {bits} bits" if weak else "",
    }


def _install(path):
    """Put a configuration in its place and have it read."""
    fresh = _LIVE.with_suffix(".new")
    shutil.copyfile(path, fresh)
    fresh.chmod(0o644)
    fresh.replace(_LIVE)
    _run("systemctl", "enable", "--quiet", "ssh.service")
    _run("systemctl", "reload-or-restart", "ssh.service", check=False)
    # Until it has read it, the old one would answer for the new one.
    time.sleep(0.5)


def _ports(path):
    shown = _run("/usr/sbin/sshd", "-T", "-f", path)
    return [int(port) for port in re.findall(r"^port (\d+)$", shown, re.M)]


def _run(*command, check=True, said=""):
    words = [str(word) for word in command]
    done = subprocess.run(words, input=said, capture_output=True, text=True, check=False)
    if check and done.returncode:
        told = (done.stderr or done.stdout).strip()
        raise CommandExecutionError(f"{' '.join(words)} failed: {told}")
    return done.stdout
