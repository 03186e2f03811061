# Managed by Saltern: salt/mariadb/files/mariadb_backup.py.
"""
What saltern-backup does for MariaDB, where the farm has it.

  mariadb-full     all data as mariadb-backup copies it, from a replica where there is one, into
                   restic; unchanged pieces are stored once
  mariadb-log      what has come of the log since, into restic
  mariadb-verify   restore the newest backup into a scratch place, start a server on it, and compare
                   it with a replica at exactly the same transaction
  mariadb-extract  one database or table, at a time, out of a backup into the running server
  mariadb-anonymise  a copy of each site's database for development, by the site's rules

Run as a program it receives the log of the host that takes writes, as it is written, for ever; its
unit starts it again. Everything is told by /etc/saltern/mariadb-backup.json.
"""

import contextlib
import json
import os
import pathlib
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time

PLAN = pathlib.Path("/etc/saltern/mariadb-backup.json")
LOGIN = "/etc/saltern/mariadb-backup.cnf"
FETCH = "/usr/local/lib/saltern/mariadb-fetch"
STATE = pathlib.Path("/var/lib/saltern/backup/mariadb")
LOG = STATE / "log"
# Beside it, as the account of the scratch server may not enter there.
SCRATCH = pathlib.Path("/var/lib/saltern/backup/mariadb-scratch")
OWNER = "mysql"
FILE = "mariadb.mbstream"
# What mariadb-backup writes last: where in the log the copy ends.
PLACE = re.compile(
    rb"binlog_pos = filename '[^']*', position '\d+', GTID of the last change '([^']*)'"
)
BLOCK = 1 << 20
FIRST_WAIT = 300
# saltern-backup itself: its restic(), its FailedError. It sets this.
core = None


def plan():
    return json.loads(PLAN.read_text())


def full(general, options):
    """A copy of all data, in restic."""
    core.restic(general, "init", allow="already")
    # In a farm's first run the hosts that give a copy are set up at the same time.
    deadline = time.monotonic() + (0 if backups(general) else FIRST_WAIT)
    while True:
        try:
            source = reader()
            place = stored(general, source)
            break
        except core.FailedError:
            if time.monotonic() > deadline:
                raise
        time.sleep(5)
    kept = ["forget", "--tag=mariadb", f"--keep-within={general['keep_days']}d", "--prune"]
    core.restic(general, *kept, "--quiet")
    log(general, options)
    forget_log(general["keep_days"])
    return {"from": source["id"], "gtid": place, "backup": newest(general)["id"]}


def stored(general, source):
    """Send a host's copy into restic; returns where in the log it ends."""
    giver = subprocess.Popen([FETCH, source["address"]], stdout=subprocess.PIPE)
    out, into = os.pipe()
    tail = []
    pump = threading.Thread(target=pumped, args=(giver.stdout, into, tail))
    pump.start()
    try:
        said = core.restic(
            general,
            *("backup", "--json", "--stdin", "--stdin-filename", FILE, "--tag", "mariadb"),
            stdin=out,
        )
    finally:
        os.close(out)
        pump.join()
        giver.stdout.close()
        giver.wait()
    snapshot = json.loads(said.strip().splitlines()[-1])["snapshot_id"]
    found = PLACE.search(b"".join(tail))
    if giver.returncode or not found:
        core.restic(general, "forget", snapshot)
        raise core.FailedError(
            f"{source['id']} broke its copy off: see there /var/log/mysql/saltern-copy.log"
        )
    place = found[1].decode()
    # A backup counts from here on. Restic parts tags at commas.
    core.restic(general, "tag", "--add", f"gtid={place.replace(',', '+')}", snapshot)
    return place


def pumped(source, into, tail):
    """Pass a stream on, and keep its end."""
    with os.fdopen(into, "wb") as target, contextlib.suppress(BrokenPipeError):
        while block := source.read(BLOCK):
            target.write(block)
            tail[:] = [*tail, block][-2:]


def log(general, options):
    """The files of the log that have come so far, into restic."""
    LOG.mkdir(parents=True, exist_ok=True)
    core.restic(general, "init", allow="already")
    words = ["backup", "--json", "--tag", "mariadb-log", str(LOG)]
    said = core.restic(general, *words)
    kept = ["forget", "--tag=mariadb-log", f"--keep-within={general['keep_days']}d"]
    core.restic(general, *kept, "--prune", "--quiet")
    return {"bytes": json.loads(said.strip().splitlines()[-1])["total_bytes_processed"]}


