"""
The SSH server: a new configuration takes the place of the old one only if it lets somebody in.
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


def _run(*command, check=True):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise CommandExecutionError(f"{' '.join(command)} failed: {said}")
    return done.stdout
