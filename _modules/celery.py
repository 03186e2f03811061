"""
The background work of the sites on a worker host: its units, and what an operator does to them.

Each queue of a site has a worker of its own, a systemd unit whose instance is the release that it
runs: ``celery-<site>-<queue>@<release>``. A new release's workers start beside those of the old
one, which take no new tasks and end when they have finished what they have.
"""

import json
import pathlib
import re
import time

from salt.exceptions import CommandExecutionError

_SCRIPT = "/usr/local/lib/saltern/celery_service.py"
_UNITS = pathlib.Path("/etc/systemd/system")
# There while this host was drained and not resumed.
_DRAINED = pathlib.Path("/var/lib/saltern/celery.drained")
# How the units begin that the state `celery` wrote.
_MARK = "# Managed by Saltern: salt/celery/files/unit.service"
_LIVE = ("active", "activating", "reloading")


def left_over():
    """
    Units that this host has from what sites.yaml no longer says: a queue or daemon that was taken
    out, a removed site.

    Returns a sorted list of names, without releases.

    CLI Example:

    .. code-block:: bash

        salt 'worker*' celery.left_over
    """
    wanted = {unit["name"] for unit in __salt__["celery.units"]()}
    found = [path for kind in ("celery", "daemon") for path in _UNITS.glob(f"{kind}-*@.service")]
    ours = [path for path in found if path.read_text().startswith(_MARK)]
    return sorted({_template(path.name) for path in ours} - wanted)


def remove(name):
    """
    Remove a unit that :func:`left_over` names, with all of its instances: they take no more tasks
    and are given the time to finish theirs.

    name
        The unit's name, without a release.

    Returns a list of the instances that ran. Raises ``CommandExecutionError`` if it isn't left
    over.

    CLI Example:

    .. code-block:: bash

        salt worker1 celery.remove daemon-newsroom-feed
    """
    if name not in left_over():
        raise CommandExecutionError(f"{name!r} isn't left over: sites.yaml names it, or nobody.")
    instances = _instances([f"{name}@*.service"])
    if instances:
        _systemctl("disable", *instances)
        _systemctl("stop", *instances)
    (_UNITS / f"{name}@.service").unlink()
    _systemctl("daemon-reload")
    return instances


def live(site):
    """
    The release of a site that is live on this host.

    site
        The site's name.

    Returns the release's name, or None if nothing was shipped yet.

    CLI Example:

    .. code-block:: bash

        salt 'worker*' celery.live newsroom
    """
    current = pathlib.Path(__salt__["sites.paths"](site)["current"])
    return current.readlink().name if current.is_symlink() else None


def status(site):
    """
    The instances of a site's units that are there, old releases' included.

    site
        The site's name.

    Returns a dictionary from the full unit name to ``state`` (systemd's), ``release``, ``since``
    (in seconds since 1970, 0 if it doesn't run) and ``enabled``.

    CLI Example:

    .. code-block:: bash

        salt 'worker*' celery.status newsroom
    """
    patterns = [f"{unit['name']}@*.service" for unit in __salt__["celery.units"](site)]
    if not patterns:
        return {}
    return {name: _instance(name) for name in _instances(patterns)}


def _instances(patterns):
    """The units that are loaded or enabled and whose names match one of these patterns."""
    listed = _systemctl("list-units", "--all", "--plain", "--no-legend", *patterns)["stdout"]
    found = {line.split()[0] for line in listed.splitlines() if line.strip()}
    return sorted(found | _enabled(patterns))


def _enabled(patterns):
    wants = _UNITS / "multi-user.target.wants"
    return {link.name for pattern in patterns for link in wants.glob(pattern)}