def forget_log(days):
    """Remove files of the log that no kept backup needs any more."""
    oldest = time.time() - (days + 2) * 86400
    for file in LOG.glob("*/*"):
        if file.stat().st_mtime < oldest:
            file.unlink()


def verify(general, options):
    """Restore the newest backup, start it, and compare it with a replica."""
    if not general["databases"]:  # else that is done with PostgreSQL's
        core.uploads_restic(general, "check", "--read-data", "--quiet")
    began, sites = time.monotonic(), plan()["sites"]
    replica = next((host for host in answering() if not host["writes"]), None)
    place, truth = None, {}
    if replica:
        with frozen(replica) as place:
            truth = {name: contents(name, replica) for name in sites}
    one = newest(general)
    with scratch(general, one, gtid=place):
        restored = round(time.monotonic() - began, 1)
        copy = {name: contents(name, None) for name in sites}
    wrong = [
        f"{name}.{table}: {copy.get(name, {}).get(table)} restored, {value} expected"
        for name, tables in truth.items()
        for table, value in tables.items()
        if copy.get(name, {}).get(table) != value
    ]
    if wrong:
        raise core.FailedError(f"the restored backup differs: {'; '.join(wrong[:5])}")
    tables = sum(len(t) for t in copy.values())
    if sites and not tables:
        raise core.FailedError("the restored backup holds no table of any site")
    return {
        "backup": one["id"],
        "compared_with": replica["id"] if replica else "nothing: there is no replica",
        "gtid": place,
        "tables": tables,
        "rows": sum(rows for t in copy.values() for rows, _sum in t.values()),
        "restored_after_seconds": restored,
    }


def extract(general, options):
    """
    Restore at a time, and copy one database or a table of it into the running server: a table that
    is gone as it was, others into a database of their own.
    """
    name, table = options.database, options.table
    if name not in plan()["sites"]:
        raise core.FailedError(
            f"no site has the MariaDB database {name!r}; there are {', '.join(plan()['sites'])}"
        )
    writer = find_writer()
    with scratch(general, newest(general, options.time), until=options.time):
        if table and table not in contents(name, None):
            raise core.FailedError(f"the backup of {name} has no table {table} at that time")
        target = name
        if not table or table in contents(name, writer):
            target = f"{name}_restored_{time.strftime('%Y%m%dt%H%M%S', time.gmtime())}"
            sql(writer, f"CREATE DATABASE {quoted(target)} CHARACTER SET utf8mb4")
        before = contents(name, None)
        copy_over(name, table, writer, target)
    after = contents(target, writer)
    for one in [table] if table else before:
        if after.get(one) != before[one]:
            raise core.FailedError(f"{one} arrived in {target} with other rows than the backup has")
    found = {"database": target, "on": writer["id"]}
    rows = sum(before[one][0] for one in ([table] if table else before))
    return found | ({"table": table} if table else {}) | {"rows": rows}


def copy_over(name, table, writer, target):
    """From the scratch server into the running one."""
    dump = ["mariadb-dump", "--no-defaults", f"--socket={SCRATCH}/socket", "--single-transaction"]
    dump += ["--routines", "--triggers", "--hex-blob", name, *([table] if table else [])]
    giver = subprocess.Popen(dump, stdout=subprocess.PIPE)
    taker = subprocess.run(
        [*client(writer), target], stdin=giver.stdout, capture_output=True, text=True, check=False
    )
    giver.stdout.close()
    if giver.wait() or taker.returncode:
        raise core.FailedError(f"copying {name} to {writer['id']}: {taker.stderr.strip()}")


def anonymise(general, options):
    """Restore each database that has rules, take out what they say, leave a dump of the rest."""
    made = {}
    for name, words in plan()["anonymise"].items():
        with scratch(general, newest(general)):
            made[name] = anonymised_dump(name, words)
    return {"databases": made}


