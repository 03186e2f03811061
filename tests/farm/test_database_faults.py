"""
What goes wrong with a database host, on purpose: power, network, disk, backups, passwords, names.
Each test says which rows were acknowledged to a client and are there afterwards.
"""

import contextlib
import json
import time

import pytest

from tests.farm.database_farm import (
    BACKUP,
    SITE,
    apply,
    call,
    caught_up,
    lost,
    primary_and_replica,
    psql,
    role,
    status,
    writing,
)
from tests.farm.waiting import until
from tests.lab.commands import LabError
from tests.lab.salt import answering

pytestmark = pytest.mark.drill

UNIT = "postgresql@15-main"
DATA = "/var/lib/postgresql/15/main"
FILL = (
    "CREATE TABLE farm_fill AS SELECT repeat(md5(i::text), 30) FROM generate_series(1, 3000000) i"
)
# The host that the lab's pillar expects to take the writes, and the other one.
PRIMARY, REPLICA = "db1", "db2"
SYNCHRONOUS = "pillar={'overrides': {'postgres': {'synchronous': true}}}"


@pytest.fixture(autouse=True)
def as_found(lab):
    """An empty table for the writers; afterwards db1 takes the writes again and db2 follows it."""
    come_home(lab)
    assert primary_and_replica(lab) == [PRIMARY, REPLICA]
    table = "CREATE TABLE farm_writes (client int, number int, PRIMARY KEY (client, number))"
    psql(lab, PRIMARY, "DROP TABLE IF EXISTS farm_writes")
    psql(lab, PRIMARY, f"{table}; ALTER TABLE farm_writes OWNER TO {SITE}")
    yield
    come_home(lab)
    psql(lab, PRIMARY, "DROP TABLE IF EXISTS farm_writes")


def come_home(lab):
    """db1 primary, db2 replica, whatever was done to them."""
    for host in (PRIMARY, REPLICA):
        start(lab, host)
    if role(lab, REPLICA) == "primary":
        if role(lab, PRIMARY) != "replica":
            rejoin(lab, PRIMARY)
        promote(lab, PRIMARY)
    if role(lab, REPLICA) != "replica":
        rejoin(lab, REPLICA)
    caught_up(lab, REPLICA)


def start(lab, host):
    """Turn a host on; an old primary that refuses to start its server is no failure."""
    if not lab.hosts[host].running():
        with contextlib.suppress(LabError):
            lab.start(host)
    until(180, lambda: answering(lab.lab, [host]))


def runner(lab, function, *arguments):
    done = lab.run("master", "salt-run", "--out=json", function, *arguments, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stderr, done.stdout)
    return json.loads(done.stdout)


def promote(lab, host, *arguments):
    return runner(lab, "database.promote", host, *arguments)


def rejoin(lab, host):
    runner(lab, "database.rejoin", host)
    caught_up(lab, host)


def everything_is_there(lab, told, hosts=(PRIMARY, REPLICA)):
    """No acknowledged row is missing on either host."""
    caught_up(lab, hosts[1])
    missing = {host: lost(lab, host, told) for host in hosts}
    assert missing == {host: set() for host in hosts}


def test_power_pulled_from_the_primary_loses_no_acknowledged_row(lab):
    with writing(lab) as told:
        time.sleep(5)
        lab.kill(PRIMARY)
        time.sleep(2)
        lab.start(PRIMARY)
        time.sleep(5)
    assert told["failed"], "nothing was felt of the power cut"
    everything_is_there(lab, told)
    print(f"without writes: {told['longest_gap']:.1f} s, the boot of the host included")


def test_a_promotion_loses_no_acknowledged_row(lab):
    with writing(lab) as told:
        time.sleep(5)
        done = promote(lab, REPLICA)
        time.sleep(5)
    assert lost(lab, REPLICA, told) == set()
    print(f"{done['seconds']} s in all; the clients had {told['longest_gap']:.1f} s without writes")
    rejoin(lab, PRIMARY)
    everything_is_there(lab, told, (REPLICA, PRIMARY))


def test_a_dead_primary_loses_nothing_that_a_replica_waited_for(lab):
    for host in (REPLICA, PRIMARY):
        failed, _changed = apply(lab, host, "postgres", SYNCHRONOUS)
        assert not failed
    until(30, lambda: status(lab, PRIMARY)["replicas"][0]["sync_state"] == "quorum")
    told, done = dead_primary(lab)
    assert lost(lab, REPLICA, told) == set()
    print(f"synchronous: {figures(told, done)}, 0 rows lost")
    rejoin(lab, PRIMARY)
    until(30, lambda: status(lab, REPLICA)["replicas"][0]["sync_state"] == "quorum")
    come_home(lab)
    for host in (REPLICA, PRIMARY):
        apply(lab, host, "postgres")
    assert status(lab, PRIMARY)["replicas"][0]["sync_state"] == "async"


