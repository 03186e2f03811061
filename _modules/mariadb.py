"""
The farm's MariaDB: who takes writes, who follows and how far behind, what waits for a restart.

All is done through the server's own programs: ``mariadb`` over its socket, where it knows root by
the system account, so that no password lies on the host for it.
"""

import hashlib
import ipaddress
import pathlib
import re
import shutil
import subprocess
import time

from salt.exceptions import CommandExecutionError

DATA = pathlib.Path("/var/lib/mysql")
CONFIG = pathlib.Path("/etc/mysql/mariadb.conf.d/90-saltern.cnf")
# How this host logs in on the other ones, and the program that fetches their data.
PEER_LOGIN = "/etc/saltern/mariadb-peer.cnf"
FETCH = "/usr/local/lib/saltern/mariadb-fetch"
UNIT = "mariadb"
# While this file is there the server doesn't start: another host takes over.
FENCE = pathlib.Path("/var/lib/saltern/mariadb-fenced")
REPLICATION_USER = "replication"


def status():
    """
    What this host's server is and does.

    Returns a dictionary. ``state`` is ``stopped``, ``empty`` (no database, nothing written),
    ``primary`` or ``replica``. A running server adds ``version``, ``gtid`` (what it has),
    ``read_only``, ``connections`` of ``max_connections``, ``restart_pending`` (settings that wait
    for a restart); a primary its ``replicas``; a replica ``source``, ``streaming``,
    ``behind_seconds`` and, if there is one, the ``error`` that stopped it. ``fenced`` tells why a
    stopped one may not start.

    CLI Example:

    .. code-block:: bash

        salt 'db*' mariadb.status
    """
    try:
        facts = query(_STATUS)[0]
    except CommandExecutionError as error:
        found = {"state": "stopped", "reason": str(error)}
        return found | ({"fenced": FENCE.read_text().strip()} if FENCE.exists() else {})
    found = {
        "version": facts["version"].split("-")[0],
        "gtid": facts["gtid"],
        "read_only": facts["read_only"] == "1",
        "connections": int(facts["connections"]),
        "max_connections": int(facts["max_connections"]),
        "restart_pending": sorted(_differing(dynamic=False)),
    }
    follows = query("SHOW ALL SLAVES STATUS")
    if follows:
        return {"state": "replica", **found, **_following(follows[0])}
    if not found["gtid"] and facts["own"] == "0":
        return {"state": "empty", **found}
    replicas = [{"id": r["Host"], "server_id": r["Server_id"]} for r in query("SHOW REPLICA HOSTS")]
    return {"state": "primary", **found, "replicas": replicas}


def pending():
    """
    Settings that were changed and wait for a restart of the server.

    Returns a list of names; empty if the server isn't running.

    CLI Example:

    .. code-block:: bash

        salt 'db*' mariadb.pending
    """
    return status().get("restart_pending") or []


def apply_settings(test=False):
    """
    Give the running server those values of its configuration file that it takes without a restart.

    test
        Only tell.

    Returns a dictionary from each setting that differs to its ``old`` and ``new`` value.

    CLI Example:

    .. code-block:: bash

        salt 'db1' mariadb.apply_settings test=True
    """
    changes = _differing(dynamic=True)
    if not test:
        for name, change in changes.items():
            value = change["new"]
            execute(f"SET GLOBAL {name} = {value if _is_number(value) else literal(value)}")
    return changes


def restart():
    """
    Restart the server. Clients that are connected lose their connection.

    Returns how long it took, in seconds. Raises ``CommandExecutionError`` if it doesn't come back.

    CLI Example:

    .. code-block:: bash

        salt 'db1' mariadb.restart
    """
    began = time.monotonic()
    _systemctl("restart")
    _wait_until_up(300)
    return {"restarted": UNIT, "seconds": round(time.monotonic() - began, 2)}


def peers():
    """
    What the servers of the other MariaDB hosts say of themselves.

    Returns a list of dictionaries: ``id``, ``address``, ``answers``; those that answer add
    ``writes`` (whether they take writes) and ``gtid``, the others the ``reason``.

    CLI Example:

    .. code-block:: bash

        salt 'db1' mariadb.peers
    """
    own = __salt__["inventory.address"]()
    others = [p for p in __salt__["inventory.peers"]("mariadb") if p["address"] != own]
    return [_asked(peer) for peer in others]


