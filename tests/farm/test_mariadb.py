"""
A site on MariaDB, on a small farm of its own: primary, replica, and a host for the site and the
backups. The site is served and passes its own tests, backups are restored and verified, the writes
move to the replica, and no acknowledged row is missing.
"""

import contextlib
import copy
import html
import re
import time

import pytest

from tests.farm import farms
from tests.farm.database_farm import (
    APP,
    SITE,
    apply,
    call,
    missing,
    site_python,
    writing,
)
from tests.farm.waiting import until
from tests.lab.commands import LabError

pytestmark = pytest.mark.drill

PRIMARY, REPLICA, BACKUP = "maria1", "maria2", APP
SERVERS = {
    PRIMARY: {"address": "198.18.0.81", "roles": ["mariadb"], "lab": {"memory": "768M"}},
    REPLICA: {"address": "198.18.0.82", "roles": ["mariadb"], "lab": {"memory": "768M"}},
}


@pytest.fixture(scope="module")
def maria():
    known = farms.environment("hosts")["hosts"]
    hosts = {"master": known["master"], APP: known[APP] | {"roles": ["app", "backup"]}} | SERVERS
    site = copy.deepcopy(farms.environment("sites")["sites"][SITE])
    # What other roles do for a site isn't wanted here.
    for key in ("celery_app", "queues", "beat"):
        site.pop(key, None)
    site["database"] = {"engine": "mariadb"}
    site["requirements"] = ["requirements-mariadb.txt"]
    sites = {"sites": {SITE: site}}
    with farms.another_farm("mariadb", hosts, sites=sites, overrides={}) as farm:
        yield farm


def sql(lab, host, statement):
    """What a statement of root's returns, without names."""
    return lab.run(host, "mariadb", "-BN", "-e", statement, SITE).stdout.strip()


def status(lab, host):
    return call(lab, host, "mariadb.status")


def places(lab):
    """The host that takes writes, and the one that follows it."""
    states = {host: status(lab, host)["state"] for host in SERVERS}
    assert sorted(states.values()) == ["primary", "replica"], states
    return sorted(states, key=states.get)


def caught_up(lab):
    """Wait until the replica has applied all that the primary has."""
    primary, replica = places(lab)
    place = sql(lab, primary, "SELECT @@gtid_binlog_pos")
    until(60, lambda: sql(lab, replica, "SELECT @@gtid_slave_pos") == place)


def rows(lab, host):
    return sql(lab, host, "SELECT concat(client, ' ', number) FROM farm_writes")


@pytest.fixture
def writes(maria):
    """The farm, with an empty table for the writers."""
    table = "CREATE TABLE farm_writes (client int, number int, PRIMARY KEY (client, number))"
    sql(maria, places(maria)[0], f"DROP TABLE IF EXISTS farm_writes; {table}")
    return maria


def test_a_second_run_changes_nothing(maria):
    assert {host: apply(maria, host) for host in maria.hosts} == dict.fromkeys(
        maria.hosts, ({}, {})
    )


def test_the_replica_follows_and_takes_no_writes(maria):
    primary, replica = places(maria)
    assert replica in [one["id"] for one in status(maria, primary)["replicas"]]
    told = status(maria, replica)
    assert (told["streaming"], told["read_only"]) == (True, True)
    assert told["behind_seconds"] is not None
    sql(maria, primary, "CREATE OR REPLACE TABLE farm_follow AS SELECT seq FROM seq_1_to_500")
    caught_up(maria)
    assert sql(maria, replica, "SELECT count(*) FROM farm_follow") == "500"
    sql(maria, primary, "DROP TABLE farm_follow")


def test_the_server_has_its_settings_and_logs_what_is_slow(maria):
    wanted = call(maria, PRIMARY, "settings.get", "mariadb")["innodb_buffer_pool_size"]
    ram = call(maria, PRIMARY, "grains.get", "hardware:ram_bytes")
    running = int(sql(maria, PRIMARY, "SELECT @@innodb_buffer_pool_size"))
    assert wanted == f"{running >> 20}M"
    assert ram // 3 < running <= ram * 8 // 10
    sql(maria, PRIMARY, "SELECT sleep(0.6)")
    assert "sleep(0.6)" in maria.run(PRIMARY, "cat", "/var/log/mysql/mariadb-slow.log").stdout


