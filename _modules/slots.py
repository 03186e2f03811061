"""
The two places, ``a`` and ``b``, that a site's app server has on this host.

Each slot is a vassal of the uWSGI emperor with a socket of its own. One of them is live: the link
``live.sock``, which nginx resolves for each request, points to its socket. A release is started
in the other slot, asked whether it is well, and goes live when the link is turned.
"""

import contextlib
import http.client
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import time

from salt.exceptions import CommandExecutionError

SLOTS = ("a", "b")
_VASSALS = pathlib.Path("/etc/uwsgi/vassals")
_SITES = "/etc/uwsgi/sites"
_TEMPLATE = "uwsgi/files/vassal.ini"
_WEB_GROUP = "www-data"
# Seconds in which a slot says something.
_PATIENCE = 10


def live(site):
    """
    The slot that requests go to.

    site
        The site's name.

    Returns ``a``, ``b`` or ``None``.

    CLI Example:

    .. code-block:: bash

        salt 'app*' slots.live newsroom
    """
    try:
        slot = pathlib.Path(__salt__["sites.paths"](site)["socket"]).readlink().stem
    except OSError:
        return None
    return slot if slot in SLOTS and release(site, slot) else None


def release(site, slot):
    """
    The release that a slot is meant to run.

    site
        The site's name.
    slot
        ``a`` or ``b``.

    Returns the release's name, or ``None`` if the slot is empty.

    CLI Example:

    .. code-block:: bash

        salt 'app*' slots.release newsroom a
    """
    try:
        text = _vassal(site, slot).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    found = re.search(r"^# Release: (\S+)$", text, re.MULTILINE)
    return found[1] if found else None


def status(site):
    """
    What each slot of a site does.

    site
        The site's name.

    Returns a dictionary from slot to ``release``, ``live``, ``up``, ``workers``, ``busy`` and
    ``requests``; empty slots are left out.

    CLI Example:

    .. code-block:: bash

        salt 'app*' slots.status newsroom
    """
    found, chosen = {}, live(site)
    for slot in SLOTS:
        name = release(site, slot)
        if not name:
            continue
        facts = _stats(site, slot)
        workers = [w for w in (facts or {}).get("workers", []) if w["pid"]]
        found[slot] = {
            "release": name,
            "live": slot == chosen,
            "up": facts is not None,
            "workers": len([w for w in workers if w["status"] != "cheap"]),
            "busy": len([w for w in workers if _is_busy(w)]),
            "requests": sum(w["requests"] for w in workers),
        }
    return found


def start(site, slot, name, urgent=False):
    """
    Start a release in a slot that isn't live, and wait until it answers well.

    site
        The site's name.
    slot
        ``a`` or ``b``.
    name
        The release's name.
    urgent
        Load it as fast as the live one answers; that one goes first, if not given.

    Returns the number of good answers it gave. Raises ``CommandExecutionError`` with what the
    release printed if it doesn't start, or with its answer if it isn't well; the slot is then
    empty again.

    CLI Example:

    .. code-block:: bash

        salt 'app1' slots.start newsroom b 20260102-030405-1a2b3c4d
    """
    if slot == live(site):
        raise CommandExecutionError(f"Slot {slot} of {site} is live: it is not replaced.")
    stop(site, slot)
    _write_vassal(site, slot, name)
    try:
        niceness = 0 if urgent else __salt__["commands.niceness"]()
        return _until_well(site, slot, name, niceness)
    except BaseException:
        _remove(site, slot)
        raise


def flip(site, slot):
    """
    Send requests to a slot from now on. Those that are being answered stay where they are.

    site
        The site's name.
    slot
        ``a`` or ``b``.

    Returns the slot that was live before, or ``None``.

    CLI Example:

    .. code-block:: bash

        salt 'app1' slots.flip newsroom b
    """
    before = live(site)
    paths = __salt__["sites.paths"](site)
    _link(f"{paths['run']}/{slot}.sock", pathlib.Path(paths["socket"]))
    return before


