"""
A look at this host as somebody who wants to get in would have it: each point passes, or says what
is wrong and how to put it right.
"""

import os
import pathlib
import pwd
import re
import stat
import subprocess

from salt.exceptions import CommandExecutionError

_APPLY = "salt '{id}' state.apply"
# Folders whose files tell the system what to do.
_SYSTEM = ("/etc", "/usr/local", "/opt", "/srv")
_SYSCTL = pathlib.Path("/etc/sysctl.d/60-saltern.conf")
_RULES = "/etc/saltern/nftables.conf"


def audit():
    """
    Check this host, point by point.

    Returns a dictionary: ``ok``, ``passed`` (how many points), ``failed`` (a dictionary from point
    to what is wrong and the fix) and ``left_out`` (points that make no sense here, and why). The
    exit code is 1 if a point fails.

    CLI Example:

    .. code-block:: bash

        salt '*' harden.audit
    """
    found = {"ok": True, "passed": [], "failed": {}, "left_out": {}}
    for name, (look, fix) in _POINTS.items():
        try:
            wrong = look()
        except _LeftOut as reason:
            found["left_out"][name] = str(reason)
            continue
        if wrong:
            fix_here = fix.format(id=__opts__["id"])
            found["failed"][name] = f"{wrong}. Fix: {fix_here}"
        else:
            found["passed"].append(name)
    found["ok"] = not found["failed"]
    __context__["retcode"] = 0 if found["ok"] else 1
    return found


class _LeftOut(Exception):
    """A point that makes no sense on this host; its text says why."""


def _root_password():
    return _shown("has a password", [n for n, word in _shadow() if n == "root" and _usable(word)])


def _empty_passwords():
    return _shown("may log in with an empty password", [n for n, word in _shadow() if word == ""])


def _second_roots():
    return _shown("is root too", [p.pw_name for p in pwd.getpwall() if not p.pw_uid][1:])


def _way_in():
    return "" if __salt__["accounts.way_in"]() else "No operator with a key may become root here"


def _sudo():
    code, said = _run("visudo", "-c", "-q")
    return said or "visudo refuses a file" if code else ""


def _ssh():
    wanted = {
        "permitrootlogin": "no",
        "passwordauthentication": "no",
        "kbdinteractiveauthentication": "no",
        "permitemptypasswords": "no",
        "hostbasedauthentication": "no",
        "x11forwarding": "no",
    }
    code, said = _run("/usr/sbin/sshd", "-T")
    if code:
        return f"sshd refuses its configuration: {said}"
    found = dict(line.split(None, 1) for line in said.splitlines() if " " in line)
    return _shown(
        "in sshd_config", [f"{k} {found.get(k)}" for k in wanted if found[k] != wanted[k]]
    )


def _host_keys():
    """Keys that the host is known by, and that somebody could make a second time."""
    keys = __salt__["sshd.host_keys"]()
    weak = [f"{file} {key['weak']}" for file, key in keys.items() if key["weak"]]
    return _shown("is offered by SSH", weak) if keys else "SSH has no host key"


def _firewall():
    sound = __salt__["firewall.active"](_RULES)
    return "" if sound else "The rules in force, or those at boot, aren't Saltern's"


def _ports():
    """What listens to the network and is declared by no service."""
    declared = set()
    for opening in __salt__["firewall.openings"]():
        if opening["port"]:
            declared.update(range(opening["port"], opening["last"] + 1))
    _, said = _run("ss", "--no-header", "--listening", "--numeric", "--tcp", "--udp")
    listening = set()
    for line in said.splitlines():
        address, _, port = line.split()[4].rpartition(":")
        if not re.match(r"127\.|\[::1\]|\[::ffff:127\.|.*%lo", address):
            listening.add(int(port))
    return _shown("listens, for nobody who is declared", sorted(listening - declared))


def _kernel():
    ret = {}
    for line in _SYSCTL.read_text().splitlines() if _SYSCTL.exists() else ():
        if "=" in line and not line.startswith("#"):
            key, value = (word.strip(" -") for word in line.split("=", 1))
            path = pathlib.Path("/proc/sys", key.replace(".", "/"))
            # What a container may not set is its machine's business.
            if os.access(path, os.W_OK) and " ".join(path.read_text().split()) != value:
                ret[key] = value
    if not _SYSCTL.exists():
        return f"{_SYSCTL} isn't there"
    return _shown("isn't as it should be", ret)


def _open_files():
    """Daemons that still run with fewer open files than they should: they turn visitors away."""
    found = __salt__["limits.files"]().values()
    wrong = [daemon["wrong"] for daemon in found if "wrong" in daemon]
    bounded = [daemon["bounded"] for daemon in found if "bounded" in daemon]
    if bounded and not wrong:
        raise _LeftOut("; ".join(bounded))
    return "; ".join(wrong)


