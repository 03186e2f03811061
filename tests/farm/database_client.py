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
import sys
import threading
import time

import environ
import psycopg

INSERT = "INSERT INTO farm_writes (client, number) VALUES (%s, %s)"
PAUSE = 0.005


def connect():
    """As the site's own settings read DATABASE_URL: libpq would give the port to one host only."""
    url = environ.Env.db_url_config(os.environ["DATABASE_URL"])
    named = {
        "host": "HOST",
        "port": "PORT",
        "dbname": "NAME",
        "user": "USER",
        "password": "PASSWORD",
    }
    given = {word: url[key] for word, key in named.items()}
    return psycopg.connect(**given, **url["OPTIONS"], autocommit=True, prepare_threshold=None)


class Client(threading.Thread):
    """Writes until told to stop; a failed attempt gets a new connection and a new number."""

    def __init__(self, number, stop):
        super().__init__()
        self.number, self.stop = number, stop
        self.acknowledged, self.moments, self.failed, self.slowest = [], [], 0, 0.0

    def run(self):
        connection, row = None, 0
        while not self.stop.exists():
            row, began = row + 1, time.monotonic()
            try:
                connection = connection or connect()
                connection.execute(INSERT, (self.number, row))
            except psycopg.Error as error:
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
    for line in pathlib.Path(env_file).read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals:
            os.environ[name] = value
    writers = [Client(number, pathlib.Path(stop)) for number in range(int(clients))]
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