def stop(site, slot, patience=None):
    """
    Empty a slot: wait until nobody is being answered there, then stop it.

    site
        The site's name.
    slot
        ``a`` or ``b``; not the live one.
    patience
        Seconds to wait for requests that are being answered; as long as uWSGI lets a request
        take if not given.

    Returns whether something was stopped.

    CLI Example:

    .. code-block:: bash

        salt 'app1' slots.stop newsroom a
    """
    if slot == live(site):
        raise CommandExecutionError(f"Slot {slot} of {site} is live: it is not stopped.")
    if not _vassal(site, slot).exists() and not _pid(site, slot):
        return False
    if patience is None:
        patience = __salt__["settings.get"]("uwsgi")["harakiri"].s + 5
    deadline = time.monotonic() + patience
    while not idle(site, slot) and time.monotonic() < deadline:
        time.sleep(0.1)
    _remove(site, slot)
    return True


def rest(site, slot):
    """
    Let a slot that isn't live rest: its workers end, its master stays ready to fork new ones.

    Does nothing if a request is being answered there.

    site
        The site's name.
    slot
        ``a`` or ``b``.

    Returns whether it rests.

    CLI Example:

    .. code-block:: bash

        salt 'app1' slots.rest newsroom a
    """
    if slot == live(site) or not idle(site, slot) or not _pid(site, slot):
        return False
    return _command(site, slot, b"C")


def wake(site, slot):
    """
    See that a resting slot is well, so that it can go live.

    site
        The site's name.
    slot
        ``a`` or ``b``.

    Returns the number of good answers it gave. Raises ``CommandExecutionError`` if it isn't well.

    CLI Example:

    .. code-block:: bash

        salt 'app1' slots.wake newsroom a
    """
    return _until_well(site, slot, release(site, slot))


def touch(site, slot, name):
    """
    Let a slot reload into a release, gracefully and in place: see with :func:`check` that it
    loads, before.

    Requests wait while it loads, and a release that loads but isn't well is live until
    it is put back: for hosts without the memory for two slots at once.

    site
        The site's name.
    slot
        ``a`` or ``b``.
    name
        The release's name.

    Returns the number of good answers it gave. Raises ``CommandExecutionError`` if the release
    isn't well.

    CLI Example:

    .. code-block:: bash

        salt 'app1' slots.touch newsroom a 20260102-030405-1a2b3c4d
    """
    _write_vassal(site, slot, name)
    return _until_well(site, slot, name)