def _writable_files():
    """Files of the system that anybody may change."""
    found = []
    for folder in _SYSTEM:
        for path, status in _walk(folder):
            sticky_folder = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
            if status.st_mode & stat.S_IWOTH and not sticky_folder:
                found.append(path)
    return _shown("can be changed by anybody", found)


def _private_keys():
    """Private keys that anybody may read."""
    found = []
    for path, status in _walk("/etc"):
        if status.st_mode & stat.S_IROTH and path.endswith((".key", ".pem", "_key")):
            with open(path, "rb") as file:
                if b"PRIVATE KEY" in file.read(4096):
                    found.append(path)
    return _shown("is a private key that anybody may read", found)


def _sites_as_root():
    """Processes of root's that run a site's code."""
    root = str(__salt__["settings.get"]("django")["root"])
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            owner, where = folder.stat().st_uid, os.readlink(folder / "cwd")
        except OSError:
            continue  # it ended, or has no folder
        if owner == 0 and where.startswith(root):
            found.append(f"process {folder.name} in {where}")
    return _shown("runs as root", found)


def _updates():
    _, said = _run("apt-config", "dump", "APT::Periodic::Unattended-Upgrade")
    return "" if re.search(r'"[1-9]', said) else "Security updates aren't installed by themselves"


def _reboot():
    needed = pathlib.Path("/run/reboot-required").exists()
    return "An update waits for a reboot" if needed else ""


def _clock():
    if __grains__["hardware"]["kind"] == "container":
        raise _LeftOut("a container has the clock of its machine")
    _, said = _run("timedatectl", "show", "--property=NTPSynchronized")
    return "" if "yes" in said else "The clock isn't synchronised"


def _journal():
    kept = any(pathlib.Path("/var/log/journal").glob("*/system.journal"))
    return "" if kept else "The journal is lost with a reboot"


# Point -> what looks at it, and what puts it right.
_POINTS = {
    "root has no password": (
        _root_password,
        "an operator with a key, then " + _APPLY + " accounts",
    ),
    "nobody has an empty password": (_empty_passwords, "passwd --lock <account>"),
    "only root is root": (_second_roots, "userdel <account>"),
    "an operator can log in": (_way_in, "keys in operators.yaml, then " + _APPLY + " accounts,ssh"),
    "sudo's files are sound": (_sudo, "visudo -c names the file"),
    "SSH takes keys only, and not from root": (_ssh, _APPLY + " accounts,ssh"),
    "SSH's host keys are strong": (_host_keys, _APPLY + " accounts,ssh"),
    "the firewall is up, and is so after a reboot": (_firewall, _APPLY + " firewall"),
    "what listens is declared": (_ports, "stop it, have it listen on loopback, or firewall.open"),
    "the kernel is set as it should be": (_kernel, _APPLY + " os"),
    "daemons may open the files that they should": (
        _open_files,
        _APPLY + " first, if a restart alone doesn't help",
    ),
    "nobody but root changes the system": (_writable_files, "chmod o-w <file>"),
    "private keys are private": (_private_keys, "chmod o-r <file>"),
    "no site runs as root": (_sites_as_root, "stop the process; find who started it"),
    "security updates come by themselves": (_updates, _APPLY),
    "no update waits for a reboot": (_reboot, "drain the host, then reboot it"),
    "the clock is right": (_clock, _APPLY + " os"),
    "the journal survives a reboot": (_journal, _APPLY + " os"),
}


def _shown(what, found, most=5):
    """A sentence about what was found; empty if nothing was."""
    found = list(map(str, found))
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f"{what}: {', '.join(found[:most])}{more}" if found else ""


def _shadow():
    lines = pathlib.Path("/etc/shadow").read_text().splitlines()
    return [tuple(line.split(":")[:2]) for line in lines]


def _usable(word):
    return not word.startswith(("!", "*"))


def _walk(folder):
    """
    Every file and folder that anybody can get to below one, with its status; links aren't followed.
    """
    for where, folders, files in os.walk(folder):
        if not os.stat(where).st_mode & stat.S_IXOTH:
            folders.clear()
            continue
        for name in folders + files:
            path = os.path.join(where, name)
            status = os.lstat(path)
            if not stat.S_ISLNK(status.st_mode):
                yield path, status


def _run(*command):
    """Run a program; returns its exit code and what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except OSError as error:
        raise CommandExecutionError(f"{command[0]} can't be run: {error}") from error
    return done.returncode, (done.stdout or done.stderr).strip()
