"""
Backups that are set up: a place for them, a first one, and a word about those that failed.
"""

import time

from salt.exceptions import CommandExecutionError

_RESTART = "A database host waits for a restart: salt 'db*' database.restart. Then again."


def stanza(name, wait=300):
    """
    The repository knows the database cluster, and what the cluster sends arrives there.

    name
        Anything.
    wait
        Seconds to wait for the primary: in a farm's first run it is set up at the same time.

    .. code-block:: yaml

        backup/stanza:
          backup.stanza
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "The repository is ready."}
    if __salt__["backup.ready"]():
        return ret
    changes = {"stanza": {"old": "absent", "new": "farm"}}
    if __opts__["test"]:
        return ret | {"result": None, "changes": changes, "comment": "It would be made ready."}
    deadline = time.monotonic() + wait
    while True:
        try:
            __salt__["backup.create"]()
            return ret | {"changes": changes, "comment": "The log of the database arrives."}
        except CommandExecutionError as error:
            if "archive_mode" in str(error):
                return ret | {"result": False, "comment": _RESTART}
            if time.monotonic() > deadline:
                return ret | {"result": False, "comment": str(error)}
        time.sleep(5)


def first(name, kind="full"):
    """
    There is a backup, or one is being made in the background.

    name
        Anything.
    kind
        ``full``, or ``mariadb-full``.

    .. code-block:: yaml

        backup/first:
          backup.first
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "There is a backup."}
    if __salt__["backup.list"]()["backups" if kind == "full" else "mariadb"]:
        return ret
    if __salt__["service.status"](f"saltern-backup@{kind}"):
        return ret | {"comment": "The first backup is being made."}
    changes = {"backup": {"old": "none", "new": "started"}}
    if __opts__["test"]:
        return ret | {"result": None, "changes": changes, "comment": "One would be started."}
    __salt__["service.start"](f"saltern-backup@{kind}", no_block=True)
    return ret | {"changes": changes, "comment": "The first backup is being made."}


def settled(name):
    """
    Says what is wrong with the backups, each time, until it is right. Changes nothing.

    name
        Anything.

    .. code-block:: yaml

        backup/settled:
          backup.settled
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "The backups are well."}
    found = __salt__["backup.complaints"]()
    complaints = [one for one in found if not one.startswith(("there is no", "no backup"))]
    if complaints:
        ret["comment"] = "; ".join(complaints)
        ret["warnings"] = [f"Backups: {complaint}." for complaint in complaints]
    return ret
