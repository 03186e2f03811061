"""
Backups of the farm's databases: made, listed, restored, and shown to be good.

On the backup host these functions run ``saltern-backup``, as its timers do; on a database host
:func:`restore` brings the whole cluster back.
"""

import json
import pathlib
import re
import subprocess
import time as clock

from salt.exceptions import CommandExecutionError

PROGRAM = "/usr/local/sbin/saltern-backup"
KINDS = ("full", "diff", "dump", "seal", "uploads", "mariadb-full", "mariadb-log")
# The unit that database hosts send to.
_SERVER = "pgbackrest"
# What pgBackRest writes into postgresql.auto.conf for a restore.
_RECOVERY = (
    "recovery_target_action",
    "recovery_target_time",
    "recovery_target_timeline",
    "restore_command",
)


def run(kind="diff"):
    """
    Make a backup now. On the backup host; ``uploads`` on app hosts, which send theirs.

    kind
        ``full``; ``diff``, what changed since the last full one; ``dump``, each site's database as
        SQL; ``seal``, see docs/backup.md; ``uploads``, on the backup host: see that they came, and
        forget what is too old; ``mariadb-full`` and ``mariadb-log``, see docs/mariadb.md.

    Returns what was made and the seconds it took. Raises ``CommandExecutionError`` if it failed.

    CLI Example:

    .. code-block:: bash

        salt 'backup*' backup.run
        salt 'backup*' backup.run full
        salt 'app*' backup.run uploads
    """
    if kind not in KINDS:
        raise CommandExecutionError(f"There is no kind of backup {kind!r}: {', '.join(KINDS)}.")
    if kind == "uploads" and not pathlib.Path(PROGRAM).exists():
        return __salt__["uploads.run"]()
    return _program(kind)


def list_():
    """
    The backups and dumps that can be restored, the newest last. On the backup host.

    Returns ``backups``, ``dumps`` and the ``results`` of what ran last.

    CLI Example:

    .. code-block:: bash

        salt 'backup*' backup.list
    """
    return _program("list")


def verify(engine=None):
    """
    Restore the newest backup into a scratch place on the backup host, start a server on it, compare
    the rows and checksums of every table with a replica at the same place in the log, and look at
    every index.

    engine
        ``postgres`` or ``mariadb``; PostgreSQL where the farm has both.

    Returns which backup, how many tables and rows, and the seconds until the server was up. Raises
    ``CommandExecutionError`` with the tables that differ.

    CLI Example:

    .. code-block:: bash

        salt 'backup*' backup.verify
    """
    return _program(_for_engine("verify", engine))


def _for_engine(verb, engine):
    """What saltern-backup calls a verb that each engine has."""
    engine = engine or ("postgres" if __salt__["inventory.peers"]("database") else "mariadb")
    if engine not in ("postgres", "mariadb"):
        raise CommandExecutionError(f"There is no engine {engine!r}: postgres, mariadb.")
    return verb if engine == "postgres" else f"mariadb-{verb}"


def anonymise(engine=None):
    """
    Make a copy of each site's database for development, without what the site's rules
    (``anonymise`` in sites.yaml) take out, from the newest backup. On the backup host.

    engine
        ``postgres`` or ``mariadb``; PostgreSQL where the farm has both.

    Returns of each database the file, its size and the seconds it took. Raises
    ``CommandExecutionError`` with the columns that no rule speaks of, or if an original e-mail
    address would have been left.

    CLI Example:

    .. code-block:: bash

        salt 'backup*' backup.anonymise
    """
    return _program(_for_engine("anonymise", engine))


def check():
    """
    Whether the backups are recent and verified. On the backup host; for monitoring.

    Returns ``ok``; or the complaints, and the command's exit code is 1.

    CLI Example:

    .. code-block:: bash

        salt 'backup*' backup.check
    """
    found = complaints()
    if found:
        __context__["retcode"] = 1
        return {"ok": False, "complaints": found}
    return {"ok": True}


def complaints():
    """
    What is wrong with the backups, as :func:`check`, for states.

    CLI Example:

    .. code-block:: bash

        salt 'backup*' backup.complaints
    """
    return _program("check", fails=False)["complaints"]


