"""Ships of a tiny Django site into a box: real git, virtualenv, uWSGI emperor and nginx."""

import gzip
import http.server
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.functional.apphost import free_port
from tests.functional.box import wait_for
from tests.functional.project import FILES


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


def test_a_first_ship_goes_through_all_phases(host, first):
    names = "preflight fetch build static migrate activate verify workers prune"
    assert " ".join(entry["phase"] for entry in first["phases"]) == names
    assert host.get("/")[:2] == (200, first["release"])
    assert "applied" in phases(first)["migrate"]["comment"]
    live = host.call("deploy.status")["tiny"]
    assert live["live"] == first["release"]


def test_a_first_release_is_known_to_know_its_migrations(host, first):
    """There was no database when it was prepared; a rollback to it asks what it knows."""
    known = host.call("release.info", "tiny", first["release"])["migrations"]
    assert "things.0001_initial" in known


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


def test_all_code_is_compiled_as_the_site_can_not_write_byte_code(host, first):
    code = host.folder / "srv/sites/tiny/releases" / first["release"]
    sources = [path for path in code.rglob("*.py") if ".saltern" not in path.parts]
    missing = [p for p in sources if not [*p.parent.glob(f"__pycache__/{p.stem}.*.pyc")]]
    assert code / "manage.py" in sources
    assert not missing, missing


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


def test_what_is_ill_through_nginx_alone_goes_back_and_is_marked(host, first):
    before = host.get("/")[1]
    # Only nginx tells who asks.
    host.project.commit("ill through nginx", {"tiny/urls.py": FILES["tiny/urls.py"].replace(
        'return HttpResponse("well")',
        "return HttpResponse(status=500 if 'HTTP_X_FORWARDED_FOR' in request.META else 200)",
    )})  # fmt: skip
    report = host.call("deploy.ship", fails=True)
    assert report["comment"].startswith("verify: Through nginx, /health/ answers 500")
    assert report["comment"].endswith(f"{before} is live again.")
    assert host.get("/")[1] == before
    marked = host.call("deploy.rollback", to=report["release"], fails=True)
    assert "failed when it was live" in marked["comment"]
    host.project.commit("well through nginx")
    assert host.ship()["result"]


BALANCER = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend web
    bind 127.0.0.9:{port}
    default_backend app
backend app
    http-request set-header X-Through balancer
    server app1 127.0.0.1:{app}