def anonymised_dump(name, words):
    def known(column):
        field = f"convert({quoted(column.name)} USING utf8mb4)"
        every = f"SELECT DISTINCT {field} FROM {quoted(name)}.{quoted(column.table)}"
        rows = sql(None, f"{every} WHERE {field} LIKE '%@%'")
        return core.rules.unescaped("\n".join(row[0] for row in rows))

    dump = ["mariadb-dump", "--no-defaults", f"--socket={SCRATCH}/socket", "--single-transaction"]
    return core.copy_for_development(
        name,
        words,
        [
            core.rules.Column(table, column, kind, nullable == "YES", int(length))
            for table, column, kind, nullable, length in sql(None, COLUMNS + text(name))
        ],
        known=known,
        change=lambda decided: change(name, decided),
        dump=[*dump, "--hex-blob", "--skip-comments", name],
    )


def change(name, decided):
    """Change a database of the scratch server as its rules say, with its references."""
    key = secrets.token_hex(32)
    sets = core.rules.assignments(
        decided,
        quoted,
        lambda field: f"sha2(concat('{key}', {field}), 256)",
        lambda digits, texts: (
            f"elt(1 + conv({digits}, 16, 10) % {len(texts)}, {', '.join(map(text, texts))})"
        ),
        # Whatever characters a table is made of.
        lambda name: f"convert({name} USING utf8mb4)",
    )
    # They would act on each change, and can't be told to rest: the copy has none.
    triggers = sql(None, f"SELECT trigger_name {TRIGGERS}{text(name)}")
    steps = [f"USE {quoted(name)}", "SET foreign_key_checks = 0"]
    steps += [f"DROP TRIGGER {quoted(trigger)}" for (trigger,) in triggers]
    steps += [f"DELETE FROM {quoted(table)}" for table in core.rules.emptied(decided)]
    steps += [f"UPDATE {quoted(table)} SET {', '.join(to)}" for table, to in sets.items()]
    sql(None, ";\n".join(steps))
    check_references(name)


def check_references(name):
    """Nobody checked them while they were changed: each must refer to a row that is there."""
    references = {}
    for constraint, child, column, parent, referred in sql(None, f"{REFERENCES}{text(name)}"):
        columns = references.setdefault((constraint, child, parent), [])
        columns.append((f"c.{quoted(column)}", f"p.{quoted(referred)}"))
    for (constraint, child, parent), columns in references.items():
        alike = " AND ".join(f"{own} = {other}" for own, other in columns)
        given = " AND ".join(f"{own} IS NOT NULL" for own, _other in columns)
        lost = sql(
            None,
            f"USE {quoted(name)}; SELECT count(*) FROM {quoted(child)} c"
            f" LEFT JOIN {quoted(parent)} p ON {alike}"
            f" WHERE {given} AND {columns[0][1]} IS NULL",
        )[0][0]
        if lost != "0":
            raise core.FailedError(
                f"{name}: {lost} rows of {child} would refer to nothing in {parent}: that violates "
                f"foreign key constraint {constraint}"
            )


# The database's name comes last.
COLUMNS = """
SELECT c.table_name, c.column_name,
    CASE WHEN c.is_generated = 'ALWAYS' OR c.data_type IN ('tinyint', 'smallint', 'mediumint',
             'int', 'bigint', 'decimal', 'float', 'double', 'bit', 'year', 'date', 'datetime',
             'timestamp', 'time', 'enum', 'set', 'uuid') THEN 'plain'
         WHEN j.check_clause IS NULL AND c.data_type IN ('char', 'varchar', 'tinytext', 'text',
             'mediumtext', 'longtext') THEN 'text'
         ELSE 'other' END,
    c.is_nullable,
    CASE WHEN c.data_type IN ('char', 'varchar') THEN c.character_maximum_length ELSE 0 END
FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name)
LEFT JOIN information_schema.check_constraints j ON j.constraint_schema = c.table_schema
    AND j.table_name = c.table_name AND j.check_clause = concat('json_valid(`', c.column_name, '`)')
WHERE t.table_type = 'BASE TABLE' AND c.table_schema = """
TRIGGERS = "FROM information_schema.triggers WHERE trigger_schema = "
REFERENCES = """
SELECT constraint_name, table_name, column_name, referenced_table_name, referenced_column_name
FROM information_schema.key_column_usage
WHERE referenced_table_name IS NOT NULL AND table_schema = """


