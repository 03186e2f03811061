"""An app host in a box, with nginx and the uWSGI emperor, that ships the tiny site."""

import http.client
import socket

from tests.functional.box import Box, machine_has, wait_for

SQLITE = "/srv/sites/tiny/shared/media/tiny.sqlite3"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class AppHost(Box):
    """An app host that ships the tiny site."""

    def __init__(self, folder, project, database=SQLITE, minion="app1"):
        missing = machine_has("git", "uwsgi", "nginx", "unshare", "ss")
        assert not missing, f"This machine lacks {', '.join(missing)}."
        self.port = free_port()
        self.project = project
        self.pillar = {
            "environment": "test",
            "hosts": {minion: {"address": "127.0.0.2", "roles": ["app"], "settings": {}}},
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
            "overrides": {"nginx": {"port": self.port}, "uwsgi": {"processes": 2}},
            "secrets": {
                "sites": {"tiny": {"secret_key": "a-secret-key-that-is-long-enough-to-be-one"}},
                "postgres": {"users": {"tiny": "a-password"}},
            },
        }
        super().__init__(folder, self.pillar, minion)
        # Where the site's builder may read it.
        self.run("mkdir", "/srv/project")
        self.run("mount", "--bind", project.folder, "/srv/project")
        self.run("git", "config", "--system", "--add", "safe.directory", "*")
        self.apply("django")
        self.run("mkdir", "-p", "/etc/uwsgi/sites", "/etc/uwsgi/vassals")
        self.render("uwsgi/files/tmpfiles.conf", "/etc/tmpfiles.d/box.conf")
        self.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/box.conf")
        self.render("uwsgi/files/emperor.ini", "/etc/uwsgi/emperor.ini")
        self.render("uwsgi/files/site.ini", "/etc/uwsgi/sites/tiny.ini", name="tiny")
        self.run("chgrp", "site-tiny", "/etc/uwsgi/sites/tiny.ini")
        self.run("chmod", "0640", "/etc/uwsgi/sites/tiny.ini")
        self.render("nginx/files/nginx.conf", "/etc/nginx/box.conf")
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

    def ship(self, **named):
        return self.call("deploy.ship", **named)
