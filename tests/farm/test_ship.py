"""Shipping to the farm while visitors ask: a release goes live unnoticed, a broken one never."""

import json
import textwrap
import time

import pytest

from tests.farm import releases
from tests.farm.database_farm import apply, primary_and_replica
from tests.farm.environment import changed
from tests.farm.visitors import visitors
from tests.farm.waiting import until

SITE = "newsroom"
ROOT = f"/srv/sites/{SITE}"
APPS = ("app1", "app2")
# No page that an accelerator keeps: what the releases themselves answer.
FRESH = "http://198.18.0.11/?flush-the-cache={n}"


@pytest.fixture(scope="module", autouse=True)
def as_it_was(lab):
    """Afterwards the site as it is published is live again everywhere."""
    yield
    releases.forget(lab.hosts["master"])
    told = lab.salt(
        "L@" + ",".join(hosts_of_releases(lab)), "deploy.ship", "allow_destructive=True"
    )
    assert all(report["result"] for report in told.values()), told


def hosts_of_releases(lab):
    on = [host for host in lab.hosts.values() if host.running()]
    return [host.name for host in on if {"app", "worker"} & set(host.roles)]


def commit(lab, name, files=None):
    """A commit that differs from the published site by these files, and by what it is."""
    files = {path: text and textwrap.dedent(text) for path, text in (files or {}).items()}
    return releases.commit(lab.hosts["master"], name, {"trial.txt": name, **files})


def migration(lab, operation):
    """A file with a migration of this run alone."""
    name = f"trial_{time.time_ns()}"
    return {
        f"articles/migrations/{name}.py": f"""
            from django.db import migrations
            class Migration(migrations.Migration):
                dependencies = [("articles", "{releases.last_migration(lab.hosts["master"])}")]
                operations = [{operation}]
        """
    }


def ship(lab, sha, *options, target="app*"):
    return lab.salt(target, "deploy.ship", f"rev={sha}", *options)


def shipped(lab, name, files=None):
    """Ship a good commit; the release's name."""
    told = ship(lab, commit(lab, name, files))
    assert sorted(told) == sorted(APPS)
    assert all(report["result"] for report in told.values()), told
    assert answering(lab) == {host: told[host]["release"] for host in APPS}
    return told["app1"]["release"]


def answering(lab):
    """The release that each app host answers with, through its nginx."""
    found = {}
    for host in APPS:
        url = f"http://{lab.hosts[host].address}:8080/"
        answer = lab.get(url, headers={"Host": "newsroom.lab"})
        found[host] = answer.headers["x-release"] if answer.status == 200 else answer.status
    return found


def assert_nobody_noticed(seen):
    assert seen.report["sent"] > 30
    assert seen.report["failed"] == 0, seen.report


@pytest.mark.parametrize("strategy", ["slots", "touch"])
def test_a_release_goes_live_unnoticed(lab, strategy):
    sha = commit(lab, f"good {strategy}", migration(lab, "migrations.RunSQL('SELECT 1')"))
    with visitors(lab.lab, FRESH, rate=20) as seen:
        told = ship(lab, sha, f"strategy={strategy}")
        assert answering(lab) == {host: told[host]["release"] for host in APPS}
    assert all(report["result"] for report in told.values()), told
    assert_nobody_noticed(seen)
    applied = [p["comment"] for r in told.values() for p in r["phases"] if p["phase"] == "migrate"]
    assert sorted(comment.startswith("applied") for comment in applied) == [False, True]


def test_a_state_ships(lab):
    sha, before = commit(lab, "by a state"), answering(lab)["app1"]
    state = ["state.single", "deploy.shipped", f"name={SITE}", f"rev={sha}"]

    def result(*options):
        return {h: next(iter(r.values())) for h, r in lab.salt("app*", *state, *options).items()}

    for foretold in result("test=True").values():
        assert foretold["result"] is None
        assert foretold["changes"]["release"]["old"] == before
    made = result()
    assert {h: s["changes"]["release"]["new"] for h, s in made.items()} == answering(lab)
    assert all(sha[:8] in release for release in answering(lab).values())
    assert [(s["result"], s["changes"]) for s in result().values()] == [(True, {})] * 2


