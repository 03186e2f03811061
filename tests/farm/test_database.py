"""The database tier on the lab: a replica that follows, a dropped table that comes back, a verified
backup."""

import time

import pytest

from tests.farm.database_farm import SITE, caught_up, primary_and_replica, psql


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
