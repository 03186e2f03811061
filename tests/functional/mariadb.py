"""A MariaDB server for tests."""

import contextlib
import os
import pathlib
import subprocess
import tempfile
import types

from tests.functional.apphost import free_port
from tests.functional.box import wait_for

LOGGING = ["log_bin=binlog", "log_slave_updates=1", "gtid_strict_mode=1", "skip_name_resolve=1"]
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


@contextlib.contextmanager
def pair():
    """
    A primary on 127.0.0.1 and its replica on 127.0.0.2, on the same port; the user ``backup``, with
    the password ``pw``, may do everything on both.
    """
    with tempfile.TemporaryDirectory(prefix="saltern-") as folder, contextlib.ExitStack() as stack:
        folders = [pathlib.Path(folder, name) for name in ("m1", "m2")]
        for one in folders:
            one.mkdir()
        primary = Server(folders[0], *LOGGING, "server_id=1")
        stack.callback(primary.close)
        address = ["bind_address=127.0.0.2", f"port={primary.port}", "read_only=1"]
        replica = Server(folders[1], *LOGGING, *address, "server_id=2")
        stack.callback(replica.close)
        replica.sql(
            f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={primary.port},"
            " MASTER_USER='backup', MASTER_PASSWORD='pw', MASTER_USE_GTID=slave_pos"
        )
        primary.sql("CREATE USER backup@'127.0.0.%' IDENTIFIED BY 'pw'")
        primary.sql("GRANT ALL ON *.* TO backup@'127.0.0.%'")
        replica.sql("START SLAVE")
        yield types.SimpleNamespace(primary=primary, replica=replica)
