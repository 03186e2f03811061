"""
Shipping a site's releases to this host, and back.

``deploy.ship`` runs named phases under a lock: preflight, fetch, build, static, migrate, activate,
verify, workers, prune. Whatever fails, the release that was live goes on serving. ``release``
makes releases, ``slots`` runs them; this module decides, in which order and with what record.
"""

import contextlib
import email.message
import fcntl
import http.client
import json
import logging
import os
import pathlib
import shlex
import shutil
import subprocess
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor

from salt.exceptions import CommandExecutionError

log = logging.getLogger(__name__)

# Of a run's own work: what serves visitors goes first. What it builds and starts is nicer still.
_NICENESS = 5


def ship(
    site=None,
    rev=None,
    force=False,
    strategy=None,
    allow_destructive=False,
    until=None,
    test=False,
    environment=None,
    **kwargs,
):
    """
    Put a revision of a site live on this host, without disturbing what is live.

    site
        The site's name; not needed where the environment has one site.
    rev
        A branch, tag or SHA; the site's ``revision`` if not given. What looks like a number is
        typed with two pairs of quotes: ``rev='"1.10"'``.
    force
        Build and activate again what is live or complete already, and migrate again what failed.
    strategy
        ``slots`` or ``touch`` instead of the site's own.
    allow_destructive
        Apply migrations that drop or rewrite something.
    until
        Stop after this phase: ``static`` prepares a release, ``migrate`` migrates too.
    test
        Only say what would happen: the same as :func:`plan`.
    environment
        The environment that is meant, needed on a master that has several: hosts of others do
        nothing and say so.

    Returns ``result``, ``comment``, ``site``, ``release``, ``sha``, ``from`` (the release that was
    live before), ``seconds`` and ``phases``, a list of ``phase``, ``result``, ``seconds`` and
    ``comment``. If a phase fails, ``result`` is false and the command's exit code is 1.

    CLI Example:

    .. code-block:: bash

        salt 'app*' deploy.ship
        salt 'app*' deploy.ship newsroom rev=v1.4 allow_destructive=True
        salt 'app*' deploy.ship environment=staging
    """
    elsewhere = _elsewhere(environment, kwargs)
    if elsewhere:
        return elsewhere
    if test:
        return plan(site, rev)
    site = _chosen(site)
    names = [name for name, _ in _PHASES]
    if until and until not in names:
        raise CommandExecutionError(f"until={until!r} is no phase. Phases: {', '.join(names)}.")
    work = _Work(site, kwargs)
    work.rev = _revision(site, rev)
    work.force = force
    work.allow_destructive = allow_destructive
    work.strategy = _strategy(site, strategy)
    work.partial = bool(until and until != names[-1])
    phases = _PHASES[: names.index(until) + 1] if until else _PHASES
    return _perform(work, "prepare" if work.partial else "ship", phases)


def rollback(site=None, to=None, keep_migrations=False, environment=None, **kwargs):
    """
    Go back to the release that was live before this one, or to another one that is here.

    site
        The site's name; not needed where the environment has one site.
    to
        The name of a release on this host; the one before by the site's history if not given.
    keep_migrations
        Go back although migrations were applied that the older code doesn't know. They stay
        applied.
    environment
        As for :func:`ship`.

    Returns what :func:`ship` returns.

    CLI Example:

    .. code-block:: bash

        salt 'app*' deploy.rollback newsroom
    """
    elsewhere = _elsewhere(environment, kwargs)
    if elsewhere:
        return elsewhere
    site = _chosen(site)
    work = _Work(site, kwargs)
    work.strategy = _strategy(site, None)
    work.target = to
    work.urgent = True
    work.keep_migrations = keep_migrations
    phases = [("preflight", _choose_target), ("activate", _activate)]
    return _perform(work, "rollback", [*phases, ("verify", _verify), ("workers", _workers)])


def reload(site=None, **kwargs):
    """
    Start the live release afresh, without dropping a request: for a changed environment or
    changed settings of the app server.

    site
        The site's name; not needed where the environment has one site.

    Returns what :func:`ship` returns.

    CLI Example:

    .. code-block:: bash

        salt 'app*' deploy.reload newsroom
    """
    site = _chosen(site)
    work = _Work(site, kwargs)
    work.strategy = _strategy(site, None)
    work.force = True
    phases = [("preflight", _stay), ("activate", _activate)]
    return _perform(work, "reload", [*phases, ("verify", _verify), ("workers", _workers)])


