"""
The background work of a site runs, and with what its units and environment say now.
"""

import pathlib

from salt.exceptions import CommandExecutionError

_UNITS = "/etc/systemd/system"
_SCRIPT = "/usr/local/lib/saltern/celery_service.py"


def running(name):
    """
    The workers, beat and daemons of a site run the release that is live on this host.

    Those whose unit, program or environment changed since they were started finish their tasks and
    are started again, in the background. Where nothing was shipped yet, or the host was drained,
    nothing is done.

    name
        The site's name.

    .. code-block:: yaml

        celery/newsroom/running:
          celery.running:
            - name: newsroom
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "All of its workers run."}
    units = __salt__["celery.units"](name)
    if not units:
        ret["comment"] = f"{name} has no background work here."
        return ret
    release = __salt__["celery.live"](name)
    if not release:
        ret["comment"] = f"Nothing of {name} was shipped here yet."
        return ret
    if __salt__["celery.drained"]():
        ret.setdefault("warnings", []).append(
            f"This host was drained. When it shall work again: salt {__opts__['id']} celery.resume"
        )
        return ret

    status = __salt__["celery.status"](name)
    wanted = [f"{unit['name']}@{release}.service" for unit in units]
    missing = [u for u in wanted if status.get(u, {}).get("state") != "active"]
    outdated = [u for u in wanted if u not in missing and _outdated(name, u, status[u]["since"])]
    if not missing and not outdated:
        return ret
    ret["changes"] = dict.fromkeys(missing, "started")
    ret["changes"].update(dict.fromkeys(outdated, "started again"))
    if __opts__["test"]:
        ret.update(result=None, comment="Workers would be started.")
        return ret

    if outdated:
        __salt__["cmd.run"](["systemctl", "restart", "--no-block", *outdated], python_shell=False)
    ret["comment"] = "Workers were started."
    try:
        if missing:
            __salt__["celery.shipped"](name, release)
    except CommandExecutionError as error:
        ret.update(result=False, changes={}, comment=str(error))
    return ret


def cleaned(name):
    """
    There are no units but those of what sites.yaml says. What is left over takes no more tasks and
    is given the time to finish those it has.

    name
        The state's ID; it has no other meaning.

    .. code-block:: yaml

        celery/cleaned:
          celery.cleaned: []
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "Nothing is left over."}
    found = __salt__["celery.left_over"]()
    if not found:
        return ret
    ret["changes"] = dict.fromkeys(found, "removed")
    if __opts__["test"]:
        ret.update(result=None, comment="What is left over would be stopped and removed.")
        return ret
    for unit in found:
        __salt__["celery.remove"](unit)
    ret["comment"] = "What was left over was stopped and removed."
    return ret


def _outdated(site, unit, since):
    """Whether the unit's file, what it runs or the site's environment is newer than its start."""
    files = [
        pathlib.Path(_SCRIPT),
        pathlib.Path(_UNITS, f"{unit.partition('@')[0]}@.service"),
        pathlib.Path(__salt__["sites.paths"](site)["env_file"]),
    ]
    return any(path.exists() and path.stat().st_mtime > since for path in files)
