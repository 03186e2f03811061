"""
Shipping a release to the whole farm, from the master.

``salt-run ship.release`` resolves the revision once, prepares it on every host at the same time,
migrates once, and then activates it in batches: first one host alone, the canary. It watches,
goes back where something is wrong, and shows what each host does. The work on a host is
``deploy.ship``.
"""

import fnmatch
import sys
import time

import salt.client
import salt.utils.event

# The roles whose hosts hold a site's releases; app hosts come first, workers last.
_ROLES = ("app", "worker")
_EVENTS = "saltern/deploy/"
# Seconds without a sign from a host before it is asked whether it still works.
_QUIET = 20
# Seconds in which what a host said before it was asked has reached the master's events.
_LATE = 2


def release(
    site=None,
    rev=None,
    environment=None,
    batch=None,
    canary=True,
    soak=0,
    drain=False,
    on_failure="rollback",
    without="",
    force=False,
    allow_destructive=False,
    strategy=None,
    timeout=3600,
):
    """
    Ship a revision of a site to all hosts that run it.

    site
        The site's name; not needed where the environment has one site.
    rev
        A branch, tag or SHA; the site's ``revision`` if not given.
    environment
        Which one, where the master has several with this site.
    batch
        App hosts that go live at the same time: a number, or a percentage such as ``25%``. A
        quarter of them, rounded up, if not given.
    canary
        Let one app host go first, alone.
    soak
        Seconds to watch after the canary and after each batch before going on.
    drain
        Take the hosts of a batch out of the balancers and accelerators meanwhile.
    on_failure
        ``rollback``: hosts that went live already go back. ``stop``: they stay.
    without
        Hosts that are left out, separated by commas: those that are known to be off.
    force, allow_destructive, strategy
        As for ``deploy.ship``.
    timeout
        Seconds that a step may take on a host.

    At last the balancers and accelerators get the site's own error pages (``pages.bring``).

    Returns ``result``, ``comment`` (with a line for each host that didn't get the pages),
    ``release``, ``sha``, ``seconds`` and ``hosts`` (what each host said last). The exit code is 1
    unless every host went live.

    CLI Example:

    .. code-block:: bash

        salt-run ship.release
        salt-run ship.release newsroom rev=v1.4 batch=2 soak=30 drain=True
    """
    options = {"force": force, "allow_destructive": allow_destructive, "strategy": strategy}
    options = {name: value for name, value in options.items() if value}

    def do(report):
        policy = _Policy(batch, canary, soak, drain, on_failure)
        farm = _Farm(site, environment, without, timeout)
        report["site"] = farm.site
        _release(farm, report, rev, options, policy)
        told = f"{report['release']} is live on {len(farm.hosts)} hosts."
        return "\n".join([told, *farm.bring_pages()])

    return _reported(do)


def rollback(site=None, environment=None, keep_migrations=False, without="", timeout=600):
    """
    Go back to the release before, on all hosts of a site at once.

    site, environment, without
        As for :func:`release`.
    keep_migrations
        As for ``deploy.rollback``.
    timeout
        Seconds that it may take.

    Returns ``result``, ``comment``, ``seconds`` and ``hosts``. The exit code is 1 unless every
    host went back.

    CLI Example:

    .. code-block:: bash

        salt-run ship.rollback newsroom
    """
    options = {"keep_migrations": True} if keep_migrations else {}

    def do(report):
        farm = _Farm(site, environment, without, timeout)
        report["site"] = farm.site
        farm.must(
            report,
            "rollback",
            farm.hosts,
            "deploy.rollback",
            environment=farm.environment,
            **options,
        )
        return f"{len(farm.hosts)} hosts went back."

    return _reported(do)


def _reported(do):
    """
    What a runner returns: Salt prints a traceback for whatever is raised, so nothing is.
    ``retcode`` becomes the command's exit code.
    """
    started = time.monotonic()
    report = {"result": False, "comment": "", "site": None, "hosts": {}}
    try:
        report["comment"] = do(report)
        report["result"] = True
    except _ShipError as stopped:
        report["comment"] = str(stopped)
    report["seconds"] = round(time.monotonic() - started, 2)
    report["retcode"] = 0 if report["result"] else 1
    return report


class _ShipError(Exception):
    """Why a ship ended before it was done."""