def plan(site=None, rev=None):
    """
    What :func:`ship` would do. Fetches and builds the release, so that it can be asked for its
    migrations; nothing runs it, and a ship finds it built.

    site, rev
        As for :func:`ship`.

    Returns ``release``, ``live``, ``changes`` (the commits between them), ``installs`` (whether
    the dependencies were new to this host), ``migrations`` (name to a list of dangers) and
    ``comment``.

    CLI Example:

    .. code-block:: bash

        salt 'app1' deploy.plan newsroom rev=main
    """
    site = _chosen(site)
    rev = _revision(site, rev)
    with _locked(site, "plan"):
        fetched = __salt__["release.fetch"](site, rev)
        built = __salt__["release.build"](site, fetched)
        pending = __salt__["release.tool"](site, built["release"], "pending", {})["pending"]
        live = _live(site)
        changes = __salt__["release.changes"](site, live, built["release"]) if live else []
    dangers = [m for m in pending if m["dangers"]]
    comment = (
        f"{built['release']} is live already."
        if live == built["release"]
        else (
            f"Would replace {live or 'nothing'} by {built['release']}"
            + (f", with {len(pending)} migrations" if pending else "")
            + (", which needs allow_destructive=True" if dangers else "")
            + "."
        )
    )
    return {
        "release": built["release"],
        "live": live,
        "changes": changes,
        "installs": built["installed"],
        "migrations": {m["name"]: m["dangers"] for m in pending},
        "comment": comment,
    }


def status(site=None):
    """
    What is live on this host, what could be, and who ships.

    site
        The site's name; all sites if not given.

    Returns a dictionary from site to ``live``, ``since``, ``previous``, ``slots``, ``releases``,
    ``ships`` (who holds the lock), ``hold`` (who forbade ships) and ``maintenance``.

    CLI Example:

    .. code-block:: bash

        salt 'app*' deploy.status
    """
    found = {}
    for name in [site] if site else __salt__["sites.list"]():
        paths = __salt__["sites.paths"](name)
        stack = _stack(name)
        turns = [e for e in _entries(name) if e["result"] and e["to"] and e["to"] != e["from"]]
        found[name] = {
            "live": _live(name),
            "since": turns[-1]["at"] if turns else None,
            "previous": stack[-2] if len(stack) > 1 else None,
            "slots": __salt__["slots.status"](name) if _serves() else {},
            "releases": __salt__["release.list"](name),
            "ships": _holder(name),
            "hold": _hold(name),
            "maintenance": pathlib.Path(paths["root"], "maintenance").exists(),
        }
    return found


def live():
    """
    What is live on this host, in short: what its mine tells hosts that are new.

    Returns a dictionary from site to ``release`` and ``sha``, without sites of which nothing was
    shipped.

    CLI Example:

    .. code-block:: bash

        salt 'app*' deploy.live
    """
    names = {site: _live(site) for site in __salt__["sites.list"]()}
    return {
        site: {"release": name, "sha": __salt__["release.must"](site, name)["sha"]}
        for site, name in names.items()
        if name
    }


def live_elsewhere(site):
    """
    What of a site is live on the other hosts of the farm, as they said after their last ship.

    site
        The site's name.

    Returns ``release`` and ``sha`` of what most of them have, the newer one if as many have each;
    None if nobody has any.

    CLI Example:

    .. code-block:: bash

        salt 'app2' deploy.live_elsewhere newsroom
    """
    hosts = {p["id"] for role in ("app", "worker") for p in __salt__["inventory.peers"](role)}
    others = ",".join(sorted(hosts - {__opts__["id"]}))
    told = __salt__["mine.get"](others, "deploy.live", "list") if others else {}
    found = [sites[site] for sites in (told or {}).values() if site in sites]
    return max(found, key=lambda one: (found.count(one), one["release"]), default=None)


def history(site=None, limit=20):
    """
    What was done with a site on this host.

    site
        The site's name; not needed where the environment has one site.
    limit
        How many entries to show, the newest last.

    Returns a list of dictionaries: ``at``, ``who``, ``job``, ``action``, ``from``, ``to``,
    ``result``, ``seconds``, ``comment``.

    CLI Example:

    .. code-block:: bash

        salt 'app1' deploy.history newsroom limit=5
    """
    return _entries(_chosen(site))[-int(limit) :]


def check(site=None):
    """
    Whether this host could ship the site now, and whether its live release would load again.

    site
        The site's name; not needed where the environment has one site.

    Returns a dictionary from what was checked to ``ok`` or what is wrong; in that case the
    command's exit code is 1.

    CLI Example:

    .. code-block:: bash

        salt 'app*' deploy.check newsroom
    """
    site = _chosen(site)
    live = _live(site)
    checks = {
        "host": lambda: _fit(site),
        "repository": lambda: __salt__["release.fetch"](site, _revision(site, None)),
    }
    if live and _serves():
        checks["live release"] = lambda: __salt__["slots.check"](site, live)
    found = {}
    with _locked(site, "check"):
        for name, question in checks.items():
            try:
                question()
                found[name] = "ok"
            except CommandExecutionError as error:
                found[name] = str(error)
                __context__["retcode"] = 1
    return found


def healthy(site=None):
    """
    Whether what is live on this host answers well now, past nginx.

    site
        The site's name; not needed where the environment has one site.

    Returns ``True``, or a sentence that says what is wrong; the exit code is then 1.

    CLI Example:

    .. code-block:: bash

        salt 'app*' deploy.healthy newsroom
    """
    site = _chosen(site)
    if not _serves():
        return True
    page = __salt__["sites.get"](site)["health"]
    try:
        answer = __salt__["slots.ask"](site, "live", page)
        if answer["status"] == 200:
            return True
        told = f"{page} answers {answer['status']}."
    except OSError as error:
        told = f"{page} doesn't answer: {error}"
    __context__["retcode"] = 1
    return told