def check(site, name):
    """
    Load a release as uWSGI would, without serving it.

    site
        The site's name.
    name
        The release's name.

    Returns ``True``. Raises ``CommandExecutionError`` with its last lines if it doesn't load.

    CLI Example:

    .. code-block:: bash

        salt 'app1' slots.check newsroom 20260102-030405-1a2b3c4d
    """
    paths = __salt__["sites.paths"](site)
    path = pathlib.Path(paths["deploy"], "check.ini")
    _write(path, _rendered(site, "check", name), __salt__["sites.user"](site))
    try:
        result = subprocess.run(
            [*__salt__["commands.yielding"](), "uwsgi", "--ini", path, "--no-server"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_limit(site),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CommandExecutionError(f"{name} took more than {_limit(site)} s to load.") from None
    finally:
        path.unlink()
        _sweep(site, "check")
    if result.returncode:
        lines = __salt__["commands.redact"](site, result.stdout).rstrip().splitlines()
        telling = [line for line in lines if not _CHATTER.match(line)]
        raise CommandExecutionError(f"{name} doesn't load:\n" + "\n".join(telling[-25:]))
    return True


# What uWSGI says of itself at each start.
_CHATTER = re.compile(
    r"\*\*\*|your |detected |compiled with|os: |nodename|machine|clock source|current working|"
    r"writing pidfile|thunder lock|uwsgi socket|setgid|setuid|chdir|mapped |Python (version|main)|"
    r"PEP |uWSGI running as root|spawned|pcre jit|dropping root|-- unavailable"
)


def ask(site, slot, path):
    """
    Ask a slot for a page, past nginx.

    site
        The site's name.
    slot
        ``a``, ``b`` or ``live``.
    path
        The path of the page.

    Returns ``status``, ``release`` (the one that answered) and ``body`` (its first 500
    characters). Raises ``OSError`` if it doesn't answer.

    CLI Example:

    .. code-block:: bash

        salt 'app1' slots.ask newsroom live /health/
    """
    return _answer(*_address(site, slot), path)


def idle(site, slot):
    """
    Whether nobody is being answered by a slot and nobody waits for it.

    site
        The site's name.
    slot
        ``a`` or ``b``.

    Returns a boolean; a slot that doesn't run is idle.

    CLI Example:

    .. code-block:: bash

        salt 'app1' slots.idle newsroom a
    """
    facts = _stats(site, slot)
    if facts is None:
        return True
    return _waiting(site, slot) == 0 and not any(_is_busy(w) for w in facts["workers"])


# --- what a slot is made of


def _vassal(site, slot):
    return _VASSALS / f"{site}-{slot}.ini"


def _rendered(site, slot, name):
    facts, paths = __salt__["sites.get"](site), __salt__["sites.paths"](site)
    known = __salt__["release.must"](site, name)
    context = {
        "release": name,
        "slot": slot,
        "site_ini": f"{_SITES}/{site}.ini",
        "run": paths["run"],
        "control": paths["control"],
        "user": __salt__["sites.user"](site),
        "web_group": _WEB_GROUP,
        "code": known["code"],
        "virtualenv": known["virtualenv"],
        "static": known["static"],
        "wsgi_module": facts["wsgi_module"],
        "settings_module": facts["settings_module"],
    }
    return __salt__["file.apply_template_on_contents"](
        __salt__["settings.source"](_TEMPLATE), "jinja", context, {}, "base"
    )


def _write_vassal(site, slot, name):
    _write(_vassal(site, slot), _rendered(site, slot, name), __salt__["sites.user"](site))
    _wake_emperor()


def _write(path, text, group):
    """Write a file that a group may read: a reload reads it with the site's own rights."""
    beside = path.with_suffix(".new")
    with open(beside, "w", encoding="utf-8") as file:
        shutil.chown(file.fileno(), group=group)
        os.fchmod(file.fileno(), 0o640)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _link(target, path):
    beside = path.with_suffix(".new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(site, slot):
    """Take a slot's vassal away and wait until it has ended."""
    pid = _pid(site, slot)
    _vassal(site, slot).unlink(missing_ok=True)
    _wake_emperor()
    deadline = time.monotonic() + 40
    while pid and _pid(site, slot) == pid:
        if time.monotonic() > deadline:
            raise CommandExecutionError(
                f"Slot {slot} of {site} (process {pid}) doesn't end: see journalctl -u uwsgi."
            )
        time.sleep(0.05)
    _sweep(site, slot)


def _sweep(site, slot):
    """Remove the files of a slot that has ended."""
    paths = __salt__["sites.paths"](site)
    pathlib.Path(f"{paths['run']}/{slot}.sock").unlink(missing_ok=True)
    for suffix in ("stats", "fifo", "pid"):
        pathlib.Path(f"{paths['control']}/{slot}.{suffix}").unlink(missing_ok=True)


# --- the running slot


def _limit(site):
    return __salt__["sites.get"](site)["deploy"]["health_timeout"].s


def _until_well(site, slot, name, niceness=0):
    """
    Wait until a slot answers well: as often in a row as the site asks for, and then, before it goes
    live, until each of its workers has loaded what the first request for a page needs.

    niceness
        Of its processes for the first half of the time that it has, so that a host with no time to
        spare doesn't keep it from being well; then, and when it is well, 0.
    """
    facts = __salt__["sites.get"](site)
    needed, good = facts["deploy"]["health_checks"], 0
    started, told = time.monotonic(), "it doesn't answer"
    deadline, halfway = started + _limit(site), started + _limit(site) / 2
    seen = reniced = None
    while good < needed:
        pid = _pid(site, slot)
        if seen and pid != seen and not _alive(seen):
            check(site, name)  # says why it died
            told = "it starts and dies"
        left = halfway - time.monotonic()
        yielding = niceness if left > 0 else 0
        if pid and (pid, yielding) != reniced:
            _renice(pid, yielding)
            reniced = pid, yielding
        seen = pid or seen
        try:
            # What is asked while it loads waits for its answer: not beyond the time that it yields.
            patience = min(left, _PATIENCE) if yielding else _PATIENCE
            answer = _answer(*_address(site, slot), facts["health"], patience)
        except OSError:
            good, pause = 0, 0.05
        else:
            well = answer["status"] == 200 and answer["release"] == name
            good, pause = (good + 1, 0) if well else (0, 0.2)
            told = _verdict(facts, answer)
        if good < needed:
            if time.monotonic() > deadline:
                raise CommandExecutionError(
                    f"{name} in slot {slot} isn't well after {_limit(site)} s: "
                    + __salt__["commands.redact"](site, told)
                )
            time.sleep(pause)
    try:
        # Visitors who waited have come in between where it is live already: they aren't held up.
        good += _warm(site, slot, facts) if slot != live(site) else 0
    except OSError as error:
        raise CommandExecutionError(
            f"{name} in slot {slot} was well and answers no more: {error}"
        ) from error
    _renice(_pid(site, slot), 0)
    return good


def _verdict(facts, answer):
    return (
        f"{facts['health']} answers {answer['status']}, from release {answer['release']}:\n"
        f"{answer['body']}"
    )


def _warm(site, slot, facts):
    """
    Let each worker answer each page, and say how many answers were good. Who has got half a
    request waits for the rest: as many halves as there are workers reach every one of them, and
    not the quickest alone.
    """
    workers = (_stats(site, slot) or {}).get("workers", [])
    seats = sum(len(worker["cores"]) for worker in workers if worker["pid"]) or 1
    where, host = _address(site, slot)
    given = 0
    for page in [facts["health"], *facts["deploy"]["warm"]]:
        with contextlib.ExitStack() as stack:
            asked = [stack.enter_context(_Request(where, host, page)) for _ in range(seats)]
            _until_taken(site, slot)
            for request in asked:
                request.finish()
            deadline = time.monotonic() + _PATIENCE  # of all: a page that hangs does so in each
            given += sum(request.is_well(deadline) for request in asked)
    return given


def _until_taken(site, slot):
    """Wait until each connection has its worker; shorter than uWSGI waits for a request's rest."""
    deadline = time.monotonic() + 3
    while _waiting(site, slot) and time.monotonic() < deadline:
        time.sleep(0.01)


def _address(site, slot):
    """The socket of a slot and the name that the site is asked by."""
    domains, paths = __salt__["sites.get"](site)["domains"], __salt__["sites.paths"](site)
    where = paths["socket"] if slot == "live" else f"{paths['run']}/{slot}.sock"
    return where, (domains or ["localhost"])[0]


def _answer(where, host, path, patience=_PATIENCE):
    with _Request(where, host, path, patience) as request:
        request.finish()
        return request.answer()


class _Request:
    """A request in uWSGI's own protocol; without :meth:`finish`, half of it."""

    def __init__(self, where, host, path, patience=_PATIENCE):
        self._rest = _packed(host, path)
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.settimeout(patience)
            self._connection.connect(where)
            self._send(len(self._rest) // 2)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.close()

    def _send(self, size):
        self._connection.sendall(self._rest[:size])
        self._rest = self._rest[size:]

    def finish(self):
        """Send the rest of it; whether anybody still reads it is seen by the answer."""
        with contextlib.suppress(ConnectionError):
            self._send(len(self._rest))

    def answer(self):
        """The answer's ``status``, ``release`` and the beginning of its ``body``."""
        with self._connection.makefile("rb") as stream:
            response = http.client.HTTPResponse(_Replay(stream.read()))
        try:
            response.begin()
        except http.client.HTTPException as error:
            raise ConnectionError(f"no HTTP answer: {error!r}") from error
        return {
            "status": response.status,
            "release": response.getheader("X-Release"),
            "body": response.read().decode("utf-8", "replace")[:500],
        }

    def is_well(self, deadline):
        """Whether it is answered with status 200 until then."""
        self._connection.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            return self.answer()["status"] == 200
        except OSError:
            return False


def _packed(host, path):
    variables = {
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": path,
        "PATH_INFO": path.partition("?")[0],
        "QUERY_STRING": path.partition("?")[2],
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": host,
        "SERVER_PORT": "443",
        "REMOTE_ADDR": "127.0.0.1",
        "REQUEST_SCHEME": "https",
        "HTTPS": "on",
        "HTTP_HOST": host,
        "HTTP_X_FORWARDED_PROTO": "https",
        "HTTP_USER_AGENT": "saltern",
    }
    packed = b"".join(
        struct.pack("<H", len(part)) + part
        for pair in variables.items()
        for part in (pair[0].encode(), pair[1].encode())
    )
    return struct.pack("<BHB", 0, len(packed), 0) + packed


class _Replay:
    """An answer that was read, in the form of a socket."""

    def __init__(self, answer):
        self._answer = answer

    def makefile(self, *_):
        return io.BytesIO(self._answer)


def _stats(site, slot):
    """What uWSGI's stats socket says; ``None`` if the slot doesn't run."""
    where = f"{__salt__['sites.paths'](site)['control']}/{slot}.stats"
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(where)
            with connection.makefile("rb") as stream:
                return json.loads(stream.read())
    except (OSError, ValueError):
        return None


def _is_busy(worker):
    return worker["status"].startswith("busy") or any(
        core["in_request"] for core in worker.get("cores", [])
    )


def _waiting(site, slot):
    """Connections that no worker has taken yet: uWSGI itself can't tell for a unix socket."""
    where = f"{__salt__['sites.paths'](site)['run']}/{slot}.sock"
    listed = subprocess.run(
        ["ss", "--no-header", "--extended", "--listening", "--unix", "src", where],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return int(listed[2]) if len(listed) > 2 else 0


def _command(site, slot, letter):
    """Send a letter to a slot's master; whether somebody read it."""
    fifo = f"{__salt__['sites.paths'](site)['control']}/{slot}.fifo"
    try:
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    with open(descriptor, "wb", buffering=0) as file:
        file.write(letter)
    return True


def _pid(site, slot):
    """The process of a slot's master, or ``None``."""
    path = pathlib.Path(__salt__["sites.paths"](site)["control"], f"{slot}.pid")
    try:
        pid = int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return pid if _alive(pid) else None


def _renice(master, niceness):
    """Give a slot's processes a niceness: its master first, as those it forks inherit it."""
    _renice_process(master, niceness)
    for child in _children(master):
        _renice_process(child, niceness)


def _renice_process(pid, niceness):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for thread in pathlib.Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)


def _children(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    except OSError:
        return []


def _alive(pid):
    """Whether a process is a uWSGI that runs: a number may have been given to another since."""
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        program = str(pathlib.Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return False
    return "uwsgi" in program and status.rpartition(")")[2].split()[0] != "Z"


def _wake_emperor():
    """Let the emperor look at its vassals now rather than within its second."""
    for folder in pathlib.Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"uwsgi" in words[0] and (b"/etc/uwsgi/emperor.ini" in words or b"--emperor" in words):
            # Its main process and, where there is a master, the emperor beside it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(folder.name), signal.SIGWINCH)