class _Policy:
    """How carefully a release goes live."""

    def __init__(self, batch, canary, soak, drain, on_failure):
        if on_failure not in ("rollback", "stop"):
            raise _ShipError(f"on_failure={on_failure!r}: it is one of rollback, stop.")
        self.batch, self.canary, self.soak = batch, canary, float(soak)
        self.drain, self.on_failure = drain, on_failure
        _size(batch, 1)

    def batches(self, hosts):
        """The app hosts in the groups in which they go live."""
        hosts = list(hosts)
        groups = [[hosts.pop(0)]] if self.canary and len(hosts) > 1 else []
        size = _size(self.batch, len(hosts))
        return groups + [hosts[i : i + size] for i in range(0, len(hosts), size)]


def _size(batch, count):
    if batch is None:
        return max(1, -(-count // 4))
    text = str(batch).strip()
    try:
        number = float(text.rstrip("%"))
    except ValueError:
        number = 0
    if number <= 0:
        raise _ShipError(f"batch={batch!r}: it is a number of hosts or a percentage.")
    return max(1, int(count * number / 100)) if text.endswith("%") else max(1, int(number))


def _release(farm, report, rev, options, policy):
    options = {**options, "environment": farm.environment}
    first = farm.app[:1] or farm.hosts[:1]
    asked = {} if rev is None else {"rev": rev}
    found = farm.must(report, "fetch", first, "deploy.ship", until="fetch", **asked, **options)
    report.update({key: found[first[0]][key] for key in ("sha", "release")})
    options = {**options, "rev": report["sha"]}
    farm.must(report, "prepare", farm.hosts, "deploy.ship", until="static", **options)
    farm.must(report, "migrate", first, "deploy.ship", until="migrate", **options)
    live = {}
    groups = [(group, policy.drain) for group in policy.batches(farm.app)] if farm.app else []
    if farm.workers:
        groups.append((farm.workers, False))
    for number, (group, drain) in enumerate(groups, 1):
        try:
            farm.say(f"batch {number} of {len(groups)}: {', '.join(group)}")
            _go_live(farm, report, group, drain, options, live)
            _soak(farm, policy.soak if number < len(groups) else 0, list(live))
        except _ShipError as stopped:
            _go_back(farm, report, policy, live, str(stopped))


def _go_live(farm, report, group, drain, options, live):
    if drain:
        farm.drain(group)
    try:
        returned = farm.run("ship", group, "deploy.ship", **options)
    finally:
        if drain:
            farm.ready(group)
    _note(report, returned)
    for host, found in returned.items():
        if _well(found) and found["from"] != found["release"]:
            live[host] = found["from"]
    farm.refuse("ship", returned)


def _soak(farm, seconds, hosts):
    """Watch what went live for a while: each host's live slot must go on answering well."""
    end = time.monotonic() + seconds
    while seconds and time.monotonic() < end:
        farm.say(f"watching, {max(0, end - time.monotonic()):.0f} s left")
        returned = farm.run("watch", hosts, "deploy.healthy", quiet=True)
        ill = {host: found for host, found in returned.items() if found is not True}
        if ill:
            told = "; ".join(f"{host}: {found}" for host, found in sorted(ill.items()))
            raise _ShipError(f"While watching, {told}")
        time.sleep(min(2, max(0, end - time.monotonic())))


def _go_back(farm, report, policy, live, why):
    if policy.on_failure == "stop" or not any(live.values()):
        raise _ShipError(f"{why}\nLive with the new release: {', '.join(live) or 'no host'}.")
    back = [host for host, before in live.items() if before]
    for before in sorted({live[host] for host in back}):
        hosts = [host for host in back if live[host] == before]
        returned = farm.run(
            "rollback",
            hosts,
            "deploy.rollback",
            to=before,
            keep_migrations=True,
            environment=farm.environment,
        )
        _note(report, returned)
        failed = [host for host in hosts if not _well(returned[host])]
        if failed:
            raise _ShipError(f"{why}\nGoing back failed on {', '.join(failed)}: look there.")
    raise _ShipError(f"{why}\nWent back: {', '.join(back)}.")


def _note(report, returned):
    """What each host said last; the phases were shown while they ran."""
    report["hosts"].update({host: _said(found) for host, found in sorted(returned.items())})


def _said(returned):
    return returned["comment"] if isinstance(returned, dict) else str(returned)


def _well(returned):
    return isinstance(returned, dict) and returned.get("result") is True


class _Farm:
    """The hosts of one site, and the way to let them do something."""

    def __init__(self, site, environment, without, timeout):
        self.timeout = timeout
        self.client = salt.client.get_local_client(__opts__["conf_file"])
        pillar = _environment(site, environment)
        sites = sorted(pillar.get("sites") or {})
        if site is None and len(sites) == 1:
            site = sites[0]
        if site not in sites:
            raise _ShipError(f"Name a site. In {pillar['environment']}: {', '.join(sites)}.")
        self.site, self.environment = site, pillar["environment"]
        left_out = [word.strip() for word in str(without).split(",") if word.strip()]
        hosts, silent = _hosts(pillar["hosts"], left_out)
        if silent:
            raise _ShipError(
                f"No accepted key for {', '.join(silent)}: they stand in the inventory of "
                f"{pillar['environment']} but can't be reached. Nothing was done. If they are "
                f"meant to be off: without={','.join(silent)}"
            )
        self.app = [host for host, roles in hosts.items() if "app" in roles]
        self.workers = [host for host in hosts if host not in self.app]
        self.hosts = self.app + self.workers
        if not self.hosts:
            raise _ShipError(f"{pillar['environment']} has no host with a role of {_ROLES}.")
        # Those without a key can't be told anything.
        in_front, _ = _hosts(pillar["hosts"], left_out, ("loadbalancer", "accelerator"))
        self.front = {
            "haproxy": [host for host, roles in in_front.items() if "loadbalancer" in roles],
            "varnish": [host for host, roles in in_front.items() if "accelerator" in roles],
        }
        self.display = _Display()

    def say(self, text):
        self.display.line(text)

    def must(self, report, step, hosts, function, **options):
        """Let hosts do something; unless all do it well, nothing more is done."""
        returned = self.run(step, hosts, function, **options)
        _note(report, returned)
        self.refuse(step, returned)
        return returned

    def refuse(self, step, returned):
        failed = {host: found for host, found in returned.items() if not _well(found)}
        if failed:
            told = (f"{host}: {_said(found)}" for host, found in sorted(failed.items()))
            raise _ShipError(f"{step} failed on {len(failed)} of {len(returned)} hosts.\n"
                           + "\n".join(told))  # fmt: skip

    def drain(self, group):
        self._front("drain", group)

    def ready(self, group):
        self._front("ready", group)

    def _front(self, action, group):
        """Tell whoever stands in front of the app hosts."""
        module = "varnish" if self.front["varnish"] else "haproxy"
        if not self.front[module]:
            return
        for host in group:
            self.say(f"{module}: {action} {host}")
            self.run(action, self.front[module], f"{module}.{action}", host, quiet=True)

    def bring_pages(self):
        """
        Give the site's own error pages to whoever stands in front of the app hosts. The release is
        live whether or not that works: a sentence for each host where it doesn't.
        """
        hosts = sorted({host for hosts in self.front.values() for host in hosts})
        returned = self.run("pages", hosts, "pages.bring", quiet=True)
        notes = {h: f["notes"] if isinstance(f, dict) else [f] for h, f in returned.items()}
        told = [f"Error pages, {host}: {note}" for host in hosts for note in notes[host]]
        for line in told:
            self.say(line)
        return told

    def run(self, step, hosts, function, *arguments, quiet=False, **options):
        """
        Call a function on hosts at the same time; a dictionary from host to what it returned, or
        to a sentence if it didn't.
        """
        if not hosts:
            return {}
        named = [] if arguments else [self.site]
        with salt.utils.event.get_event(
            "master", sock_dir=__opts__["sock_dir"], opts=__opts__, listen=True
        ) as events:
            job = self.client.run_job(
                list(hosts), function, [*named, *arguments], tgt_type="list",
                kwarg=options, timeout=15,
            )  # fmt: skip
            if not job:
                return dict.fromkeys(hosts, "The master could not start the job.")
            return self._collect(events, job["jid"], step, list(hosts), quiet)

    def _collect(self, events, jid, step, hosts, quiet):
        returned, heard = {}, dict.fromkeys(hosts, time.monotonic())

        def listen(seconds):
            event = events.get_event(wait=seconds, full=True, auto_reconnect=True)
            if event:
                self._hear(event, jid, step, hosts, returned, heard, quiet)
            return event

        deadline = time.monotonic() + self.timeout
        while len(returned) < len(hosts):
            listen(0.5)
            now = time.monotonic()
            silent = [h for h in hosts if h not in returned and now - heard[h] > _QUIET]
            if silent:
                at_work = self._at_work(silent, jid)
                # Who became ready while it was asked is at work no longer, and has said so.
                until = time.monotonic() + _LATE
                while time.monotonic() < until and listen(until - time.monotonic()):
                    pass
                heard.update(dict.fromkeys(at_work, time.monotonic()))
                for host in set(silent) - set(returned):
                    if heard[host] < now:
                        returned[host] = "It doesn't answer."
            if now > deadline:
                for host in set(hosts) - set(returned):
                    returned[host] = f"It didn't finish within {self.timeout} s."
        return returned

    def _hear(self, event, jid, step, hosts, returned, heard, quiet):
        tag, data = event["tag"], event["data"]
        if tag.startswith(_EVENTS):
            found = data.get("data") or {}
            host = found.get("host")
            if host in heard and found.get("job") == jid:
                heard[host] = time.monotonic()
                self.display.phase(found)
        elif tag.startswith(f"salt/job/{jid}/ret/"):
            host = data["id"]
            if host in hosts and host not in returned:
                returned[host] = data["return"]
                if not quiet:
                    self.display.done(step, host, data["return"])

    def _at_work(self, hosts, jid):
        """Those of the hosts that say that they still work on a job."""
        found = self.client.cmd(
            list(hosts), "saltutil.find_job", [jid], tgt_type="list", timeout=10
        )
        # A host that is off has a sentence that says so instead of a job.
        return [host for host, job in found.items() if job and isinstance(job, dict)]


def _environment(site, environment):
    """The environment that has the site: its name, hosts and sites."""
    found = [
        {"environment": name, **told}
        for name, told in __salt__["inventory.environments"]().items()
        if environment in (None, name) and (not site or site in told["sites"])
    ]
    if len(found) != 1:
        names = ", ".join(sorted(one["environment"] for one in found))
        raise _ShipError(
            f"Which environment? {names} have such a site: environment=…"
            if found
            else f"No environment of this master's minions has the site {site or ''}."
        )
    return found[0]


def _hosts(entries, without, wanted=_ROLES):
    """Roles by minion id, of the hosts that have one of those wanted; and those without a key."""
    keys, found, silent = __salt__["inventory.accepted"](), {}, []
    unknown = [host for host in without if host not in keys and host not in entries]
    if unknown:
        raise _ShipError(f"without={unknown[0]}: there is no such host.")
    for entry, facts in sorted(entries.items()):
        roles = [role for role in facts.get("roles") or [] if role in wanted]
        if not roles:
            continue
        if any(sign in entry for sign in "*?["):
            matching = [k for k in keys if fnmatch.fnmatch(k, entry) and k not in entries]
            matching = [host for host in matching if host not in without]
            found.update(dict.fromkeys(matching, roles))
        elif entry in without:
            continue
        elif entry in keys:
            found[entry] = roles
        else:
            silent.append(entry)
    return found, silent


class _Display:
    """What happens, a line each, on standard error; on a terminal the running phases below."""

    def __init__(self):
        self.started = time.monotonic()
        self.stream = sys.stderr
        self.live = self.stream.isatty()
        self.phases, self.drawn = {}, 0

    def line(self, text):
        self._erase()
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", file=self.stream)
        self._draw()

    def phase(self, found):
        if "next" not in found:  # a host whose modules weren't synchronised since
            return
        host = found["host"]
        self.phases.pop(host, None)
        if found["next"]:
            self.phases[host] = (found["next"], time.monotonic())
        said = str(found["comment"]).splitlines()[:1]
        failed = "" if found["result"] else "FAILED "
        took = f"{found['seconds']:6.2f} s"
        self.line(f"{host:12} {found['phase']:10} {took}  {failed}{''.join(said)}")

    def done(self, step, host, returned):
        self.phases.pop(host, None)
        if not _well(returned):
            self.line(f"{host:12} {step:10} FAILED {_said(returned).splitlines()[0]}")

    def _erase(self):
        if self.live and self.drawn:
            self.stream.write(f"\x1b[{self.drawn}F\x1b[J")
        self.drawn = 0

    def _draw(self):
        if self.live:
            now = time.monotonic()
            for host, (phase, since) in sorted(self.phases.items()):
                print(f"             {host:12} {phase} … {now - since:.0f} s", file=self.stream)
            self.drawn = len(self.phases)
        self.stream.flush()
