"""
What an operator does with the database tier of a running farm, and what must not disturb it:
settings, readers on the replica, dumps beside a migration, the whole cluster back to a second, a
repository that was emptied by whoever may write to it.
"""

import json
import time

import pytest

from tests.farm.database_farm import (
    APP,
    BACKUP,
    SITE,
    apply,
    call,
    caught_up,
    primary_and_replica,
    psql,
    role,
    writing,
)
from tests.farm.waiting import until

pytestmark = pytest.mark.drill

READS = (
    "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid"
    f" WHERE rolname = '{SITE}'"
)
# About 400 MB, so that a dump of it is seen at work.
FILL = (
    "CREATE TABLE farm_dump AS SELECT i, repeat(md5(i::text), 12) AS text"
    " FROM generate_series(1, 1000000) i"
)


@pytest.fixture
def hosts(lab):
    """The primary and the replica, with an empty table for writers on the primary."""
    found = primary_and_replica(lab)
    table = "CREATE TABLE farm_writes (client int, number int, PRIMARY KEY (client, number))"
    psql(lab, found[0], "DROP TABLE IF EXISTS farm_writes")
    psql(lab, found[0], f"{table}; ALTER TABLE farm_writes OWNER TO {SITE}")
    yield found
    psql(lab, found[0], "DROP TABLE IF EXISTS farm_writes, farm_dump, farm_whole")


def test_a_setting_is_reloaded_and_a_restart_waits_for_a_word(lab, hosts):
    _primary, host = hosts

    def shown(name):
        return psql(lab, host, f"SHOW {name}")

    started, before = psql(lab, host, "SELECT pg_postmaster_start_time()"), shown("max_connections")
    wanted = {"slow_query": "750ms", "max_connections": int(before) + 1}
    pillar = f"pillar={json.dumps({'overrides': {'postgres': wanted}})}"
    try:
        failed, changed = apply(lab, host, "postgres", pillar)
        assert not failed
        assert "postgres/reload" in changed
        assert shown("log_min_duration_statement") == "750ms"
        assert shown("max_connections") == before
        assert call(lab, host, "database.pending") == ["max_connections"]
        assert apply(lab, host, "postgres", pillar) == ({}, {})
        assert psql(lab, host, "SELECT pg_postmaster_start_time()") == started
        call(lab, host, "database.restart")
        assert shown("max_connections") == str(wanted["max_connections"])
        assert call(lab, host, "database.pending") == []
    finally:
        apply(lab, host, "postgres")
        call(lab, host, "database.restart")
        caught_up(lab, host)


def pages(lab):
    for number in range(5):
        asked = f"http://{lab.hosts[APP].address}:8080/?farm={time.time()}-{number}"
        assert lab.get(asked, headers={"Host": "newsroom.lab"}).status == 200


def test_a_line_in_the_pillar_sends_readers_to_the_replica(lab, hosts):
    _primary, replica = hosts
    switched = {"sites": {SITE: {"database": {"read_replicas": True}}}}
    before = psql(lab, replica, READS, "postgres")
    pages(lab)
    assert psql(lab, replica, READS, "postgres") == before, "the replica is read without the line"
    try:
        failed, changed = apply(lab, APP, "django,uwsgi", f"pillar={json.dumps(switched)}")
        assert not failed
        assert f"django/{SITE}/environment" in changed
        pages(lab)
        assert int(psql(lab, replica, READS, "postgres")) > int(before)
    finally:
        failed, _changed = apply(lab, APP, "django,uwsgi")
        assert not failed
    before = psql(lab, replica, READS, "postgres")
    pages(lab)
    assert psql(lab, replica, READS, "postgres") == before


def test_a_dump_blocks_neither_the_site_nor_a_migration(lab, hosts):
    primary, replica = hosts
    psql(lab, primary, FILL)
    caught_up(lab, replica)
    dumping = (
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'backup' AND query LIKE 'COPY%'"
    )
    with writing(lab) as told:
        lab.run(BACKUP, "systemctl", "start", "--no-block", "saltern-backup@dump")
        until(120, lambda: psql(lab, replica, dumping) != "0", every=0.1)
        # What a migration does, with the patience that a site's migrations have.
        began = time.monotonic()
        migrate = "SET lock_timeout = '5s'; ALTER TABLE farm_dump ADD COLUMN more int DEFAULT 7"
        psql(lab, primary, migrate)
        psql(lab, primary, "SET lock_timeout = '5s'; ALTER TABLE farm_writes ADD COLUMN more int")
        print(f"both changes made within {time.monotonic() - began:.1f} s")
        assert psql(lab, replica, dumping) != "0", "the dump had ended: it proves nothing"
        assert psql(lab, primary, dumping) == "0"
    assert told["failed"] == 0, told["said"]
    print(f"slowest write beside the dump: {told['slowest']:.1f} s")
    ended = ["systemctl", "is-active", "saltern-backup@dump"]
    until(300, lambda: lab.run(BACKUP, *ended, check=False).stdout.strip() != "activating")
    dumped = call(lab, BACKUP, "backup.list")["results"]["dump"]
    assert dumped["ok"], dumped
    assert dumped["from"] == replica
    caught_up(lab, replica)


