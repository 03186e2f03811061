"""Pebble, a real ACME server, for tests: asking for proofs wherever it is told that names are."""

import json
import os
import subprocess

from tests.functional.road import until

API, DNS, MANAGEMENT, NAMES = 15000, 15053, 15001, 15055


class Pebble:
    """
    The server and its DNS.

    address
        Where both listen.
    names_at
        The address that they take every host name to have, until :meth:`move_names`.
    ports
        Of HTTP and of HTTPS there.
    days
        How long its certificates are valid.
    place
        Turns a command into one that runs where that address is.
    """

    def __init__(self, folder, address, names_at, ports=(80, 443), days=90, place=list):
        self.folder, self.address, self.place = folder, address, place
        self.authority = folder / "acme.crt"  # of the server's own https
        self.directory = f"https://{address}:{API}/dir"
        key = folder / "acme.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-subj", "/CN=acme", "-addext", f"subjectAltName=IP:{address}", "-days", "2",
             "-keyout", key, "-out", self.authority],
            check=True, capture_output=True,
        )  # fmt: skip
        settings = {
            "listenAddress": f"{address}:{API}",
            "managementListenAddress": f"{address}:{MANAGEMENT}",
            "certificate": str(self.authority),
            "privateKey": str(key),
            "httpPort": ports[0],
            "tlsPort": ports[1],
            "certificateValidityPeriod": days * 86400,
        }
        (folder / "pebble.json").write_text(json.dumps({"pebble": settings}))
        # No waiting before a proof is asked for, and each order wants one of its own.
        environment = {**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0"}
        commands = (
            ["pebble-challtestsrv", "-defaultIPv4", names_at, "-defaultIPv6", "", "-http01", "",
             "-https01", "", "-tlsalpn01", "", "-dns01", f"{address}:{DNS}",
             "-management", f"{address}:{NAMES}"],
            ["pebble", "-config", str(folder / "pebble.json"), "-dnsserver", f"{address}:{DNS}"],
        )  # fmt: skip
        with (folder / "pebble.log").open("w") as log:
            self.processes = [
                subprocess.Popen(place(command), stdout=log, stderr=log, env=environment)
                for command in commands
            ]
        until(lambda: self._ask(self.directory))

    def move_names(self, address):
        """Have every host name at another address from now on."""
        given = json.dumps({"ip": str(address)})
        self._ask(f"http://{self.address}:{NAMES}/set-default-ipv4", "--data", given)

    def root(self):
        """The certificate that those that it issues go back to."""
        return self._ask(f"https://{self.address}:{MANAGEMENT}/roots/0")

    def stop(self):
        for process in self.processes:
            process.terminate()
            process.wait(10)

    def _ask(self, url, *options):
        command = ["curl", "-sSf", "--noproxy", "*", "--cacert", str(self.authority)]
        command = self.place([*command, *options, url])
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