"""


@pytest.fixture
def balancer(host, told):
    """A HAProxy that the inventory lists, in front of the host; it says so in a header."""
    port = free_port()
    told()  # the pillar is as it was, afterwards
    host.pillar["hosts"]["lb1"] = {"address": "127.0.0.9", "roles": ["loadbalancer"]}
    host.pillar["overrides"]["haproxy"] = {"port": port}
    host.write_pillar(host.pillar)
    (host.folder / "haproxy.cfg").write_text(BALANCER.format(port=port, app=host.port))
    process = host.start("haproxy", "-db", "-f", host.folder / "haproxy.cfg", log="haproxy.log")
    wait_for(lambda: socket.create_connection(("127.0.0.9", port), 1), what="haproxy")
    yield port
    host.run("pkill", "--exact", "haproxy")
    process.wait()


def test_what_is_ill_through_the_balancer_alone_goes_back(host, first, balancer):
    host.project.commit("well through the balancer")
    report = host.ship()
    assert phases(report)["verify"]["comment"] == "well through nginx and balancer 127.0.0.9"
    host.project.commit("ill through the balancer", {"tiny/urls.py": FILES["tiny/urls.py"].replace(
        'return HttpResponse("well")',
        "return HttpResponse(status=500 if 'HTTP_X_THROUGH' in request.META else 200)",
    )})  # fmt: skip
    failed = host.call("deploy.ship", fails=True)
    told = "verify: Through the balancer at 127.0.0.9, where the site was well before the ship"
    assert failed["comment"].startswith(told)
    assert host.get("/")[1] == report["release"]


def test_a_plan_tells_and_changes_nothing(host, first):
    before = host.call("deploy.status")["tiny"]["live"]
    sha = host.project.commit("is planned")
    told = host.call("deploy.ship", test=True)
    assert told["comment"] == f"Would replace {before} by {told['release']}."
    assert (told["live"], told["installs"], told["migrations"]) == (before, False, {})
    assert told["changes"][0].endswith("Version is planned")
    assert host.get("/")[1] == before
    shipped = host.ship()
    assert (shipped["sha"], shipped["release"]) == (sha, told["release"])
    assert phases(shipped)["build"]["comment"].startswith("was built already")


def test_a_check_says_what_would_stop_a_ship(host, first, told):
    assert set(host.call("deploy.check").values()) == {"ok"}
    told(repository="file:///nowhere.git")
    found = host.call("deploy.check", fails=True)
    assert found["repository"].startswith("Fetching from file:///nowhere.git failed")
    assert (found["host"], found["live release"]) == ("ok", "ok")


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


def test_the_slot_before_is_ready_as_long_as_it_is_to_be(host, first, deploy_settings):
    def slots():
        return host.call("deploy.status")["tiny"]["slots"]

    deploy_settings(rollback_window="1s")
    before = host.get("/")[1]
    host.project.commit("leaves a slot ready")
    assert host.ship()["result"]
    (ready,) = [name for name, slot in slots().items() if not slot["live"]]
    assert slots()[ready]["release"] == before and slots()[ready]["up"]
    assert f"slot {ready}, which ran {before}" in host.call("deploy.prune")
    assert list(slots()) != [ready] and len(slots()) == 1
    # Without a slot it takes a start, and works.
    assert host.call("deploy.rollback")["release"] == before
    deploy_settings(rollback_window="0s")
    host.project.commit("leaves none")
    assert host.ship()["result"]
    assert len(slots()) == 1


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


def test_hooks_run_around_each_phase_as_the_site(host, first, deploy_settings):
    said = "/srv/sites/tiny/shared/media/hooks"
    names = "preflight fetch build static migrate activate verify workers prune".split()
    hooks = [f"{when}_{name}" for name in names for when in ("before", "after")]
    deploy_settings(hooks={
        hook: f"sh -c 'echo {hook} $(id -un) $RELEASE >> {said}'" for hook in hooks
    })  # fmt: skip
    host.project.commit("has all hooks")
    release = host.ship()["release"]
    lines = host.run("cat", said).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [[hook, "site-tiny"] for hook in hooks]
    # As soon as there is a release, its environment.
    told = [line.split()[2:] for line in lines]
    assert told == [[]] * 5 + [[release]] * 13


def test_build_commands_make_static_files(host, first, deploy_settings):
    command = "sh -c 'mkdir -p things/static && id -un > things/static/who.txt'"
    deploy_settings(build_commands=[command])
    host.project.commit("is built by a command")
    assert host.ship()["result"]
    assert host.get("/static/who.txt")[2].strip() == "ship-tiny"


def test_builds_let_the_site_go_first(host, first, deploy_settings):
    look = "sleep 0.5; mkdir -p things/static; (nice; cat /proc/self/autogroup) >things/static/nice"
    deploy_settings(build_commands=[f"sh -c '{look}'"])
    host.project.commit("looks how much it yields")
    assert host.ship()["result"]
    own, session = host.get("/static/nice")[2].split(maxsplit=1)
    assert own == "15"  # beyond the ship's own
    assert session.split()[1:] == ["nice", "15"]


# How nice a worker was at its first answer, and is.
TELLS_NICENESS = {"tiny/urls.py": """
    import os
    from django.http import HttpResponse
    from django.urls import path
    seen = []
    def tell(request):
        seen.append(os.nice(0))
        return HttpResponse(f"{seen[0]} {seen[-1]}")
    urlpatterns = [path("health/", tell), path("", tell)]