def _instance(name):
    wanted = "ActiveState,ActiveEnterTimestampMonotonic,UnitFileState"
    shown = _systemctl("show", name, f"--property={wanted}")["stdout"]
    told = dict(line.split("=", 1) for line in shown.splitlines())
    entered = int(told["ActiveEnterTimestampMonotonic"] or 0)
    booted = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    return {
        "state": told["ActiveState"],
        "release": name.partition("@")[2].removesuffix(".service"),
        "since": booted + entered / 1e6 if told["ActiveState"] in _LIVE and entered else 0,
        "enabled": (_UNITS / "multi-user.target.wants" / name).is_symlink(),
    }


def shipped(site, release):
    """
    Let a release do the background work, from now on.

    Its workers start beside those of the release before and must be ready to take tasks; then the
    old ones are told to take no more, and finish in the background what they have.

    site
        The site's name.
    release
        The release's name.

    Returns a dictionary: ``seconds``, ``started`` and ``finishing`` (unit names), and ``drained``,
    true where this host was drained, so that nothing was done. Raises ``CommandExecutionError``
    with the end of the log if one doesn't come up: then the old ones go on as before.

    CLI Example:

    .. code-block:: bash

        salt 'worker*' celery.shipped newsroom 20260102-030405-1a2b3c4d
    """
    began = time.monotonic()
    found = {"started": [], "finishing": [], "drained": drained()}
    if not found["drained"]:
        found.update(_change_over(site, release))
    found["seconds"] = round(time.monotonic() - began, 2)
    return found


def _change_over(site, release):
    wanted = __salt__["celery.units"](site)
    queues = [_named(unit, release) for unit in wanted if unit["kind"] == "queue"]
    # Of beat and of a daemon there is never more than one on a host: first the old one ends.
    single = [_named(unit, release) for unit in wanted if unit["kind"] != "queue"]
    before = status(site)
    alive = [name for name, told in before.items() if told["state"] in _LIVE]
    workers = {unit["name"] for unit in wanted if unit["kind"] == "queue"}
    old = [name for name in before if name not in queues + single]
    old_workers = [name for name in alive if name in old and _template(name) in workers]
    old_single = [name for name in alive if name in old and name not in old_workers]

    started = [name for name in queues if name not in alive]
    _start(started, stop=started, start=[])
    if old_single:
        _systemctl("stop", *old_single)
    started_single = [name for name in single if name not in alive]
    _start(started_single, stop=started + started_single, start=old_single)
    if old:
        _systemctl("disable", *old)
    if queues + single:
        _systemctl("enable", *queues, *single)
    if old_workers:
        _systemctl("stop", "--no-block", *old_workers)
    return {"started": started + started_single, "finishing": old_workers}


def _start(names, stop, start):
    """Start units together; where one fails, put back what was, and raise."""
    if not names:
        return
    _systemctl("start", *names)
    failed = [name for name in names if _instance(name)["state"] != "active"]
    if not failed:
        return
    log = __salt__["cmd.run_stdout"](
        ["journalctl", "-u", failed[0], "-n", "20", "-o", "cat", "--no-pager"], python_shell=False
    )
    _systemctl("stop", *stop)
    if start:
        _systemctl("start", "--no-block", *start)
    raise CommandExecutionError(f"{failed[0]} doesn't come up:\n{log}")


def drain(site=None):
    """
    Let the workers of this host take no more tasks and wait until they have finished theirs.

    The host stays drained, whatever is shipped or applied, until :func:`resume`.

    site
        Only the workers of this site. Then the host isn't marked: the next release or
        ``state.apply`` starts them again.

    Returns a dictionary: ``stopped`` (unit names) and ``seconds``.

    CLI Example:

    .. code-block:: bash

        salt --timeout 900 'worker2' celery.drain
    """
    began = time.monotonic()
    if site is None:
        _DRAINED.parent.mkdir(parents=True, exist_ok=True)
        _DRAINED.touch()
    sites = [site] if site else __salt__["sites.list"]()
    running = [
        name for one in sites for name, told in status(one).items() if told["state"] in _LIVE
    ]
    if running:
        _systemctl("stop", *running)
    return {"stopped": running, "seconds": round(time.monotonic() - began, 2)}


