"""
Backups of what visitors uploaded to this app host, by restic: sent, listed, brought back.

The backup host's server lets this host add and read, but not delete; what is too old is forgotten
there (``saltern-backup uploads``).
"""

import datetime
import json
import os
import pathlib
import re
import shutil
import subprocess
from urllib.parse import quote

from salt.exceptions import CommandExecutionError

SCRATCH = pathlib.Path("/var/lib/saltern/uploads-restored")


def repository():
    """
    Where the uploads are sent, as restic writes it, the password included.

    CLI Example:

    .. code-block:: bash

        salt 'app1' uploads.repository
    """
    keeper = __salt__["inventory.peers"]("backup")[0]["id"]
    password = quote(__salt__["sites.secret"]("uploads", "password"), safe="")
    return f"rest:https://farm:{password}@{keeper}:{__salt__['settings.get']('uploads')['port']}/"


def run(site=None):
    """
    Send what was uploaded since the last time.

    site
        Its name; all sites if not given.

    Returns the newest snapshot of each site. Raises ``CommandExecutionError`` with restic's words.

    CLI Example:

    .. code-block:: bash

        salt 'app*' uploads.run
    """
    sites = [_known(site)] if site else __salt__["sites.list"]()
    for name in sites:
        unit = f"saltern-uploads@{name}.service"
        done = subprocess.run(["systemctl", "start", unit], capture_output=True, check=False)
        if done.returncode:
            log = ["journalctl", "-u", unit, "-n", "5", "-o", "cat"]
            said = subprocess.run(log, capture_output=True, text=True, check=False).stdout
            raise CommandExecutionError(f"{unit}: {said.strip()}")
    return {name: list_(name)[-1] for name in sites}


def list_(site):
    """
    What of a site's uploads was sent from this host.

    site
        Its name.

    Returns a list of dictionaries, the newest last: ``at`` (UTC), ``snapshot``.

    CLI Example:

    .. code-block:: bash

        salt 'app1' uploads.list newsroom
    """
    mine = ("--host", __opts__["id"], "--tag", _known(site))
    found = json.loads(_restic("snapshots", "--json", *mine) or "[]")
    return [{"at": one["time"][:19], "snapshot": one["short_id"]} for one in found]


def restore(site, time=None):
    """
    Bring back uploads that are gone. What is there is left as it is.

    site
        Its name.
    time
        As they were then, as ``2026-01-31 13:05:00+00``; else as they were sent last.

    Returns the ``snapshot``, its time, and the ``files`` that were brought back. Raises
    ``CommandExecutionError`` if nothing was sent before that time.

    CLI Example:

    .. code-block:: bash

        salt 'app1' uploads.restore newsroom
    """
    found = [one for one in list_(site) if not time or one["at"] <= _utc(time)]
    if not found:
        raise CommandExecutionError(
            f"No uploads of {site} were sent from {__opts__['id']} before {time or 'now'}."
        )
    media = pathlib.Path(__salt__["sites.paths"](site)["media"])
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(mode=0o700, parents=True)
    try:
        _restic("restore", found[-1]["snapshot"], "--target", str(SCRATCH), "--verify")
        back = _bring_back(SCRATCH / media.relative_to("/"), media)
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)
    return {**found[-1], "files": back}


def _utc(time):
    """A time with a zone, as restic's snapshots tell theirs."""
    text = re.sub(r"([+-]\d\d)$", r"\g<1>00", str(time))
    try:
        moment = datetime.datetime.strptime(text, "%Y-%m-%d %H:%M:%S%z")
    except ValueError as error:
        raise CommandExecutionError(
            f"{time!r} is no time with a zone, as 2026-01-31 13:05:00+00, which is UTC."
        ) from error
    return moment.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def _bring_back(source, target):
    """Copy the files that aren't there, with owners and modes. Returns their paths."""
    back = []
    for folder, _folders, files in os.walk(source):
        here = target / pathlib.Path(folder).relative_to(source)
        if not here.exists():
            here.mkdir()
            _as(pathlib.Path(folder), here)
        for name in files:
            if not os.path.lexists(here / name):
                shutil.copy2(pathlib.Path(folder, name), here / name, follow_symlinks=False)
                _as(pathlib.Path(folder, name), here / name)
                back.append(str((here / name).relative_to(target)))
    return sorted(back)


def _as(source, target):
    status = source.lstat()
    os.lchown(target, status.st_uid, status.st_gid)
    if not target.is_symlink():
        target.chmod(status.st_mode & 0o7777)


def _known(site):
    if site not in __salt__["sites.list"]():
        raise CommandExecutionError(
            f"There is no site {site!r} here: {', '.join(__salt__['sites.list']())}."
        )
    return site


def _restic(*words):
    environment = {
        "RESTIC_REPOSITORY_FILE": "/etc/saltern/uploads.repository",
        "RESTIC_PASSWORD_FILE": "/etc/saltern/uploads.passphrase",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
    }
    options = ["--cacert", "/etc/saltern/uploads.pem", "--cache-dir", "/var/cache/saltern-uploads"]
    done = subprocess.run(
        ["restic", *options, *words], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise CommandExecutionError(f"restic {words[0]}: {done.stderr.strip()}")
    return done.stdout


__func_alias__ = {"list_": "list"}
