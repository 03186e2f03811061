"""
The updates of a host: what waits, what is held, what a reboot would be for.
"""

import datetime
import fnmatch
import os
import pathlib
import re
import subprocess

from salt.exceptions import CommandExecutionError

_REBOOT = pathlib.Path("/run/reboot-required")
_BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")
_INSTALL = re.compile(
    r"Inst (?P<name>\S+) (?:\[(?P<old>[^]]*)\] )?\((?P<new>\S+) (?P<origins>[^)]*)"
)
_QUIET = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
# To look at what is held, and to change it.
_HELD_TOO = ["--ignore-hold", "--allow-change-held-packages"]
_KEEP = ["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]


def status(refresh=False):
    """
    What of this host's software isn't the newest.

    refresh
        Ask the mirrors first.

    Returns ``pending`` (package to ``old -> new``), ``security`` (those of them that are security
    updates), ``held`` (what isn't touched although there is something newer), ``reboot`` (what it
    is for, or nothing) and ``outdated`` (units that still run code that was replaced).

    CLI Example:

    .. code-block:: bash

        salt '*' updates.status
    """
    if refresh:
        _apt("update", "-qq")
    found = _pending()
    held = set(_lines(["apt-mark", "showhold"]))
    every = _pending(*_HELD_TOO)
    return {
        "pending": {name: one["change"] for name, one in found.items()},
        "security": sorted(name for name, one in found.items() if one["security"]),
        "held": {name: one["change"] for name, one in every.items() if name in held},
        "reboot": _reboot_for(),
        "outdated": _outdated(),
    }


def apply(security=False, held=False, refresh=True):
    """
    Install what is newer. Services whose package is updated are restarted by it: take the host out
    of the road first, as ``salt-run updates.roll`` does.

    security
        Security updates only.
    held
        What is held, too.
    refresh
        Ask the mirrors first.

    Returns a dictionary from package to ``old -> new`` of what was installed. Raises
    ``CommandExecutionError`` with apt's last lines if it fails.

    CLI Example:

    .. code-block:: bash

        salt 'app2' updates.apply
        salt 'db2' updates.apply held=True
    """
    if refresh:
        _apt("update", "-qq")
    options = _HELD_TOO if held else []
    wanted = _pending(*options)
    if security:
        wanted = {name: one for name, one in wanted.items() if one["security"]}
    if not wanted:
        return {}
    _apt("install", "-y", "-qq", "--only-upgrade", *options, *_KEEP, *sorted(wanted))
    left = _pending(*options)
    return {name: one["change"] for name, one in wanted.items() if name not in left}


def reboot(force=False):
    """
    Reboot this host in two seconds.

    force
        Outside of the window that ``updates.window`` gives, too.

    Returns the id of the boot that ends: another one says that the host is back. Raises
    ``CommandExecutionError`` outside of the window.

    CLI Example:

    .. code-block:: bash

        salt 'app2' updates.reboot
    """
    allowed = True if force else may_reboot()
    if allowed is not True:
        raise CommandExecutionError(allowed)
    # Without the second word a timer may be late by a minute.
    soon = ["--on-active=2", "--timer-property=AccuracySec=100ms"]
    subprocess.run(["systemd-run", "--quiet", *soon, "systemctl", "reboot"], check=True)
    return boot()


def may_reboot():
    """
    Whether this host may reboot at this hour: ``updates.window`` says when.

    Returns ``True``, or a sentence that says when it may; the exit code is then 1.

    CLI Example:

    .. code-block:: bash

        salt '*' updates.may_reboot
    """
    window = __salt__["settings.get"]("updates")["window"]
    if not window or _inside(window, datetime.datetime.now(datetime.timezone.utc)):
        return True
    __context__["retcode"] = 1
    return f"Hosts may reboot between {window} UTC only; or: force=True."


def boot():
    """
    The id of this boot: it is another one after each.

    CLI Example:

    .. code-block:: bash

        salt 'app2' updates.boot
    """
    return _BOOT.read_text().strip()


def healthy():
    """
    Whether all units of this host run.

    Returns ``True``, or a sentence that names those that failed; the exit code is then 1.

    CLI Example:

    .. code-block:: bash

        salt '*' updates.healthy
    """
    command = ["systemctl", "is-system-running"]
    state = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    if state == "running":
        return True
    __context__["retcode"] = 1
    failed = [
        line.split()[0] for line in _lines(["systemctl", "--failed", "--plain", "--no-legend"])
    ]
    return f"The system is {state}; failed units: {', '.join(failed) or 'none'}."


def holds(patterns):
    """
    Which of the installed packages are held, and which match patterns.

    patterns
        A list of patterns of package names.

    Returns two sorted lists, ``held`` and ``wanted``.

    CLI Example:

    .. code-block:: bash

        salt 'db1' updates.holds '["postgresql*"]'
    """
    installed = [
        line.split()[1]
        for line in _lines(["dpkg-query", "-W", "-f=${db:Status-Abbrev} ${Package}\\n"])
        if line.startswith(("ii", "hi"))
    ]
    wanted = {name for name in installed if any(fnmatch.fnmatch(name, one) for one in patterns)}
    return {"held": sorted(_lines(["apt-mark", "showhold"])), "wanted": sorted(wanted)}


def hold(patterns):
    """
    Hold the installed packages that match a pattern, and no others.

    patterns
        A list of patterns of package names.

    Returns what :func:`holds` does.

    CLI Example:

    .. code-block:: bash

        salt 'db1' updates.hold '["postgresql*"]'
    """
    found = holds(patterns)
    for verb, names in (
        ("unhold", set(found["held"]) - set(found["wanted"])),
        ("hold", set(found["wanted"]) - set(found["held"])),
    ):
        if names:
            subprocess.run(["apt-mark", verb, *sorted(names)], check=True, capture_output=True)
    return holds(patterns)


def _pending(*options):
    """What apt would install: package to its change and whether it is a security update."""
    done = _apt("-s", "-qq", *options, "upgrade", "--with-new-pkgs")
    return _parsed(done)


def _parsed(text):
    """What a simulation of apt says it would install in the place of something."""
    found = {}
    for line in text.splitlines():
        match = _INSTALL.match(line)
        if match and match["old"]:
            found[match["name"]] = {
                "change": f"{match['old']} -> {match['new']}",
                "security": "security" in match["origins"].lower(),
            }
    return found


def _apt(*arguments):
    command = ["apt-get", "-o", "DPkg::Lock::Timeout=300", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_QUIET})
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise CommandExecutionError(f"apt-get {arguments[0]} failed: {' '.join(said)}")
    return done.stdout


