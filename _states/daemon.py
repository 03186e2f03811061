"""
A daemon that runs, and whether it runs what its configuration says.

``service.running`` with ``watch`` restarts a daemon whenever a file changes. Here a restart is
the operator's decision: a daemon that was started before a file that it only reads at its start
was changed goes on running, and the run says so, each time, until it is restarted.
"""

import os
import time


def running(name, restart_for=None):
    """
    The unit runs and is started at boot. It is started if it is down, and never restarted.

    name
        The systemd unit, without ``.service``.

    restart_for
        Files that the daemon reads only when it starts: its unit, a drop-in, a configuration
        that can't be reloaded. Where one is newer than the daemon's start, the state says that a
        restart is pending, and with what to do it.

    With ``watch`` and ``reload`` beside it use ``service.running``; this state never acts on a
    daemon that is up.

    .. code-block:: yaml

        varnish/service:
          daemon.running:
            - name: varnish
            - restart_for:
              - /etc/systemd/system/varnish.service.d/saltern.conf
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} runs."}
    up = __salt__["service.status"](name)
    enabled = __salt__["service.enabled"](name)
    if up and enabled:
        _report_pending(ret, name, restart_for or [])
        return ret

    wanted = {}
    if not enabled:
        wanted["enabled"] = {"old": False, "new": True}
    if not up:
        wanted["running"] = {"old": False, "new": True}
    if __opts__["test"]:
        ret.update(result=None, changes=wanted, comment=f"{name} would be started.")
        return ret

    if not enabled:
        __salt__["service.enable"](name)
    if not up:
        __salt__["service.start"](name)
    if not __salt__["service.enabled"](name) or not _stays_up(name):
        ret.update(
            result=False,
            comment=f"{name} doesn't run. See why with: journalctl -u {name} -n 50",
        )
        return ret
    ret.update(changes=wanted, comment=f"{name} was started.")
    _report_pending(ret, name, restart_for or [])
    return ret


def _report_pending(ret, name, files):
    """Add a warning if one of the files is newer than the daemon's start."""
    started = _started_at(name)
    newer = [path for path in files if os.path.exists(path) and os.path.getmtime(path) > started]
    if not newer:
        return
    ret.setdefault("warnings", []).append(
        f"A restart of {name} is pending: it runs since before {', '.join(newer)} changed. "
        f"When it suits: salt {__opts__['id']} service.restart {name}"
    )


def _started_at(name):
    """When the unit was started, in seconds since 1970; unknown counts as now."""
    shown = __salt__["service.show"](name)
    monotonic = int(shown.get("ActiveEnterTimestampMonotonic") or 0)
    if not monotonic:
        return time.time()
    boot = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    return boot + monotonic / 1e6


def _stays_up(name, seconds=1.0):
    """Whether the unit is up and still is a moment later: some daemons die after they forked."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not __salt__["service.status"](name):
            return False
        time.sleep(0.2)
    return True