def test_a_dead_primary_loses_only_the_last_moment(lab):
    told, done = dead_primary(lab)
    missing = lost(lab, REPLICA, told)
    rows = sum(map(len, told["acknowledged"]))
    print(f"asynchronous: {figures(told, done)}, {len(missing)} of {rows} rows lost")
    # Only what was acknowledged right before the end: a few rows of each client.
    assert len(missing) < 200
    rejoin(lab, PRIMARY)


def dead_primary(lab):
    """Kill the primary under writes and promote the replica; what clients and runner tell."""
    with writing(lab) as told:
        time.sleep(5)
        lab.kill(PRIMARY)
        done = promote(lab, REPLICA, "fenced=True")
        time.sleep(5)
    start(lab, PRIMARY)
    assert role(lab, PRIMARY) == "stopped", "two hosts take writes"
    return told, done


def figures(told, done):
    return f"{done['seconds']} s for the command, {told['longest_gap']:.1f} s without writes"


def test_a_replica_that_was_cut_off_catches_up(lab):
    with writing(lab) as told:
        lab.cut(REPLICA)
        time.sleep(45)
        lab.mend(REPLICA)
        time.sleep(2)
    assert told["failed"] == 0, told["said"]
    everything_is_there(lab, told)


def test_a_restart_fails_no_request_that_waits(lab):
    with writing(lab, clients=4) as told:
        time.sleep(3)
        done = call(lab, PRIMARY, "database.restart")
        time.sleep(3)
    assert isinstance(done, dict), done
    assert told["failed"] == 0, told["said"]
    everything_is_there(lab, told)
    print(f"restart {done['seconds']} s; slowest write {told['slowest']:.1f} s")


def test_a_full_disk_loses_no_acknowledged_row(lab):
    with small_disk_for_the_log(lab, "200M"):
        with writing(lab) as told:
            time.sleep(3)
            full = psql_fails(lab, FILL)
            time.sleep(5)
            lab.run(PRIMARY, "mount", "-o", "remount,size=1G", f"{DATA}/pg_wal")
            lab.run(PRIMARY, "systemctl", "restart", UNIT)
            until(60, lambda: role(lab, PRIMARY) == "primary")
            time.sleep(5)
        print(full)
        everything_is_there(lab, told)


def psql_fails(lab, sql):
    with pytest.raises(LabError) as caught:
        psql(lab, PRIMARY, sql)
    return str(caught.value)


@contextlib.contextmanager
def small_disk_for_the_log(lab, size):
    """The primary's WAL on a file system of its own, for as long as the block runs."""
    on_tmpfs = (
        f"mount -t tmpfs -o mode=0700,uid=postgres,gid=postgres,size={size} wal {DATA}/pg_wal"
    )
    move_the_log(lab, f"{FORGET_OLD_LOG}\n{on_tmpfs}")
    try:
        yield
    finally:
        move_the_log(lab, f"umount {DATA}/pg_wal\nfind {DATA}/pg_wal -mindepth 1 -delete")


# After a clean stop the server needs the file of its last checkpoint only; those it kept for reuse
# may be more than the small disk holds.
FORGET_OLD_LOG = f"""
needed=$(LC_ALL=C /usr/lib/postgresql/15/bin/pg_controldata {DATA} |
    sed -n "s/^Latest checkpoint's REDO WAL file: *//p")
test -s /var/tmp/farm-wal/"$needed"
find /var/tmp/farm-wal -maxdepth 1 -type f -name '[0-9A-F]*' ! -name "$needed" \\
    ! -name '*.history' -delete
"""


def move_the_log(lab, between):
    """Stop the primary, take its WAL out, do something to the folder, and put the WAL back."""
    script = f"""
        set -eu
        systemctl stop {UNIT}
        rm -rf /var/tmp/farm-wal
        cp -a {DATA}/pg_wal /var/tmp/farm-wal
        {between}
        cp -a /var/tmp/farm-wal/. {DATA}/pg_wal/
        systemctl start {UNIT}
        rm -r /var/tmp/farm-wal
    """
    lab.run(PRIMARY, "sh", "-c", script)


def test_a_backup_that_was_cut_short_is_told_and_the_next_one_is_whole(lab):
    before = call(lab, BACKUP, "backup.list")["backups"]
    lab.run(BACKUP, "systemctl", "start", "--no-block", "saltern-backup@full")
    begun = "ls /var/lib/pgbackrest/backup/farm/*F/backup.manifest.copy | wc -l"
    count = int(lab.run(BACKUP, "sh", "-c", begun).stdout)
    until(60, lambda: int(lab.run(BACKUP, "sh", "-c", begun).stdout) > count, every=0.1)
    lab.kill(BACKUP)
    lab.start(BACKUP)
    wrong = call(lab, BACKUP, "backup.check")
    assert any("interrupted" in complaint for complaint in wrong["complaints"]), wrong
    assert call(lab, BACKUP, "backup.list")["backups"] == before
    done = call(lab, BACKUP, "backup.run", "full")
    assert done["ok"], done
    assert len(call(lab, BACKUP, "backup.list")["backups"]) == len(before) + 1
    assert call(lab, BACKUP, "backup.verify")["ok"]
    assert call(lab, BACKUP, "backup.check") == {"ok": True}


