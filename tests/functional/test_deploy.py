"""Ships of a tiny Django site into a box: real git, virtualenv, uWSGI emperor and nginx."""

import http.server
import json
import threading
import time

import pytest

from tests.functional.apphost import AppHost
from tests.functional.box import wait_for
from tests.functional.project import FILES, Project


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    host = AppHost(folder, Project(folder / "tiny.git"))
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
    names = "preflight fetch build static migrate activate verify workers prune"
    assert " ".join(entry["phase"] for entry in first["phases"]) == names
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


# Until `activate` the strategies do the same.
CASES = [(case, "slots") for case in BROKEN]
CASES += [(case, "touch") for case, (_, phase) in BROKEN.items() if phase == "activate"]


@pytest.mark.parametrize(("case", "strategy"), CASES)
def test_a_broken_release_never_goes_live(host, first, case, strategy):
    files, phase = BROKEN[case]
    before = host.call("deploy.status")["tiny"]["live"]
    host.project.commit(f"broken {case}", files)
    with Load(host) as load:
        report = host.call("deploy.ship", fails=True, strategy=strategy)
    host.project.forget("things/migrations/0002_fails.py")
    assert not report["result"]
    assert report["comment"].startswith(f"{phase}:"), report["comment"]
    assert "a-secret-key" not in json.dumps(report)
    if strategy == "slots" or case != "failing health":
        assert load.wrong == []
    # With touch, an app that loads but isn't well is live until it is put back.
    assert host.get("/")[1] == before
    host.project.commit(f"mended {case} {strategy}")
    mended = host.ship(strategy=strategy)
    assert mended["result"], mended["comment"]
    assert host.get("/")[1] == mended["release"]


def test_rollback_is_quick_and_follows_the_history(host, first):
    live = []
    for version in ("x", "y"):
        host.project.commit(version)
        live.append(host.ship()["release"])
    with Load(host) as load:
        back = host.call("deploy.rollback")
    assert back["result"] and back["release"] == live[0]
    assert back["seconds"] < 3
    assert load.wrong == []
    assert host.get("/")[1] == live[0]
    further = host.call("deploy.rollback")
    assert further["release"] not in live
    again = host.ship()
    assert again["release"] == live[1]
    entries = host.call("deploy.history", limit=4)
    assert [e["action"] for e in entries] == ["ship", "rollback", "rollback", "ship"]
    assert [e["to"] for e in entries][-1] == live[1]


def test_requests_in_flight_are_finished(host, first):
    slow = []
    before = host.get("/")[1]
    thread = threading.Thread(target=lambda: slow.append(host.get("/slow/?seconds=6")))
    thread.start()
    time.sleep(0.5)
    host.project.commit("while one waits")
    report = host.ship()
    assert report["result"], report["comment"]
    assert host.get("/")[1] == report["release"]
    thread.join()
    assert slow == [(200, before, before)]


@pytest.fixture
def deploy_settings(host):
    """The site's ``deploy`` settings, to be changed; as they were afterwards."""
    settings = host.pillar["sites"]["tiny"]["deploy"]
    before = dict(settings)

    def change(**changes):
        settings.update(changes)
        host.write_pillar(host.pillar)

    yield change
    settings.clear()
    settings.update(before)
    host.write_pillar(host.pillar)


def test_two_ships_at_once_one_says_who_is_at_it(host, first, deploy_settings):
    go = host.folder / "srv/go"
    wait = "sh -c 'until [ -e /srv/go ]; do sleep 0.1; done'"
    deploy_settings(hooks={"before_activate": wait})
    host.project.commit("waits in a hook")
    one = host.background("deploy.ship")
    lock = host.folder / "srv/sites/tiny/deploy/lock"
    wait_for(lambda: '"phase": "activate"' in lock.read_text(), 60, "the hook")
    two = host.call("deploy.ship", fails=True)
    assert "is at it: ship of tiny since" in two["comment"]
    assert "in phase activate" in two["comment"]
    assert host.call("deploy.status")["tiny"]["ships"]["phase"] == "activate"
    go.touch()
    assert json.loads(one.communicate()[0])["local"]["result"]
    assert host.call("deploy.status")["tiny"]["ships"] is None


def test_a_hook_that_fails_stops_the_ship(host, first, deploy_settings):
    before = host.get("/")[1]
    deploy_settings(hooks={"after_build": "sh -c 'echo no good; exit 3'"})
    host.project.commit("is refused by a hook")
    report = host.call("deploy.ship", fails=True)
    assert report["comment"].startswith("build: The hook after_build failed with exit code 3")
    assert "no good" in report["comment"]
    assert host.get("/")[1] == before
    deploy_settings(hooks={"after_nothing": "true"})
    assert "is no hook" in host.call("deploy.ship", fails=True)["comment"]


def test_build_commands_make_static_files(host, first, deploy_settings):
    command = "sh -c 'mkdir -p things/static && id -un > things/static/who.txt'"
    deploy_settings(build_commands=[command])
    host.project.commit("is built by a command")
    assert host.ship()["result"]
    assert host.get("/static/who.txt")[2].strip() == "ship-tiny"


class Receiver(http.server.BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.server.posted.append(json.loads(self.rfile.read(length)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_notification_tells_and_never_stops_a_ship(host, first, deploy_settings):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.posted = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}/"
        deploy_settings(notify=["http://127.0.0.1:9/", "nonsense", place])
        host.project.commit("is told")
        report = host.ship()
        assert report["result"]
        server.shutdown()
    assert len(server.posted) == 1
    assert "succeeded" in server.posted[0]["text"]
    assert server.posted[0]["release"] == report["release"]


def test_maintenance_shows_the_sites_own_page(host, first):
    host.project.commit("has a page", {
        "things/templates/503.html": "Closed for a moment",
        "tiny/settings.py": FILES["tiny/settings.py"] + """
        TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates",
                      "APP_DIRS": True}]
    """})  # fmt: skip
    assert host.ship()["result"]
    assert host.call("deploy.maintenance", "on") is True
    status, _, body = host.get("/")
    assert (status, body) == (503, "Closed for a moment")
    assert host.get("/static/site.css")[0] == 200
    assert host.call("deploy.status")["tiny"]["maintenance"]
    assert host.call("deploy.maintenance", "on") is False
    assert host.call("deploy.maintenance", "off") is True
    assert host.get("/")[0] == 200


def test_a_held_site_is_not_shipped(host, first):
    host.call("deploy.lock", reason="sale")
    host.project.commit("too early")
    refused = host.call("deploy.ship", fails=True)
    assert "sale" in refused["comment"] and "deploy.unlock" in refused["comment"]
    assert host.call("deploy.unlock") is True
    assert host.ship()["result"]


MOMENTS = ["after_fetch", "after_build", "after_static", "after_migrate", "after_activate"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_ship_killed_between_two_phases_is_made_good(host, first, deploy_settings, moment):
    before = host.get("/")[1]
    deploy_settings(hooks={moment: "sleep 300"})
    host.project.commit(f"killed {moment}")
    ship = host.background("deploy.ship")
    wait_for(lambda: host.run("pgrep", "--exact", "sleep").stdout.count("\n") > 1, 60, moment)
    killed = host.run("pkill", "--signal=KILL", "--full", "salt-call.* deploy.ship")
    assert killed.returncode == 0
    ship.wait()
    # What it had started ends with it.
    wait_for(lambda: host.run("pgrep", "--exact", "sleep").stdout.count("\n") == 1, what="the end")
    status, release, _ = host.get("/")
    assert status == 200
    assert (release == before) == (moment != "after_activate")
    deploy_settings(hooks={})
    assert_whole(host, host.ship())


@pytest.mark.parametrize("seconds", [1.0, 1.5, 2.0, 2.5, 3.0, 4.0])
def test_a_ship_killed_at_any_moment_is_made_good(host, first, seconds):
    host.project.commit(
        f"killed after {seconds}", {"requirements.txt": f"django==5.2.*\n# {seconds}\n"}
    )
    with Load(host) as load:
        ship = host.background("deploy.ship")
        time.sleep(seconds)
        host.run("pkill", "--signal=KILL", "--full", "salt-call.* deploy.ship", check=False)
        ship.wait()
        assert_whole(host, host.ship())
    assert load.wrong == []


def assert_whole(host, report):
    """The ship went well and left nothing half-done."""
    assert report["result"], report["comment"]
    assert host.get("/")[:2] == (200, report["release"])
    current = host.run("readlink", "/srv/sites/tiny/current").stdout.strip()
    assert current.endswith(f"/{report['release']}")
    folders = host.run("ls", "/srv/sites/tiny/releases").stdout.split()
    assert sorted(folders) == host.call("release.list", "tiny")


def test_what_cannot_be_reached_or_stored_changes_nothing(host, first):
    before = host.get("/")[1]
    host.pillar["sites"]["tiny"]["repository"] = "file:///nowhere.git"
    host.write_pillar(host.pillar)
    away = host.call("deploy.ship", fails=True)
    assert away["comment"].startswith("fetch:")
    host.pillar["sites"]["tiny"]["repository"] = "file:///srv/project"
    host.pillar["sites"]["tiny"]["deploy"]["free_space"] = "900000G"
    host.write_pillar(host.pillar)
    full = host.call("deploy.ship", fails=True)
    assert "MB are free" in full["comment"]
    del host.pillar["sites"]["tiny"]["deploy"]["free_space"]
    host.write_pillar(host.pillar)
    assert host.get("/")[1] == before
    assert host.ship()["result"]


def test_a_damaged_mirror_is_mended(host, first):
    repo = host.folder / "srv/sites/tiny/repo"
    (repo / "refs/heads/main.lock").touch()
    host.project.commit("after a stale lock")
    assert host.ship()["result"]
    for file in repo.glob("objects/**/*"):
        if file.is_file():
            file.chmod(0o644)
            file.write_bytes(b"")
    host.project.commit("after a power cut")
    assert host.ship()["result"]


def test_revisions_by_branch_tag_and_sha(host, first):
    host.project.git("tag", "1.10")
    host.project.git("tag", "2")
    sha = host.project.git("rev-parse", "HEAD")
    quoted = host.call("deploy.plan", rev="1.10")
    assert quoted["release"].endswith(sha[:8])
    assert host.call("release.fetch", "tiny", sha[:12])["sha"] == sha
    number = host.run(*host.salt("deploy.plan"), "rev=1.10", check=False)
    assert "two pairs of quotes" in number.stdout + number.stderr and number.returncode
    whole = host.run(*host.salt("deploy.plan"), "rev=2").stdout
    assert sha[:8] in whole
    missing = host.call("deploy.ship", rev="no-such-branch", fails=True)
    assert "no branch, tag or commit" in missing["comment"]


def test_management_commands_run_as_the_site(host, first):
    said = host.call("deploy.manage", "tiny", "shell -c 'import os; print(os.getuid())'")
    uid = host.run("id", "-u", "site-tiny").stdout.strip()
    assert said.strip().endswith(uid)
    told = host.call("deploy.manage", "tiny", "no_such_command", fails=True)
    assert "Unknown command" in told
    settings = host.call("deploy.manage", "tiny", "diffsettings")
    assert "a-secret-key" not in settings


def test_clean_up_keeps_what_a_rollback_needs(host, first):
    for number in range(6):
        host.project.commit(f"more {number}")
        assert host.ship()["result"]
    found = host.call("deploy.status")["tiny"]
    assert len(found["releases"]) == 5
    assert found["previous"] in found["releases"] and found["live"] in found["releases"]
    folders = host.run("ls", "/srv/sites/tiny/releases").stdout.split()
    assert sorted(folders) == found["releases"]


def test_a_changed_environment_is_taken_over_by_a_reload(host, first):
    host.project.commit("shows a variable", {"tiny/urls.py": """
        import os
        from django.http import HttpResponse
        from django.urls import path
        urlpatterns = [path("health/", lambda r: HttpResponse("well")),
                       path("", lambda r: HttpResponse(os.environ.get("COLOUR", "none")))]
    """})  # fmt: skip
    assert host.ship()["result"]
    assert host.get("/")[2] == "none"
    host.pillar["sites"]["tiny"]["environment"]["COLOUR"] = "50%bl(ue"
    host.write_pillar(host.pillar)
    host.apply("django")
    with Load(host) as load:
        report = host.call("deploy.reload")
    assert report["result"], report["comment"]
    assert load.wrong == []
    assert host.get("/")[2] == "50%bl(ue"