def test_the_site_is_served_from_it(maria):
    title = sql(
        maria, PRIMARY, "SELECT title FROM articles_article ORDER BY published DESC LIMIT 1"
    )
    assert title
    url = f"http://{maria.hosts[APP].address}:8080/"
    page = maria.on_hub("curl", "-sS", "--noproxy", "*", "-H", "Host: newsroom.lab", url, text=True)
    assert title in html.unescape(page.stdout), page


def test_the_site_passes_its_own_tests(maria):
    python, env_file = site_python(maria)
    release = maria.run(APP, "readlink", "-f", f"/srv/sites/{SITE}/current").stdout.strip()
    lines = maria.run(APP, "cat", env_file).stdout.splitlines()
    (url,) = [line for line in lines if line.startswith("DATABASE_URL=mysql://")]
    account = f"{SITE}@{maria.hosts[APP].address}"
    home = maria.run(APP, "runuser", "-u", f"site-{SITE}", "--", "mktemp", "-d").stdout.strip()
    sql(maria, PRIMARY, f"GRANT ALL ON test_{SITE}.* TO {account}")
    try:
        # In a copy: they collect static files, and a release isn't theirs to write to.
        script = f"cp -r {release} $HOME/site && cd $HOME/site && {python} -B manage.py test"
        clean = ["env", "-i", "PATH=/usr/bin:/bin", f"HOME={home}", url]
        as_site = ["runuser", "-u", f"site-{SITE}", "--"]
        done = maria.run(APP, *as_site, *clean, "sh", "-c", script, check=False)
    finally:
        sql(maria, PRIMARY, f"REVOKE ALL ON test_{SITE}.* FROM {account}")
        maria.run(APP, "rm", "-r", home)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Ran \d\d+ tests", done.stderr), done.stderr
    assert "\nOK" in done.stderr


def test_backups_come_back_and_are_verified(maria):
    primary, replica = places(maria)
    made = call(maria, BACKUP, "backup.run", "mariadb-full")
    assert (made["ok"], made["from"]) == (True, replica), made
    sql(maria, primary, "CREATE TABLE farm_kept AS SELECT seq FROM seq_1_to_500")
    ask = "SELECT date_format(utc_timestamp() + INTERVAL 1 SECOND, '%Y-%m-%d %H:%i:%s+00')"
    moment = f"time={sql(maria, primary, ask)}"
    time.sleep(2.1)
    sql(maria, primary, "DROP TABLE farm_kept")
    back = call(maria, BACKUP, "backup.restore", SITE, "table=farm_kept", moment)
    assert (back["on"], back["database"], back["rows"]) == (primary, SITE, 500), back
    assert sql(maria, primary, "SELECT count(*) FROM farm_kept") == "500"
    beside = call(maria, BACKUP, "backup.restore", SITE)
    assert beside["database"].startswith(f"{SITE}_restored_"), beside
    there = sql(maria, primary, f"SELECT count(*) FROM {beside['database']}.articles_article")
    assert there == sql(maria, primary, "SELECT count(*) FROM articles_article")
    sql(maria, primary, f"DROP DATABASE {beside['database']}; DROP TABLE farm_kept")
    verified = call(maria, BACKUP, "backup.verify")
    assert (verified["ok"], verified["compared_with"]) == (True, replica), verified
    assert verified["backup"] == call(maria, BACKUP, "backup.list")["mariadb"][-1]["id"]
    assert [c for c in call(maria, BACKUP, "backup.complaints") if "mariadb" in c.lower()] == []
    copied = call(maria, BACKUP, "backup.anonymise")
    assert copied["ok"], copied
    dump = maria.run(BACKUP, "zcat", copied["databases"][SITE]["file"]).stdout
    emails = sql(maria, primary, "SELECT email FROM articles_author").split()
    assert emails
    assert [email for email in emails if email in dump] == []
    print(f"restored after {verified['restored_after_seconds']} s, {verified['rows']} rows")


