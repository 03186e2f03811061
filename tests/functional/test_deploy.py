"""Ships of a tiny Django site into a box: real git, virtualenv, uWSGI emperor and nginx."""

import http.client
import json
import socket
import threading
import time

import pytest

from tests.functional.box import Box, machine_has, wait_for
from tests.functional.project import Project

DATABASE = "/srv/sites/tiny/shared/media/tiny.sqlite3"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Host(Box):
    """An app host that ships the tiny site."""

    def __init__(self, folder):
        missing = machine_has("git", "uwsgi", "nginx", "unshare", "ss")
        assert not missing, f"This machine lacks {', '.join(missing)}."
        self.port = free_port()
        self.project = Project(folder / "srv" / "tiny.git")
        self.pillar = {
            "environment": "test",
            "hosts": {"app1": {"address": "127.0.0.2", "roles": ["app"], "settings": {}}},
            "sites": {
                "tiny": {
                    "repository": "/srv/tiny.git",
                    "settings_module": "tiny.settings",
                    "wsgi_module": "tiny.wsgi",
                    "domains": ["tiny.test"],
                    "environment": {"DATABASE_URL": DATABASE},
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
        super().__init__(folder, self.pillar)
        self.run("git", "config", "--system", "--add", "safe.directory", "*")
        self.apply("django")
        self.run("mkdir", "-p", "/etc/uwsgi/sites", "/etc/uwsgi/vassals")
        self.render("uwsgi/files/tmpfiles.conf", "/etc/tmpfiles.d/box.conf")
        self.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/box.conf")
        self.render("uwsgi/files/emperor.ini", "/etc/uwsgi/emperor.ini")
        self.render("uwsgi/files/site.ini", "/etc/uwsgi/sites/tiny.ini", name="tiny")
        self.render("nginx/files/nginx.conf", "/etc/nginx/box.conf")
        self.emperor = self.start("uwsgi", "--ini", "/etc/uwsgi/emperor.ini", log="uwsgi.log")
        self.nginx = self.start(
            "nginx", "-c", "/etc/nginx/box.conf", "-g", "daemon off;", log="nginx.log"
        )
        wait_for(lambda: self.get("/.saltern/nginx", host="other"), what="nginx")

    def get(self, path, host="tiny.test", timeout=30):
        """Status, release and body of a page through nginx; ``None`` if it closed the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path, headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.getheader("X-Release"), answer.read().decode()
        except http.client.RemoteDisconnected:
            return None
        finally:
            connection.close()

    def ship(self, **named):
        return self.call("deploy.ship", **named)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    host = Host(tmp_path_factory.mktemp("host"))
    try:
        yield host
    finally:
        host.close()


class Load(threading.Thread):
    """Asks for the page again and again while something else happens; what went wrong."""

    def __init__(self, host):
        super().__init__(daemon=True)
        self.host, self.wrong, self.answers, self.slowest = host, [], 0, 0.0
        self._end = threading.Event()

    def run(self):
        while not self._end.is_set():
            began = time.monotonic()
            try:
                answer = self.host.get("/")
            except OSError as error:
                answer = error
            self.slowest = max(self.slowest, time.monotonic() - began)
            if not isinstance(answer, tuple) or answer[0] != 200:
                self.wrong.append(answer)
            self.answers += 1
            time.sleep(0.005)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self.join()


def phases(report):
    return {entry["phase"]: entry for entry in report["phases"]}


@pytest.fixture(scope="module")
def first(host):
    """The site's first release, live."""
    report = host.ship()
    assert report["result"], report["comment"]
    return report


def test_a_first_ship_goes_through_all_phases(host, first):
    names = "preflight fetch build static migrate activate verify workers prune".split()
    assert [entry["phase"] for entry in first["phases"]] == names
    assert host.get("/")[:2] == (200, first["release"])
    assert "applied" in phases(first)["migrate"]["comment"]
    live = host.call("deploy.status")["tiny"]
    assert live["live"] == first["release"]


def test_the_same_revision_again_changes_nothing(host, first):
    before = host.call("deploy.status")["tiny"]
    report = host.ship()
    assert report["comment"] == f"{before['live']} was live already."
    after = host.call("deploy.status")["tiny"]
    for facts in (before, after):  # every look at it is a request
        for slot in facts["slots"].values():
            slot.pop("requests")
    assert after == before


def test_the_running_site_can_not_write_its_code(host, first):
    for where in ("releases", "virtualenvs", "shared/static", "deploy"):
        command = ["find", f"/srv/sites/tiny/{where}", "-writable", "-not", "-type", "l"]
        found = host.run("setpriv", "--reuid=site-tiny", "--regid=site-tiny", "--clear-groups",
                         *command, check=False).stdout  # fmt: skip
        assert not found, found


def test_a_second_release_replaces_the_first_without_a_lost_request(host, first):
    sha = host.project.commit("two")
    with Load(host) as load:
        report = host.ship()
        answer = host.get("/")
    assert report["result"], report["comment"]
    assert report["sha"] == sha
    assert answer[:2] == (200, report["release"])
    assert load.answers > 20
    assert load.wrong == []
    # A page of the release before still finds its files.
    old = first["release"]
    name = json.loads(
        host.run("cat", f"/srv/sites/tiny/releases/{old}/.saltern/static/staticfiles.json").stdout
    )["paths"]["site.css"]
    assert host.get(f"/static/{name}")[0] == 200
    assert "two" in host.get(answer[2].split()[1])[2]


BROKEN = {
    "syntax error": ({"tiny/urls.py": "def"}, "static"),
    "import error": ({"tiny/wsgi.py": "import nothing_of_this_name"}, "activate"),
    "missing dependency": ({"requirements.txt": "django==5.2.*\nsaltern-none==9.9\n"}, "build"),
    "missing requirements": ({"requirements.txt": "-r other.txt\n"}, "build"),
    "failing check": (
        {"things/models.py": "from django.db import models\nclass Thing(models.Model):\n"
         "    name = models.CharField()\n    other = models.ForeignKey('No.Such', models.CASCADE)"},
        "static",
    ),
    "failing migration": (
        {"things/migrations/0002_fails.py": """
            from django.db import migrations
            def fail(apps, schema_editor):
                raise ValueError("a-secret-key-that-is-long-enough-to-be-one")
            class Migration(migrations.Migration):
                dependencies = [("things", "0001_initial")]
                operations = [migrations.RunPython(fail)]
        """},
        "migrate",
    ),
    "failing health": ({"tiny/urls.py": """
        from django.http import HttpResponse
        from django.urls import path
        urlpatterns = [path("health/", lambda request: HttpResponse("ill", status=500))]
    """}, "activate"),
}  # fmt: skip


@pytest.mark.parametrize("strategy", ["slots", "touch"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_release_never_goes_live(host, first, case, strategy):
    files, phase = BROKEN[case]
    before = host.call("deploy.status")["tiny"]["live"]
    if strategy == "touch" and case == "failing health":
        pytest.skip("touch can only go back: see test_touch_goes_back")
    host.project.commit(f"broken {case}", files)
    if "things/migrations/0002_fails.py" in files:
        path = host.project.folder / "things/migrations/0002_fails.py"
    else:
        path = None
    with Load(host) as load:
        report = host.call("deploy.ship", fails=True, strategy=strategy)
    if path:
        path.unlink()
    assert not report["result"]
    assert report["comment"].startswith(f"{phase}:"), report["comment"]
    assert "a-secret-key" not in json.dumps(report)
    assert load.wrong == []
    assert host.get("/")[1] == before
    host.project.commit(f"mended {case} {strategy}")
    mended = host.ship(strategy=strategy)
    assert mended["result"], mended["comment"]
    assert host.get("/")[1] == mended["release"]