def source():
    """
    The other host that takes writes now.

    Returns an element of :func:`peers`. Raises ``CommandExecutionError`` if none or two do.

    CLI Example:

    .. code-block:: bash

        salt 'db2' mariadb.source
    """
    asked = peers()
    found = [peer for peer in asked if peer["answers"] and peer["writes"]]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(peer["id"] for peer in found)
        raise CommandExecutionError(f"{names} both take writes. Stop one of them first.")
    told = "; ".join(f"{p['id']}: {p.get('reason', 'takes no writes')}" for p in asked)
    raise CommandExecutionError(f"No other MariaDB host takes writes ({told or 'there is none'}).")


def clone(replace=False):
    """
    Copy the data of the host that takes writes with mariadb-backup, and follow it.

    replace
        Whether data of this host may be replaced. It is removed when the copy is complete.

    Returns what was done. Raises ``CommandExecutionError`` if there is data and ``replace`` isn't
    given, no other host takes writes, or this host's settings say that it does.

    CLI Example:

    .. code-block:: bash

        salt 'db2' mariadb.clone replace=True
    """
    new, state = source(), status()["state"]
    if _configured().get("read_only") == "OFF":
        raise CommandExecutionError(
            f"{CONFIG} lets this host take writes: set mariadb.primary: {new['id']} in the "
            f"overrides, then salt {__opts__['id']} state.apply mariadb"
        )
    if state != "empty" and not replace:
        raise CommandExecutionError(
            f"This host has data of its own ({state}). To replace it by a copy of {new['id']}'s: "
            f"salt {__opts__['id']} mariadb.clone replace=True"
        )
    began = time.monotonic()
    copy, old = DATA.with_name("mysql.copy"), DATA.with_name("mysql.replaced")
    for folder in (copy, old):
        shutil.rmtree(folder, ignore_errors=True)
    copy.mkdir(mode=0o700)
    try:
        place = _fetch(new, copy)
        _systemctl("stop")
        DATA.rename(old)
        copy.rename(DATA)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    FENCE.unlink(missing_ok=True)
    _systemctl("start")
    _wait_until_up(300)
    execute(f"SET GLOBAL gtid_slave_pos = {literal(place)}")
    follow(new["address"])
    shutil.rmtree(old, ignore_errors=True)
    return {"result": f"copied from {new['id']}", "seconds": round(time.monotonic() - began, 1)}


def follow(address, wait=60):
    """
    Make this server follow another one from where it is.

    address
        The other's.
    wait
        Seconds until it has to receive.

    Raises ``CommandExecutionError`` with the server's words if it doesn't.

    CLI Example:

    .. code-block:: bash

        salt 'db2' mariadb.follow 198.18.0.71
    """
    password = __salt__["sites.secret"]("mariadb", "copies", "replication")
    execute("STOP ALL SLAVES")
    execute(
        f"CHANGE MASTER TO MASTER_HOST = {literal(address)}, MASTER_PORT = {_port()},"
        f" MASTER_USER = {literal(REPLICATION_USER)}, MASTER_PASSWORD = {literal(password)},"
        " MASTER_SSL = 1, MASTER_SSL_VERIFY_SERVER_CERT = 0, MASTER_CONNECT_RETRY = 5,"
        " MASTER_HEARTBEAT_PERIOD = 5, MASTER_USE_GTID = slave_pos"
    )
    execute("SET GLOBAL read_only = 1")
    execute("START SLAVE")
    deadline = time.monotonic() + wait
    while not (found := status()).get("streaming"):
        if time.monotonic() > deadline:
            raise CommandExecutionError(f"It doesn't receive from {address}: {found.get('error')}")
        time.sleep(0.2)
    return found