def lock(site=None, reason="", **kwargs):
    """
    Forbid ships of a site on this host until :func:`unlock`. Rollbacks stay allowed.

    site
        The site's name; not needed where the environment has one site.
    reason
        Why, for those who want to ship.

    Returns who holds it.

    CLI Example:

    .. code-block:: bash

        salt 'app*' deploy.lock newsroom reason='sale until Monday'
    """
    site = _chosen(site)
    path = _folder(site) / "hold.json"
    if not path.exists():
        _store(path, {"who": _who(kwargs), "since": _now(), "reason": str(reason)})
    return _hold(site)


def unlock(site=None):
    """
    Allow ships again. A ship that runs keeps its own lock: that one ends with its process.

    site
        The site's name; not needed where the environment has one site.

    Returns whether ships were forbidden.

    CLI Example:

    .. code-block:: bash

        salt 'app*' deploy.unlock newsroom
    """
    try:
        (_folder(_chosen(site)) / "hold.json").unlink()
    except FileNotFoundError:
        return False
    return True


def maintenance(state, site=None):
    """
    Let nginx answer with the site's maintenance page (503) instead of the site, or no longer.
    Static files and uploads are still served; an accelerator goes on with what it has kept.

    state
        ``on`` or ``off``.
    site
        The site's name; not needed where the environment has one site.

    Returns whether anything changed.

    CLI Example:

    .. code-block:: bash

        salt 'app*' deploy.maintenance on
        salt 'app*' deploy.maintenance off newsroom
    """
    if isinstance(state, bool):  # what YAML makes of on and off
        state = "on" if state else "off"
    if state not in ("on", "off"):
        raise CommandExecutionError(f"maintenance {state!r}: it is on or off.")
    flag = pathlib.Path(__salt__["sites.paths"](_chosen(site))["root"], "maintenance")
    if flag.exists() == (state == "on"):
        return False
    flag.touch() if state == "on" else flag.unlink()
    return True


def manage(site, *command, timeout=3600, **kwargs):
    """
    Run a management command of the live release, as the user that the site runs as.

    site
        The site's name.
    command
        The command and its arguments, in one text or several.
    timeout
        Seconds after which it is stopped.

    Returns what it printed. Raises ``CommandExecutionError`` with its last lines if it fails.

    CLI Example:

    .. code-block:: bash

        salt 'app1' deploy.manage newsroom 'createsuperuser --noinput --username ada'
    """
    site = _chosen(site)
    live = _live(site)
    if not live:
        raise CommandExecutionError(f"No release of {site} is live here: ship one first.")
    known = __salt__["release.must"](site, live)
    words = [word for part in command for word in shlex.split(str(part))]
    if not words:
        raise CommandExecutionError("Name the management command, for example: showmigrations.")
    return __salt__["commands.run"](
        site,
        [f"{known['virtualenv']}/bin/python", "manage.py", *words],
        env=__salt__["release.environment"](site, live),
        cwd=known["code"],
        umask=0o022,
        timeout=timeout,
    )


def prune(site=None, **kwargs):
    """
    Remove what no rollback needs: old releases, failed builds, and a slot that was kept ready
    for longer than ``rollback_window``.

    site
        The site's name; not needed where the environment has one site.

    Returns a list of what was removed.

    CLI Example:

    .. code-block:: bash

        salt 'app*' deploy.prune newsroom
    """
    site = _chosen(site)
    with _locked(site, "prune", kwargs):
        return _retire(site) + __salt__["release.prune"](site, _kept(site))


# --- how a ship runs


class _Work:
    """What the phases of one run know and leave to each other."""

    def __init__(self, site, kwargs):
        self.site = site
        self.facts = __salt__["sites.get"](site)
        self.who = _who(kwargs)
        self.job = str(kwargs.get("__pub_jid") or f"local-{time.time_ns()}")
        self.before = _live(site)
        self.release = None  # what release.info knows of the one that is to be live
        self.target = self.fetched = self.pending = self.undo = None
        self.force = self.partial = self.allow_destructive = self.keep_migrations = False
        self.urgent = False  # visitors wait for it: it yields to nobody
        self.balancers = None  # a future: the addresses of those that answered well before


def _perform(work, action, phases):
    """Run phases one after the other; if one fails, put back what was live and say why."""
    started = time.monotonic()
    report = {
        "result": True,
        "comment": "",
        "site": work.site,
        "release": None,
        "sha": None,
        "from": work.before,
        "seconds": 0,
        "phases": [],
    }
    try:
        with _yielding(work), _locked(work.site, action, who=work.who, job=work.job) as held:
            _run_phases(work, phases, report, held)
            report["seconds"] = round(time.monotonic() - started, 2)
            report["comment"] = report["comment"] or _summary(work, action)
            known = work.release or work.fetched
            if known:
                report.update(release=known["release"], sha=known["sha"])
            _record(work, action, report)
        if report["result"] and action != "prepare":
            _publish()
        if action != "prepare" or not report["result"]:
            _notify(work, action, report)
    except CommandExecutionError as error:
        report.update(result=False, comment=str(error))
    report["seconds"] = round(time.monotonic() - started, 2)
    if not report["result"]:
        __context__["retcode"] = 1
    return report