"""}  # fmt: skip


def test_a_slot_that_starts_lets_the_live_one_go_first(host, first, deploy_settings):
    deploy_settings(rollback_window="0s")
    host.project.commit("tells how nice it is", TELLS_NICENESS)
    assert host.ship()["result"]
    assert host.get("/")[2] == "15 0"
    # A rollback is what visitors wait for: it starts the release afresh, and as fast as it can.
    host.project.commit("is not wanted")
    assert host.ship()["result"]
    assert host.call("deploy.rollback")["result"]
    assert host.get("/")[2] == "0 0"


def test_a_slot_that_takes_long_to_start_yields_no_longer(host, first, deploy_settings):
    deploy_settings(health_timeout="8s")
    slow = FILES["tiny/wsgi.py"] + "\n        import time; time.sleep(5)\n"
    host.project.commit("loads for long", {**TELLS_NICENESS, "tiny/wsgi.py": slow})
    report = host.ship()
    assert report["result"], report["comment"]
    assert host.get("/")[2] == "0 0"
    host.project.commit("loads at once again", {"tiny/wsgi.py": FILES["tiny/wsgi.py"]})


# Its second worker comes late, when the first one could have answered everything.
TELLS_WHAT_A_WORKER_KNOWS = {
    "tiny/urls.py": """
        import os
        from django.http import HttpResponse
        from django.urls import path
        answered = []
        def tell(request):
            before = " ".join(answered)
            answered.append(request.path)
            return HttpResponse(f"{os.getpid()} {before}")
        urlpatterns = [path("health/", tell), path("", tell)]
    """,
    "tiny/wsgi.py": FILES["tiny/wsgi.py"]
    + """
        import time, uwsgi
        uwsgi.post_fork_hook = lambda: time.sleep(uwsgi.worker_id() - 1)
    """,
}


def test_each_worker_has_answered_each_page_before(host, first, deploy_settings):
    host.project.commit("tells what a worker has answered", TELLS_WHAT_A_WORKER_KNOWS)
    assert host.ship()["result"]
    met = {}
    with ThreadPoolExecutor(4) as visitors:
        for _ in range(50):
            for _, _, text in visitors.map(host.get, ["/"] * 4):
                worker, *answered = text.split()
                met.setdefault(worker, answered)
            if len(met) == 2:
                break
    assert [{"/health/", "/"} <= set(answered) for answered in met.values()] == [True, True], met
    host.project.commit("starts at once again", {"tiny/wsgi.py": FILES["tiny/wsgi.py"]})


# A storage that is elsewhere, as S3 is; it writes down what it stores, in this order.
ELSEWHERE = {
    "tiny/storage.py": """
        from django.contrib.staticfiles.storage import ManifestFilesMixin
        from django.core.files.storage import FileSystemStorage
        class Elsewhere(ManifestFilesMixin, FileSystemStorage):
            def __init__(self):
                super().__init__(location="/srv/elsewhere/files", base_url="https://cdn.test/")
            def _save(self, name, content):
                with open("/srv/elsewhere/order", "a") as file:
                    print(name, file=file)
                return super()._save(name, content)
    """,
    "tiny/settings.py": FILES["tiny/settings.py"]
    + """
        STORAGES = {"staticfiles": {"BACKEND": "tiny.storage.Elsewhere"}}
    """,
}


def test_another_storage_gets_hashed_files_before_the_manifest(host, first, told):
    host.run("install", "--directory", "--owner=ship-tiny", "--mode=0755", "/srv/elsewhere")
    told(static_url="")
    host.project.commit("is stored elsewhere", ELSEWHERE)
    report = host.ship()
    assert report["result"], report["comment"]
    order = host.run("cat", "/srv/elsewhere/order").stdout.splitlines()
    assert order[-1] == "staticfiles.json"
    hashed = host.get("/")[2].split()[-1].removeprefix("https://cdn.test/")
    assert hashed in order[:-1] and hashed != "site.css"
    assert phases(report)["static"]["comment"].startswith("0 files, 0 new")
    host.project.forget("tiny/storage.py")


def test_static_files_are_packed_where_that_helps(host, first):
    host.project.commit("has a small file", {"things/static/small.css": "/* small */"})
    report = host.ship()
    assert report["result"], report["comment"]
    served = host.folder / "srv/sites/tiny/shared/static"
    (hashed,) = [path for path in served.glob("site.*.css") if "has a small" in path.read_text()]
    assert (
        gzip.decompress(hashed.with_name(f"{hashed.name}.gz").read_bytes()) == hashed.read_bytes()
    )
    packed = f"/srv/sites/tiny/shared/static/{hashed.name}.br"
    assert host.run("brotli", "--decompress", "--stdout", packed).stdout == hashed.read_text()
    assert not list(served.glob("small*.gz"))
    host.project.forget("things/static/small.css")


def test_what_is_prepared_is_on_the_disk_before_it_goes_live(host, first):
    log = host.folder / "srv/flushed"
    (host.folder / "srv/sync").write_text(
        '#!/bin/sh\necho "$* $(readlink /srv/sites/tiny/current)" >>/srv/flushed\n'
        'exec /srv/sync.own "$@"\n'
    )
    host.run("cp", "/usr/bin/sync", "/srv/sync.own")
    host.run("chmod", "0755", "/srv/sync")
    host.run("mount", "--bind", "/srv/sync", "/usr/bin/sync")
    try:
        host.project.commit("lies on the disk")
        report = host.ship()
    finally:
        host.run("umount", "/usr/bin/sync")
    assert report["result"], report["comment"]
    (flushed,) = [line for line in log.read_text().splitlines() if "/shared/static" in line]
    assert f"/releases/{report['release']}" in flushed
    assert report["from"] in flushed.split()[-1]


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
        away = ["http://127.0.0.1:9/", "nonsense", "mailto:nobody@nowhere.invalid"]
        deploy_settings(notify=[*away, place])
        host.project.commit("is told")
        report = host.ship()
        assert report["result"]
        host.project.commit("fails and is told", {"tiny/urls.py": "def"})
        failed = host.call("deploy.ship", fails=True)
        server.shutdown()
    good, bad = server.posted
    assert "tiny: ship by" in good["text"] and "succeeded" in good["text"]
    assert good["release"] == report["release"]
    assert "FAILED" in bad["text"] and failed["comment"] in bad["text"]
    assert (bad["result"], bad["site"]) == (False, "tiny")


def test_a_notification_by_mail(host, first, deploy_settings):
    (host.folder / "srv/bin").mkdir()
    program = host.folder / "srv/bin/sendmail"
    program.write_text("#!/bin/sh\necho $* > /srv/mail\ncat >> /srv/mail\n")
    program.chmod(0o755)
    # The box's own view of the machine's programs: a mail server is the one that isn't real.
    host.run("mount", "-t", "overlay", "overlay", "-o", "lowerdir=/srv/bin:/usr/sbin", "/usr/sbin")
    try:
        deploy_settings(notify=["mailto:ops@example.com"])
        host.project.commit("is mailed")
        assert host.ship()["result"]
        options, *head = (host.folder / "srv/mail").read_text().splitlines()
    finally:
        host.run("umount", "/usr/sbin")
    assert options == "-t -i"
    assert "To: ops@example.com" in head
    assert [line for line in head if line.startswith("Subject: tiny: ship by")]


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
    host.project.git("commit", "--quiet", "--allow-empty", "--allow-empty-message", "--message=")
    silent = host.call("release.fetch", "tiny", host.project.git("rev-parse", "HEAD"))
    assert (silent["sha"][:8], silent["subject"]) == (silent["release"][-8:], "")


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
    # The history knows those that are gone, too.
    known = {entry["to"] for entry in host.call("deploy.history", limit=1000)}
    assert {first["release"], *found["releases"]} <= known
    assert first["release"] not in found["releases"]


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
