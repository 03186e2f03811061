"""MariaDB: the states' users, databases and settings on a real server; the example site on it."""

import importlib.util
import pathlib
import subprocess
import sys
import tempfile
import urllib.parse

import pytest

from tests.functional.mariadb import Server

ROOT = pathlib.Path(__file__).parents[2]
SITE = ROOT / "examples/newsroom"
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


def test_the_site_passes_its_own_tests_on_it(states, server):
    states.user("site", [ODD], ["127.0.0.1"], ["newsroom", "test_newsroom"])
    login = f"site:{urllib.parse.quote(ODD, safe='')}@127.0.0.1:{server.port}"
    url = f"mysql://{login}/newsroom?ssl_mode=REQUIRED&charset=utf8mb4"
    done = subprocess.run(
        [sys.executable, "manage.py", "test"],
        cwd=SITE,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "\nOK" in done.stderr
