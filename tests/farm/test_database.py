"""
The database tier on the lab: replica, pooler, restart, backups that are restored; and, as drills,
promotion and the plug pulled from the primary in the middle of writes.
"""

import threading
import time

import pytest

SITE = "newsroom"


def psql(lab, host, sql, database=SITE):
    """A statement by the server's own account; returns what it prints."""
    command = ["runuser", "-u", "postgres", "--", "psql", "-XqAtc", sql, database]
    return lab.run(host, *command).stdout.strip()


def status(lab, host):
    return lab.salt(host, "database.status")[host]


def primary_and_replica(lab):
    states = {host: status(lab, host)["state"] for host in ("db1", "db2")}
    assert sorted(states.values()) == ["primary", "replica"], states
    return sorted(states, key=states.get)


def caught_up(lab, host, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        found = status(lab, host)
        if found.get("streaming") and found.get("behind_bytes") == 0:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(1)


@pytest.fixture
def table(lab):
    primary, _replica = primary_and_replica(lab)
    psql(lab, primary, "CREATE TABLE farm_test (id serial PRIMARY KEY, word text)")
    psql(lab, primary, f"ALTER TABLE farm_test OWNER TO {SITE}")
    psql(
        lab,
        primary,
        "INSERT INTO farm_test (word) SELECT md5(i::text) FROM generate_series(1, 500) i",
    )
    yield primary
    primary, _replica = primary_and_replica(lab)
    psql(lab, primary, "DROP TABLE IF EXISTS farm_test")


def test_the_replica_has_what_the_primary_has(lab, table):
    _primary, replica = primary_and_replica(lab)
    caught_up(lab, replica)
    assert psql(lab, replica, "SELECT count(*) FROM farm_test") == "500"


def test_a_password_that_was_changed_by_hand_is_set_back(lab, table):
    psql(lab, table, f"ALTER ROLE {SITE} PASSWORD 'wrong'")
    lab.salt(table, "state.apply", "postgres")
    again = lab.salt(table, "state.apply", "postgres", "test=True")[table]
    assert not [key for key, one in again.items() if one["changes"]]


def test_a_restart_is_waited_for(lab, table):
    """Writes that go through PgBouncer while the server restarts all arrive."""
    script = (
        f"PGPASSWORD=$(cat /tmp/farm-password) /usr/bin/psql -XqAt 'host=127.0.0.1 port=6432"
        f" user={SITE} dbname={SITE} sslmode=require' -c \"INSERT INTO farm_test (word) VALUES ('x')\""
    )
    password = lab.salt(table, "sites.secret", "postgres", "users", SITE)[table]
    lab.run(table, "sh", "-c", "umask 077; cat >/tmp/farm-password", stdin=password)
    allow_loopback(lab, table)
    failed, stop = [], threading.Event()
    count = 0

    def write():
        nonlocal count
        while not stop.is_set():
            done = lab.run(table, "sh", "-c", script, check=False)
            count += 1
            if done.returncode:
                failed.append(done.stderr)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        lab.salt(table, "database.restart")
    finally:
        stop.set()
        writer.join()
        lab.run(table, "rm", "-f", "/tmp/farm-password")
        lab.salt(table, "state.apply", "pgbouncer")
    assert not failed
    assert psql(lab, table, "SELECT count(*) FROM farm_test") == str(500 + count)


def allow_loopback(lab, host):
    """Let a site's user come from the host itself, until the states are applied again."""
    line = f"hostssl {SITE} {SITE} 127.0.0.1/32 scram-sha-256"
    lab.run(host, "sh", "-c", f"echo '{line}' >>/etc/pgbouncer/hba.conf")
    lab.run(host, "systemctl", "reload", "pgbouncer")


def test_a_dropped_table_comes_back(lab, table):
    moment = psql(lab, table, "SELECT date_trunc('second', now()) + '1 s'")
    time.sleep(2)
    psql(lab, table, "DROP TABLE farm_test")
    done = lab.salt("backup1", "backup.restore", SITE, "table=farm_test", f"time={moment}")[
        "backup1"
    ]
    assert done["rows"] == 500, done
    assert psql(lab, table, "SELECT count(*) FROM farm_test") == "500"


def test_backups_are_verified_against_the_replica(lab, table):
    done = lab.salt("backup1", "backup.verify")["backup1"]
    assert done["ok"], done
    assert done["compared_with"] == primary_and_replica(lab)[1]
    assert done["rows"] >= 500


@pytest.mark.drill
def test_the_plug_is_pulled_from_the_primary(lab, table):
    """Every acknowledged row is there when the host is back."""
    acknowledged = []

    def write():
        number = 0
        while True:
            number += 1
            sql = f"INSERT INTO farm_test (word) VALUES ('plug {number}')"
            command = ["runuser", "-u", "postgres", "--", "psql", "-XqAtc", sql, SITE]
            try:
                if lab.run(table, *command, check=False).returncode:
                    return
            except Exception:  # noqa: BLE001 - the host is gone: that is what is waited for
                return
            acknowledged.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(5)
    lab.kill(table)
    writer.join(30)
    lab.start(table)
    there = psql(lab, table, "SELECT count(*) FROM farm_test WHERE word LIKE 'plug %'")
    assert len(acknowledged) > 10
    assert int(there) >= len(acknowledged)


@pytest.mark.drill
def test_promotion_and_back(lab, table):
    """Nothing is lost, the old primary can't come back beside the new one, and it rejoins."""
    old, new = primary_and_replica(lab)
    for host, other in ((new, old), (old, new)):
        rows = psql(lab, other, "SELECT count(*) FROM farm_test")
        began = time.monotonic()
        lab.run("master", "salt-run", "database.promote", host)
        assert time.monotonic() - began < 60
        assert psql(lab, host, "SELECT count(*) FROM farm_test") == rows
        psql(lab, host, "INSERT INTO farm_test (word) VALUES ('after')")
        unit = lab.run(other, "systemctl", "start", "postgresql@15-main", check=False)
        assert unit.returncode, f"{other} started beside {host}"
        lab.run("master", "salt-run", "database.rejoin", other)
        caught_up(lab, other)