def fence(wait=60):
    """
    Stop this host's server for good, once a replica has all that it acknowledged: that one is to
    take over. It doesn't start again, not even after a reboot, until it is a replica.

    wait
        Seconds that the replicas get.

    Returns ``gtid``, the end of what was written here, for :func:`promote`. Raises
    ``CommandExecutionError`` if this server takes no writes, or no replica has all of them in time;
    then it takes writes as before.

    CLI Example:

    .. code-block:: bash

        salt 'db1' mariadb.fence
    """
    state = status()["state"]
    if state != "primary":
        raise CommandExecutionError(f"{__opts__['id']} takes no writes: {state}.")
    # Waits for the commits that are under way; from here on nothing is acknowledged.
    execute("SET GLOBAL read_only = 1")
    try:
        place = query("SELECT @@gtid_binlog_pos AS gtid")[0]["gtid"]
        _wait_for_a_replica(place, wait)
    except CommandExecutionError:
        execute("SET GLOBAL read_only = 0")
        raise
    FENCE.parent.mkdir(parents=True, exist_ok=True)
    FENCE.write_text(
        f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}: another host takes the writes\n"
    )
    _systemctl("stop")
    return {"fenced": FENCE.read_text().strip(), "gtid": place}


def promote(gtid=None, force=False):
    """
    Make this replica the server that takes writes. Then set ``mariadb.primary`` in the overrides
    and apply the states to the hosts that run the sites, which know one host each.

    gtid
        What :func:`fence` told on the old primary: all up to there is applied first.
    force
        Promote although the old primary doesn't answer and wasn't fenced: it is known to be off for
        good. What it had acknowledged and not yet sent is lost.

    Returns what the server then says of itself. Raises ``CommandExecutionError`` if another host
    takes writes, may take them, this one is no replica, or it hasn't all that the old one wrote.

    CLI Example:

    .. code-block:: bash

        salt 'db2' mariadb.promote gtid=0-3324051507-8813
    """
    found = status()
    if found["state"] != "replica":
        raise CommandExecutionError(f"{__opts__['id']} is no replica: {found['state']}.")
    for peer in peers():
        if peer["answers"] and peer["writes"]:
            raise CommandExecutionError(
                f"{peer['id']} takes the writes. Stop it first: salt {peer['id']} mariadb.fence"
            )
        if not peer["answers"] and not gtid and not force:
            raise CommandExecutionError(
                f"{peer['id']} doesn't answer, so it may take writes ({peer['reason']}). If it was "
                "fenced: gtid=, as mariadb.fence told. If it is off for good: force=True"
            )
    if gtid:
        waited = query(f"SELECT MASTER_GTID_WAIT({literal(str(gtid))}, 60) AS done")[0]["done"]
        if waited != "0":
            raise CommandExecutionError(
                f"This replica has {found['gtid']} and didn't come to {gtid} within 60 s. Nothing "
                "was promoted."
            )
    execute("STOP SLAVE IO_THREAD")
    deadline = time.monotonic() + 60
    while not query("SHOW SLAVE STATUS")[0]["Slave_SQL_Running_State"].startswith("Slave has read"):
        if time.monotonic() > deadline:
            raise CommandExecutionError("It didn't apply within 60 s what it had received.")
        time.sleep(0.1)
    execute("STOP ALL SLAVES; RESET SLAVE ALL; SET GLOBAL read_only = 0")
    return status()


def server_id(host=None):
    """
    The number by which a server is known in replication: its address.

    host
        A minion id; this host if not given.

    CLI Example:

    .. code-block:: bash

        salt 'db1' mariadb.server_id
    """
    return int(ipaddress.ip_address(__salt__["inventory.address"](host)))


def stream_key():
    """
    The key by which hosts prove to each other that they may copy data.

    Returns 32 bytes as hexadecimal text, made of the password of the replication.

    CLI Example:

    .. code-block:: bash

        salt 'db1' mariadb.stream_key
    """
    password = __salt__["sites.secret"]("mariadb", "copies", "replication")
    return hashlib.sha256(b"saltern mariadb stream\0" + password.encode()).hexdigest()


def backup_plan():
    """
    What the backup host is told of MariaDB: /etc/saltern/mariadb-backup.json.

    CLI Example:

    .. code-block:: bash

        salt 'backup*' mariadb.backup_plan
    """
    bases = __salt__["sites.hosted"]("mariadb").values()
    return {
        "anonymise": __salt__["backup.anonymised"]("mariadb"),
        "hosts": __salt__["inventory.peers"]("mariadb"),
        "port": _port(),
        "sites": {base["name"]: base["user"] for base in bases},
    }