def restore(database=None, table=None, time=None, force=False, uploads=None):
    """
    Bring data back.

    On the backup host, one database, or one table of it: it is restored into a scratch place and
    copied into the running server. A table that is gone comes back where it was; one that is there
    is put into a schema ``restored_<time>`` beside it, a database beside the live one, as
    ``<database>_restored_<time>``; a table of MariaDB, too. Nothing that lives is overwritten.

    On the database host that takes writes, without ``database``: the whole cluster goes back, and
    all that came later is lost.

    database
        A site's database.
    table
        One table of it, as ``schema.table``; without a schema, ``public``.
    time
        The state at this time, as ``2026-01-31 13:05:00+00``; else the newest there is.
    force
        To overwrite the whole cluster.
    uploads
        On an app host: a site whose uploads come back where they are gone.

    Returns what was brought back and where. Raises ``CommandExecutionError`` if that isn't
    possible; where the cluster's restore fails, its server stays down.

    CLI Example:

    .. code-block:: bash

        salt 'backup1' backup.restore newsroom table=articles_article time='2026-01-31 13:05:00+00'
        salt 'db1' backup.restore time='2026-01-31 13:05:00+00' force=True
        salt 'app1' backup.restore uploads=newsroom time='2026-01-31 13:05:00+00'
    """
    if time is not None and not re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?([+-]\d\d(:?\d\d)?)", str(time)
    ):
        raise CommandExecutionError(
            f"{time!r} is no time with a zone, as 2026-01-31 13:05:00+00, which is UTC."
        )
    if uploads:
        return __salt__["uploads.restore"](uploads, time)
    roles = __salt__["inventory.roles"]()
    if database is None:
        if "database" not in roles:
            raise CommandExecutionError("Which database? Or the whole cluster: on its own host.")
        return _whole(time, force)
    if "backup" not in roles:
        raise CommandExecutionError("A database or a table is restored on the backup host.")
    words = [f"--database={database}"]
    words += [f"--table={table}"] if table else []
    words += [f"--time={time}"] if time else []
    ours = [base["name"] for base in __salt__["sites.hosted"]("mariadb").values()]
    return _program("mariadb-extract" if database in ours else "extract", *words)


def plan():
    """
    What ``saltern-backup`` is told: /etc/saltern/backup.json.

    CLI Example:

    .. code-block:: bash

        salt 'backup*' backup.plan
    """
    settings, postgres = __salt__["settings.get"]("backup"), __salt__["settings.get"]("postgres")
    bases = __salt__["sites.hosted"]("postgres")
    return {
        "anonymise": anonymised("postgres"),
        "databases": __salt__["inventory.peers"]("database"),
        "dumps": _place(settings, "dumps"),
        "keep_days": settings["keep_days"],
        "max_age": settings["max_age"].s,
        "path": str(settings["path"]),
        "port": postgres["port"],
        "programs": f"/usr/lib/postgresql/{postgres['version']}/bin",
        "s3": settings["s3"] if settings["s3"]["bucket"] else None,
        "uploads": _uploads(),
        "sites": {base["name"]: base["user"] for base in bases.values()},
    }


def anonymised(engine):
    """
    The rules of the copies for development, of the sites whose databases an engine holds.

    engine
        ``postgres`` or ``mariadb``.

    Returns a dictionary from the database to its rules.

    CLI Example:

    .. code-block:: bash

        salt 'backup*' backup.anonymised mariadb
    """
    bases = __salt__["sites.hosted"](engine)
    rules = {base["name"]: __salt__["sites.get"](n)["anonymise"] for n, base in bases.items()}
    return {name: words for name, words in rules.items() if words}


def _uploads():
    """What the backup host has to know of uploads."""
    settings, hosts = __salt__["settings.get"]("uploads"), __salt__["inventory.peers"]("app")
    return {
        "path": str(settings["path"]),
        "keep_days": settings["keep_days"],
        "max_age": settings["max_age"].s,
        "expected": [[host["id"], site] for host in hosts for site in __salt__["sites.list"]()],
    }


