"""
A farm on loopback: a real master, and app hosts in boxes of their own with real minions of it.

All hosts begin as copies of one that was set up: ``image`` makes it.
"""

import json
import pathlib
import sys

from tests.functional.apphost import AppHost, free_port
from tests.functional.box import REPO, Box, wait_for


def image(folder, project, pillar):
    """Set up one host and ship its first release, for others to be copies of; its folder."""
    host = AppHost(folder, project, minion=next(iter(pillar["hosts"])), pillar=pillar)
    try:
        report = host.ship()
        assert report["result"], report["comment"]
    finally:
        host.close()
    return host.folder


class Master(Box):
    """The master, and the commands beside it."""

    def __init__(self, folder, pillar):
        super().__init__(folder, pillar, "master")
        ports = {"ret_port": free_port(), "publish_port": free_port()}
        options = {
            **ports,
            "interface": "127.0.0.1",
            "root_dir": str(folder / "salt"),
            "file_roots": {"base": [str(REPO / "salt")]},
            "pillar_roots": {"base": [str(folder / "pillar")]},
            # Below the root folder: Salt would put it there anyway, at its whole path.
            "pki_dir": str(folder / "salt/pki"),
            "module_dirs": [str(REPO)],
            "auto_accept": True,
            "gather_job_timeout": 60,
            "log_level_logfile": "warning",
        }
        (folder / "config/master").write_text(json.dumps(options), encoding="utf-8")
        # What a minion of it is told.
        self.known = {"master": "127.0.0.1", "master_port": ports["ret_port"]}
        self.start(*program(self, "salt-master"), log="master.log")

    def ask(self, function, *words, patience=900):
        """What all minions say. Those that say nothing within so many seconds are left out."""
        command = [*program(self, "salt"), "--out=json", "--static", f"--timeout={patience}"]
        done = self.run(*command, "*", function, *words, check=False)
        try:
            said = json.loads(done.stdout)
        except ValueError:  # nobody is there yet
            return {}
        return {host: answer for host, answer in said.items() if answer is not False}

    def runner(self, function, *words):
        """A runner's exit code, what it returned and what it showed."""
        command = [*program(self, "salt-run"), "--out=json", function, *words]
        done = self.run(*command, check=False)
        return done.returncode, json.loads(done.stdout), done.stderr

    def accepted(self):
        """The minions whose key it has accepted."""
        return [path.name for path in (self.folder / "salt/pki/minions").glob("app*")]

    def wait_for_minions(self, count):
        wait_for(
            lambda: len(self.ask("test.ping", patience=15)) == count, 300, "the minions' answer"
        )

    def start_servers(self, hosts):
        """Let minions write nginx's configuration for their own ports, then start what serves."""
        self.ask("cp.get_template", "salt://nginx/files/nginx.conf", "/etc/nginx/box.conf")
        for host in hosts:
            host.start_servers()
            wait_for(host.well, 60, f"the site on {host.minion}")


class Host(AppHost):
    """A copy of the host that was set up first, with a minion of the master."""

    def __init__(self, folder, project, pillar, minion, image, master):
        self.project, self.pillar = project, pillar
        self.port = pillar["hosts"][minion]["settings"]["nginx"]["port"]
        Box.__init__(self, folder, {}, minion, image, file_client="remote", **master.known)
        self.offer_project()
        self.start(*program(self, "salt-minion"), log="minion.log")


def program(box, name):
    """The command line of one of Salt's programs, with the configuration of a box."""
    # It keeps its byte-code, as on a real host, but not in the checkout. Only Salt: an app server
    # that looked there would find none of its site's.
    kept = ["-u", "PYTHONDONTWRITEBYTECODE", f"PYTHONPYCACHEPREFIX={box.folder.parent}/bytecode"]
    path = pathlib.Path(sys.executable).with_name(name)
    return ["env", *kept, path, f"--config-dir={box.folder}/config"]
