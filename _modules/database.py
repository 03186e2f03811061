"""
The farm's PostgreSQL: who takes writes, who follows and how far behind, what waits for a restart.

Which host *should* take writes is the setting ``postgres.primary``; which host *does* is what the
servers themselves say, and nothing here takes the first for the second. The runner
``database.promote`` moves the writes to another host with what stands here.
"""

import base64
import hashlib
import hmac
import json
import os
import pathlib
import re
import shutil
import subprocess
import time
import unicodedata
from collections import namedtuple

from salt.exceptions import CommandExecutionError

# While this file is there the server doesn't start: another host has taken over.
FENCE = pathlib.Path("/var/lib/postgresql/fenced")
OWNER = "postgres"
REPLICATION_USER = "replication"
# What ALTER SYSTEM writes, in the data folder.
_AUTOMATIC = "postgresql.auto.conf"

Cluster = namedtuple("Cluster", "version name port data config programs unit")


def cluster():
    """
    The cluster of this host, as the settings name it.

    Returns a dictionary: ``version``, ``name``, ``port``, the folders ``data``, ``config`` and
    ``programs``, and the systemd ``unit``.

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.cluster
    """
    found = _here()._asdict()
    return {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in found.items()}


def status():
    """
    What this host's server is and does.

    Returns a dictionary. ``state`` is ``absent``, ``stopped``, ``primary`` or ``replica``. A
    running server adds ``version``, ``timeline``, ``lsn``, ``connections`` of ``max_connections``,
    ``restart_pending`` (settings that wait for a restart); a primary its ``replicas`` and
    ``slots``; a replica ``streaming``, ``received``, ``behind_bytes`` and ``behind_seconds``. A
    stopped one ``was`` primary or replica; ``fenced`` tells why it may not start.

    CLI Example:

    .. code-block:: bash

        salt 'db*' database.status
    """
    here = _here()
    found = {"state": "stopped"}
    if FENCE.exists():
        found["fenced"] = FENCE.read_text().strip()
    if not (here.data / "PG_VERSION").exists():
        return found | {"state": "absent"}
    try:
        facts = query(_STATUS)[0]
    except CommandExecutionError as error:
        was = "replica" if (here.data / "standby.signal").exists() else "primary"
        return found | {"was": was, "reason": str(error)}
    found |= facts
    found["state"] = "replica" if found.pop("in_recovery") else "primary"
    if found["state"] == "primary":
        return found | {"replicas": query(_REPLICAS), "slots": query(_SLOTS)}
    return found | query(_BEHIND)[0]


def pending():
    """
    Settings that were changed and wait for a restart of the server.

    Returns a list of names; empty if the server isn't running.

    CLI Example:

    .. code-block:: bash

        salt 'db*' database.pending
    """
    return status().get("restart_pending") or []


def restart(timeout=30):
    """
    Restart the server, with clients waiting in PgBouncer instead of failing.

    timeout
        Seconds that running transactions get to finish. If they don't, nothing is restarted.

    Returns how long the writes stood still, in seconds. Raises ``CommandExecutionError`` if
    transactions don't end in time or the server doesn't come back.

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.restart
    """
    here = _here()
    pooled = __salt__["service.status"]("pgbouncer")
    began = time.monotonic()
    if pooled:
        __salt__["pgbouncer.pause"](timeout)
    try:
        _systemctl("restart", here.unit)
        _wait_until_up(60)
    finally:
        if pooled:
            __salt__["pgbouncer.resume"]()
    return {"restarted": here.unit, "seconds": round(time.monotonic() - began, 2)}


def peers():
    """
    What the servers of the other database hosts say of themselves.

    Returns a list of dictionaries: ``id``, ``address``, ``answers``; those that answer add
    ``in_recovery`` and ``timeline``, the others the ``reason``.

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.peers
    """
    own = __salt__["inventory.address"]()
    others = [p for p in __salt__["inventory.peers"]("database") if p["address"] != own]
    return [_asked(peer) for peer in others]


def survey():
    """
    What a promotion must know, at once: this host's :func:`status` and its :func:`peers`.

    CLI Example:

    .. code-block:: bash

        salt 'db2' database.survey
    """
    return {"status": status(), "peers": peers()}


