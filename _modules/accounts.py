"""
Accounts on this host: who has to go, and how.
"""

import contextlib
import grp
import os
import pathlib
import pwd
import re
import shutil
import signal
import subprocess
import time

from salt.exceptions import CommandExecutionError

GROUP = "operators"
KEYS = pathlib.Path("/etc/ssh/authorized_keys.d")
_CRONTABS = pathlib.Path("/var/spool/cron/crontabs")
# Below it accounts belong to the system.
_FIRST_PERSON = 1000


def leavers():
    """
    The accounts that have to go from this host: operators that are absent, or stand nowhere.

    Returns a dictionary from name to whether the home goes too.

    CLI Example:

    .. code-block:: bash

        salt '*' accounts.leavers
    """
    listed, mine = __salt__["accounts.listed"](), __salt__["accounts.operators"]()
    absent = {n: True for n, who in listed.items() if who["state"] == "absent" and _uid(n)}
    with contextlib.suppress(KeyError):
        members = grp.getgrnam(GROUP).gr_mem
        absent |= {n: False for n in sorted(members) if n not in mine and n not in absent}
    return absent


def remove(name, purge=False):
    """
    Take an account away: its keys, its running processes, its cron jobs, and itself.

    name
        The account. One of the system's is refused.
    purge
        Delete its home too; else the home becomes root's.

    Returns a list of what was done. Raises ``CommandExecutionError`` if something of it is left.

    CLI Example:

    .. code-block:: bash

        salt '*' accounts.remove ada
    """
    uid = _uid(name)
    if not uid:
        return []
    if uid < _FIRST_PERSON:
        raise CommandExecutionError(f"{name} is an account of the system: it isn't taken away.")
    home = pathlib.Path(pwd.getpwnam(name).pw_dir)
    (KEYS / name).unlink(missing_ok=True)
    _run("usermod", "--lock", "--expiredate", "1", name)
    ended = _end_sessions(name, uid)
    (_CRONTABS / name).unlink(missing_ok=True)
    _run("userdel", name)
    done = ["keys, cron jobs and account removed", f"{ended} processes ended"]
    if home.parent == pathlib.Path("/home") and home.is_dir():
        done.append(f"{home} {_dispose(home, purge)}")
    return done


def _dispose(home, purge):
    if purge:
        shutil.rmtree(home)
        return "deleted"
    _run("chown", "--recursive", "--no-dereference", "root:root", str(home))
    home.chmod(0o700)
    return "given to root"


def _uid(name):
    """The number of an account; ``None`` if there is none."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(name).pw_uid
    return None


def _end_sessions(name, uid, seconds=10):
    """End every process of an account, and its sessions with what root runs in them."""
    _run("loginctl", "terminate-user", name, check=False)
    ended, deadline = set(), time.monotonic() + seconds
    while running := _processes(uid):
        if time.monotonic() > deadline:
            raise CommandExecutionError(f"Processes of {name} can't be ended: {running}.")
        for pid in running:
            ended.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    # systemd's manager for the account was killed as well, and would count as failed.
    _run("systemctl", "reset-failed", f"user@{uid}.service", check=False)
    return len(ended)


def _processes(uid):
    """The ids of the processes that run as an account, whatever it has become since."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            status = (folder / "status").read_text()
            uids = re.search(r"^Uid:\s+(.*)$", status, re.M)[1].split()
            if str(uid) in uids and "\nState:\tZ" not in status:
                found.append(int(folder.name))
    return found


def _run(*command, check=True):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise CommandExecutionError(f"{' '.join(command)} failed: {done.stderr.strip()}")
