"""
Updates of a whole farm, one host after the other, each out of the road of requests meanwhile.
"""

import fnmatch
import sys
import time

import salt.client
from salt.exceptions import CommandExecutionError

# In this order; a host goes where the last of its roles stands. The master and the database host
# that takes the writes are left to the operator.
_ORDER = ["log", "backup", "database", "broker", "worker", "cache", "app", "accelerator"]
_ORDER += ["loadbalancer"]
# Seconds after a host was taken out: what was on its way to it has arrived.
_SETTLE = 3


def roll(environment=None, hosts="*", security=False, reboot="needed", force=False, timeout=900):
    """
    Update the farm, host by host: take it out of the road, install, reboot if need be, look whether
    all of it runs, put it back, go on. The first host that isn't well ends it, and stays out.

    environment
        Which one, where the master has several.
    hosts
        Only these: a pattern of minion ids.
    security
        Security updates only.
    reboot
        ``needed``, ``never`` or ``always``.
    force
        Reboot outside of the window ``updates.window``, too.
    timeout
        Seconds that a host may take to install, and to come back.

    Returns ``result``, ``comment``, ``seconds``, ``hosts`` (what was done on each) and ``left``
    (those that are the operator's). The exit code is 1 unless all went well.

    CLI Example:

    .. code-block:: bash

        salt-run updates.roll
        salt-run updates.roll hosts='app*' security=True reboot=never
    """
    report = {"result": False, "comment": "", "hosts": {}, "left": {}}
    began = time.monotonic()
    try:
        if reboot not in ("needed", "never", "always"):
            raise CommandExecutionError(f"reboot={reboot!r}: it is needed, never or always.")
        farm = _Farm(environment, hosts, int(timeout))
        report["left"] = farm.left
        for host in farm.hosts:
            report["hosts"][host] = farm.update(host, security, reboot, force)
        report.update(result=True, comment=f"{len(farm.hosts)} hosts are up to date.")
    except CommandExecutionError as stopped:
        report["comment"] = str(stopped)
    report["seconds"] = round(time.monotonic() - began, 1)
    return report | {"retcode": 0 if report["result"] else 1}


class _Farm:
    """The hosts to update, in their order, and those that stand before them."""

    def __init__(self, environment, pattern, timeout):
        self.client = salt.client.get_local_client(mopts=__opts__)
        self.timeout, self.began = timeout, time.monotonic()
        self.roles = _roles(environment)
        chosen = fnmatch.filter(self.roles, pattern)
        if not chosen:
            raise CommandExecutionError(f"No host matches {pattern!r}.")
        self.left = {host: why for host in chosen if (why := self._not_ours(host))}
        self.hosts = sorted((host for host in chosen if host not in self.left), key=self._place)

    def update(self, host, security, reboot, force):
        """Do it all with one host. Returns what was done."""
        known = self.call(host, "updates.status", timeout=120)
        wanted = known["security"] if security else list(known["pending"])
        rebooted = reboot == "always" or (reboot == "needed" and bool(known["reboot"]))
        if not wanted and not rebooted:
            self.tell(f"{host}: nothing to do")
            return {"installed": {}, "rebooted": False}
        self.tell(f"{host}: out of the road, {len(wanted)} packages wait")
        self._road(host, out=True)
        installed = self.call(host, "updates.apply", security, timeout=self.timeout)
        if reboot == "needed" and not rebooted:
            rebooted = bool(self.call(host, "updates.status", timeout=120)["reboot"])
        if rebooted:
            self._reboot(host, force)
        self._see_that_all_is_well(host)
        self._road(host, out=False)
        self.tell(f"{host}: done, {len(installed)} installed{', rebooted' if rebooted else ''}")
        return {"installed": installed, "rebooted": rebooted}

    def tell(self, text):
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", file=sys.stderr, flush=True)

    def call(self, host, function, *arguments, timeout=60):
        """What a function on a host returns; an error of it is an error here."""
        said = self.client.cmd(
            [host], function, arguments, tgt_type="list", timeout=timeout, full_return=True
        ).get(host)
        if not isinstance(said, dict):
            raise CommandExecutionError(f"{host} gave no answer to {function}.")
        if said.get("retcode"):
            raise CommandExecutionError(f"{host}: {said['ret']}")
        return said["ret"]

    def _not_ours(self, host):
        """Why a host is left to the operator, or nothing."""
        if "master" in self.roles[host]:
            return "the master: salt-call updates.apply there, and reboot it when it suits"
        if "database" not in self.roles[host]:
            return None
        if self.call(host, "database.status")["state"] == "replica":
            return None
        return "takes the writes: salt-run database.promote another one first, then this one"

    def _place(self, host):
        """Where a host stands in the order: the last of its roles, then its name."""
        return max(map(_ORDER.index, set(self.roles[host]) & set(_ORDER)), default=-1), host

    def _with(self, role, besides):
        return [host for host, roles in self.roles.items() if role in roles and host != besides]

    def _road(self, host, out):
        """Take a host out of the road of requests and tasks, or put it back."""
        verb = "drain" if out else "ready"
        roles = self.roles[host]
        if "app" in roles:
            for accelerator in self._with("accelerator", host):
                self.call(accelerator, f"varnish.{verb}", host)
        if "app" in roles or "accelerator" in roles:
            for balancer in self._with("loadbalancer", host):
                self.call(balancer, f"haproxy.{verb}", host)
        if "loadbalancer" in roles:
            self.call(host, f"service.{'stop' if out else 'start'}", "keepalived")
        if "worker" in roles:
            self.call(host, f"celery.{'drain' if out else 'resume'}", timeout=self.timeout)
        if out:
            time.sleep(_SETTLE)

    def _reboot(self, host, force):
        before = self.call(host, "updates.reboot", force)
        self.tell(f"{host}: reboots")
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            time.sleep(2)
            said = self.client.cmd([host], "updates.boot", tgt_type="list", timeout=5)
            if said.get(host, before) != before:
                return
        raise CommandExecutionError(f"{host} didn't come back within {self.timeout} s.")

    def _see_that_all_is_well(self, host):
        """Wait until all of a host's units run and its sites answer."""
        questions = ["updates.healthy"] + ["deploy.healthy"] * ("app" in self.roles[host])
        deadline = time.monotonic() + 120
        for question in questions:
            while True:
                try:
                    self.call(host, question)
                    break
                except CommandExecutionError as error:
                    if time.monotonic() > deadline:
                        raise CommandExecutionError(
                            f"{error} {host} stays out of the road: look there."
                        ) from None
                time.sleep(2)


def _roles(environment):
    """The roles of the hosts of an environment whose keys are accepted, by minion id."""
    known = __salt__["inventory.environments"]()
    if environment is None and len(known) == 1:
        (environment,) = known
    if environment not in known:
        raise CommandExecutionError(f"Which environment? There are {', '.join(sorted(known))}.")
    hosts = known[environment]["hosts"]
    found = {}
    for key in __salt__["inventory.accepted"]():
        entry = key if key in hosts else next((e for e in hosts if fnmatch.fnmatch(key, e)), None)
        if entry:
            found[key] = hosts[entry].get("roles") or []
    return found