def resume():
    """
    Put a drained host to work again, with the release that is live.

    Returns a dictionary from site to what :func:`shipped` returns. Raises
    ``CommandExecutionError`` if a worker doesn't come up.

    CLI Example:

    .. code-block:: bash

        salt 'worker2' celery.resume
    """
    _DRAINED.unlink(missing_ok=True)
    return {
        site: shipped(site, live(site))
        for site in __salt__["sites.list"]()
        if __salt__["celery.units"](site) and live(site)
    }


def drained():
    """
    Whether this host was drained and not resumed.

    Returns true or false.

    CLI Example:

    .. code-block:: bash

        salt 'worker*' celery.drained
    """
    return _DRAINED.exists()


def inspect(site):
    """
    The queues of a site and the workers of the whole farm, as they are now.

    site
        The site's name.

    Returns a dictionary: ``queues``, by name how many tasks wait; ``workers``, by node its
    ``processes``, the names of the tasks ``running``, how many were ``fetched`` and not begun,
    and how many it has ``done``; ``failed``, by task how many failed on this host within the last
    hour. Raises ``CommandExecutionError`` if nothing was shipped here or the broker doesn't
    answer.

    CLI Example:

    .. code-block:: bash

        salt 'worker1' celery.inspect newsroom
    """
    known = __salt__["sites.get"](site)
    found = _script(site, "inspect", known["celery_app"], *sorted(known["queues"]))
    found["failed"] = _failed(site)
    return found


def _failed(site):
    """Tasks that failed within the last hour, by name, from the journal."""
    chosen = [
        word for unit in __salt__["celery.units"](site) for word in ("-u", f"{unit['name']}@*")
    ]
    if not chosen:
        return {}
    log = __salt__["cmd.run_all"](
        ["journalctl", *chosen, "--since=-1h", "-o", "cat", "--no-pager"],
        python_shell=False,
        ignore_retcode=True,
    )["stdout"]
    names = re.findall(r"Task (\S+?)\[[0-9a-f-]+\] raised unexpected", log)
    return {name: names.count(name) for name in sorted(set(names))}


def scale(site, queue, processes):
    """
    Give the worker of a queue on this host more or fewer processes, until it is started again.

    For good it is changed in sites.yaml.

    site
        The site's name.
    queue
        The queue's name.
    processes
        How many, at least 1.

    Returns a dictionary: ``old`` and ``new``. Raises ``CommandExecutionError`` if there is no such
    queue or its worker doesn't answer.

    CLI Example:

    .. code-block:: bash

        salt 'worker1' celery.scale newsroom high 8
    """
    known = __salt__["sites.get"](site)
    if queue not in known["queues"]:
        raise CommandExecutionError(
            f"{site} has no queue {queue!r}. Its queues: {', '.join(known['queues']) or 'none'}."
        )
    if not isinstance(processes, int) or processes < 1:
        raise CommandExecutionError(f"{processes!r} processes: give a whole number, at least 1.")
    node = f"{queue}.{live(site)}@{__grains__['host']}"
    return _script(site, "scale", known["celery_app"], node, str(processes))


def _script(site, *arguments):
    """Run the service's own script with the live release, as the site's user."""
    release = live(site)
    if not release:
        raise CommandExecutionError(f"Nothing of {site} was shipped to {__opts__['id']} yet.")
    paths = __salt__["sites.paths"](site)
    note = f"{paths['deploy']}/releases/{release}.json"
    told = __salt__["commands.run"](
        site,
        ["/usr/bin/python3", _SCRIPT, note, paths["env_file"], *arguments],
        timeout=30,
        task=f"Asking the broker and the workers of {site}",
    )
    return json.loads(told.rpartition("\nsaltern:")[2])


def _template(name):
    """The name of a unit without its release."""
    return name.partition("@")[0]


def _named(unit, release):
    return f"{unit['name']}@{release}.service"


def _systemctl(*arguments):
    return __salt__["cmd.run_all"](
        ["systemctl", *arguments], python_shell=False, ignore_retcode=True
    )
