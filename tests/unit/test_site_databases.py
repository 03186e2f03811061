"""Where a site is told that its data is: the farm's PostgreSQL or MariaDB, or a host elsewhere."""

import importlib.util
import pathlib
from urllib.parse import parse_qs, urlsplit

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HOSTS = {
    "database": [{"id": "db1", "address": "10.0.0.1"}, {"id": "db2", "address": "10.0.0.2"}],
    "mariadb": [{"id": "m1", "address": "10.0.0.3"}, {"id": "m2", "address": "10.0.0.4"}],
}
PORTS = {"postgres": {"port": 5432}, "pgbouncer": {"port": 6432}, "mariadb": {"port": 3306}}
BASE = {
    "name": None,
    "user": None,
    "host": None,
    "port": None,
    "pooled": True,
    "engine": "postgres",
}
SECRETS = {engine: {"users": {"paper": f"{engine}/pw"}} for engine in ("postgres", "mariadb")}


def load(**database):
    """The module `sites` with one site, whose database is told as given."""
    spec = importlib.util.spec_from_file_location("sites_under_test", ROOT / "_modules/sites.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    site = {"database": BASE | {"read_replicas": True} | database}
    primaries = {"postgres": "10.0.0.1", "mariadb": "10.0.0.3"}
    module.__salt__ = {
        "settings.site": lambda name: site,
        "settings.get": PORTS.get,
        "inventory.peers": HOSTS.get,
        "inventory.primary": lambda service="postgres": primaries[service],
    }
    module.__pillar__ = {"sites": {"paper": {}}, "secrets": SECRETS, "environment": "lab"}
    return module


def told(module):
    return {k: urlsplit(v) for k, v in module._databases(module.get("paper")).items() if "URL" in k}


def test_mariadb_names_the_host_that_takes_writes():
    found = told(load(engine="mariadb"))
    assert set(found) == {"DATABASE_URL", "REPLICA_URL"}
    url = found["DATABASE_URL"]
    assert (url.scheme, url.hostname, url.port, url.path) == ("mysql", "10.0.0.3", 3306, "/paper")
    assert url.password == "mariadb%2Fpw"
    assert parse_qs(url.query)["ssl_mode"] == ["REQUIRED"]
    assert found["REPLICA_URL"].hostname == "10.0.0.4"


def test_postgres_goes_through_the_pooler():
    found = told(load())
    assert {key: url.netloc.rsplit(":", 1)[1] for key, url in found.items()} == {
        "DATABASE_URL": "6432",
        "DATABASE_DIRECT_URL": "5432",
        "REPLICA_URL": "6432",
    }


@pytest.mark.parametrize(
    ("engine", "port", "expected"),
    [
        ("postgres", None, "postgres://paper:postgres%2Fpw@rds.test:5432/paper?sslmode=require"),
        ("postgres", 5433, "postgres://paper:postgres%2Fpw@rds.test:5433/paper?sslmode=require"),
        ("mariadb", None, "mysql://paper:mariadb%2Fpw@rds.test:3306/paper?ssl_mode=REQUIRED"),
    ],
)
def test_a_database_elsewhere_is_only_told_to_the_site(engine, port, expected):
    module = load(engine=engine, host="rds.test", port=port)
    found = module._databases(module.get("paper"))
    assert list(found) == ["DATABASE_URL"]
    assert found["DATABASE_URL"].startswith(expected)
    assert module.hosted(engine) == {}


def test_each_engine_hosts_its_own_sites():
    module = load(engine="mariadb")
    assert list(module.hosted("mariadb")) == ["paper"]
    assert module.hosted("postgres") == {}