def _place(settings, name):
    """Where a repository of restic's lies, as restic writes it."""
    store = settings["s3"]
    if not store["bucket"]:
        return f"{settings['path']}/{name}"
    return f"s3:https://{store['endpoint']}:{store['port']}/{store['bucket']}/{name}"


def ready():
    """
    Whether the repository on this host knows the cluster.

    CLI Example:

    .. code-block:: bash

        salt 'backup*' backup.ready
    """
    said = _as_postgres("pgbackrest", "--stanza=farm", "info", "--output=json")
    found = json.loads(said)
    return bool(found) and found[0]["status"]["code"] in (0, 2)


def create():
    """
    Make the repository know the cluster, and see that the cluster's log arrives. For a moment the
    server that takes the log stands still; database hosts keep what they have and send it again.

    CLI Example:

    .. code-block:: bash

        salt 'backup*' backup.create
    """
    # What a database host sends holds the lock that this needs, and is refused until this is done.
    _systemctl("stop", _SERVER)
    try:
        _as_postgres("pgbackrest", "--stanza=farm", "stanza-create")
    finally:
        _systemctl("start", _SERVER)
    _as_postgres("pgbackrest", "--stanza=farm", "check")
    return True


def _whole(moment, force):
    """The whole cluster of this host, back to a time."""
    if not force:
        raise CommandExecutionError(
            "This overwrites every database of the farm, and what came after the backup is lost. "
            "If you mean it: force=True"
        )
    here = __salt__["database.cluster"]()
    peers = [peer for peer in __salt__["database.peers"]() if peer["answers"]]
    writers = [peer["id"] for peer in peers if not peer["in_recovery"]]
    if writers:
        raise CommandExecutionError(f"{writers[0]} takes the writes: restore there.")
    began = clock.monotonic()
    if __salt__["database.status"]()["state"] == "primary":
        # A time is only reached where a later transaction shows that it has passed.
        __salt__["database.execute"]("SELECT txid_current()")
    for unit in ("pgbouncer", here["unit"]):
        _systemctl("stop", unit)
    command = ["pgbackrest", "--stanza=farm", "--delta", "restore"]
    if moment:
        command += ["--type=time", f"--target={moment}", "--target-action=promote"]
    _as_postgres(*command)
    _systemctl("start", here["unit"])
    deadline = clock.monotonic() + 3600
    while __salt__["database.status"]().get("state") != "primary":
        if not __salt__["service.status"](here["unit"]) or clock.monotonic() > deadline:
            raise CommandExecutionError(
                "The restored server doesn't open, and clients are kept out. Why: tail "
                f"/var/log/postgresql/postgresql-{here['version']}-{here['name']}.log"
            )
        clock.sleep(0.5)
    # A replica copies these with the data: it would stop at that time, too, and take writes.
    for name in _RECOVERY:
        __salt__["database.execute"](f"ALTER SYSTEM RESET {name}")
    _systemctl("start", "pgbouncer")
    return {
        "restored": moment or "everything there was",
        "seconds": round(clock.monotonic() - began, 1),
        "do_now": "the replicas are ahead of what was restored: copy them afresh with "
        "salt <replica> database.clone replace=True",
    }


def _program(*words, fails=True):
    if not pathlib.Path(PROGRAM).exists():
        raise CommandExecutionError(f"{__opts__['id']} is no backup host: it hasn't {PROGRAM}.")
    done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)
    except ValueError as error:
        raise CommandExecutionError(f"{PROGRAM}: {done.stderr.strip()[-1000:]}") from error
    if done.returncode and fails:
        raise CommandExecutionError(found.get("error") or done.stderr.strip())
    return found


def _as_postgres(*command):
    done = subprocess.run(
        ["runuser", "-u", "postgres", "--", *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CommandExecutionError(f"{command[0]}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def _systemctl(verb, unit):
    done = subprocess.run(["systemctl", verb, unit], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandExecutionError(f"systemctl {verb} {unit}: {done.stderr.strip()}")


__func_alias__ = {"list_": "list"}
