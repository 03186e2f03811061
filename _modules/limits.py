"""
Whether running daemons have the file limits that their settings ask for. A unit that says more
helps only the daemon that is started after it; what holds data is never restarted behind the
operator's back, and may run under an older limit for months.
"""

import pathlib
import re
import subprocess

from salt.exceptions import CommandExecutionError

_PROC = pathlib.Path("/proc")
# The units of each service, as systemctl takes patterns.
_UNITS = {
    "haproxy": ["haproxy.service"],
    "varnish": ["varnish.service"],
    "nginx": ["nginx.service"],
    "uwsgi": ["uwsgi.service"],
    "celery": ["celery-*@*.service", "daemon-*@*.service"],
    "twemproxy": ["nutcracker.service"],
    "memcached": ["memcached.service"],
    "redis": ["redis-server@*.service"],
    "rabbitmq": ["rabbitmq-server.service"],
    "postgres": ["postgresql@*.service"],
    "pgbouncer": ["pgbouncer.service"],
    "mariadb": ["mariadb.service"],
}


def files():
    """
    Compare the open files that each running daemon of this host may have with what it should.

    Returns a dictionary from unit to ``may`` (what the running daemon may open), ``unit`` (what its
    unit gives a daemon that is started now), ``wanted`` (what it should, by :mod:`tuning`),
    ``why``, and where they differ ``wrong``, a sentence with the fix, or ``bounded``: the host
    itself, a container perhaps, allows no more. Daemons that don't run are left out. Raises
    ``CommandExecutionError`` if the settings are wrong or systemd doesn't answer.

    CLI Example:

    .. code-block:: bash

        salt '*' limits.files
    """
    found = {}
    for service in __salt__["inventory.services"]():
        if service not in _UNITS:
            continue
        wanted, why = __salt__["tuning.open_files"](service, __salt__["settings.get"](service))
        for unit, (process, given) in _running(_UNITS[service]).items():
            may = _may_open(process)
            if may is not None:
                ceiling = __grains__["hardware"]["open_files"]
                found[unit] = {"may": may, "unit": given, "wanted": wanted, "why": why}
                found[unit].update(_judged(unit, may, given, wanted, ceiling))
    return found


def _judged(unit, may, given, wanted, ceiling):
    """What to say of a daemon: nothing, if it may open what it should."""
    # Somebody may have given it more by a drop-in of his own.
    wanted = max(wanted, given)
    if may < min(wanted, ceiling):
        fix = f"salt '{__opts__['id']}' service.restart {unit.removesuffix('.service')}"
        instead = f"{may} open files instead of {min(wanted, ceiling)}"
        return {"wrong": f"{unit} runs with {instead}. When it suits: {fix}"}
    if may < wanted:
        return {"bounded": f"{unit} has {may} of {wanted} open files: this host allows no more"}
    return {}


def _running(patterns):
    """Unit -> its main process and what the unit gives, of those that run."""
    shown = _run("systemctl", "show", "--property=Id,MainPID,LimitNOFILESoft", "--", *patterns)
    found = {}
    for block in shown.split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if unit.get("MainPID", "0") != "0":
            soft = unit.get("LimitNOFILESoft", "0")
            # "infinity" is as much as there is; the wanted number stands for itself.
            found[unit["Id"]] = unit["MainPID"], int(soft) if soft.isdigit() else 0
    return found


def _may_open(process):
    """
    The files that a daemon may open: the most of its main process and that one's children, as the
    main process of nginx or HAProxy opens little itself. None if it has just ended.
    """
    children = _text(_PROC / process / "task" / process / "children").split()
    limits = [_text(_PROC / one / "limits") for one in [process, *children]]
    numbers = re.findall(r"^Max open files +(\d+)", "\n".join(limits), re.M)
    return max(map(int, numbers), default=None)


def _text(path):
    try:
        return path.read_text()
    except OSError:
        return ""


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandExecutionError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout
