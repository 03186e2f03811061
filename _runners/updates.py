"""
Updates of a whole farm, one host after the other, each out of the road of requests meanwhile.
"""

import fnmatch
import re
import sys
import time

import salt.client
from salt.exceptions import CommandExecutionError

# In this order; a host goes where the last of its roles stands. The master and the database host
# that takes the writes are left to the operator.
_ORDER = ["log", "backup", "database", "mariadb", "broker", "worker", "cache", "app"]
_ORDER += ["accelerator", "loadbalancer"]
# The roles of hosts of which one takes the writes; the module of that name knows which.
_WRITES = ("database", "mariadb")
# Seconds after a host was taken out: what was on its way to it has arrived.
_SETTLE = 3
# Seconds within which a host that has rebooted must be well, and be asked again.
_PATIENCE = 120
# How to ask a host that may not hear: it isn't waited for, but asked again.
_BRIEFLY = {"timeout": 10, "gather_job_timeout": 10}


def roll(environment=None, hosts="*", security=False, reboot="needed", force=False, timeout=900):
    """
    Update the farm, host by host: take it out of the road, install, reboot if need be, look whether
    all of it runs, put it back, wait until it is asked again, go on. The first host that isn't well
    ends it, and stays out. A host whose like are all down isn't taken out.

    environment
        Which one, where the master has several.
    hosts
        Only these: patterns of minion ids, separated by commas.
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

    def do(report):
        if reboot not in ("needed", "never", "always"):
            raise CommandExecutionError(f"reboot={reboot!r}: it is needed, never or always.")
        farm = _Farm(environment, hosts, int(timeout))
        report["left"] = farm.left
        for host in farm.hosts:
            report["hosts"][host] = farm.update(host, security, reboot, force)
        return f"{len(farm.hosts)} hosts are up to date."

    return _reported(do, {"hosts": {}, "left": {}})


def ready(host, environment=None, timeout=900):
    """
    Put a host back into the road that a roll left out: once all of it runs and its sites answer.

    host
        Its minion id.
    environment
        Which one, where the master has several.
    timeout
        Seconds that its workers may take to start.

    Returns ``result``, ``comment`` and ``seconds``. The exit code is 1 unless it is asked again.

    CLI Example:

    .. code-block:: bash

        salt-run updates.ready app1
    """

    def do(report):
        farm = _Farm(environment, host, int(timeout))
        farm.back(host)
        return f"{host} is in the road again."

    return _reported(do, {})


def _reported(do, report):
    """What a runner returns: Salt prints a traceback for whatever is raised, so nothing is."""
    began = time.monotonic()
    report = {"result": False, "comment": "", **report}
    try:
        report["comment"] = do(report)
        report["result"] = True
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
        wanted = [word.strip() for word in str(pattern).split(",")]
        chosen = [h for h in self.roles if any(fnmatch.fnmatch(h, one) for one in wanted)]
        if not chosen:
            raise CommandExecutionError(f"No host matches {pattern!r}.")
        self.left = {host: why for host in chosen if (why := self._not_ours(host))}
        self.hosts = sorted((host for host in chosen if host not in self.left), key=self._place)

    def update(self, host, security, reboot, force):
        """Do it all with one host. Returns what was done."""
        known = self.call(host, "updates.status", True, timeout=self.timeout)
        wanted = known["security"] if security else list(known["pending"])
        rebooted = reboot == "always" or (reboot == "needed" and bool(known["reboot"]))
        if not wanted and not rebooted:
            self.tell(f"{host}: nothing to do")
            return {"installed": {}, "rebooted": False}
        if reboot != "never" and not force:
            self.call(host, "updates.may_reboot")
        self._see_that_others_serve(host)
        self.tell(f"{host}: out of the road, {len(wanted)} packages wait")
        try:
            self._take_out(host)
            # The lists are fresh, and while they are fetched the host could be at work.
            installed = self.call(
                host, "updates.apply", security, False, False, timeout=self.timeout
            )
            if reboot == "needed" and not rebooted:
                rebooted = bool(self.call(host, "updates.status", timeout=120)["reboot"])
            if rebooted:
                self._reboot(host, force)
            self.back(host)
        except CommandExecutionError as error:
            raise CommandExecutionError(
                f"{error} {host} stays out of the road: mend it, then salt-run updates.ready {host}"
            ) from None
        self.tell(f"{host}: done, {len(installed)} installed{', rebooted' if rebooted else ''}")
        return {"installed": installed, "rebooted": rebooted}

    def back(self, host):
        """Put a host back into the road, once it is well, and wait until it is asked again."""
        self._see_that_all_is_well(host)
        self._put_back(host)
        self._wait(lambda: self._see_that_it_is_asked(host))

    def tell(self, text):
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", file=sys.stderr, flush=True)

    def call(self, host, function, *arguments, timeout=60, **options):
        """What a function on a host returns; an error of it is an error here."""
        options = {"tgt_type": "list", "timeout": timeout, "full_return": True, **options}
        said = self.client.cmd([host], function, arguments, **options).get(host)
        if not isinstance(said, dict) or "ret" not in said:
            raise CommandExecutionError(f"{host} gave no answer to {function}.")
        if said.get("retcode"):
            raise CommandExecutionError(f"{host}: {said['ret']}")
        return said["ret"]

    def _not_ours(self, host):
        """Why a host is left to the operator, or nothing."""
        if "master" in self.roles[host]:
            return "the master: salt-call updates.apply there, and reboot it when it suits"
        for module in set(self.roles[host]) & set(_WRITES):
            if self.call(host, f"{module}.status")["state"] != "replica":
                return f"takes the writes: {module}.promote another one first, then update this one"
        return None

    def _place(self, host):
        """Where a host stands in the order: the last of its roles, then its name."""
        return max(map(_ORDER.index, set(self.roles[host]) & set(_ORDER)), default=-1), host

    def _with(self, role, besides):
        return [host for host, roles in self.roles.items() if role in roles and host != besides]

    def _askers(self, host):
        """Who sends requests to a host, on other hosts: pairs of a host and its module."""
        roles, found = self.roles[host], []
        if "app" in roles:
            found += [(other, "varnish") for other in self._with("accelerator", host)]
        if "app" in roles or "accelerator" in roles:
            found += [(other, "haproxy") for other in self._with("loadbalancer", host)]
        return found

    def _take_out(self, host):
        """Take a host out of the road of requests and tasks."""
        for asker, module in self._askers(host):
            self.call(asker, f"{module}.drain", host)
        if self._bears_the_address(host):
            # After a reboot it waits until all else is well.
            self.call(host, "service.disable", "keepalived")
            self.call(host, "service.stop", "keepalived")
        if "worker" in self.roles[host]:
            self.call(host, "celery.drain", timeout=self.timeout)
        time.sleep(_SETTLE)

    def _put_back(self, host):
        for asker, module in self._askers(host):
            self.call(asker, f"{module}.ready", host)
        if self._bears_the_address(host):
            self.call(host, "service.enable", "keepalived")
            self.call(host, "service.start", "keepalived")
        if "worker" in self.roles[host]:
            self.call(host, "celery.resume", timeout=self.timeout)

    def _bears_the_address(self, host):
        """Whether a host is a balancer that shares an address with others."""
        return "loadbalancer" in self.roles[host] and self.call(
            host, "service.available", "keepalived"
        )

    def _pools(self, host):
        """What each who asks a host thinks of it and of its like: the asker, name -> well?"""
        for asker, module in self._askers(host):
            pools = {}
            if module == "haproxy":
                for pool, servers in self.call(asker, "haproxy.status").items():
                    pools[pool] = {n: s["state"].startswith("UP") for n, s in servers.items()}
            else:
                for name, backend in self.call(asker, "varnish.backends").items():
                    site, _, server = name.rpartition("__")
                    pools.setdefault(site, {})[server] = backend["health"] == "healthy"
            for pool in pools.values():
                # Varnish's names have letters, digits and underscores only.
                name = host if module == "haproxy" else re.sub("[^A-Za-z0-9]", "_", host)
                if name in pool:
                    yield asker, name, pool

    def _see_that_others_serve(self, host):
        """Refuse to take out the last one that serves, where there is more than one at all."""
        for asker, name, pool in self._pools(host):
            others = {other: well for other, well in pool.items() if other != name}
            if others and not any(others.values()):
                raise CommandExecutionError(
                    f"{asker} finds none of {', '.join(sorted(others))} well: {host} has to serve, "
                    "and wasn't touched."
                )
        others = self._with("loadbalancer", host) if "loadbalancer" in self.roles[host] else []
        if others and not any(map(self._is_well, others)):
            raise CommandExecutionError(
                f"None of {', '.join(others)} is well: {host} has to serve, and wasn't touched."
            )

    def _is_well(self, host):
        try:
            return self.call(host, "updates.healthy") is True
        except CommandExecutionError:
            return False

    def _see_that_it_is_asked(self, host):
        """All who ask a host find it well: a probe that found it down has to find it up again."""
        for asker, name, pool in self._pools(host):
            if not pool[name]:
                raise CommandExecutionError(f"{asker} doesn't find {host} well.")

    def _reboot(self, host, force):
        before = self.call(host, "updates.reboot", force)
        self.tell(f"{host}: reboots")
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            time.sleep(1)
            try:
                now = str(self.call(host, "updates.boot", **_BRIEFLY))
            except CommandExecutionError:
                continue
            # What was just ended answers, too, but not with the id of a boot.
            if now != before and re.fullmatch(r"[0-9a-f-]{36}", now):
                return
        raise CommandExecutionError(f"{host} didn't come back within {self.timeout} s.")

    def _see_that_all_is_well(self, host):
        """Wait until all of a host's units run and its sites answer."""
        self._wait(lambda: self.call(host, "updates.healthy", **_BRIEFLY))
        for site in self.call(host, "sites.list") if "app" in self.roles[host] else ():
            self._wait(lambda site=site: self.call(host, "deploy.healthy", site, **_BRIEFLY))

    def _wait(self, look):
        """Look again and again until that raises nothing any more."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return look()
            except CommandExecutionError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(1)


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