def verifier(password):
    """
    What MariaDB stores of a password (mysql_native_password): a hash of its hash.

    password
        The password.

    CLI Example:

    .. code-block:: bash

        salt 'db1' mariadb.verifier secret
    """
    once = hashlib.sha1(password.encode(), usedforsecurity=False).digest()
    return "*" + hashlib.sha1(once, usedforsecurity=False).hexdigest().upper()


def query(sql, host=None):
    """
    Ask the server.

    sql
        One statement that returns rows.
    host
        Address of another MariaDB host; this one if not given.

    Returns a list of dictionaries of texts; NULL is ``None``. Raises ``CommandExecutionError`` with
    the server's words.

    CLI Example:

    .. code-block:: bash

        salt 'db1' mariadb.query 'SHOW DATABASES'
    """
    lines = _client(sql, host).split("\n")
    if not lines[0]:
        return []
    names = lines[0].split("\t")
    rows = [line.split("\t") for line in lines[1:] if line]
    return [dict(zip(names, map(_unescaped, row), strict=True)) for row in rows]


def execute(sql):
    """
    Give the server on this host a command, which appears in no process list.

    sql
        The command.

    Raises ``CommandExecutionError`` with the server's words.

    CLI Example:

    .. code-block:: bash

        salt 'db1' mariadb.execute 'FLUSH BINARY LOGS'
    """
    _client(sql)
    return True


def identifier(name):
    """
    A name as SQL writes it, whatever characters it has.

    CLI Example:

    .. code-block:: bash

        salt 'db1' mariadb.identifier newsroom
    """
    return "`" + _clean(name).replace("`", "``") + "`"


def literal(text):
    """
    A text as SQL writes it.

    CLI Example:

    .. code-block:: bash

        salt 'db1' mariadb.literal "it's"
    """
    return "'" + _clean(text).replace("\\", "\\\\").replace("'", "''") + "'"


def pattern(name):
    """
    The name of one database as GRANT writes it, where ``_`` and ``%`` would mean others, too.

    CLI Example:

    .. code-block:: bash

        salt 'db1' mariadb.pattern news_room
    """
    escaped = re.sub(r"([\\_%])", r"\\\1", _clean(name))
    return "`" + escaped.replace("`", "``") + "`"


_STATUS = """
SELECT version() AS version, @@gtid_current_pos AS gtid, @@read_only AS read_only,
       @@max_connections AS max_connections,
       (SELECT count(*) FROM information_schema.processlist
        WHERE user NOT IN ('system user', 'event_scheduler')) AS connections,
       (SELECT count(*) FROM information_schema.schemata WHERE schema_name NOT IN
        ('mysql', 'information_schema', 'performance_schema', 'sys', 'test')) AS own
"""
_ESCAPES = {"n": "\n", "t": "\t", "0": "\0", "\\": "\\"}


def _unescaped(field):
    if field == "NULL":
        return None
    return re.sub(r"\\([nt0\\])", lambda found: _ESCAPES[found[1]], field)


def _following(row):
    """What a replica says of whom it follows."""
    behind = row["Seconds_Behind_Master"]
    found = {
        "source": row["Master_Host"],
        "streaming": row["Slave_IO_Running"] == row["Slave_SQL_Running"] == "Yes",
        "behind_seconds": None if behind is None else int(behind),
    }
    error = row["Last_SQL_Error"] or row["Last_IO_Error"]
    return found | {"error": error} if error else found


def _asked(peer):
    try:
        facts = query("SELECT @@read_only AS ro, @@gtid_current_pos AS gtid", peer["address"])[0]
    except CommandExecutionError as error:
        return {**peer, "answers": False, "reason": str(error)}
    return {**peer, "answers": True, "writes": facts["ro"] == "0", "gtid": facts["gtid"]}