def test_a_damaged_backup_is_found_by_verify(lab):
    assert call(lab, BACKUP, "backup.run", "full")["ok"]
    label = call(lab, BACKUP, "backup.list")["backups"][-1]["label"]
    find = f"ls -S /var/lib/pgbackrest/backup/farm/{label}/bundle/* | head -1"
    bundle = lab.run(BACKUP, "sh", "-c", find).stdout.strip()
    lab.run(BACKUP, "cp", "-a", bundle, "/var/tmp/farm-bundle")
    size = int(lab.run(BACKUP, "stat", "-c", "%s", bundle).stdout)
    damage = f"dd if=/dev/urandom of={bundle} bs=1 count=64 seek={size // 2} conv=notrunc"
    lab.run(BACKUP, "sh", "-c", damage)
    try:
        found = call(lab, BACKUP, "backup.verify")
        assert isinstance(found, str), f"the damage wasn't found: {found}"
        print(found)
        assert any("verify failed" in one for one in call(lab, BACKUP, "backup.complaints"))
    finally:
        lab.run(BACKUP, "sh", "-c", f"cat /var/tmp/farm-bundle > {bundle}; rm /var/tmp/farm-bundle")
    assert call(lab, BACKUP, "backup.verify")["ok"]


def test_a_wrong_password_is_refused_before_it_is_written(lab):
    before = lab.run(REPLICA, "cat", "/var/lib/postgresql/.pgpass").stdout
    wrong = "pillar={'secrets': {'postgres': {'replication': 'wrong'}}}"
    failed, changed = apply(lab, REPLICA, "postgres", wrong)
    assert "password" in failed.pop("postgres/passwords"), failed
    assert not changed
    assert lab.run(REPLICA, "cat", "/var/lib/postgresql/.pgpass").stdout == before
    assert status(lab, REPLICA)["streaming"]


@pytest.mark.parametrize("value", ["null", "''", "{}"])
def test_no_password_is_refused_before_anything_is_done(lab, value):
    answer = call(
        lab, PRIMARY, "state.apply", "postgres",
        f"pillar={{'secrets': {{'postgres': {{'replication': {value}}}}}}}",
    )  # fmt: skip
    assert isinstance(answer, list), answer
    assert "replication" in " ".join(answer)


ODD = """Odd "näme's"; x=1, /y"""


def test_a_database_with_an_odd_name_is_served_dumped_and_restored(lab):
    site = {
        "repository": "git://master/newsroom.git",
        "settings_module": "newsroom.settings.deploy",
        "wsgi_module": "newsroom.wsgi",
        "domains": ["odd.lab"],
        "database": {"name": ODD, "user": ODD, "extensions": ["unaccent"], "schemas": [ODD]},
    }
    secrets = {"postgres": {"users": {ODD: 'p:a\\s\'s "w"'}}}
    pillar = f"pillar={json.dumps({'sites': {'odd': site}, 'secrets': secrets})}"
    try:
        for host, services in ((PRIMARY, "postgres,pgbouncer"), (REPLICA, "postgres,pgbouncer")):
            failed, _changed = apply(lab, host, services, pillar)
            assert not failed
        failed, changed = apply(lab, PRIMARY, "postgres,pgbouncer", pillar)
        assert (failed, changed) == ({}, {})
        assert psql(lab, PRIMARY, "SELECT unaccent('ä')", dsn(ODD)) == "a"
        owned = "SELECT nspname FROM pg_namespace WHERE pg_get_userbyid(nspowner) LIKE 'Odd %'"
        assert psql(lab, PRIMARY, owned, dsn(ODD)) == ODD
        psql(lab, PRIMARY, "CREATE TABLE kept AS SELECT generate_series(1, 100) AS n", dsn(ODD))
        caught_up(lab, REPLICA)
        failed, _changed = apply(lab, BACKUP, "backup", pillar)
        assert not failed
        dumped = call(lab, BACKUP, "backup.run", "dump")
        assert dumped["databases"][ODD]["bytes"] > 0, dumped
        done = call(lab, BACKUP, "backup.restore", f"database={json.dumps(ODD)}")
        assert psql(lab, PRIMARY, "SELECT count(*) FROM kept", dsn(done["database"])) == "100"
    finally:
        mine = "SELECT datname FROM pg_database WHERE datname LIKE 'Odd %'"
        for name in psql(lab, PRIMARY, mine).splitlines():
            lab.run(PRIMARY, "runuser", "-u", "postgres", "--", "dropdb", "--force", name)
        lab.run(PRIMARY, "runuser", "-u", "postgres", "--", "dropuser", "--if-exists", ODD)
        for host, services in ((PRIMARY, "postgres,pgbouncer"), (REPLICA, "postgres,pgbouncer")):
            apply(lab, host, services)
        apply(lab, BACKUP, "backup")


def dsn(name):
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{escaped}'"
