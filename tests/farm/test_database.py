"""The database tier on the lab: a replica that follows, who may connect, what is refused, a dropped
table that comes back, a verified backup."""

import json
import re
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
    site_python,
    status,
)

# Logs in on a host as the site does, but for what is told; prints what the server says.
LOG_IN = """
import json, sys
import environ, psycopg
env = dict(line.rstrip().split("=", 1) for line in open(sys.argv[1]) if "=" in line)
url = environ.Env.db_url_config(env["DATABASE_DIRECT_URL"])
how = dict(host=sys.argv[2], port=5432, user=url["USER"], password=url["PASSWORD"],
           dbname=url["NAME"], sslmode="require") | json.loads(sys.argv[3])
try:
    print(psycopg.connect(**how).execute("SELECT ssl FROM pg_stat_ssl"
          " WHERE pid = pg_backend_pid()").fetchone())
except psycopg.Error as error:
    print(error)
"""

# Checks a file of PostgreSQL as a child of a service would; prints what systemd is told meanwhile.
TOLD = """
import os, socket, subprocess, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
    systemd.bind("\\0saltern-test")
    os.environ["NOTIFY_SOCKET"] = "@saltern-test"
    subprocess.run(["/usr/local/lib/saltern/postgres-check", "access", sys.argv[1]], check=True)
    try:
        print(systemd.recv(4096, socket.MSG_DONTWAIT).decode())
    except BlockingIOError:
        print("nothing")
"""


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
    primary, replica = primary_and_replica(lab)
    caught_up(lab, replica)
    assert psql(lab, replica, "SELECT count(*) FROM farm_test") == "500"
    told = status(lab, replica)
    assert (told["streaming"], told["behind_bytes"]) == (True, 0)
    (slot,) = status(lab, primary)["slots"]
    assert (slot["name"], slot["active"]) == (f"host_{replica}", True)


def log_in(lab, host, **how):
    """What a server says to who logs in with the site's password, and otherwise as told."""
    python, env_file = site_python(lab)
    address = lab.hosts[host].address
    return lab.run(APP, python, "-", env_file, address, json.dumps(how), stdin=LOG_IN).stdout


def test_a_site_comes_with_tls_to_its_own_database_only(lab):
    primary, _replica = primary_and_replica(lab)
    assert log_in(lab, primary) == "(True,)\n"
    refused = {
        "no encryption": {"sslmode": "disable"},
        'no pg_hba.conf entry for host "': {"dbname": "postgres"},
        'user "postgres"': {"user": "postgres"},
        "password authentication failed": {"password": "wrong"},
    }
    for why, how in refused.items():
        assert why in log_in(lab, primary, **how), how
    ask = "SELECT count(*) FROM pg_authid WHERE rolpassword NOT LIKE 'SCRAM-SHA-256$%'"
    assert psql(lab, primary, ask) == "0"


@pytest.mark.drill
@pytest.mark.parametrize(
    ("setting", "way"),
    [
        ("{'version': 17}", "pg_upgradecluster 15 main"),
        ("{'cluster': 'second'}", "pg_renamecluster 15 main second"),
    ],
)
def test_no_empty_cluster_is_put_beside_a_full_one(lab, setting, way):
    for host in primary_and_replica(lab):
        # Only foretold: the package of another version can't be had on this system.
        other = f"pillar={{'overrides': {{'postgres': {setting}}}}}"
        failed, changed = apply(lab, host, "postgres", other, "test=True")
        assert way in failed["postgres/cluster"]
        assert "postgres/cluster" not in changed
        assert "requisite failed" in failed["postgres/running"]


@pytest.mark.drill
def test_a_database_elsewhere_is_set_up_on_the_client_side_only(lab):
    site = {
        "repository": "git://master/newsroom.git",
        "settings_module": "newsroom.settings.deploy",
        "wsgi_module": "newsroom.wsgi",
        "domains": ["elsewhere.lab"],
        "database": {"host": "db.elsewhere.test"},
    }
    users = {"postgres": {"users": {"elsewhere": "its-password"}}}
    keys = {"sites": {"elsewhere": {"secret_key": "k"}}, "redis": {"sites": {"elsewhere": "r"}}}
    pillar = f"pillar={json.dumps({'sites': {'elsewhere': site}, 'secrets': users | keys})}"
    for host in primary_and_replica(lab):
        assert apply(lab, host, "postgres,pgbouncer", pillar, "test=True") == ({}, {})
    failed, changed = apply(lab, APP, "django", pillar, "test=True")
    assert not failed
    assert {one.split("/")[1] for one in changed} == {"elsewhere"}
    assert "django/elsewhere/environment" in changed


def test_a_check_does_not_speak_for_the_minion_that_asks(lab):
    primary, _replica = primary_and_replica(lab)
    rules = psql(lab, primary, "SHOW hba_file")
    assert lab.run(primary, "python3", "-c", TOLD, rules).stdout.strip() == "nothing"


def test_what_takes_the_time_is_told_and_reported(lab):
    primary, _replica = primary_and_replica(lab)
    psql(lab, primary, "SELECT pg_sleep(0.75)")
    told = call(lab, primary, "database.slowest", 500)
    (one,) = [s for s in told if s["database"] == SITE and s["statement"] == "SELECT pg_sleep($1)"]
    assert one["mean_ms"] > 700
    page = call(lab, primary, "database.report", "hours=1")
    try:
        told = lab.run(primary, "cat", page).stdout
        assert "<title>pgBadger" in told
        assert "pg_sleep(0.75)" in re.sub("<[^>]*>", "", told).lower()
    finally:
        lab.run(primary, "rm", page)


def test_backups_are_made_and_tried_by_timers(lab):
    shown = lab.run(BACKUP, "systemctl", "list-timers", "--no-legend", "--no-pager").stdout
    timers = {word for word in shown.split() if word.startswith("saltern-backup@")}
    kinds = ("full", "diff", "dump", "seal", "uploads", "verify", "anonymise")
    assert {f"saltern-backup@{kind}.timer" for kind in kinds} <= timers
    when = lab.run(BACKUP, "systemctl", "cat", "saltern-backup@verify.timer").stdout
    assert "OnCalendar=Sun " in when


def test_backups_are_kept_for_two_weeks_at_least(lab):
    less = "pillar={'overrides': {'backup': {'keep_days': 13}}}"
    told = " ".join(call(lab, BACKUP, "state.apply", "backup", less, "test=True"))
    assert "backup.keep_days" in told
    kept = lab.run(BACKUP, "grep", "retention", "/etc/pgbackrest.conf").stdout.split()
    assert kept == ["repo1-retention-full-type=time", "repo1-retention-full=14"]


def test_a_dropped_table_comes_back(lab, table):
    moment = psql(lab, table, "SELECT date_trunc('second', now()) + '1 s'")
    time.sleep(2)
    psql(lab, table, "DROP TABLE farm_test")
    done = call(lab, BACKUP, "backup.restore", SITE, "table=farm_test", f"time={moment}")
    assert done["rows"] == 500, done
    assert psql(lab, table, "SELECT count(*) FROM farm_test") == "500"


def test_backups_are_verified_against_the_replica(lab, table):
    done = call(lab, BACKUP, "backup.verify")
    assert done["ok"], done
    assert done["compared_with"] == primary_and_replica(lab)[1]
    # The scratch server's end isn't taken for the minion's, whose child it was.
    assert lab.run(BACKUP, "systemctl", "is-active", "salt-minion").stdout.strip() == "active"
    assert done["rows"] >= 500