@contextlib.contextmanager
def _yielding(work):
    """Let visitors go first while the block runs, unless they wait for what it does."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, before if work.urgent else max(before, _NICENESS))
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


def _run_phases(work, phases, report, held):
    names = [name for name, _ in phases]
    for (name, phase), following in zip(phases, [*names[1:], None], strict=True):
        held(name)
        began = time.monotonic()
        try:
            _hook(work, "before", name)
            comment = phase(work)
            _hook(work, "after", name)
        except Exception as error:  # noqa: BLE001 - whatever it is, what was live goes on
            comment = __salt__["commands.redact"](work.site, _message(error))
            report.update(result=False, comment=f"{name}: {comment}")
        seconds = round(time.monotonic() - began, 2)
        entry = {"phase": name, "result": report["result"], "seconds": seconds, "comment": comment}
        report["phases"].append(entry)
        if not report["result"] or isinstance(comment, _Unchanged):
            following = None
        _tell(work, {**entry, "next": following})
        if not report["result"]:
            _put_back(work, report)
        if not following:
            return


def _put_back(work, report):
    """After a failure: the release that was live before is live again."""
    if not work.undo:
        return
    try:
        report["comment"] += f"\n{work.undo()}"
    except Exception as error:  # noqa: BLE001 - it is told with the first one
        report["comment"] += f"\nGoing back failed too: {_message(error)}"


def _hook(work, when, phase):
    """Run the site's own command of this place, if it has one."""
    command = work.facts["deploy"]["hooks"].get(f"{when}_{phase}")
    if not command:
        return
    known = work.release
    __salt__["commands.run"](
        work.site,
        shlex.split(command),
        env=__salt__["release.environment"](work.site, known["release"]) if known else None,
        cwd=known["code"] if known else None,
        task=f"The hook {when}_{phase}",
    )


def _check_hooks(facts):
    """Hooks of phases that don't exist would never run, and nobody would notice."""
    known = [f"{when}_{name}" for name, _ in _PHASES for when in ("before", "after")]
    unknown = sorted(set(facts["deploy"]["hooks"]) - set(known))
    if unknown:
        raise CommandExecutionError(
            f"sites.{facts['name']}.deploy.hooks.{unknown[0]} is no hook. "
            f"Hooks: {', '.join(known)}."
        )


def _notify(work, action, report):
    """
    Tell those who want to know. A failure is told by each host, a success by the first one alone.
    Whatever goes wrong here is only logged.
    """
    secrets = ((__pillar__.get("secrets") or {}).get("sites") or {}).get(work.site) or {}
    places = [*work.facts["deploy"]["notify"], *(secrets.get("notify") or [])]
    hosts = [p["id"] for role in ("app", "worker") for p in __salt__["inventory.peers"](role)]
    if not places or (report["result"] and hosts[:1] != [__opts__["id"]]):
        return
    text = (
        f"{work.site}: {action} by {work.who} on {__opts__['id']} "
        f"{'succeeded' if report['result'] else 'FAILED'} after {report['seconds']} s: "
        f"{report['comment']}"
    )
    for place in places:
        try:
            _send(place, text, report)
        except Exception as error:  # noqa: BLE001 - a notification never fails a ship
            log.warning("A notification of the %s of %s failed: %s", action, work.site, error)


def _send(place, text, report):
    if not place.startswith(("mailto:", "https://", "http://")):
        raise ValueError(f"{place!r} is neither an https:// nor a mailto: address")
    if place.startswith("mailto:"):
        mail = email.message.EmailMessage()
        mail["To"], mail["Subject"] = place[len("mailto:") :], text.splitlines()[0][:150]
        mail.set_content(text)
        command = ["/usr/sbin/sendmail", "-t", "-i"]
        subprocess.run(command, input=mail.as_bytes(), check=True, timeout=10)
        return
    # "text" is what Slack and those like it show; the rest is for programs.
    told = {"text": text, **{k: report[k] for k in ("site", "release", "result", "seconds")}}
    request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
        place, json.dumps(told).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=5).close()  # noqa: S310 - as above


def _publish():
    """
    Tell the farm what is live here, as ``mine.send`` does without the half second that it then
    sleeps, and over the minion's own connection, as a job's answer goes: for ``mine.send`` it
    makes another, and the answer waits for that. A master that is away doesn't fail a ship.
    """
    if _masterless():
        return
    told = {"cmd": "_mine", "id": __opts__["id"], "data": {"deploy.live": live()}, "clear": False}
    try:
        tag = f"__master_req_channel_payload/{uuid.uuid4()}/{__opts__['master']}"
        __salt__["event.fire"](told, tag)
    except Exception as error:  # noqa: BLE001 - whatever it is, the release is live
        log.warning("The farm wasn't told what is live here: %s", error)


