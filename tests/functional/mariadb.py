"""A MariaDB server for tests."""

import os
import subprocess

from tests.functional.apphost import free_port
from tests.functional.box import wait_for

OPENSSL = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -keyout key -out cert"


class Server:
    """A server of the test's own, on loopback and a socket; ``options`` are lines for it."""

    def __init__(self, folder, *options):
        self.folder, self.port, self.socket = folder, free_port(), folder / "socket"
        self.config = folder / "server.cnf"
        subprocess.run(OPENSSL.split(), cwd=folder, check=True, capture_output=True)
        lines = [
            "[mariadbd]",
            "user=root",
            f"datadir={folder}/data",
            f"socket={self.socket}",
            f"port={self.port}",
            "bind_address=127.0.0.1",
            f"ssl_cert={folder}/cert",
            f"ssl_key={folder}/key",
            "innodb_flush_log_at_trx_commit=2",
            *options,
        ]
        self.config.write_text("\n".join(lines) + "\n")
        install = ["mariadb-install-db", f"--defaults-file={self.config}"]
        subprocess.run(install, check=True, capture_output=True)
        self.start()

    def start(self):
        with open(self.folder / "log", "ab") as log:
            command = ["mariadbd", f"--defaults-file={self.config}"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: self.sql("SELECT 1") == "1", what="MariaDB")

    def sql(self, statement):
        """What a statement of root's returns."""
        command = ["mariadb", "--no-defaults", f"--socket={self.socket}", "-BN", "-e", statement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    @property
    def environment(self):
        """Where the client programs find it."""
        return {**os.environ, "MYSQL_UNIX_PORT": str(self.socket)}

    def close(self):
        self.process.terminate()
        self.process.wait()