def _lines(command):
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line.strip()]


def _reboot_for():
    """The packages that wait for a reboot, or nothing where none does."""
    if not _REBOOT.exists():
        return None
    packages = pathlib.Path(f"{_REBOOT}.pkgs")
    names = packages.read_text().split() if packages.exists() else []
    return sorted(set(names)) or ["unknown"]


def _outdated():
    """Units with a process that has loaded a library which isn't on the disk any more."""
    units = set()
    for maps in pathlib.Path("/proc").glob("[0-9]*/maps"):
        try:
            replaced = re.search(r"/\S+\.so\S* \(deleted\)", maps.read_text())
            place = (maps.parent / "cgroup").read_text() if replaced else ""
        except OSError:
            continue  # it has ended
        units |= set(re.findall(r"([^/\s]+\.service)$", place, re.M))
    return sorted(units)


def _inside(window, now):
    """Whether a time is inside of hours such as ``01:00-05:00``, which may pass midnight."""
    times = re.fullmatch(r"(\d\d:\d\d)-(\d\d:\d\d)", window)
    if not times:
        raise CommandExecutionError(f"updates.window is {window!r}; it is like 01:00-05:00.")
    begin, end = times.groups()
    clock = now.strftime("%H:%M")
    return begin <= clock < end if begin <= end else clock >= begin or clock < end