def complaints(general):
    """What is wrong with the backups of MariaDB, if anything."""
    found, kept = [], core.results()
    known = backups(general)
    if not known:
        found.append("there is no backup of MariaDB")
    elif time.time() - core.moment(known[-1]["at"]) > general["max_age"]:
        found.append(f"the newest backup of MariaDB is of {known[-1]['at']}")
    for verb in ("mariadb-full", "mariadb-log", "mariadb-verify", "mariadb-anonymise"):
        if core.at_work() and kept.get(verb, {}).get("error") == core.INTERRUPTED:
            continue  # not yet: it is what runs now
        if verb in kept and not kept[verb]["ok"]:
            found.append(f"{verb} failed at {kept[verb]['at']}: {kept[verb]['error']}")
    verified = kept.get("mariadb-verify")
    if known and verified is None:
        found.append("no backup of MariaDB was verified yet")
    elif verified and time.time() - core.moment(verified["at"]) > 8 * 86400:
        found.append(f"MariaDB: the last verification was at {verified['at']}")
    return found


def backups(general):
    """The backups, the newest last."""
    if not pathlib.Path(general["dumps"], "config").exists() and not general.get("s3"):
        return []
    found = json.loads(core.restic(general, "snapshots", "--tag=mariadb", "--json") or "[]")
    gtids = [[t for t in one["tags"] if t.startswith("gtid=")] for one in found]
    return [
        {"id": one["short_id"], "at": one["time"][:19] + "Z", "gtid": tags[0][5:].replace("+", ",")}
        for one, tags in zip(found, gtids, strict=True)
        if tags
    ]


def newest(general, until=None):
    """The newest backup, or the newest one that was complete before a time."""
    known = backups(general)
    if until:
        known = [one for one in known if one["at"] < utc(until)]
    if not known:
        raise core.FailedError(f"there is no backup{' from before ' + until if until else ''}")
    return known[-1]


