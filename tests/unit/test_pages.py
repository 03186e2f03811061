"""The sites' own error pages: what is taken, how Varnish is told, what a ship says of them."""

import pathlib
import sys
import types

import pages
import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.conftest import ROOT, load

runner = load("_runners/ship.py")
state = load("_states/pages.py")


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"<h1>ours</h1>", None),
        (b"x" * pages.LARGEST, None),
        (b"x" * (pages.LARGEST + 1), "is larger than 12288 bytes"),
        (b" \n", "is empty"),
        (b"a\0b", "holds a NUL character"),
        (b"\xff", "isn't UTF-8"),
    ],
)
def test_what_is_no_page_is_not_taken(content, wrong):
    assert pages._wrong(content) == wrong


@pytest.mark.parametrize("text", ['"}', 'a"}b', '""}}', '"}"}', '{"x": "y"}', '"'])
def test_a_text_in_vcl_ends_where_it_should(text):
    (written,) = pages._shown("beresp", text).splitlines()[:1]
    parts = written.removeprefix('    set beresp.body = {"').removesuffix('"};').split('"} + {"')
    assert "".join(parts) == text
    # Each part ends at the first `"}` that the compiler meets.
    assert all('"}' not in part for part in parts)


def test_a_site_without_pages_has_the_file_that_the_state_begins_with():
    seed = (ROOT / "salt/varnish/files/pages.vcl").read_text().replace("{{ label }}", "my_site")
    assert pages._of_varnish("my-site", {}) == {
        pathlib.Path("/etc/varnish/pages/my-site.vcl"): seed
    }


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A host with both roles, its folders, and the answers of the app hosts by address."""
    answers, reloads = {}, []
    for name in ("haproxy", "varnish"):
        (tmp_path / name / "pages").mkdir(parents=True)
        monkeypatch.setattr(pages, f"_{name.upper()}", tmp_path / name / "pages")
        _, wanted, _, _ = pages._DAEMONS[name]
        told = (
            tmp_path / name / "pages",
            wanted,
            lambda *_: None,
            lambda n=name: reloads.append(n),
        )
        monkeypatch.setitem(pages._DAEMONS, name, told)
    (tmp_path / "haproxy/errors").mkdir()
    for status in (500, 502, 503, 504):
        file = tmp_path / f"haproxy/errors/saltern-{status}.http"
        file.write_text(f"HTTP/1.1 {status} x\nA: b\n\nours")

    def ask(address, port, domain, number):
        found = answers.get(address)
        if found is None:
            raise ConnectionRefusedError
        return found.get(number, (404, b""))

    monkeypatch.setattr(pages, "_ask", ask)
    told = {
        "sites.list": lambda: ["paper"],
        "sites.get": lambda name: {"domains": ["paper.lab"]},
        "settings.get": lambda service: {"port": 8080},
        "inventory.peers": lambda role: [
            {"id": f"app{n}", "address": f"10.0.0.{n}"} for n in (1, 2)
        ],
        "inventory.services": lambda: ["os", "varnish", "haproxy"],
    }
    monkeypatch.setattr(pages, "__salt__", told, raising=False)
    return types.SimpleNamespace(answers=answers, reloads=reloads, told=told, folder=tmp_path)


def test_pages_come_from_the_first_host_where_the_site_is_live(host):
    host.answers["10.0.0.1"] = dict.fromkeys(pages.STATUSES, (503, b"not live"))
    host.answers["10.0.0.2"] = {503: (200, b"own")}
    assert pages.fetch("paper") == {"host": "app2", "pages": {503: "own"}, "notes": []}


def test_only_what_is_new_is_written_and_reloaded_for(host):
    host.answers["10.0.0.1"] = {503: (200, b"own")}
    assert len(pages.bring(test=True)["changed"]) == 5
    assert host.reloads == []
    assert len(pages.bring()["changed"]) == 5
    assert sorted(host.reloads) == ["haproxy", "varnish"]
    assert pages.bring()["changed"] == []
    shown = (host.folder / "haproxy/pages/paper-503.http").read_text()
    assert shown == "HTTP/1.1 503 x\nA: b\n\nown"
    assert (host.folder / "haproxy/pages/paper-502.http").read_text().endswith("ours")
    host.answers["10.0.0.1"] = {}
    assert len(pages.bring()["changed"]) == 2, "the site has no page any more"
    assert sorted(host.reloads) == ["haproxy", "haproxy", "varnish", "varnish"]


def test_where_no_host_answers_nothing_changes(host):
    assert pages.bring() == {
        "changed": [],
        "notes": [
            "No app host has a release of paper live and answers: its pages stay as they are."
        ],
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"site": "papre"}, "There is no site 'papre'. There are: paper."),
        ({"daemon": "nginx"}, "daemon='nginx': here it is varnish or haproxy."),
    ],
)
def test_what_is_not_here_is_refused(host, options, told):
    with pytest.raises(CommandExecutionError) as refused:
        pages.bring(**options)
    assert str(refused.value) == told


def test_a_host_that_stands_in_front_of_nothing_is_told_so(host):
    host.told["inventory.services"] = lambda: ["os", "nginx"]
    with pytest.raises(CommandExecutionError, match="neither a load balancer nor an accelerator"):
        pages.bring()


@pytest.mark.parametrize(
    ("test", "changed", "result"),
    [(True, [], True), (True, ["x"], None), (False, ["x"], True), (False, [], True)],
)
def test_the_state_predicts_and_tells(monkeypatch, test, changed, result):
    asked = []

    def bring(**options):
        asked.append(options)
        return {"changed": changed, "notes": ["A note."]}

    monkeypatch.setattr(state, "__salt__", {"pages.bring": bring}, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
    ret = state.brought("varnish")
    assert asked == [{"daemon": "varnish", "test": test}]
    assert ret["result"] is result
    assert ret["changes"] == ({"pages": changed} if changed else {})
    assert ret["comment"].endswith("A note.")


def test_the_state_says_what_the_daemon_refuses(monkeypatch):
    def bring(**_):
        raise CommandExecutionError("haproxy refuses")

    monkeypatch.setattr(state, "__salt__", {"pages.bring": bring}, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)
    ret = state.brought("haproxy")
    assert (ret["result"], ret["changes"], ret["comment"]) == (False, {}, "haproxy refuses")


def test_a_ship_tells_which_host_has_no_pages_and_is_no_failure():
    farm = runner._Farm.__new__(runner._Farm)
    farm.front = {"haproxy": ["lb1", "box"], "varnish": ["cache1", "box"]}
    farm.say = lambda text: None
    asked = []

    def run(step, hosts, function, **options):
        asked.append((hosts, function))
        return {
            "box": {"changed": ["x"], "notes": []},
            "cache1": {"changed": [], "notes": ["503.html is empty."]},
            "lb1": "It doesn't answer.",
        }

    farm.run = run
    assert farm.bring_pages() == [
        "Error pages, cache1: 503.html is empty.",
        "Error pages, lb1: It doesn't answer.",
    ]
    assert asked == [(["box", "cache1", "lb1"], "pages.bring")]


def test_who_stands_in_front_and_has_a_key_is_told(monkeypatch):
    told = {"inventory.accepted": lambda: ["lb1", "edge7", "app1"]}
    monkeypatch.setattr(runner, "__salt__", told, raising=False)
    entries = {
        "lb1": {"roles": ["loadbalancer"]},
        "lb2": {"roles": ["loadbalancer"]},
        "edge*": {"roles": ["accelerator", "loadbalancer"]},
        "app1": {"roles": ["app"]},
    }
    found, silent = runner._hosts(entries, [], ("loadbalancer", "accelerator"))
    assert found == {"edge7": ["accelerator", "loadbalancer"], "lb1": ["loadbalancer"]}
    assert silent == ["lb2"]


def test_a_release_has_a_page_for_each_status(monkeypatch, tmp_path):
    """503.html speaks for 502 and 504 too; what a release no longer has goes away."""
    tool = load("salt/django/files/release.py")
    templates = {"503.html": "later", "404.html": "nothing"}

    class TemplateDoesNotExist(Exception):
        pass

    def render_to_string(names):
        for name in names:
            if name in templates:
                return templates[name]
        raise TemplateDoesNotExist

    loader = types.SimpleNamespace(render_to_string=render_to_string)
    template = types.SimpleNamespace(TemplateDoesNotExist=TemplateDoesNotExist, loader=loader)
    stubs = {"": types.SimpleNamespace(template=template), ".template": template}
    for name, module in {**stubs, ".template.loader": loader}.items():
        monkeypatch.setitem(sys.modules, f"django{name}", module)
    (tmp_path / "500.html").write_text("of the release before")
    assert tool.flat_pages(tmp_path) == [404, 502, 503, 504]
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {f"{s}.html": "later" for s in (502, 503, 504)} | {"404.html": "nothing"}
    assert set(tool.FLAT_PAGES) == set(pages.STATUSES)
