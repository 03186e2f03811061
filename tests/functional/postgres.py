"""A PostgreSQL server for tests."""

import pathlib
import subprocess

from tests.functional.apphost import free_port
from tests.functional.box import wait_for

POSTGRES = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))[-1:]


class Server:
    """A PostgreSQL server of the test's own, on loopback."""

    def __init__(self, folder):
        assert POSTGRES, "This machine lacks postgresql."
        self.port, self.folder, self.programs = free_port(), folder, str(POSTGRES[0])
        folder.chmod(0o755)
        self._run("install", "--directory", "--owner=postgres", folder / "data")
        self._as_postgres("initdb", "--pgdata", folder / "data", "--auth=trust", "--no-sync")
        command = self._command(
            "postgres", "-D", folder / "data", "-p", self.port, "-c", "listen_addresses=127.0.0.1",
            "-c", "unix_socket_directories=", "-c", "fsync=off",
        )  # fmt: skip
        with open(folder / "postgres.log", "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: self.sql("SELECT 1", "postgres") == "1", what="PostgreSQL")
        self.sql("CREATE USER tiny PASSWORD 'a-password'", "postgres")
        self.sql("CREATE DATABASE tiny OWNER tiny", "postgres")
        self.url = f"postgres://tiny:a-password@127.0.0.1:{self.port}/tiny"

    @staticmethod
    def _command(program, *arguments):
        drop = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        drop += ["--pdeathsig=KILL", "--", str(POSTGRES[0] / program)]
        return [*drop, *map(str, arguments)]

    @staticmethod
    def _run(*command):
        return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)

    def _as_postgres(self, program, *arguments):
        return self._run(*self._command(program, *arguments))

    def sql(self, statement, database="tiny"):
        try:
            return self._as_postgres(
                "psql", "-h", "127.0.0.1", "-p", self.port, "-U", "postgres", "-d", database,
                "-Atc", statement,
            ).stdout.strip()  # fmt: skip
        except subprocess.CalledProcessError as error:
            raise OSError(error.stderr) from error

    def close(self):
        self.process.terminate()
        self.process.wait()
