"""MariaDB: the states' users, databases and settings on a real server; the example site on it."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import urllib.parse

import pytest
from salt.exceptions import CommandExecutionError

from tests.functional import mariadb
from tests.functional.box import wait_for
from tests.functional.mariadb import Server

ROOT = pathlib.Path(__file__).parents[2]
SITE = ROOT / "examples/newsroom"
TOOL = ROOT / "salt/django/files/release.py"
ODD = "pw'\"\\ %ü`;--"


@pytest.fixture(scope="module")
def server():
    with tempfile.TemporaryDirectory(prefix="saltern-") as folder:
        found = Server(pathlib.Path(folder), "log_bin=binlog", "server_id=7")
        try:
            yield found
        finally:
            found.close()


def load(kind, **dunders):
    path = ROOT / kind / "mariadb.py"
    spec = importlib.util.spec_from_file_location(f"mariadb_{kind}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(dunders)
    return module


@pytest.fixture
def module(server, monkeypatch, tmp_path):
    monkeypatch.setenv("MYSQL_UNIX_PORT", str(server.socket))
    found = load("_modules", __opts__={"id": "db1", "test": False}, __salt__={})
    monkeypatch.setattr(found, "CONFIG", tmp_path / "saltern.cnf")
    return found


@pytest.fixture
def states(module):
    names = ["literal", "identifier", "pattern", "query", "execute", "verifier"]
    names += ["apply_settings", "pending"]
    functions = {f"mariadb.{name}": getattr(module, name) for name in names}
    functions["sites.secret"] = lambda *path: path[-1]
    return load("_states", __salt__=functions, __opts__={"id": "db1", "test": False})


def log_in(server, user, password, database="", address="127.0.0.1"):
    """Whether a user gets in over TCP with TLS, and to a database."""
    command = ["mariadb", "--no-defaults", "--ssl", f"--host={address}", f"--port={server.port}"]
    command += [f"--user={user}", f"--password={password}", "-e", "SELECT 1", database]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0


@pytest.mark.parametrize("name", ["paper", "odd_n%me `x`"])
def test_a_user_and_a_database_are_made_once(states, module, server, name):
    user = name[:10]
    rights = {"databases": [name], "endings": ["_old_"], "rights": ["REPLICATION SLAVE"]}
    given = (user, [ODD], ["127.0.0.1"])
    assert states.database(name)["changes"]
    made = states.user(*given, **rights)
    assert made["changes"]
    assert ODD not in str(made)
    assert log_in(server, user, ODD, name)
    assert not log_in(server, user, "another", name)
    assert not log_in(server, user, ODD, "mysql")
    again = [states.database(name), states.user(*given, **rights)]
    assert [one["changes"] for one in again] == [{}, {}]
    # Another password, then other rights, then another address.
    changed = states.user(user, ["new"], ["127.0.0.1"], **rights)
    assert changed["changes"] == {"127.0.0.1": "password changed"}
    assert log_in(server, user, "new", name)
    assert states.user(user, ["new"], ["127.0.0.1"], [name])["changes"]
    assert states.user(user, ["new"], ["127.0.0.1"], [name])["changes"] == {}
    assert states.user(user, ["new"], ["10.0.0.9"], [name])["changes"]
    assert not log_in(server, user, "new", name)


def test_test_mode_changes_nothing(states, server):
    states.__opts__ = {"id": "db1", "test": True}
    assert states.database("never")["result"] is None
    assert states.user("never", ["x"], ["127.0.0.1"])["result"] is None
    assert "never" not in server.sql("SHOW DATABASES")
    assert server.sql("SELECT count(*) FROM mysql.user WHERE user = 'never'") == "0"


def test_settings_are_given_to_the_running_server_or_named(states, module):
    module.CONFIG.write_text(
        "# a comment = none\n[mariadbd]\nmax_connections = 77\nlong_query_time = 0.5\n"
        "slow_query_log = ON\nlog_bin = another\nskip_name_resolve = ON\nreport_host = db9\n"
    )
    done = states.settled("x")
    assert done["changes"]["max_connections"] == {"old": "151", "new": "77"}
    assert "skip_name_resolve" not in done["changes"]
    assert "report_host, skip_name_resolve" in done["warnings"][0]
    assert "salt db1 mariadb.restart" in done["warnings"][0]
    again = states.settled("x")
    assert again["changes"] == {}
    assert again["warnings"] == done["warnings"]


@pytest.fixture
def site(states, server):
    """The example site's environment on this server."""
    states.user("site", [ODD], ["127.0.0.1"], ["newsroom", "test_newsroom"])
    login = f"site:{urllib.parse.quote(ODD, safe='')}@127.0.0.1:{server.port}"
    url = f"mysql://{login}/newsroom?ssl_mode=REQUIRED&charset=utf8mb4"
    settings = {"DJANGO_SETTINGS_MODULE": "newsroom.settings.dev", "DATABASE_URL": url}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", **settings}


def test_two_hosts_migrate_it_once(site, states):
    states.database("newsroom")
    options = {"run": "1", "release": "r", "wait": 300, "force": False, "allow_destructive": False}
    options |= {"lock_timeout_ms": 5000, "statement_timeout_ms": 900000}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-", "migrate", json.dumps({**options, "host": host})],
            cwd=SITE, env=site, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for host in ("app1", "app2")
    ]  # fmt: skip
    for host in hosts:
        host.stdin.write(TOOL.read_text())
        host.stdin.close()
    said = [json.loads(host.stdout.read().rpartition("\nsaltern:")[2]) for host in hosts]
    assert [host.wait() for host in hosts] == [0, 0]
    idle, busy = sorted(said, key=lambda one: len(one["applied"]))
    assert "articles.0001_initial" in busy["applied"]
    assert idle["applied"] == []
    assert idle["waited"] > 0


LIMITED = """
import importlib.util, sys
import django
django.setup()
spec = importlib.util.spec_from_file_location("tool", sys.argv[1])
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
from django.db import connection
tool.limit(connection, {"lock_timeout_ms": 5000, "statement_timeout_ms": 500})
connection.cursor().execute("SELECT 1 FROM information_schema.columns WHERE SLEEP(5) = 0")
"""


def test_a_statement_of_a_migration_that_takes_too_long_is_given_up(site, states):
    states.database("newsroom")
    command = [sys.executable, "-c", LIMITED, TOOL]
    done = subprocess.run(command, cwd=SITE, env=site, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "max_statement_time exceeded" in done.stderr


def test_the_site_passes_its_own_tests_on_it(site):
    done = subprocess.run(
        [sys.executable, "manage.py", "test"],
        cwd=SITE,
        env=site,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "\nOK" in done.stderr


def on(server, monkeypatch, tmp_path, peers):
    """The execution module on one of a pair's hosts; ``peers`` answers for the other one."""
    monkeypatch.setenv("MYSQL_UNIX_PORT", str(server.socket))
    module = load("_modules", __opts__={"id": server.folder.name}, __salt__={})
    module.FENCE, module.CONFIG = tmp_path / server.folder.name, tmp_path / "none"
    module.peers, module._systemctl = peers, lambda verb: server.close()
    return module


def test_a_fenced_primary_leaves_nothing_behind(monkeypatch, tmp_path):
    with mariadb.pair() as pair:
        sql = pair.primary.sql
        sql("CREATE DATABASE paper; CREATE TABLE paper.post (id INT PRIMARY KEY)")
        # As a site, which may not write to a server that takes no writes.
        sql("REVOKE READ_ONLY ADMIN ON *.* FROM backup@'127.0.0.%'")
        # The statement after an acknowledged one tells its number: -f goes on after errors.
        feed, told = tmp_path / "feed", tmp_path / "told"
        one = "INSERT INTO paper.post VALUES ({0}); SELECT row_count(), {0};\n"
        feed.write_text("".join(map(one.format, range(200_000))))
        login = ["--no-defaults", f"--port={pair.primary.port}", "--host=127.0.0.1"]
        login += ["--user=backup", "--password=pw", "--unbuffered", "-fBN"]
        with feed.open() as source, told.open("w") as target:
            writer = subprocess.Popen(
                ["mariadb", *login], stdin=source, stdout=target, stderr=subprocess.DEVNULL
            )
        wait_for(lambda: sql("SELECT count(*) > 200 FROM paper.post") == "1", what="writes")
        writes = [{"id": "m1", "answers": True, "writes": True}]
        replica = on(pair.replica, monkeypatch, tmp_path, lambda: writes)
        with pytest.raises(CommandExecutionError, match=r"salt m1 mariadb\.fence"):
            replica.promote()
        with pytest.raises(CommandExecutionError, match="takes no writes"):
            replica.fence()
        gone = [{"id": "m2", "answers": False, "reason": "it is off"}]
        with pytest.raises(CommandExecutionError, match="m2: it is off"):
            on(pair.primary, monkeypatch, tmp_path, lambda: gone).fence(wait=1)
        assert sql("SELECT @@read_only") == "0"
        fenced = on(pair.primary, monkeypatch, tmp_path, lambda: follower(pair.replica)).fence()
        assert writer.poll() is None, "it had nothing more to write: this proves nothing"
        writer.kill()
        writer.wait()
        lines = told.read_text().splitlines()
        acknowledged = {line.split("\t")[1] for line in lines if line.startswith("1\t")}
        assert len(acknowledged) >= 200
        assert (tmp_path / "m1").exists()
        gone = [{"id": "m1", "answers": False, "reason": "it is off"}]
        replica = on(pair.replica, monkeypatch, tmp_path, lambda: gone)
        with pytest.raises(CommandExecutionError, match="may take writes"):
            replica.promote()
        done = replica.promote(fenced["gtid"])
        assert (done["state"], done["read_only"]) == ("primary", False)
        assert acknowledged <= set(pair.replica.sql("SELECT id FROM paper.post").split())


def follower(server):
    place = server.sql("SELECT @@gtid_current_pos")
    return [{"id": server.folder.name, "answers": True, "writes": False, "gtid": place}]