def test_no_empty_primary_is_put_beside_a_replica_with_data(maria):
    primary, replica = places(maria)
    unit, data = "systemctl {} mariadb", "/var/lib/mysql"
    empty = f"mv {data} {data}.kept && mariadb-install-db --user=mysql >/dev/null"
    maria.run(primary, "sh", "-ec", f"{unit.format('stop')}; {empty}; {unit.format('start')}")
    try:
        assert status(maria, primary)["state"] == "empty"
        failed, changed = apply(maria, primary, "mariadb")
        assert f"promote it: salt {replica} mariadb.promote" in failed["mariadb/place"]
        assert not changed
    finally:
        back = f"rm -r {data}; mv {data}.kept {data}"
        maria.run(primary, "sh", "-ec", f"{unit.format('stop')}; {back}; {unit.format('start')}")
    until(60, lambda: status(maria, replica)["streaming"])


def moved(lab, host):
    """What an operator does after a promotion: the pillar names the host, the sites are told."""
    lab.change(overrides={"mariadb": {"primary": host}})
    for one, services in ((host, "mariadb"), (APP, "django,uwsgi,backup")):
        failed, _changed = apply(lab, one, services)
        assert not failed


def follows_again(lab, host):
    """The old primary becomes a replica, and then is what the states want."""
    done = call(lab, host, "mariadb.clone", "replace=True")
    assert isinstance(done, dict), done
    caught_up(lab)
    assert apply(lab, host, "mariadb")[0] == {}
    assert apply(lab, host, "mariadb") == ({}, {})


def test_a_promotion_loses_no_acknowledged_row(writes):
    primary, replica = places(writes)
    assert f"salt {primary} mariadb.fence" in call(writes, replica, "mariadb.promote")
    with writing(writes) as told:
        time.sleep(5)
        fenced = call(writes, primary, "mariadb.fence")
        assert isinstance(fenced, dict), fenced
        done = call(writes, replica, "mariadb.promote", f"gtid={fenced['gtid']}")
        assert done["state"] == "primary", done
        moved(writes, replica)
        time.sleep(5)
    assert told["failed"], "nothing was felt of it"
    assert missing(told, rows(writes, replica)) == set()
    print(f"the clients had {told['longest_gap']:.1f} s without writes, the states included")
    assert writes.run(primary, "systemctl", "start", "mariadb", check=False).returncode
    failed, _changed = apply(writes, primary, "mariadb")
    assert f"salt {primary} mariadb.clone replace=True" in failed["mariadb/free"]
    follows_again(writes, primary)
    assert missing(told, rows(writes, primary)) == set()
    # The log is received from the new primary, and what was backed up before still counts.
    assert call(writes, BACKUP, "backup.verify")["ok"]


def test_a_dead_primary_does_not_come_back_beside_its_successor(writes):
    primary, replica = places(writes)
    with writing(writes) as told:
        time.sleep(5)
        writes.kill(primary)
        assert "force=True" in call(writes, replica, "mariadb.promote")
        done = call(writes, replica, "mariadb.promote", "force=True")
        assert done["state"] == "primary", done
        moved(writes, replica)
        time.sleep(5)
    acknowledged = sum(map(len, told["acknowledged"]))
    gone = missing(told, rows(writes, replica))
    print(f"{len(gone)} of {acknowledged} rows lost, {told['longest_gap']:.1f} s without writes")
    assert len(gone) < 200, "more than what was written right before the end"
    with contextlib.suppress(LabError):
        writes.start(primary)
    writes.wait_for_minion(primary)
    assert status(writes, primary)["state"] == "stopped"
    said = writes.run(primary, "journalctl", "-u", "mariadb", "-b", "--no-pager").stdout
    assert f"not started: {replica} takes the writes" in said
    failed, _changed = apply(writes, primary, "mariadb")
    assert "mariadb.clone replace=True" in failed["mariadb/place"]
    follows_again(writes, primary)
    assert rows(writes, primary) == rows(writes, replica)
