"""The sites' own error pages on their way to real HAProxy and Varnish on the loopback."""

import pathlib
import tempfile

import pytest
from salt.exceptions import CommandExecutionError

from tests.functional import road as roads
from tests.functional.road import ACCELERATORS, get

DIRECT = (ACCELERATORS[0], roads.VARNISH)
# What ends a text in VCL, and more that a page may hold.
PAGE = '<h1>{} of the paper</h1><script>let a = {{"b": "c"}}; "}}" + \'%[src]\' \\n</script> – ü'
OURS = "<h1>Back in a moment</h1>"


@pytest.fixture(scope="module")
def road():
    others = {"blog": {**roads.SITE, "domains": ["blog.lab"], "redirect_domains": []}}
    # Not below pytest's own folder, which Varnish's compiler may not enter.
    with tempfile.TemporaryDirectory(prefix="sp-") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o711)
        road = roads.Road(folder, roads.pillar(others=others))
        try:
            yield road.start(accelerators=["cache1"])
        finally:
            road.stop()


class Front:
    """`pages` of a host in front, whose daemons are those of the road."""

    def __init__(self, road):
        self.road, self.reloads = road, 0
        self.balancer, self.accelerator = self.of("haproxy"), self.of("varnish")

    def of(self, daemon):
        modules = roads.functions("lb1", self.road.told, self.road.folder)
        names = ("sites.list", "sites.get", "settings.get", "inventory.peers")
        found = roads.module("pages", {name: modules[name] for name in names})
        found._HAPROXY = self.road.folder / "pages"
        found._VARNISH = self.road.folder / "cache1-pages"
        for name, folder in (("haproxy", found._HAPROXY), ("varnish", found._VARNISH)):
            found._DAEMONS[name] = (folder, *found._DAEMONS[name][1:])
        found.__salt__ |= {
            "inventory.services": lambda: ["os", daemon],
            "service.reload": self.restart_haproxy,
            "varnish.reload": self.reload_varnish,
        }
        return found

    def restart_haproxy(self, name):
        """Stands in for the unit's reload; what matters here is what it reads."""
        self.reloads += 1
        self.road.kill("lb1")
        self.road.start_haproxy()
        return True

    def reload_varnish(self):
        self.reloads += 1
        self.road.admin("cache1", "vcl.load", f"v{self.reloads}", f"{self.road.folder}/cache1.vcl")
        self.road.admin("cache1", "vcl.use", f"v{self.reloads}")

    def bring(self, **options):
        found = [self.balancer.bring(**options), self.accelerator.bring(**options)]
        changed = [path.rpartition("/")[2] for one in found for path in one["changed"]]
        return changed, {note for one in found for note in one["notes"]}


@pytest.fixture(scope="module")
def front(road):
    return Front(road)


@pytest.fixture
def pages(road):
    """Lets app1 have pages, by status."""

    def have(**bodies):
        for number in (404, 500, 502, 503, 504):
            body = bodies.get(f"of_{number}")
            status = 200 if body is not None else 404
            behaviour = (status, {}, body or "")
            road.apps[0].behaviour[f"/.saltern/pages/{number}.html"] = behaviour

    return have


def ill(road, well=False):
    for app in road.apps:
        app.well = well


ALL = ["blog-500.http", "blog-502.http", "blog-503.http", "blog-504.http"]


def test_pages_of_a_site_are_shown_when_nothing_answers(road, front, pages):
    told = {f"of_{status}": PAGE.format(status) for status in (404, 500, 502, 503, 504)}
    pages(**told)
    assert front.bring(site="blog", test=True) == ([*ALL, "blog.vcl"], set())
    assert front.reloads == 0
    assert front.bring(site="blog")[0] == [*ALL, "blog.vcl"]
    reloads = front.reloads
    assert front.bring(site="blog") == ([], set())
    assert front.reloads == reloads
    missing = get("/wp-login.php", "blog.lab", at=DIRECT)
    assert (missing.status, missing.text) == (404, told["of_404"])
    assert "<h1>Not found</h1>" in get("/wp-login.php", "paper.lab", at=DIRECT).text
    for app in road.apps:
        app.behaviour["/lost/"] = (200, {"Content-Length": "x"}, "")
    for name in ("blog.lab", "paper.lab"):
        answer = get("/lost/", name, at=DIRECT)
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "5"
        assert (told["of_503"] == answer.text) is (name == "blog.lab")
        posted = get("/lost/", name, method="POST", body=b"x")
        assert posted.status == 502
        assert posted.headers["Cache-Control"] == "no-store"
        assert (told["of_502"] == posted.text) is (name == "blog.lab")
        assert (OURS in posted.text) is (name == "paper.lab")
    ill(road)
    try:
        roads.until(lambda: told["of_503"] == get("/", "blog.lab", "POST", body=b"x").text)
        roads.until(lambda: OURS in get("/", "paper.lab", "POST", body=b"x").text)
    finally:
        ill(road, well=True)


def test_a_site_that_is_live_nowhere_keeps_its_pages(road, front, pages):
    pages(of_503="kept")
    front.bring()
    ill(road)
    changed, notes = front.bring()
    ill(road, well=True)
    assert changed == []
    assert "No app host has a release of blog live" in " ".join(notes)


def test_what_can_not_be_taken_is_told_and_ours_is_shown(road, front, pages):
    pages(of_503="x" * 20000, of_502="\0", of_500=" ")
    _, notes = front.bring(site="paper")
    assert notes == {
        "503.html of paper is larger than 12288 bytes: ours is shown in its place.",
        "502.html of paper holds a NUL character: ours is shown in its place.",
        "500.html of paper is empty: ours is shown in its place.",
    }
    assert OURS in (road.folder / "pages" / "paper-503.http").read_text()
    pages(of_503="x" * 12288)
    assert front.bring(site="paper") == (["paper-503.http", "paper.vcl"], set())


def test_what_a_daemon_refuses_changes_nothing(road, front, pages, monkeypatch):
    pages(of_503="before")
    front.bring()
    before = (road.folder / "pages" / "blog-503.http").read_text()
    pages(of_503="x" * 20000)
    reloads = front.reloads
    monkeypatch.setattr(front.balancer, "LARGEST", 100000)
    with pytest.raises(CommandExecutionError, match=r"(?s)haproxy refuses .*blog-503\.http"):
        front.balancer.bring()
    assert front.reloads == reloads
    assert (road.folder / "pages" / "blog-503.http").read_text() == before
    assert not [path for path in road.folder.iterdir() if path.name.startswith(".new-")]


def test_a_reload_that_fails_leaves_the_old_pages(road, front, pages):
    pages(of_503="old")
    front.bring()
    pages(of_503="new")
    try:
        front.balancer.__salt__["service.reload"] = lambda name: False
        with pytest.raises(CommandExecutionError, match="HAProxy could not be reloaded"):
            front.balancer.bring()
    finally:
        front.balancer.__salt__["service.reload"] = front.restart_haproxy
    assert (road.folder / "pages" / "blog-503.http").read_text().endswith("\nold")
    assert front.balancer.bring(site="blog")["changed"]
