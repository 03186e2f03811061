"""
The units of background work that a host should have, worked out from inventory, settings and sites.

The part of ``celery`` that asks nothing of the host, in a file of its own: states ask for it while
they are rendered, and for salt-ssh that is on the master (``_wrapper/``).
"""

import re

from salt.exceptions import CommandExecutionError

__virtualname__ = "celery"


def __virtual__():
    return __virtualname__


def units(site=None):
    """
    The units that this host should have, for the release that is live.

    site
        Only the units of this site.

    Returns a list of dictionaries: ``name`` (without the release), ``site``, ``kind`` (``queue``,
    ``beat`` or ``daemon``), ``of`` (the queue or daemon, or the site), and ``processes`` and
    ``why`` or ``command``. Raises ``CommandExecutionError`` if the pillar's names clash or a site
    has queues but no application.

    CLI Example:

    .. code-block:: bash

        salt 'worker*' celery.units
    """
    if "worker" not in __salt__["inventory.roles"]():
        return []
    found = [unit for name in __salt__["sites.list"]() for unit in _units(name)]
    names = [unit["name"] for unit in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise CommandExecutionError(
            f"Two queues or daemons would be called {twice[0]}: rename one in sites.yaml."
        )
    return [unit for unit in found if site in (None, unit["site"])]


def _units(name):
    site = __salt__["sites.get"](name)
    if (site["queues"] or site["beat"]) and not site["celery_app"]:
        raise CommandExecutionError(
            f"sites.{name}: queues and beat need celery_app, the module of the application."
        )
    settings = __salt__["settings.get"]("celery")
    sharing = [queue for queue, processes in site["queues"].items() if not processes]
    made = []
    for queue, processes in sorted(site["queues"].items()):
        why = "set in sites.yaml"
        if not processes:
            processes = max(1, settings["concurrency"] // len(sharing))
            why = f"{settings['concurrency']} shared by {len(sharing)} queues: "
            why += settings["why"].get("concurrency", "set in pillar")
        made.append(_unit(name, "queue", queue, processes=processes, why=why))
    if site["beat"]:
        made.append(_unit(name, "beat", "beat"))
    for daemon, command in sorted(site["daemons"].items()):
        made.append(_unit(name, "daemon", daemon, command=command))
    return made


def _unit(site, kind, of, **more):
    for word in (site, of):
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", word):
            raise CommandExecutionError(
                f"sites.{site}: {word!r} can't name a queue or daemon. "
                "Allowed: letters, digits, '_', '.', '-'."
            )
    prefix = "daemon" if kind == "daemon" else "celery"
    return {"name": f"{prefix}-{site}-{of}", "site": site, "kind": kind, "of": of, **more}