def source():
    """
    The other host that takes writes now.

    Returns an element of :func:`peers`. Raises ``CommandExecutionError`` if none or two do.

    CLI Example:

    .. code-block:: bash

        salt 'db2' database.source
    """
    asked = peers()
    found = [peer for peer in asked if peer["answers"] and not peer["in_recovery"]]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(peer["id"] for peer in found)
        raise CommandExecutionError(
            f"{names} both take writes. Stop one of them before anything else: "
            "salt-run database.promote tells which rows only one of them has."
        )
    told = "; ".join(f"{p['id']}: {p.get('reason', 'is a replica')}" for p in asked)
    raise CommandExecutionError(f"No other database host takes writes ({told or 'there is none'}).")


def fence(successor):
    """
    Stop this host's server for good: another host takes over. It doesn't start again, not even
    after a reboot, until it is made a replica of the other.

    successor
        The id of the host that takes over.

    Returns ``lsn``, the end of what was written here. Usually the runner ``database.promote``
    calls this.

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.fence db2
    """
    here = _here()
    FENCE.write_text(
        f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}: {successor} takes the writes\n"
    )
    if __salt__["service.status"]("pgbouncer"):
        _systemctl("stop", "pgbouncer")
    _systemctl("stop", here.unit)
    return {"fenced": FENCE.read_text().strip(), "lsn": _control(here)["end"]}


def unfence():
    """
    Take back :func:`fence` where no other host took over, and start the server again.

    Raises ``CommandExecutionError`` if another host takes writes.

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.unfence
    """
    writers = [p["id"] for p in peers() if p["answers"] and not p["in_recovery"]]
    if writers:
        raise CommandExecutionError(
            f"{writers[0]} takes the writes: make this host its replica with "
            f"salt-run database.rejoin {__opts__['id']}"
        )
    FENCE.unlink(missing_ok=True)
    _systemctl("start", _here().unit)
    _wait_until_up(60)
    _start_pooler()
    return status()


def promote(lsn=None, timeout=60):
    """
    Make this replica the server that takes writes. Use ``salt-run database.promote``: it fences
    the old primary first.

    lsn
        Where the old primary's log ended: everything up to there is applied first.
    timeout
        Seconds that this may take.

    Returns the new ``timeline`` and how many ``seconds`` it took. Raises
    ``CommandExecutionError`` if another host takes writes, or this one is no replica.

    CLI Example:

    .. code-block:: bash

        salt 'db2' database.promote
    """
    began = time.monotonic()
    if status()["state"] != "replica":
        raise CommandExecutionError(
            f"{__opts__['id']} is no running replica: only one of those can be promoted."
        )
    writers = [p["id"] for p in peers() if p["answers"] and not p["in_recovery"]]
    if writers:
        raise CommandExecutionError(
            f"{writers[0]} takes the writes. Two must not: salt-run database.promote "
            f"{__opts__['id']} stops it first."
        )
    if lsn:
        _wait_for(lsn, timeout)
    execute(f"SELECT pg_promote(true, {int(timeout)})")
    if query("SELECT current_setting('synchronous_standby_names') AS names")[0]["names"]:
        # Nobody follows yet: a commit that waited for a follower would wait for ever.
        execute("ALTER SYSTEM SET synchronous_standby_names = ''")
        execute("SELECT pg_reload_conf()")
    if __salt__["service.status"]("pgbouncer"):
        __salt__["pgbouncer.reconnect"]()
    return {"timeline": status()["timeline"], "seconds": round(time.monotonic() - began, 2)}


def wait_for_replicas():
    """
    Have commits wait for a replica again, where a promotion suspended that and a replica has joined
    since. The runner ``database.rejoin`` and ``state.apply`` call this.

    Returns whether anything was changed.

    CLI Example:

    .. code-block:: bash

        salt 'db*' database.wait_for_replicas
    """
    automatic = _here().data / _AUTOMATIC
    if not automatic.exists() or "synchronous_standby" not in automatic.read_text():
        return False
    if not any(replica["state"] == "streaming" for replica in status().get("replicas", [])):
        return False
    if not __opts__["test"]:
        execute("ALTER SYSTEM RESET synchronous_standby_names")
        execute("SELECT pg_reload_conf()")
    return True