def test_a_primary_that_may_still_take_writes_stops_a_promotion(lab, hosts):
    primary, replica = hosts
    lab.cut(primary)
    try:
        promote = ["salt-run", "--out=json", "database.promote", replica]
        done = lab.run("master", *promote, check=False)
    finally:
        lab.mend(primary)
    assert done.returncode == 1, done.stdout
    told = json.loads(done.stdout)["error"]
    assert f"{primary} may still take writes" in told
    assert "fenced=True" in told
    lab.wait_for_minion(primary)
    caught_up(lab, replica)
    assert primary_and_replica(lab) == [primary, replica]


def test_the_whole_cluster_goes_back_to_a_second(lab, hosts):
    primary, replica = hosts
    if not call(lab, BACKUP, "backup.list")["backups"]:
        assert call(lab, BACKUP, "backup.run", "full")["ok"]
    psql(lab, primary, "CREATE TABLE farm_whole AS SELECT generate_series(1, 300) AS n")
    moment = psql(lab, primary, "SELECT date_trunc('second', now()) + '1 s'")
    time.sleep(2)
    psql(lab, primary, "DELETE FROM farm_whole")
    refused = call(lab, primary, "backup.restore", f"time={moment}")
    assert "force=True" in refused
    assert psql(lab, primary, "SELECT count(*) FROM farm_whole") == "0"
    done = call(lab, primary, "backup.restore", f"time={moment}", "force=True")
    assert isinstance(done, dict), done
    assert psql(lab, primary, "SELECT count(*) FROM farm_whole") == "300"
    cloned = call(lab, replica, "database.clone", "replace=True")
    assert isinstance(cloned, dict), cloned
    # The replica follows what comes now, and doesn't stop where the restore did.
    psql(lab, primary, "INSERT INTO farm_whole VALUES (301)")
    caught_up(lab, replica)
    time.sleep(3)
    assert role(lab, replica) == "replica"
    assert psql(lab, replica, "SELECT count(*) FROM farm_whole") == "301"
    assert apply(lab, primary, "postgres,pgbouncer") == ({}, {})
    print(f"{done['seconds']} s for the cluster, {cloned['seconds']} s for the replica")
    made = call(lab, BACKUP, "backup.run", "full")
    assert (made["ok"], made["from"]) == (True, "replica"), made


def test_who_empties_the_repository_from_a_database_host_takes_nothing_that_was_sealed(lab, hosts):
    made = call(lab, BACKUP, "backup.run", "full")
    assert made["ok"], made
    assert call(lab, BACKUP, "backup.run", "seal")["ok"]
    # As the account that the database hosts' requests are done by, which may do most harm.
    empty = "rm -rf /var/lib/pgbackrest/backup /var/lib/pgbackrest/archive"
    lab.run(BACKUP, "runuser", "-u", "postgres", "--", "sh", "-c", empty, check=False)
    full = ["systemctl", "start", "saltern-backup@full"]
    assert lab.run(BACKUP, *full, check=False).returncode, "nothing was emptied"
    # It is said loudly: a failed unit, an alert in the log, a warning in each state.apply.
    failed = lab.run(BACKUP, "systemctl", "--failed", "--plain", "--no-legend").stdout
    assert "saltern-backup@full" in failed
    alerts = ["journalctl", "-p", "alert", "--since=-10min", "--output=cat", "--no-pager"]
    assert "saltern-backup full FAILED" in lab.run(BACKUP, *alerts).stdout
    inside = ["runuser", "-u", "postgres", "--", "ls", "/var/lib/saltern/backup/sealed"]
    assert lab.run(BACKUP, *inside, check=False).returncode
    # As docs/backup.md says it.
    restore = """
        set -eu
        newest=$(ls -d /var/lib/saltern/backup/sealed/*/ | tail -1)
        cp -a "${newest}backup" "${newest}archive" /var/lib/pgbackrest/
        chown -R postgres: /var/lib/pgbackrest/backup /var/lib/pgbackrest/archive
    """
    lab.run(BACKUP, "sh", "-c", restore)
    applied = call(lab, BACKUP, "state.apply", "backup")
    (settled,) = [one for key, one in applied.items() if "backup/settled" in key]
    assert "full failed" in " ".join(settled["warnings"])
    verified = call(lab, BACKUP, "backup.verify")
    assert (verified["ok"], verified["backup"]) == (True, made["label"]), verified
    lab.run(BACKUP, *full)