# What is broken: the files, and the phase that finds it out.
BROKEN = {
    "import error": ({"newsroom/wsgi.py": "import nothing_of_this_name\n"}, "activate"),
    "syntax error": ({"newsroom/urls.py": "def\n"}, "static"),
    "missing dependency": ({"requirements.txt": "django==99.99\n"}, "build"),
    "failing check": (
        {
            "articles/__init__.py": """
                from django.core.checks import Error, register
                @register(deploy=True)
                def never(app_configs, **kwargs):
                    return [Error("never like this")]
            """,
        },
        "static",
    ),
    "failing health": (
        {
            "newsroom/health.py": """
                from django.http import HttpResponse
                def answer(get_response):
                    def middleware(request):
                        if request.path == "/health/":
                            return HttpResponse("ill", status=500)
                        return get_response(request)
                    return middleware
            """
        },
        "activate",
    ),
}
QUICK = ["import error"]


@pytest.mark.parametrize(
    "case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.drill) for c in BROKEN]
)
def test_a_broken_release_never_goes_live(lab, case):
    files, phase = BROKEN[case]
    assert_refused(lab, commit(lab, f"broken {case}", files), phase)
    shipped(lab, f"mended {case}")


@pytest.mark.drill
def test_a_failing_migration_stops_every_host(lab):
    operation = "migrations.RunSQL('SELECT 1 / 0')"
    told = assert_refused(lab, commit(lab, "broken", migration(lab, operation)), "migrate")
    assert any("division by zero" in report["comment"] for report in told.values())
    shipped(lab, "mended migration")


@pytest.mark.drill
def test_a_migration_that_would_hold_up_the_site_gives_up(lab):
    """It can't have a table that somebody reads, and then takes too long."""
    primary, _replica = primary_and_replica(lab)
    read = "BEGIN; LOCK articles_article IN ACCESS SHARE MODE; SELECT pg_sleep(300)"
    lab.run(
        primary, "systemd-run", "--quiet", "--unit=reader",
        "runuser", "-u", "postgres", "--", "psql", "-qc", read, SITE,
    )  # fmt: skip
    try:
        operation = "migrations.RunSQL('ALTER TABLE articles_article ADD COLUMN trial int')"
        sha = commit(lab, "wants a lock", migration(lab, operation))
        told = assert_refused(lab, sha, "migrate")
        assert any("lock timeout" in report["comment"] for report in told.values()), told
    finally:
        lab.run(primary, "systemctl", "stop", "reader")

    def hurried(sites):
        sites["sites"][SITE]["deploy"] = {"statement_timeout": "1s"}

    with changed(lab, "sites.yaml", hurried):
        operation = "migrations.RunSQL('SELECT pg_sleep(60)')"
        told = assert_refused(lab, commit(lab, "slow", migration(lab, operation)), "migrate")
        assert any("statement timeout" in report["comment"] for report in told.values()), told
    shipped(lab, "in no hurry")


@pytest.mark.drill
def test_one_host_that_fails_makes_the_command_fail(lab):
    sha = commit(lab, "broken on its own", BROKEN["import error"][0])
    command = ["salt", "app1", "deploy.ship", f"rev={sha}"]
    assert lab.run("master", *command, check=False).returncode == 1
    command[1] = "app*"
    lab.run("app2", "systemctl", "stop", "salt-minion")
    try:
        command[-1] = f"rev={commit(lab, 'for one alone')}"
        assert lab.run("master", *command, check=False).returncode == 1
    finally:
        lab.run("app2", "systemctl", "start", "salt-minion")
    lab.wait_for_minion("app2")
    shipped(lab, "both again")


def assert_refused(lab, sha, phase, hosts=APPS):
    """A ship fails in this phase, on these hosts, and nobody notices."""
    before = answering(lab)
    with visitors(lab.lab, FRESH, rate=20) as seen:
        told = ship(lab, sha, target="L@" + ",".join(hosts))
    assert sorted(told) == sorted(hosts)
    for report in told.values():
        assert not report["result"]
        assert report["comment"].startswith(f"{phase}:"), report["comment"]
    assert answering(lab) == before
    assert_nobody_noticed(seen)
    return told


@pytest.mark.drill
def test_a_repository_that_is_away(lab):
    sha = commit(lab, "can't be fetched")
    lab.run("master", "systemctl", "stop", "lab-git")
    try:
        assert_refused(lab, sha, "fetch")
    finally:
        lab.run("master", "systemctl", "start", "lab-git")
    shipped(lab, "fetched")