def rejoin():
    """
    Make this host, which took writes before, a replica of the one that takes them now. What only
    this host has written since then is thrown away.

    Returns what was done. Raises ``CommandExecutionError`` if no other host takes writes, or
    pg_rewind can't bridge the gap (then :func:`clone` can).

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.rejoin
    """
    here, new = _here(), source()
    if status()["state"] == "replica":
        return {"result": f"already a replica of {new['id']}"}
    if _control(here)["timeline"] >= new["timeline"]:
        raise CommandExecutionError(
            f"This host's data is newer than {new['id']}'s (timeline {_control(here)['timeline']} "
            f"against {new['timeline']}): it isn't thrown away."
        )
    _systemctl("stop", here.unit)
    _run(
        [
            here.programs / "pg_rewind",
            f"--target-pgdata={here.data}",
            f"--config-file={here.config}/postgresql.conf",
            f"--source-server={_conninfo(new['address'], user=REPLICATION_USER)}",
        ],
        "pg_rewind found no way back. Copy everything afresh: "
        f"salt {__opts__['id']} database.clone replace=True",
    )
    _follow(here, new)
    return {"result": f"rewound, and follows {new['id']}"}


def clone(replace=False):
    """
    Copy the data of the host that takes writes, and follow it.

    replace
        Whether data of this host may be replaced. It is removed when the copy is complete.

    Returns what was done. Raises ``CommandExecutionError`` if there is data and ``replace`` isn't
    given, or no other host takes writes.

    CLI Example:

    .. code-block:: bash

        salt 'db2' database.clone replace=True
    """
    here, new = _here(), source()
    if (here.data / "PG_VERSION").exists() and not replace:
        raise CommandExecutionError(
            f"{here.data} holds a cluster. To replace it by a copy of {new['id']}'s: "
            f"salt {__opts__['id']} database.clone replace=True"
        )
    copy, old = here.data.with_name(here.data.name + ".copy"), here.data.with_name("replaced")
    shutil.rmtree(copy, ignore_errors=True)
    here.data.parent.mkdir(parents=True, exist_ok=True)
    shutil.chown(here.data.parent, OWNER, OWNER)
    began = time.monotonic()
    was_up = __salt__["service.status"](here.unit)
    if was_up:
        _systemctl("stop", here.unit)  # it holds the slot that the copy needs
    try:
        _base_backup(here, new, copy)
    except CommandExecutionError:
        if was_up:
            _systemctl("start", here.unit)
        raise
    if here.data.exists():
        shutil.rmtree(old, ignore_errors=True)
        here.data.rename(old)
    copy.rename(here.data)
    if not here.config.exists():
        _create(here, "--start-conf", "auto")
    if not (here.config / "conf.d" / "saltern.conf").exists():
        # The state that called this writes the configuration, then starts the server.
        (here.data / "standby.signal").touch()
        shutil.chown(here.data / "standby.signal", OWNER, OWNER)
        FENCE.unlink(missing_ok=True)
    else:
        _follow(here, new)
    shutil.rmtree(old, ignore_errors=True)
    return {"result": f"copied from {new['id']}", "seconds": round(time.monotonic() - began, 1)}


def _base_backup(here, new, copy):
    reserve_slot(new["address"])
    _run(
        [
            here.programs / "pg_basebackup",
            f"--pgdata={copy}",
            f"--dbname={_conninfo(new['address'], user=REPLICATION_USER)}",
            f"--slot={slot()}",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-password",
        ],
        f"{new['id']} couldn't be copied",
        timeout=None,
    )


def create():
    """
    Create this host's cluster, empty and not yet started.

    Raises ``CommandExecutionError`` if it can't be created.

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.create
    """
    _create(_here(), "--start-conf", "auto", "--locale", "C.UTF-8")
    return True


def others():
    """
    Clusters that lie on this host beside the one that the settings name.

    Returns a list of ``version/name``.

    CLI Example:

    .. code-block:: bash

        salt 'db*' database.others
    """
    here = _here()
    found = pathlib.Path("/var/lib/postgresql").glob("*/*/PG_VERSION")
    data = sorted(path.parent for path in found)
    return [f"{path.parent.name}/{path.name}" for path in data if path != here.data]