def _message(error):
    known = isinstance(error, (CommandExecutionError, OSError))
    return str(error) if known else f"{type(error).__name__}: {error}"


def _summary(work, action):
    if not work.release:
        return f"{action}: done."
    name = work.release["release"]
    if work.partial:
        return f"{name} is prepared."
    return f"{name} is live." if name != work.before else f"{name} was live already."


def _tell(work, phase):
    """An event for those who watch from the master: how a phase ended, and which is the next."""
    if _masterless():
        return
    data = {"host": __opts__["id"], "site": work.site, "job": work.job, **phase}
    __salt__["event.fire_master"](data, f"saltern/deploy/{work.site}/{__opts__['id']}")


def _masterless():
    return __opts__.get("file_client") == "local" or __opts__.get("local")


# --- the phases: each takes the work and returns what it did, in a few words


class _Unchanged(str):
    """A comment that ends the run: there is nothing left to do."""


def _preflight(work):
    _finish_interrupted(work.site)
    held = _hold(work.site)
    if held and not work.force:
        raise CommandExecutionError(
            f"{held['who']} forbade ships of {work.site} on {held['since']}: {held['reason']}. "
            f"Allow them with: salt {__opts__['id']} deploy.unlock {work.site}"
        )
    _check_hooks(work.facts)
    free = _fit(work.site)
    work.balancers = _ask_balancers(work)
    return f"{free >> 20} MB free"


def _fetch(work):
    work.fetched = __salt__["release.fetch"](work.site, work.rev)
    name = work.fetched["release"]
    if name == work.before and not work.force and not work.partial:
        work.release = __salt__["release.info"](work.site, name)
        return _Unchanged(f"{name} is live already") if work.release else name
    return f"{work.rev} is {work.fetched['sha'][:8]}: {work.fetched['subject']}"


def _build(work):
    running = _running(work.site)
    rebuild = work.force and work.fetched["release"] not in running
    work.release = __salt__["release.build"](work.site, work.fetched, force=rebuild)
    code = "built" if work.release["built"] else "was built already"
    return f"{code}, dependencies {'installed' if work.release['installed'] else 'unchanged'}"


def _static(work):
    name = work.release["release"]
    if work.release.get("prepared") and not work.force and not work.release["built"]:
        return "was prepared already"
    for command in work.facts["deploy"]["build_commands"]:
        __salt__["commands.run"](
            work.site,
            shlex.split(command),
            build=True,
            env={"PATH": f"{work.release['virtualenv']}/bin:/usr/local/bin:/usr/bin:/bin"},
            cwd=work.release["code"],
        )
    result = __salt__["release.tool"](
        work.site,
        name,
        "prepare",
        {
            "root": work.release["root"],
            "check_level": work.facts["deploy"]["check_level"],
            "static": work.release["static"],
            "served": __salt__["sites.paths"](work.site)["static"]
            if work.facts["static_url"]
            else None,
            "pages": f"{__salt__['sites.paths'](work.site)['pages']}",
            "mtime": work.release["committed"],
        },
        task="Checking the site and collecting its static files",
    )
    work.pending = result.get("pending")
    __salt__["release.note"](
        work.site, name, {"prepared": True, "migrations": result.get("migrations")}
    )
    work.release = {**work.release, **__salt__["release.info"](work.site, name)}
    said = f"{result['static']} files, {result['published']} new"
    return said + (f", {result['warnings']} warnings" if result["warnings"] else "")


def _migrate(work):
    if work.pending == []:
        return "nothing pending"
    deploy = work.facts["deploy"]
    wait = deploy["migrate_wait"].s
    result = __salt__["release.tool"](
        work.site,
        work.release["release"],
        "migrate",
        {
            "release": work.release["release"],
            "run": work.job,
            "host": __opts__["id"],
            "force": work.force,
            "allow_destructive": work.allow_destructive,
            "lock_timeout_ms": deploy["lock_timeout"].ms,
            "statement_timeout_ms": deploy["statement_timeout"].ms,
            "wait": wait,
        },
        timeout=None,
        task="Migrating the database",
    )
    # A rollback to it asks; where there was no database yet, nothing could tell before.
    note = {"migrations": result["migrations"]}
    __salt__["release.note"](work.site, work.release["release"], note)
    if result["applied"]:
        return f"applied {', '.join(result['applied'])}"
    return (
        f"another host did it, waited {result['waited']} s"
        if result["waited"]
        else "nothing pending"
    )


def _activate(work):
    name = work.release["release"]
    if not _serves():
        _point(work.site, name)
        work.undo = lambda: _point(work.site, work.before) if work.before else None
        return "current is turned"
    live = __salt__["slots.live"](work.site)
    if work.strategy == "touch" and live:
        __salt__["slots.check"](work.site, name)
        work.undo = lambda: _touch_back(work, live)
        answers = __salt__["slots.touch"](work.site, live, name)
        _point(work.site, name)
        return f"slot {live} reloaded, {answers} good answers"
    slot = "b" if live == "a" else "a"
    ready = name != work.before and __salt__["slots.release"](work.site, slot) == name
    if ready and not work.force:
        answers = _woken(work, slot, name)
    else:
        answers = __salt__["slots.start"](work.site, slot, name, urgent=work.urgent)
    work.undo = lambda: _flip_back(work, live, slot)
    __salt__["slots.flip"](work.site, slot)
    _point(work.site, name)
    return f"slot {slot} is live, {answers} good answers"


