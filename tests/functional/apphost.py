"""An app host in a box, with nginx and the uWSGI emperor, that ships the tiny site."""

import http.client
import socket

from tests.functional.box import Box, machine_has, wait_for

SQLITE = "/srv/sites/tiny/shared/media/tiny.sqlite3"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def told(ports, database=SQLITE):
    """
    The pillar of hosts that ship the tiny site.

    ports
        Where nginx listens, by minion id: the hosts of a test share the loopback interface.
    database
        The site's DATABASE_URL.
    """
    return {
        "environment": "test",
        "hosts": {
            minion: {
                "address": "127.0.0.2",
                "roles": ["app"],
                "settings": {"nginx": {"port": port}},
            }
            for minion, port in ports.items()
        },
        "sites": {
            "tiny": {
                "repository": "file:///srv/project",
                "settings_module": "tiny.settings",
                "wsgi_module": "tiny.wsgi",
                "domains": ["tiny.test"],
                "environment": {"DATABASE_URL": database},
                "database": {"host": "127.0.0.1"},
                "deploy": {"health_timeout": "20s"},
            }
        },
        "overrides": {"uwsgi": {"processes": 2}},
        "secrets": {
            "sites": {"tiny": {"secret_key": "a-secret-key-that-is-long-enough-to-be-one"}},
            "postgres": {"users": {"tiny": "a-password"}},
        },
    }


class AppHost(Box):
    """An app host that ships the tiny site. It may be told another ``pillar`` than :func:`told`."""

    def __init__(self, folder, project, database=SQLITE, minion="app1", pillar=None):
        lacks = machine_has("git", "uwsgi", "nginx", "unshare", "ss")
        assert not lacks, f"This machine lacks {', '.join(lacks)}."
        self.project = project
        self.pillar = pillar or told({minion: free_port()}, database)
        self.port = self.pillar["hosts"][minion]["settings"]["nginx"]["port"]
        super().__init__(folder, self.pillar, minion)
        self.offer_project()
        self.run("git", "config", "--system", "--add", "safe.directory", "*")
        self.apply("django")
        self.run("mkdir", "-p", "/etc/uwsgi/sites", "/etc/uwsgi/vassals")
        self.render("uwsgi/files/tmpfiles.conf", "/etc/tmpfiles.d/box.conf")
        self.render("uwsgi/files/emperor.ini", "/etc/uwsgi/emperor.ini")
        self.render("uwsgi/files/site.ini", "/etc/uwsgi/sites/tiny.ini", name="tiny")
        self.run("chgrp", "site-tiny", "/etc/uwsgi/sites/tiny.ini")
        self.run("chmod", "0640", "/etc/uwsgi/sites/tiny.ini")
        self.render("nginx/files/nginx.conf", "/etc/nginx/box.conf")
        self.start_servers()

    def offer_project(self):
        """The repository, where the site's builder may read it."""
        self.run("mkdir", "-p", "/srv/project")
        self.run("mount", "--bind", self.project.folder, "/srv/project")

    def start_servers(self):
        """The emperor and nginx, as at a host's boot."""
        self.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/box.conf")
        self.emperor = self.start("uwsgi", "--ini", "/etc/uwsgi/emperor.ini", log="uwsgi.log")
        self.nginx = self.start(
            "nginx", "-c", "/etc/nginx/box.conf", "-g", "daemon off;", log="nginx.log"
        )
        wait_for(lambda: self.get("/.saltern/nginx", host="other"), what="nginx")

    def get(self, path, host="tiny.test", timeout=30):
        """Status, release and body of a page through nginx."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path, headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.getheader("X-Release"), answer.read().decode()
        finally:
            connection.close()

    def well(self):
        return self.get("/")[0] == 200

    def ship(self, **named):
        return self.call("deploy.ship", **named)
