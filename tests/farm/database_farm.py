"""What the database tier's tests share: questions to the servers, and rows that are counted."""

import concurrent.futures
import contextlib
import json
import pathlib

from tests.farm.waiting import until

CLIENT = pathlib.Path(__file__).with_name("database_client.py").read_text()
SITE, APP, BACKUP = "newsroom", "app1", "backup1"
HOSTS = ("db1", "db2")


def psql(lab, host, sql, database=SITE):
    """A statement by the server's own account; returns what it prints."""
    command = ["runuser", "-u", "postgres", "--", "psql", "-XqAt", "-v", "ON_ERROR_STOP=1"]
    return lab.run(host, *command, "-c", sql, database).stdout.strip()


def call(lab, host, function, *arguments):
    """What a function answers on one host."""
    return lab.salt(host, function, *arguments)[host]


def status(lab, host):
    return call(lab, host, "database.status")


def role(lab, host):
    """What a host's server is: primary, replica or stopped. Asks it past Salt."""
    command = ["runuser", "-u", "postgres", "--", "psql", "-XqAtc", "SELECT pg_is_in_recovery()"]
    said = lab.run(host, *command, check=False).stdout.strip()
    return {"f": "primary", "t": "replica"}.get(said, "stopped")


def primary_and_replica(lab):
    states = {host: role(lab, host) for host in HOSTS}
    assert sorted(states.values()) == ["primary", "replica"], states
    return sorted(states, key=states.get)


def caught_up(lab, host, seconds=120):
    """Wait until a replica has applied all that its primary has."""
    (primary,) = (one for one in HOSTS if one != host)
    level = (
        "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        " AND replay_lsn = pg_current_wal_lsn()"
    )
    until(seconds, lambda: psql(lab, primary, level) == "1")


def apply(lab, host, *arguments):
    """``state.apply``; returns the states that failed and those that changed something, by id."""
    answer = call(lab, host, "state.apply", *arguments)
    assert isinstance(answer, dict), answer
    states = {key.split("_|-")[1]: state for key, state in answer.items()}
    failed = {key: state["comment"] for key, state in states.items() if state["result"] is False}
    changed = {key: state["changes"] for key, state in states.items() if state["changes"]}
    return failed, changed


def site_python(lab):
    """The Python of the site's live release on an app host, and the file of its environment."""
    root = f"/srv/sites/{SITE}"
    release = pathlib.PurePath(lab.run(APP, "readlink", f"{root}/current").stdout.strip()).name
    note = json.loads(lab.run(APP, "cat", f"{root}/deploy/releases/{release}.json").stdout)
    return f"{note['virtualenv']}/bin/python", f"{root}/shared/.env"


@contextlib.contextmanager
def writing(lab, clients=2):
    """
    Clients on an app host write while the block runs. Yields a dictionary that holds, after the
    block, what tests/farm/database_client.py tells.
    """
    python, env_file = site_python(lab)
    stop = "/tmp/farm-writes-stop"
    lab.run(APP, "rm", "-f", stop)
    told = {}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(lab.run, APP, python, "-", env_file, clients, stop, stdin=CLIENT)
        try:
            yield told
        finally:
            lab.run(APP, "touch", stop)
            done = running.result(120)
    told.update(json.loads(done.stdout), said=done.stderr[-2000:])


def lost(lab, host, told):
    """The rows that were acknowledged and aren't there, as (client, number)."""
    return missing(told, psql(lab, host, "SELECT client || ' ' || number FROM farm_writes"))


def missing(told, lines):
    """The rows that were acknowledged and don't stand in these lines, `client number` each."""
    there = {tuple(map(int, line.split())) for line in lines.splitlines()}
    acknowledged = {
        (client, number) for client, rows in enumerate(told["acknowledged"]) for number in rows
    }
    assert acknowledged, told["said"]
    return acknowledged - there
