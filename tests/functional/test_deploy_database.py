"""Two app hosts that share a PostgreSQL server: a migration runs once, whoever comes first."""

import pathlib
import subprocess
import tempfile
import threading

import pytest

from tests.functional.apphost import AppHost
from tests.functional.postgres import Server
from tests.functional.project import Project


@pytest.fixture(scope="module")
def server():
    # Not below pytest's own folder, which is root's alone.
    with tempfile.TemporaryDirectory(prefix="saltern-") as folder:
        server = Server(pathlib.Path(folder))
        try:
            yield server
        finally:
            server.close()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory, server):
    needs = {"requirements.txt": "django==5.2.*\npsycopg[binary]\n"}
    project = Project(tmp_path_factory.mktemp("project") / "tiny.git", **needs)
    hosts = [
        AppHost(tmp_path_factory.mktemp(name), project, server.url, name)
        for name in ("app1", "app2")
    ]
    try:
        yield hosts
    finally:
        for host in hosts:
            host.close()


def at_once(hosts, *arguments, fails=False, **named):
    """Ship on all hosts at the same time; their reports."""
    reports = {}

    def ship(host):
        reports[host.minion] = host.call("deploy.ship", *arguments, fails=fails, **named)

    threads = [threading.Thread(target=ship, args=[host]) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == len(hosts), "a host gave no report"
    return [reports[host.minion] for host in hosts]


def migration(number, before, body, atomic=True):
    return {
        f"things/migrations/{number}_more.py": f"""
            import time
            from django.db import migrations, models
            def run(apps, schema_editor):
                with schema_editor.connection.cursor() as cursor:
                    {body}
            class Migration(migrations.Migration):
                atomic = {atomic}
                dependencies = [("things", "{before}")]
                operations = [migrations.RunPython(run)]
        """
    }


def comments(reports, phase):
    return [e["comment"] for r in reports for e in r["phases"] if e["phase"] == phase]


def test_two_hosts_migrate_once(hosts, server):
    server.sql("CREATE TABLE runs (at timestamptz DEFAULT now())")
    server.sql("GRANT ALL ON runs TO tiny")
    body = "cursor.execute('INSERT INTO runs DEFAULT VALUES'); time.sleep(3)"
    hosts[0].project.commit("two", migration("0002", "0001_initial", body))
    reports = at_once(hosts)
    assert server.sql("SELECT count(*) FROM runs") == "1"
    said = comments(reports, "migrate")
    assert sum("things.0002_more" in comment for comment in said) == 1, said
    releases = {report["release"] for report in reports}
    assert len(releases) == 1
    assert {host.get("/")[1] for host in hosts} == releases


def test_a_failed_migration_fails_every_host_and_is_not_tried_twice(hosts, server):
    before = [host.get("/")[1] for host in hosts]
    server.sql("DELETE FROM runs")
    body = "cursor.execute('INSERT INTO runs DEFAULT VALUES'); time.sleep(2); raise ValueError('x')"
    name = "things/migrations/0003_more.py"
    hosts[0].project.commit("bad", migration("0003", "0002_more", body, atomic=False))
    reports = at_once(hosts, fails=True)
    assert server.sql("SELECT count(*) FROM runs") == "1", reports
    assert all(report["comment"].startswith("migrate:") for report in reports)
    assert [host.get("/")[1] for host in hosts] == before
    # In a later batch it isn't tried again either, unless that is wanted.
    again = hosts[1].call("deploy.ship", fails=True)
    assert "failed on app" in again["comment"]
    assert server.sql("SELECT count(*) FROM runs") == "1"
    (hosts[0].project.folder / name).unlink()
    hosts[0].project.commit("mended")
    assert all(report["result"] for report in at_once(hosts))


def test_a_destructive_migration_asks_for_leave(hosts, server):
    files = {
        "things/migrations/0003_more.py": """
            from django.db import migrations
            class Migration(migrations.Migration):
                dependencies = [("things", "0002_more")]
                operations = [migrations.RemoveField("thing", "name")]
        """,
        "things/models.py": "from django.db import models\nclass Thing(models.Model):\n    pass\n",
    }
    hosts[0].project.commit("drops", files)
    plan = hosts[0].call("deploy.plan")
    assert list(plan["migrations"]) == ["things.0003_more"]
    assert "drops the column" in plan["migrations"]["things.0003_more"][0]
    refused = hosts[0].call("deploy.ship", fails=True)
    assert "allow_destructive=True" in refused["comment"]
    assert server.sql("SELECT name FROM things_thing") == ""
    reports = [host.ship(allow_destructive=True) for host in hosts]
    assert all(report["result"] for report in reports)
    # The older code doesn't know the migration: going back is refused unless that is meant.
    refused = hosts[0].call("deploy.rollback", fails=True)
    assert "things.0003_more" in refused["comment"]
    back = hosts[0].call("deploy.rollback", keep_migrations=True)
    assert back["result"] and hosts[0].get("/")[1] == reports[0]["from"]
    assert hosts[0].ship()["result"]


def test_a_migration_gives_up_rather_than_block_the_site(hosts, server):
    with_lock = subprocess.Popen(
        server._command(
            "psql", "-h", "127.0.0.1", "-p", server.port, "-U", "postgres", "-d", "tiny", "-c",
            "BEGIN; LOCK TABLE things_thing; SELECT pg_sleep(60)",
        ),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        hosts[0].project.commit("adds", {
            "things/models.py": "from django.db import models\nclass Thing(models.Model):\n"
                                "    size = models.IntegerField(null=True)\n",
            "things/migrations/0004_more.py": """
                from django.db import migrations, models
                class Migration(migrations.Migration):
                    dependencies = [("things", "0003_more")]
                    operations = [migrations.AddField(
                        "thing", "size", models.IntegerField(null=True))]
            """,
        })  # fmt: skip
        refused = hosts[0].call("deploy.ship", fails=True)
        assert "lock timeout" in refused["comment"]
    finally:
        with_lock.kill()
        with_lock.wait()
    # The lock was the site's own affair: the same release may simply be tried again.
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%LOCK %'"
               " AND pid <> pg_backend_pid()")  # fmt: skip
    assert all(report["result"] for report in at_once(hosts))