def _woken(work, slot, name):
    """A slot that was kept ready may have died since."""
    try:
        return __salt__["slots.wake"](work.site, slot)
    except CommandExecutionError:
        return __salt__["slots.start"](work.site, slot, name, urgent=work.urgent)


def _flip_back(work, live, slot):
    name = work.release["release"]
    __salt__["release.note"](work.site, name, {"bad": work.job})
    if not live:
        return "It stays live: there is no release to go back to."
    __salt__["slots.flip"](work.site, live)
    _point(work.site, work.before)
    __salt__["slots.stop"](work.site, slot)
    return f"{work.before} is live again."


def _touch_back(work, slot):
    __salt__["release.note"](work.site, work.release["release"], {"bad": work.job})
    __salt__["slots.touch"](work.site, slot, work.before)
    _point(work.site, work.before)
    return f"{work.before} is live again."


def _verify(work):
    if not _serves():
        return "no app server here"
    name = work.release["release"]
    said = []
    if "nginx" in __salt__["inventory.services"]():
        port = __salt__["settings.get"]("nginx")["port"]
        answer = _asked(work.facts, "127.0.0.1", port)
        if answer != (200, name):
            raise CommandExecutionError(
                f"Through nginx, {work.facts['health']} answers {answer[0]} from release "
                f"{answer[1]}; wanted: 200 from {name}."
            )
        said.append("nginx")
    for address in work.balancers.result() if work.balancers else ():
        _insist(work.facts, address)
        said.append(f"balancer {address}")
    return f"well through {' and '.join(said)}" if said else "nothing in front to ask"


def _workers(work):
    if "celery" not in __salt__["inventory.services"]():
        return "none here"
    told = __salt__["celery.shipped"](work.site, work.release["release"])
    if told["drained"]:
        return "drained, nothing started"
    return f"{len(told['started'])} started, {len(told['finishing'])} finishing"


def _clean(work):
    __salt__["release.note"](work.site, work.release["release"], {"bad": None})
    if _serves() and work.strategy == "slots":
        _keep_ready(work)
    gone = __salt__["release.prune"](work.site, _kept(work.site, work.release["release"]))
    return f"removed {len(gone)}" if gone else "nothing to remove"


def _choose_target(work):
    """For a rollback: where to."""
    _finish_interrupted(work.site)
    work.before = _live(work.site)
    target = work.target
    if not target:
        stack = _stack(work.site)
        if len(stack) < 2:
            raise CommandExecutionError(f"{work.site} has no release before {work.before} here.")
        target = stack[-2]
    work.release = __salt__["release.must"](work.site, target)
    if work.release.get("bad"):
        raise CommandExecutionError(f"{target} failed when it was live: name another one with to=.")
    unknown = _unknown_migrations(work.site, work.before, target)
    if unknown and not work.keep_migrations:
        raise CommandExecutionError(
            f"{target} doesn't know these migrations, which {work.before} brought: "
            f"{', '.join(unknown)}. If it can live with them: keep_migrations=True."
        )
    return f"from {work.before} to {target}"


def _stay(work):
    """For a reload: the release that is live."""
    _finish_interrupted(work.site)
    work.before = _live(work.site)
    if not work.before:
        return _Unchanged("nothing is live here")
    work.release = __salt__["release.must"](work.site, work.before)
    return work.before


_PHASES = [
    ("preflight", _preflight),
    ("fetch", _fetch),
    ("build", _build),
    ("static", _static),
    ("migrate", _migrate),
    ("activate", _activate),
    ("verify", _verify),
    ("workers", _workers),
    ("prune", _clean),
]


# --- what the phases need


def _fit(site):
    """Whether this host is ready for releases of a site; returns the free bytes."""
    paths, facts = __salt__["sites.paths"](site), __salt__["sites.get"](site)
    for key in ("repository", "settings_module", "wsgi_module"):
        if not facts[key]:
            raise CommandExecutionError(
                f"sites.{site}.{key} isn't set in "
                f"pillar/environments/{__pillar__.get('environment')}/sites.yaml."
            )
    needed = [paths[key] for key in ("releases", "repo", "env_file")]
    missing = [path for path in needed if not pathlib.Path(path).exists()]
    if missing:
        raise CommandExecutionError(
            f"{missing[0]} isn't here yet: run `salt {__opts__['id']} state.apply` first."
        )
    free = shutil.disk_usage(paths["releases"]).free
    wanted = facts["deploy"]["free_space"]
    if free < wanted.bytes:
        raise CommandExecutionError(
            f"{free >> 20} MB are free below {paths['releases']}, a ship wants {wanted}. "
            f"`salt {__opts__['id']} deploy.prune {site}` removes what no rollback needs."
        )
    return free