@pytest.mark.drill
@pytest.mark.parametrize(
    ("limit", "phase"), [("size=100M", "preflight"), ("size=2G,nr_inodes=+40", "build")]
)
def test_a_full_disk(lab, limit, phase):
    sha, where = commit(lab, "finds no room"), f"{ROOT}/releases"
    if "+" in limit:  # room for so many more files
        used = len(lab.run("app1", "find", where).stdout.splitlines())
        limit = limit.replace("+40", str(used + 40))
    lab.run("app1", "mount", "-t", "tmpfs", "-o", limit, "full", "/mnt")
    try:
        lab.run("app1", "cp", "-a", f"{where}/.", "/mnt")
        lab.run("app1", "mount", "--bind", "/mnt", where)
        assert_refused(lab, sha, phase, hosts=["app1"])
    finally:
        lab.run("app1", "umount", "--lazy", where, check=False)
        lab.run("app1", "umount", "--lazy", "/mnt")
    shipped(lab, "finds room again")


# Kills the minion with all that it does, as soon as its ship has come to a phase; exit code 2 if
# that phase was over before it was seen.
KILL_AT = """
import json, os, signal, sys, time
lock, wanted, *later = sys.argv[1:]
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        phase = json.load(open(lock))["phase"]
    except (OSError, ValueError):
        phase = None
    if phase in later:
        sys.exit(2)
    if phase == wanted:
        folder = "/sys/fs/cgroup/systemd/system.slice/salt-minion.service/"
        if not os.path.isdir(folder):
            folder = folder.replace("systemd/system", "system")
        for pid in open(folder + "cgroup.procs").read().split():
            os.kill(int(pid), signal.SIGKILL)
        sys.exit()
    time.sleep(0.0005)
sys.exit("The ship never came to this phase.")
"""
PHASES = "preflight fetch build static migrate activate verify workers prune".split()


@pytest.mark.drill
@pytest.mark.parametrize("phase", PHASES)
def test_the_minion_is_killed_in_the_middle(lab, phase):
    # Where there is nothing to do a phase lasts a few milliseconds: it may take more than one try.
    assert any(killed_in(lab, phase) for _ in range(5)), f"{phase} was never seen"
    shipped(lab, f"after the kill in {phase}")


def killed_in(lab, phase):
    """Kill the minion of app1 in a phase of its ship; whether it was still in it."""
    before = answering(lab)
    slow = migration(lab, "migrations.RunSQL('SELECT pg_sleep(0.2)')")
    sha = commit(lab, f"killed in {phase}", slow)
    reached = PHASES[PHASES.index(phase) :]
    with visitors(lab.lab, FRESH, rate=20) as seen:
        killer = lab.start_in("app1", "python3", "-c", KILL_AT, f"{ROOT}/deploy/lock", *reached)
        lab.run("master", "salt", "--async", "app1", "deploy.ship", f"rev={sha}")
        code = killer.wait()
        now = answering(lab)
        lab.wait_for_minion("app1")
    assert_nobody_noticed(seen)
    if code == 2:
        lock = lab.hosts["app1"].root / ROOT.lstrip("/") / "deploy/lock"
        until(60, lambda: not lock.read_text())
        shipped(lab, f"after {phase} was missed")
        return False
    assert code == 0
    assert now["app2"] == before["app2"]
    gone_live = PHASES.index(phase) > PHASES.index("activate")
    assert phase == "activate" or gone_live == (now["app1"] != before["app1"])
    return True


@pytest.mark.drill
@pytest.mark.parametrize("phase", ["build", "migrate", "activate", "workers"])
def test_the_power_goes_in_the_middle(lab, phase):
    before = answering(lab)
    slow = migration(lab, "migrations.RunSQL('SELECT pg_sleep(0.5)')")
    sha = commit(lab, f"no power in {phase}", slow)
    lock = lab.hosts["app1"].root / ROOT.lstrip("/") / "deploy/lock"
    reached = f'"phase": "{phase}"'
    with visitors(lab.lab, FRESH, rate=20, timeout=15, after=6) as seen:
        lab.run("master", "salt", "--async", "app1", "deploy.ship", f"rev={sha}")
        until(60, lambda: reached in lock.read_text(), every=0.0005)
        lab.kill("app1")
    assert_nobody_noticed(seen)
    with visitors(lab.lab, FRESH, rate=20, timeout=15) as seen:
        lab.start("app1")
        until(60, lambda: isinstance(answering(lab)["app1"], str))
    assert_nobody_noticed(seen)
    if PHASES.index(phase) < PHASES.index("activate"):
        assert answering(lab) == before
    shipped(lab, f"after the power cut in {phase}")