def slot(host=None):
    """
    The name under which a replica is known to the primary: of its connection, and of the slot that
    keeps what it hasn't received yet.

    host
        A minion id; this host if not given.

    CLI Example:

    .. code-block:: bash

        salt 'db2' database.slot
    """
    name = (host or __opts__["id"]).lower()
    return "host_" + re.sub("[^a-z0-9]", "_", name)


def reserve_slot(address):
    """
    Create this host's slot on the primary if it isn't there.

    address
        The primary's.

    Returns whether it was created.

    CLI Example:

    .. code-block:: bash

        salt 'db2' database.reserve_slot 198.18.0.51
    """
    made = query(
        f"SELECT pg_create_physical_replication_slot({literal(slot())}, true)"
        " WHERE NOT EXISTS (SELECT FROM pg_replication_slots"
        f" WHERE slot_name = {literal(slot())})",
        host=address,
    )
    return bool(made)


def slowest(count=10):
    """
    The statements that took the most time since the counters were reset.

    count
        How many.

    Returns a list of dictionaries: ``database``, ``calls``, ``total_s``, ``mean_ms``, ``rows``,
    ``hit_percent``, ``statement``.

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.slowest 5
    """
    return query(_SLOWEST.format(count=int(count)))


def report(hours=24):
    """
    Write a pgBadger report of the server's log.

    hours
        How far back.

    Returns the path of an HTML file on this host. Raises ``CommandExecutionError`` if pgBadger
    isn't installed or the log has nothing.

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.report
    """
    here = _here()
    if not shutil.which("pgbadger"):
        raise CommandExecutionError("pgbadger isn't installed: apt-get install pgbadger")
    target = f"/var/lib/saltern/postgres-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.html"
    begin = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() - float(hours) * 3600))
    logs = sorted(str(p) for p in pathlib.Path("/var/log/postgresql").glob(f"*-{here.name}.log"))
    done = subprocess.run(
        ["pgbadger", "--quiet", "--prefix", LOG_LINE_PREFIX, "--begin", begin, "-o", target, *logs],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not pathlib.Path(target).exists():
        raise CommandExecutionError(f"pgbadger: {(done.stderr or done.stdout).strip()}")
    return target


LOG_LINE_PREFIX = "%m [%p] %q%u@%d %h "


def query(sql, database="postgres", host=None):
    """
    Ask the server.

    sql
        One SELECT.
    database
        In which database.
    host
        Address of another database host; this one if not given.

    Returns a list of dictionaries. Raises ``CommandExecutionError`` with the server's words.

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.query 'SELECT datname FROM pg_database'
    """
    wrapped = f"SELECT coalesce(json_agg(asked), '[]') FROM ({sql}) AS asked;"
    return json.loads(_psql(wrapped, database, host))


def execute(sql, database="postgres"):
    """
    Give the server on this host a command, which appears in no process list.

    sql
        The command.
    database
        In which database.

    Raises ``CommandExecutionError`` with the server's words.

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.execute 'CHECKPOINT'
    """
    _psql(sql + ";", database)
    return True


def identifier(name):
    """
    A name as SQL writes it, whatever characters it has.

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.identifier newsroom
    """
    return '"' + _clean(name).replace('"', '""') + '"'


def literal(text):
    """
    A text as SQL writes it.

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.literal "it's"
    """
    return "'" + _clean(text).replace("'", "''") + "'"


def verifier(password, salt=None, iterations=4096):
    """
    What PostgreSQL stores of a password: SCRAM-SHA-256 (RFC 5802, RFC 7677).

    password
        The password.
    salt
        Bytes; random if not given.
    iterations
        Rounds of PBKDF2.

    Returns ``SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>``.

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.verifier secret
    """
    salt = os.urandom(16) if salt is None else salt
    prepared = unicodedata.normalize("NFKC", password).encode()
    salted = hashlib.pbkdf2_hmac("sha256", prepared, salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt, stored, server = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${iterations}:{salt}${stored}:{server}"


def matches(password, stored):
    """
    Whether what PostgreSQL stores was made from this password.

    CLI Example:

    .. code-block:: bash

        salt 'db1' database.matches secret 'SCRAM-SHA-256$...'
    """
    try:
        kind, rounds, _keys = (stored or "").split("$")
        iterations, salt = rounds.split(":")
        if kind != "SCRAM-SHA-256":
            return False
        found = verifier(password, base64.b64decode(salt), int(iterations))
    except ValueError:
        return False
    return hmac.compare_digest(found, stored)


def _here():
    settings = __salt__["settings.get"]("postgres")
    version, name = settings["version"], settings["cluster"]
    return Cluster(
        version=version,
        name=name,
        port=settings["port"],
        data=pathlib.Path(f"/var/lib/postgresql/{version}/{name}"),
        config=pathlib.Path(f"/etc/postgresql/{version}/{name}"),
        programs=pathlib.Path(f"/usr/lib/postgresql/{version}/bin"),
        unit=f"postgresql@{version}-{name}",
    )


def _asked(peer):
    try:
        facts = query(_STANDING, host=peer["address"])[0]
    except CommandExecutionError as error:
        return {**peer, "answers": False, "reason": str(error)}
    return {**peer, "answers": True, **facts}


def _follow(here, new):
    """Start the server as a replica of another, and see it stream."""
    reserve_slot(new["address"])
    signal = here.data / "standby.signal"
    signal.touch()
    shutil.chown(signal, OWNER, OWNER)
    # What a promotion suspended ends with it.
    automatic = here.data / _AUTOMATIC
    kept = [x for x in automatic.read_text().splitlines(True) if "synchronous_standby" not in x]
    automatic.write_text("".join(kept))
    FENCE.unlink(missing_ok=True)
    # Where the source is idle its log may end right before the place that a rewound server must
    # reach before it opens: one more record carries it over.
    query("SELECT txid_current()::text AS written", host=new["address"])
    _systemctl("start", here.unit)
    _wait_until_up(300)
    deadline = time.monotonic() + 60
    while not status().get("streaming"):
        if time.monotonic() > deadline:
            raise CommandExecutionError(
                f"The server runs but doesn't receive from {new['id']}: "
                f"see /var/log/postgresql/postgresql-{here.version}-{here.name}.log"
            )
        time.sleep(0.2)
    _start_pooler()


def _start_pooler():
    if __salt__["service.available"]("pgbouncer"):
        _systemctl("start", "pgbouncer")


def _create(here, *arguments):
    """pg_createcluster, which adopts the data if it is there already."""
    command = ["pg_createcluster", str(here.version), here.name, "--port", str(here.port)]
    command += arguments
    if (here.data / "PG_VERSION").exists():
        _add_samples(here)
    else:
        command += ["--", "--data-checksums", "--auth-host=scram-sha-256", "--auth-local=peer"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandExecutionError(f"pg_createcluster: {(done.stderr or done.stdout).strip()}")


def _add_samples(here):
    """The configuration that initdb would have put beside the data, for pg_createcluster."""
    sample = pathlib.Path(f"/usr/share/postgresql/{here.version}/postgresql.conf.sample")
    for name, text in (
        ("postgresql.conf", sample.read_text()),
        ("pg_hba.conf", "local all postgres peer\n"),
        ("pg_ident.conf", ""),
    ):
        target = here.data / name
        target.write_text(text)
        shutil.chown(target, OWNER, OWNER)


def _wait_until_up(seconds):
    deadline = time.monotonic() + seconds
    while True:
        try:
            return query("SELECT 1 AS up")
        except CommandExecutionError as error:
            if time.monotonic() > deadline:
                raise CommandExecutionError(f"The server doesn't answer: {error}") from error
        time.sleep(0.2)


def _wait_for(lsn, seconds):
    """Wait until the replica has applied the log up to a place."""
    deadline = time.monotonic() + seconds
    while True:
        behind = query(
            f"SELECT pg_wal_lsn_diff({literal(lsn)}, pg_last_wal_replay_lsn()) AS bytes"
        )[0]["bytes"]
        if behind <= 0:
            return
        if time.monotonic() > deadline:
            raise CommandExecutionError(
                f"{behind} bytes of the old primary's log didn't arrive in {seconds} s. "
                "Nothing was promoted."
            )
        time.sleep(0.1)


def _control(here):
    """Timeline and end of a stopped server's data."""
    shown = _run([here.programs / "pg_controldata", here.data], "pg_controldata")
    facts = dict(line.split(":", 1) for line in shown.splitlines() if ":" in line)
    return {
        "timeline": int(facts["Latest checkpoint's TimeLineID"]),
        "end": facts["Latest checkpoint location"].strip(),
    }


def _conninfo(address=None, database="postgres", user=None):
    parts = {"dbname": database, "port": _here().port, "application_name": "saltern"}
    if address:
        parts |= {"host": address, "sslmode": "require", "connect_timeout": 3}
    if user:
        parts["user"] = user
    escaped = {k: str(v).replace("\\", "\\\\").replace("'", "\\'") for k, v in parts.items()}
    return " ".join(f"{key}='{value}'" for key, value in escaped.items())


def _psql(sql, database, host=None):
    """Run SQL; the server's own superuser here, the replication user elsewhere."""
    user = REPLICATION_USER if host else None
    command = [_here().programs / "psql", "-XqAtw", "--set=ON_ERROR_STOP=1", "--file=-"]
    return _run([*command, "--dbname", _conninfo(host, database, user)], "psql", stdin=sql)


def _run(command, failure, stdin=None, timeout=120):
    """Run a program of PostgreSQL's as its owner, and return what it printed."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            cwd="/",
            user=OWNER,
            group=OWNER,
            extra_groups=[],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/var/lib/postgresql"},
        )
    except subprocess.TimeoutExpired as error:
        raise CommandExecutionError(f"{failure}: no answer within {timeout} s") from error
    if done.returncode:
        raise CommandExecutionError(f"{failure}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _systemctl(verb, unit):
    done = subprocess.run(
        ["systemctl", verb, unit], capture_output=True, text=True, check=False, timeout=3700
    )
    if done.returncode:
        raise CommandExecutionError(
            f"systemctl {verb} {unit}: {done.stderr.strip()} See: journalctl -u {unit} -n 50"
        )


def _clean(text):
    if "\0" in text:
        raise CommandExecutionError("PostgreSQL allows no NUL character in a name or a text.")
    return text


_STANDING = """
SELECT pg_is_in_recovery() AS in_recovery,
       CASE WHEN pg_is_in_recovery()
            THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int
       END AS timeline
"""
_STATUS = """
SELECT pg_is_in_recovery() AS in_recovery,
       split_part(version(), ' ', 2) AS version,
       CASE WHEN pg_is_in_recovery()
            THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int
       END AS timeline,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn()
       END AS lsn,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
       current_setting('max_connections')::int AS max_connections,
       (SELECT coalesce(json_agg(name ORDER BY name), '[]') FROM pg_settings WHERE pending_restart)
       AS restart_pending
"""
_REPLICAS = """
SELECT application_name AS id, host(client_addr) AS address, state, sync_state,
       pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) AS behind_bytes,
       coalesce(round(extract(epoch FROM replay_lag), 3), 0) AS behind_seconds
FROM pg_stat_replication WHERE application_name <> 'pg_basebackup' ORDER BY 1
"""
_SLOTS = """
SELECT slot_name AS name, active, wal_status,
       pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) AS kept_bytes
FROM pg_replication_slots ORDER BY 1
"""
_BEHIND = """
SELECT coalesce((SELECT status = 'streaming' FROM pg_stat_wal_receiver), false) AS streaming,
       (SELECT sender_host FROM pg_stat_wal_receiver) AS source,
       coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) AS received,
       pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) AS behind_bytes,
       CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()
             AND EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming') THEN 0
            ELSE round(extract(epoch FROM now() - pg_last_xact_replay_timestamp()), 1)
       END AS behind_seconds
"""
_SLOWEST = """
SELECT d.datname AS database, s.calls, round((s.total_exec_time / 1000)::numeric, 2) AS total_s,
       round(s.mean_exec_time::numeric, 2) AS mean_ms, s.rows,
       round(100.0 * s.shared_blks_hit / nullif(s.shared_blks_hit + s.shared_blks_read, 0), 1)
       AS hit_percent,
       left(regexp_replace(s.query, '\\s+', ' ', 'g'), 200) AS statement
FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
ORDER BY s.total_exec_time DESC LIMIT {count}
"""