def utc(moment):
    """A time with its zone, as 2026-01-31 13:05:00+00, in the form of a backup's."""
    made = subprocess.run(
        ["date", "-u", "-d", moment, "+%Y-%m-%dT%H:%M:%SZ"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise core.FailedError(f"{moment!r} is no time")
    return made.stdout.strip()


# The scratch server


@contextlib.contextmanager
def scratch(general, one, until=None, gtid=None):
    """A server on a restored backup, on a socket of its own; gone afterwards."""
    caught_up()
    shutil.rmtree(SCRATCH, ignore_errors=True)
    data = SCRATCH / "data"
    data.mkdir(parents=True, mode=0o700)
    server = None
    try:
        core.restic_into(general, ["dump", one["id"], FILE], ["mbstream", "-x", "-C", str(data)])
        run(["mariadb-backup", "--prepare", f"--target-dir={data}"])
        run(["chown", "-R", f"{OWNER}:", str(SCRATCH)])
        server = started(data)
        replay(one["gtid"], until, gtid)
        yield
    finally:
        if server:
            server.kill()
            server.wait()
        shutil.rmtree(SCRATCH, ignore_errors=True)


def started(data):
    command = ["mariadbd", "--no-defaults", f"--user={OWNER}", f"--datadir={data}"]
    command += [f"--socket={SCRATCH}/socket", "--skip-networking"]
    command += ["--skip-log-bin", "--innodb-flush-log-at-trx-commit=0", "--skip-slave-start"]
    command += ["--innodb-log-file-size=128M", "--pid-file=scratch.pid"]
    with open(SCRATCH / "messages", "wb") as messages:
        server = subprocess.Popen(command, stdout=messages, stderr=messages)
    while True:
        try:
            sql(None, "SELECT 1")
            return server
        except core.FailedError:
            if server.poll() is not None:
                lines = (SCRATCH / "messages").read_text(errors="replace").splitlines()
                raise core.FailedError(
                    f"the restored server doesn't start: {' / '.join(lines[-5:])}"
                ) from None
        time.sleep(0.2)


def replay(begin, until, gtid):
    """Apply the log from where the backup ends, up to a time, a transaction or its own end."""
    writer = find_writer()
    if begin in (gtid, sql(writer, "SELECT @@gtid_binlog_pos")[0][0]):
        return  # nothing came since
    files = sorted(log_folder(writer).iterdir())
    read = ["mariadb-binlog", "--no-defaults"]
    read += [f"--start-position={begin}"] if begin else []
    read += [f"--stop-position={gtid}"] if gtid else []
    if until:
        read.append(f"--stop-datetime={utc(until).replace('T', ' ').rstrip('Z')}")
    giver = subprocess.Popen(
        [*read, *map(str, files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TZ": "UTC"},
    )
    taker = subprocess.run(
        client(None), stdin=giver.stdout, capture_output=True, text=True, check=False
    )
    giver.stdout.close()
    error = giver.stderr.read().decode(errors="replace")
    if giver.wait() or taker.returncode:
        raise core.FailedError(f"the log can't be applied: {error} {taker.stderr}".strip())


# The running servers


def answering():
    """The hosts that answer, with whether they take writes."""
    found = []
    for host in plan()["hosts"]:
        with contextlib.suppress(core.FailedError if core else RuntimeError):
            read_only, number = sql(host, "SELECT @@read_only, @@server_id")[0]
            found.append({**host, "writes": read_only == "0", "number": number})
    return found


def reader():
    """A host to copy from: a replica if one answers, else the one that takes writes."""
    found = sorted(answering(), key=lambda host: host["writes"])
    if not found:
        raise core.FailedError("no MariaDB host answers")
    return found[0]


def find_writer():
    for host in answering():
        if host["writes"]:
            return host
    raise core.FailedError("no MariaDB host takes writes")


@contextlib.contextmanager
def frozen(replica):
    """A replica that stands still for a moment; yields the last transaction that it has."""
    sql(replica, "STOP SLAVE SQL_THREAD")
    try:
        yield sql(replica, "SELECT @@gtid_slave_pos")[0][0]
    finally:
        sql(replica, "START SLAVE SQL_THREAD")


def contents(name, host):
    """Of each table of a database: how many rows, and a checksum over them."""
    tables = sql(
        host,
        "SELECT table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE'"
        f" AND table_schema = {text(name)}",
    )
    found = {}
    for (table,) in tables:
        both = f"{quoted(name)}.{quoted(table)}"
        rows = int(sql(host, f"SELECT count(*) FROM {both}")[0][0])
        found[table] = (rows, sql(host, f"CHECKSUM TABLE {both}")[0][1])
    return found


def caught_up(seconds=300):
    """Wait until all that the writing host has logged up to now is here."""
    writer = find_writer()
    file, position = sql(writer, "SHOW MASTER STATUS")[0][:2]
    here = log_folder(writer) / file
    deadline = time.monotonic() + seconds
    while not here.exists() or here.stat().st_size < int(position):
        if time.monotonic() > deadline:
            raise core.FailedError(
                f"the log of {writer['id']} doesn't arrive: see the journal of "
                "saltern-mariadb-log on this host"
            )
        time.sleep(0.2)


def log_folder(host):
    return LOG / host["number"]


def client(host):
    if host is None:
        return ["mariadb", "--no-defaults", f"--socket={SCRATCH}/socket"]
    words = [f"--host={host['address']}", f"--port={plan()['port']}", "--connect-timeout=5"]
    return ["mariadb", f"--defaults-file={LOGIN}", *words]


def sql(host, statement):
    """Ask a host, or the scratch server if it is None. Returns a list of lists of texts."""
    command = [*client(host), "--batch", "--skip-column-names"]
    said = run(command, statement)
    return [line.split("\t") for line in said.split("\n") if line]


def run(command, stdin=""):
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise (core.FailedError if core else RuntimeError)(
            f"{command[0]}: {(done.stderr or done.stdout).strip()[-2000:]}"
        )
    return done.stdout


def quoted(name):
    return "`" + name.replace("`", "``") + "`"


def text(value):
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def receive():
    """Become the program that receives the log of the host that takes writes."""
    writer = next((host for host in answering() if host["writes"]), None)
    if writer is None:
        sys.exit("no MariaDB host takes writes")
    folder = log_folder(writer)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    there = [row[0] for row in sql(writer, "SHOW BINARY LOGS")]
    here = sorted(path.name for path in folder.iterdir())
    first = here[-1] if here and here[-1] in there else there[0]
    command = ["mariadb-binlog", f"--defaults-file={LOGIN}", "--read-from-remote-server", "--raw"]
    command += [f"--host={writer['address']}", f"--port={plan()['port']}", "--stop-never"]
    command += [f"--result-file={folder}/", first]
    os.execvp(command[0], command)  # noqa: S606 - the unit watches over the program itself


VERBS = {
    "mariadb-full": full,
    "mariadb-log": log,
    "mariadb-verify": verify,
    "mariadb-extract": extract,
    "mariadb-anonymise": anonymise,
}

if __name__ == "__main__":
    receive()