def _finish_interrupted(site):
    """Where a run ended between turning the live slot and turning ``current``: the slot counts."""
    live = _live(site)
    if _serves() and live and _current(site) != live:
        _point(site, live)


def _live(site):
    if _serves():
        slot = __salt__["slots.live"](site)
        return __salt__["slots.release"](site, slot) if slot else None
    return _current(site)


def _current(site):
    try:
        return pathlib.Path(__salt__["sites.paths"](site)["current"]).readlink().name
    except OSError:
        return None


def _point(site, name):
    """Turn the link that people and management commands follow."""
    path = pathlib.Path(__salt__["sites.paths"](site)["current"])
    beside = path.with_suffix(".new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(__salt__["release.must"](site, name)["root"])
    beside.replace(path)
    return f"{name} is current again."


def _serves():
    """Whether this host has an app server."""
    return "uwsgi" in __salt__["inventory.services"]()


def _running(site):
    found = {_current(site), _live(site)}
    if _serves():
        found |= {__salt__["slots.release"](site, slot) for slot in ("a", "b")}
    return found - {None}


def _asked(facts, address, port):
    """The status and the release of the health page, past everything else in front."""
    connection = http.client.HTTPConnection(address, port, timeout=10)
    host = (facts["domains"] or ["localhost"])[0]
    headers = {"Host": host, "X-Forwarded-Proto": "https", "User-Agent": "saltern"}
    try:
        connection.request("GET", facts["health"], headers=headers)
        response = connection.getresponse()
        return response.status, response.getheader("X-Release")
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__, None
    finally:
        connection.close()


def _ask_balancers(work):
    """
    A future of the balancers' addresses through which the site is well. One that is down takes
    its time to say nothing: the ship goes on meanwhile.
    """
    if not _serves():
        return None
    addresses = [peer["address"] for peer in __salt__["inventory.peers"]("loadbalancer")]
    port = _balancer_port()
    pool = ThreadPoolExecutor(1)
    asked = pool.submit(lambda: [a for a in addresses if _well_through(work.facts, a, port)])
    pool.shutdown(wait=False)
    return asked


def _insist(facts, address):
    """Ask through a balancer until the site is well there, for some seconds."""
    port = _balancer_port()
    for _ in range(5):
        if _well_through(facts, address, port):
            return
        time.sleep(1)
    raise CommandExecutionError(
        f"Through the balancer at {address}, where the site was well before the ship, "
        f"{facts['health']} answers {_asked(facts, address, port)[0]}."
    )


def _balancer_port():
    return __salt__["settings.get"]("haproxy")["port"]


def _well_through(facts, address, port):
    # A redirect to HTTPS is the balancer's own good answer.
    return _asked(facts, address, port)[0] in (200, 301, 302, 307, 308)


def _unknown_migrations(site, live, target):
    if not live:
        return []
    mine = (__salt__["release.info"](site, live) or {}).get("migrations") or []
    theirs = (__salt__["release.info"](site, target) or {}).get("migrations") or []
    return sorted(set(mine) - set(theirs))


def _kept(site, newest=None):
    """Releases that clean-up leaves alone: what runs, what is next in line, the last few."""
    keep = __salt__["sites.get"](site)["deploy"]["keep"]
    stack = _stack(site)
    if newest and newest not in stack[-1:]:
        stack = [*[name for name in stack if name != newest], newest]
    return _running(site) | set(stack[-keep:]) | set(stack[-2:])


def _keep_ready(work):
    """The slot of the release before stays ready for a while; a timer ends it."""
    slot = __salt__["slots.live"](work.site)
    other = "b" if slot == "a" else "a"
    if not __salt__["slots.release"](work.site, other):
        return
    window = work.facts["deploy"]["rollback_window"].s
    if not window:
        __salt__["slots.stop"](work.site, other)
        return
    __salt__["slots.rest"](work.site, other)
    caller = shutil.which("salt-call")
    if caller and pathlib.Path("/run/systemd/system").is_dir():
        unit = f"saltern-prune-{work.site}"
        subprocess.run(
            ["systemctl", "stop", "--quiet", f"{unit}.timer"], check=False, capture_output=True
        )
        timer = ["systemd-run", "--quiet", "--collect", f"--unit={unit}"]
        timer += [f"--on-active={window + 1}", caller, "deploy.prune", work.site]
        subprocess.run(timer, check=False, capture_output=True)


def _retire(site):
    """Stop the slot that isn't live if its time has passed."""
    if not _serves():
        return []
    slot = __salt__["slots.live"](site)
    other = "b" if slot == "a" else "a"
    name = __salt__["slots.release"](site, other)
    if not slot or not name:
        return []
    window = __salt__["sites.get"](site)["deploy"]["rollback_window"].s
    turned = os.lstat(__salt__["sites.paths"](site)["socket"]).st_mtime
    if time.time() - turned < window:
        return []
    __salt__["slots.stop"](site, other)
    return [f"slot {other}, which ran {name}"]


# --- arguments


def _elsewhere(environment, kwargs):
    """
    What a host says whose environment isn't meant; nothing where it is. A target such as `app*`
    that was sent by a master of several environments may reach further than it was meant to.
    """
    own, others = __pillar__.get("environment"), __pillar__.get("environments") or []
    if environment is None:
        sent = kwargs.get("__pub_tgt") not in (None, "salt-call")
        if sent and len(others) > 1:
            raise CommandExecutionError(
                f"Which environment? There are {', '.join(others)}: environment={own} for this one."
            )
        return None
    if environment == own:
        return None
    if others and environment not in others:
        raise CommandExecutionError(
            f"There is no environment {environment!r}. There are {', '.join(others)}."
        )
    comment = f"Nothing was done: this host is in {own}, not in {environment}."
    return {"result": True, "comment": comment, "release": None, "from": None, "phases": []}


def _chosen(site):
    known = __salt__["sites.list"]()
    if site is None and len(known) == 1:
        return known[0]
    if site not in known:
        named = f"There is no site {site!r}." if site else "There is more than one site."
        raise CommandExecutionError(f"{named} Name one of: {', '.join(known) or 'none'}.")
    return site


def _revision(site, rev):
    """A revision as it was typed: Salt makes numbers of what looks like one."""
    if rev is None:
        rev = __salt__["sites.get"](site)["revision"]
    if isinstance(rev, (bool, float)):
        raise CommandExecutionError(
            f"rev={rev} reached Salt as a number: type two pairs of quotes, rev='\"1.10\"'."
        )
    rev = str(rev)
    if rev.startswith("-") or not rev.strip() or any(sign in rev for sign in " ~^:?*[\\\n"):
        raise CommandExecutionError(f"rev={rev!r} can't be a branch, a tag or a SHA.")
    return rev


def _strategy(site, strategy):
    strategy = strategy or __salt__["sites.get"](site)["deploy"]["strategy"]
    if strategy not in ("slots", "touch"):
        raise CommandExecutionError(f"strategy={strategy!r}: it is one of slots, touch.")
    return strategy


def _who(kwargs):
    return str(kwargs.get("__pub_user") or os.environ.get("SUDO_USER") or "root")


# --- lock and record


@contextlib.contextmanager
def _locked(site, action, kwargs=None, who=None, job=None):
    """
    Be the only one who changes a site on this host. The lock is the kernel's: it ends with this
    process, however that ends. Yields a function that tells which phase has begun.
    """
    path = _folder(site) / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with open(descriptor, "r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(site) or {}
            raise CommandExecutionError(
                f"{holder.get('who', 'Somebody')} is at it: {holder.get('action', 'a run')} of "
                f"{site} since {holder.get('since', 'just now')}, "
                f"in phase {holder.get('phase', '?')}, job {holder.get('job', '?')}."
            ) from None
        facts = {"who": who or _who(kwargs or {}), "job": job, "action": action, "since": _now()}

        def held(phase):
            file.seek(0)
            file.truncate()
            json.dump({**facts, "phase": phase, "pid": os.getpid()}, file)
            file.flush()

        held("begin")
        try:
            yield held
        finally:
            file.seek(0)
            file.truncate()


def _holder(site):
    """Who holds the lock, or ``None``: what a dead process wrote doesn't count."""
    try:
        with open(_folder(site) / "lock", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return json.loads(file.read() or "{}")
            return None
    except (FileNotFoundError, ValueError):
        return None


def _hold(site):
    try:
        with open(_folder(site) / "hold.json", encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return None


def _record(work, action, report):
    """Add a line to the history; nothing ever takes one away."""
    entry = {
        "at": _now(),
        "who": work.who,
        "job": work.job,
        "action": action,
        "from": work.before,
        "to": report["release"] if not work.partial else None,
        "rev": getattr(work, "rev", None),
        "result": report["result"],
        "seconds": report["seconds"],
        "comment": report["comment"].splitlines()[0],
    }
    with open(_folder(work.site) / "history.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _entries(site):
    try:
        text = (_folder(site) / "history.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # a line that a power cut left half-written
            found.append(json.loads(line))
    return found


def _stack(site):
    """The releases that a rollback would meet, as far as they are still here."""
    here = set(__salt__["release.list"](site))
    return [name for name in _stacked(_entries(site)) if name in here]


def _stacked(entries):
    """
    The releases that were live, in the order in which a rollback would meet them, the live one
    last: a ship puts one on top, a rollback takes some away.
    """
    stack = []
    for entry in entries:
        name = entry.get("to")
        if not entry.get("result") or not name or entry["action"] == "reload":
            continue
        if entry["action"] == "rollback" and name in stack:
            del stack[stack.index(name) + 1 :]
            continue
        stack = [*[other for other in stack if other != name], name]
    return stack


def _folder(site):
    folder = pathlib.Path(__salt__["sites.paths"](site)["deploy"])
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    return folder


def _store(path, facts):
    beside = path.with_suffix(".new")
    with open(beside, "w", encoding="utf-8") as file:
        json.dump(facts, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _now():
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