def _wait_for_a_replica(place, seconds):
    """Wait until one of the others has all up to a place in the log, which has a part a domain."""
    deadline = time.monotonic() + seconds
    while True:
        asked = peers()
        if any(set(place.split(",")) <= set(p.get("gtid", "").split(",")) for p in asked):
            return
        if time.monotonic() > deadline:
            told = "; ".join(f"{p['id']}: {p.get('gtid') or p.get('reason')}" for p in asked)
            raise CommandExecutionError(
                f"No replica came to {place} within {seconds} s ({told or 'there is none'}). This "
                "server takes the writes as before."
            )
        time.sleep(0.2)


def _fetch(new, copy):
    """Another host's data into a folder, made whole; the place in the log that it ends at."""
    why = (
        f"{new['id']} couldn't be copied: see there the journal of saltern-mariadb-donor@* and "
        "/var/log/mysql/saltern-copy.log"
    )
    with subprocess.Popen([FETCH, new["address"]], stdout=subprocess.PIPE) as giver:
        _run(["mbstream", "-x", "-C", copy], why, stdin=giver.stdout)
    if giver.returncode or not (copy / "xtrabackup_info").exists():
        raise CommandExecutionError(why)
    _run(["mariadb-backup", "--prepare", f"--target-dir={copy}"], "mariadb-backup --prepare")
    place = (copy / "xtrabackup_binlog_info").read_text().rstrip("\n").split("\t")[2]
    _run(["chown", "-R", "mysql:mysql", copy], "chown")
    return place


def _differing(dynamic):
    """
    The settings of the configuration file that the running server has otherwise: those that it
    takes while it runs, or those for which it has to be restarted.
    """
    rows = query(
        "SELECT lower(variable_name) AS name, global_value AS value, read_only AS fixed,"
        " variable_type AS type FROM information_schema.system_variables"
    )
    known = {row["name"]: row for row in rows}
    found = {}
    for name, wanted in _configured().items():
        row = known.get(name)
        if row is None or (row["fixed"] == "YES") == dynamic:
            continue
        if _normal(row["value"], row["type"]) != _normal(wanted, row["type"]):
            found[name] = {"old": row["value"], "new": wanted}
    return found


def _configured():
    """The settings that the configuration file makes, by the names of the server's variables."""
    lines = CONFIG.read_text().splitlines() if CONFIG.exists() else []
    pairs = [line.split("=", 1) for line in lines if "=" in line and line[:1].isalpha()]
    return {name.strip().replace("-", "_"): value.strip() for name, value in pairs}


def _normal(value, kind):
    value = (value or "").strip()
    if kind == "BOOLEAN":
        # A name stands for ON: that of the files of log_bin.
        return value.upper() not in ("OFF", "0", "NO", "FALSE")
    return float(value) if _is_number(value) else value.lower()


def _is_number(value):
    return bool(re.fullmatch(r"\d+(\.\d+)?", value))


def _port():
    return __salt__["settings.get"]("mariadb")["port"]


def _wait_until_up(seconds):
    deadline = time.monotonic() + seconds
    while True:
        try:
            return query("SELECT 1 AS up")
        except CommandExecutionError as error:
            if time.monotonic() > deadline:
                raise CommandExecutionError(f"The server doesn't answer: {error}") from error
        time.sleep(0.2)


def _client(sql, host=None):
    """Run SQL; as root over the socket here, as the replication user elsewhere."""
    command = ["mariadb", "--no-defaults", "--user=root"]
    if host:
        command = ["mariadb", f"--defaults-file={PEER_LOGIN}", f"--host={host}"]
        command += [f"--port={_port()}", "--connect-timeout=3"]
    return _run([*command, "--batch"], "mariadb", sql)


def _run(command, failure, sql="", stdin=None):
    """Run a program, and return what it printed."""
    given = {"stdin": stdin} if stdin else {"input": sql}
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False, **given
        )
    except FileNotFoundError as error:
        raise CommandExecutionError(f"{command[0]} isn't installed on this host.") from error
    if done.returncode:
        raise CommandExecutionError(f"{failure}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def _systemctl(verb):
    _run(["systemctl", verb, UNIT], f"systemctl {verb} {UNIT} (journalctl -u {UNIT} -n 50)")


def _clean(text):
    if "\0" in text:
        raise CommandExecutionError("MariaDB allows no NUL character in a name or a text.")
    return text