def ship_the_farm(lab, sha, *options, without=()):
    """``salt-run ship.release``; its exit code, its report and what it showed."""
    shown = hosts_of_releases(lab)
    off = [h.name for h in lab.hosts.values() if {"app", "worker"} & set(h.roles)]
    off = [name for name in off if name not in shown and name not in without]
    given = [f"without={','.join(off)}"] if off else []
    command = ["salt-run", "--out=json", "ship.release", SITE, f"rev={sha}", *given, *options]
    done = lab.run("master", *command, check=False)
    return done.returncode, json.loads(done.stdout), done.stderr


@pytest.mark.drill
def test_the_farm_in_batches_behind_a_canary(lab):
    sha = commit(lab, "in batches")
    with visitors(lab.lab, FRESH, rate=20) as seen:
        code, report, shown = ship_the_farm(lab, sha, "batch=1", "soak=2", "drain=True")
    assert (code, report["result"]) == (0, True), report
    assert_nobody_noticed(seen)
    assert set(answering(lab).values()) == {report["release"]}
    assert set(report["hosts"]) == set(hosts_of_releases(lab))
    for line in ("batch 1 of 3: app1", "batch 2 of 3: app2", "varnish: drain app1", "watching"):
        assert line in shown, shown


@pytest.mark.drill
def test_the_sites_own_error_pages_are_shown_when_no_app_host_answers(lab):
    """By Varnish for a page that it hasn't kept, by HAProxy for a form; Varnish's own 404, too."""
    words = f"words of trial {time.time_ns()}"
    files = {
        f"newsroom/templates/{status}.html": f'<!doctype html><h1>{status}: {words} "}}</h1>\n'
        for status in (404, 503)
    }
    front = ("lb* or cache*", "pages.bring")
    host = {"Host": "newsroom.lab"}
    try:
        code, report, _ = ship_the_farm(lab, commit(lab, "own error pages", files))
        assert (code, report["result"]) == (0, True), report
        assert "Error pages" not in report["comment"], report
        brought = lab.salt(*front)
        assert all(found["changed"] == [] for found in brought.values()), brought
        for one in ("lb1", "lb2"):
            missing = lab.get(f"http://{one}/wp-login.php", headers=host)
            assert (missing.status, missing.headers["x-cache"]) == (404, "synth")
            assert f"404: {words}" in missing.body
        for app in APPS:
            lab.kill(app)
        for one in ("lb1", "lb2"):
            page = lab.get(f"http://{one}/never-kept/{time.time_ns()}/", headers=host)
            assert (page.status, page.headers["x-cache"]) == (503, "miss"), page.headers
            assert f'503: {words} "}}' in page.body
            form = lab.get(f"http://{one}/contact/", headers=host, method="POST", data="a=b")
            assert form.status == 503
            assert f"503: {words}" in form.body
        kept = lab.salt(*front)
        assert all(found["changed"] == [] for found in kept.values()), kept
        assert all("No app host has" in found["notes"][0] for found in kept.values()), kept
    finally:
        for app in APPS:
            lab.start(app)
        until(60, lambda: all(isinstance(told, str) for told in answering(lab).values()))
    # Shipped without `ship.release`: brought by state.apply, which then has nothing more to do.
    shipped(lab, "the published error pages")
    for service, one in (("haproxy", "lb1"), ("varnish", "cache1")):
        failed, changed = apply(lab, one, service)
        assert (failed, list(changed)) == ({}, [f"{service}/pages"])
        assert apply(lab, one, service) == ({}, {})
    lab.salt(*front)
    assert words not in lab.get("http://lb1/wp-login.php", headers=host).body


@pytest.mark.drill
def test_the_farm_with_a_host_that_is_off(lab):
    sha, before = commit(lab, "one is off"), answering(lab)["app1"]
    lab.kill("app2")
    code, report, _ = ship_the_farm(lab, sha, without=["app2"])
    assert code == 1
    assert "app2" in report["comment"], report
    known = lab.get("http://198.18.0.31:8080/", headers={"Host": "newsroom.lab"})
    assert known.headers["x-release"] == before
    code, report, _ = ship_the_farm(lab, sha)
    assert code == 0, report
    lab.start("app2")
    shipped(lab, "all are on")
