"""
Runs on an app host with the site's own Python: so many clients write rows through DATABASE_URL,
each row a transaction of its own, until a file appears.

    python database_client.py ENV_FILE CLIENTS STOP_FILE

Prints, as JSON: the numbers of the rows that were acknowledged to each client, how many attempts
failed, the slowest acknowledged one and the longest time without one, both in seconds.
"""

import itertools
import json
import os
import pathlib
import ssl
import sys
import threading
import time

import environ

try:
    import pymysql
except ImportError:
    pymysql = None  # the site's database is PostgreSQL
import psycopg

INSERT = "INSERT INTO farm_writes (client, number) VALUES (%s, %s)"
PAUSE = 0.005


ERRORS = (psycopg.Error, *([pymysql.Error] if pymysql else []))


def connect(env_file):
    """
    As the site's own settings read DATABASE_URL: libpq would give the port to one host only. The
    file is read each time, as sites on MariaDB are told in it where the writes go now.
    """
    for line in pathlib.Path(env_file).read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals:
            os.environ[name] = value
    url = environ.Env.db_url_config(os.environ["DATABASE_URL"])
    host, user, password = url["HOST"], url["USER"], url["PASSWORD"]
    if url["ENGINE"].endswith("mysql"):
        unchecked = ssl.create_default_context()
        unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
        where = {"host": host, "port": url["PORT"], "database": url["NAME"], "connect_timeout": 3}
        return pymysql.connect(
            **where, user=user, password=password, ssl=unchecked, autocommit=True, read_timeout=10
        )
    where = {"host": host, "port": url["PORT"], "dbname": url["NAME"], **url["OPTIONS"]}
    login = {"user": user, "password": password}
    return psycopg.connect(**where, **login, autocommit=True, prepare_threshold=None)


class Client(threading.Thread):
    """Writes until told to stop; a failed attempt gets a new connection and a new number."""

    def __init__(self, number, env_file, stop):
        super().__init__()
        self.number, self.env_file, self.stop = number, env_file, stop
        self.acknowledged, self.moments, self.failed, self.slowest = [], [], 0, 0.0

    def run(self):
        connection, row = None, 0
        while not self.stop.exists():
            row, began = row + 1, time.monotonic()
            try:
                connection = connection or connect(self.env_file)
                connection.cursor().execute(INSERT, (self.number, row))
            except ERRORS as error:
                print(f"client {self.number}: {error}", file=sys.stderr)
                connection, self.failed = None, self.failed + 1
                time.sleep(0.1)
                continue
            now = time.monotonic()
            self.acknowledged.append(row)
            self.moments.append(now)
            self.slowest = max(self.slowest, now - began)
            time.sleep(PAUSE)


def main(env_file, clients, stop):
    stop = pathlib.Path(stop)
    writers = [Client(number, env_file, stop) for number in range(int(clients))]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    moments = sorted(moment for writer in writers for moment in writer.moments)
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    told = {
        "acknowledged": [writer.acknowledged for writer in writers],
        "failed": sum(writer.failed for writer in writers),
        "slowest": max(writer.slowest for writer in writers),
        "longest_gap": max(gaps, default=None),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
