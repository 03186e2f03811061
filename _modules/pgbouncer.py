"""
PgBouncer, the pooler before PostgreSQL: hold clients back, let them go on, look in.
"""

import json
import subprocess

from salt.exceptions import CommandExecutionError


def pause(timeout=30):
    """
    Hold all clients back: running transactions finish, the next ones wait.

    timeout
        Seconds that running transactions get. If they don't finish, nobody is held back.

    Raises ``CommandExecutionError`` if they don't finish.

    CLI Example:

    .. code-block:: bash

        salt 'db1' pgbouncer.pause
    """
    try:
        _admin("PAUSE", timeout)
    except subprocess.TimeoutExpired as error:
        resume()
        raise CommandExecutionError(
            f"Transactions went on for more than {timeout} s; nobody is held back any more. "
            "See them with: salt 'db*' pgbouncer.status"
        ) from error
    return True


def resume():
    """
    Let clients go on after :func:`pause`.

    CLI Example:

    .. code-block:: bash

        salt 'db1' pgbouncer.resume
    """
    try:
        _admin("RESUME")
    except CommandExecutionError as error:
        if "not paused" not in str(error):
            raise
    return True


def reconnect():
    """
    Replace every connection to the server when its transaction ends, and forget what the old
    server said of itself.

    CLI Example:

    .. code-block:: bash

        salt 'db1' pgbouncer.reconnect
    """
    _admin("RECONNECT")
    return True


def status():
    """
    The pools: clients and connections.

    Returns a list of dictionaries: ``database``, ``user``, ``cl_active``, ``cl_waiting``,
    ``sv_active``, ``sv_idle``, ``maxwait`` (seconds that the first in the queue has waited).

    CLI Example:

    .. code-block:: bash

        salt 'db*' pgbouncer.status
    """
    wanted = ("database", "user", "cl_active", "cl_waiting", "sv_active", "sv_idle", "maxwait")
    lines = [line.split("\x1f") for line in _admin("SHOW POOLS").splitlines()]
    pools = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    return [
        {key: _number(pool[key]) for key in wanted}
        for pool in pools
        if pool["database"] != "pgbouncer"
    ]


def _number(text):
    return json.loads(text) if text.isdigit() else text


def _admin(command, timeout=10):
    """A command to PgBouncer's console, over its socket as the system account that may."""
    settings = __salt__["settings.get"]("pgbouncer")
    done = subprocess.run(
        [
            "psql",
            "-XAw",
            "--field-separator=\x1f",
            "--pset=footer=off",
            "--host=/run/postgresql",
            f"--port={settings['port']}",
            "--username=postgres",
            "--dbname=pgbouncer",
            f"--command={command}",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        cwd="/",
        user="postgres",
        group="postgres",
        extra_groups=[],
    )
    if done.returncode:
        raise CommandExecutionError(f"pgbouncer: {done.stderr.strip()}")
    return done.stdout
