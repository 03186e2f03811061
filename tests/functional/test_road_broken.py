"""The road when something on it dies, is drained, reloaded or told to do otherwise."""

import concurrent.futures
import re
import signal
import subprocess
import threading
import time

import pytest
from salt.exceptions import CommandExecutionError

from tests.functional import road as roads
from tests.functional.road import ACCELERATORS, APPS, BALANCER, get, until

SESSION = "sessionid=s"


@pytest.fixture
def start(tmp_path):
    started = []

    def start(accelerators=("cache1", "cache2"), site=None, hosts=None, others=None, **overrides):
        told = roads.pillar(site, others, **overrides)
        told["hosts"] = hosts or told["hosts"]
        road = roads.Road(tmp_path, told)
        started.append(road)
        return road.start(accelerators)

    yield start
    for road in started:
        road.stop()


class Load:
    """Requests at a steady pace while the block runs; ``failed`` are those not answered 200."""

    def __init__(self, per_second=60, **how):
        self.failed, self.count, self.how, self.on = [], 0, how, True
        self.threads = [
            threading.Thread(target=self._ask, args=(n, 4 / per_second)) for n in range(4)
        ]

    def _ask(self, thread, pause):
        count = 0
        while self.on:
            count += 1
            try:
                status = get(f"/{thread}/{count}/", **self.how).status
            except OSError as error:
                status = repr(error)
            self.count += 1
            if status != 200:
                self.failed.append(status)
            time.sleep(pause)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        time.sleep(0.5)
        return self

    def __exit__(self, *args):
        time.sleep(2)
        self.on = False
        for thread in self.threads:
            thread.join()


def test_an_accelerator_dies(start):
    road = start()
    with Load() as load:
        road.kill("cache1")
    assert load.count > 60
    assert not load.failed


def test_an_app_host_dies(start):
    road = start()
    with Load() as pages, Load(method="POST", body="x") as forms:
        road.apps[0].die()
    assert pages.count > 60 and forms.count > 60
    assert not pages.failed, "a page can be asked for again elsewhere"
    assert len(forms.failed) <= 4, "only what was in flight there"


def test_every_app_host_dies(start):
    road = start(varnish={"ttl": "1s", "grace_healthy": "0s"})
    get("/kept/")
    get("/kept/")  # on both accelerators
    for app in road.apps:
        app.die()
    time.sleep(2)  # older than its ttl
    for _ in range(20):
        answer = get("/kept/")
        assert (answer.status, answer.headers["X-Cache"]) == (200, "stale")
    assert "<h1>Back in a moment</h1>" in get("/not-kept/").text
    assert get("/not-kept/").status == 503
    written = get("/form/", method="POST", body="x")
    assert written.status == 503
    assert "<h1>Back in a moment</h1>" in written.text


def test_every_accelerator_dies(start):
    road = start()
    road.kill("cache1")
    road.kill("cache2")
    until(lambda: get("/").status == 200, 5)
    assert "X-Cache" not in get("/").headers


def test_reloading_the_balancer_fails_nobody(start):
    road = start()
    with Load() as load:
        for _ in range(3):
            road.processes["lb1"].send_signal(signal.SIGUSR2)
            time.sleep(0.7)
    assert load.count > 100
    assert not load.failed


def test_too_many_requests(start):
    start(haproxy={"rate_limit": {"requests": 10, "period": "10s"}})
    statuses = [get("/", source="127.55.0.99").status for _ in range(14)]
    assert statuses == [200] * 10 + [429] * 4
    assert get("/", source="127.55.0.98").status == 200
    assert "<h1>Too many requests</h1>" in get("/", source="127.55.0.99").text


def test_traffic_moves_from_an_old_farm(start):
    old = roads.Server("old", "127.55.0.41")
    try:
        start(haproxy={"old_farm": {"servers": {"old1": f"127.55.0.41:{roads.APP}"}, "share": 40}})
        clients = [f"127.55.1.{n}" for n in range(1, 101)]

        def sent_to_old():
            return {client for client in clients if "from old" in get("/", source=client).text}

        first = sent_to_old()
        assert 25 <= len(first) <= 55
        assert sent_to_old() == first, "a client stays where it is"
    finally:
        old.die()


def test_sticky_sessions(start):
    start(haproxy={"sticky": True})
    cookie = get("/in/", Cookie=SESSION).headers["Set-Cookie"].partition(";")[0]
    assert cookie.startswith("SALTERN_APP=app")
    texts = {get("/in/", Cookie=f"{SESSION}; {cookie}").text.split(" #")[0] for _ in range(8)}
    assert len(texts) == 1
    assert "Set-Cookie" not in get("/").headers, "who has no session isn't marked"


def test_https_is_forced(start):
    start(site={"tls": {"certificate": "pillar", "force": True}})
    moved = get("/x/?y=1")
    assert (moved.status, moved.headers["Location"]) == (301, "https://paper.lab/x/?y=1")
    secure = get("/x/", tls=True, at=(BALANCER, roads.TLS))
    assert secure.status == 200
    assert secure.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert "Strict-Transport-Security" not in moved.headers


def test_edge_side_includes(start):
    road = start(site={"cache": {"esi": True}})
    for app in road.apps:
        app.behaviour["/whole/"] = (
            200,
            {"Cache-Control": "max-age=60"},
            '<p><esi:include src="/part/"/> c',
        )
        app.behaviour["/part/"] = (200, {"Cache-Control": "max-age=60"}, "b")
        app.behaviour["/plain/"] = (
            200,
            {"Content-Type": "text/plain"},
            '<esi:include src="/part/"/>',
        )
    assert get("/whole/").text == "<p>b c"
    assert get("/plain/").text == '<esi:include src="/part/"/>'


def test_a_farm_without_accelerators(start):
    hosts = {name: host for name, host in roads.HOSTS.items() if "cache" not in name}
    start(accelerators=(), hosts=hosts)
    assert "/x/ from app" in get("/x/").text
    assert get("/x/", host="nobody.lab").status == 403


@pytest.fixture
def haproxy(tmp_path, monkeypatch):
    found = roads.module("haproxy", {})
    monkeypatch.setattr(found, "_SOCKET", str(tmp_path / "admin.sock"))
    return found


def test_draining_and_weighing_a_host(start, haproxy):
    road = start()
    until(lambda: haproxy.status("site_paper")["site_paper"]["app1"]["state"] == "UP")
    drained = haproxy.drain("app1")
    assert drained["site_paper"]["app1"]["state"] == "DRAIN"
    road.apps[0].seen.clear()
    for _ in range(6):
        assert get("/form/", method="POST", body="x").status == 200
    assert not road.apps[0].seen

    assert haproxy.ready("app1")["site_paper"]["app1"]["state"].startswith("UP")
    for _ in range(6):
        get("/form/", method="POST", body="x")
    assert len(road.apps[0].seen) == 3

    assert haproxy.weight("app1", 0)["site_paper"]["app1"]["weight"] == 0
    road.apps[0].seen.clear()
    for _ in range(6):
        get("/form/", method="POST", body="x")
    assert not road.apps[0].seen


def forms_at_once(road, count, clients):
    """Send forms, so many at once; how many each app host got."""
    for app in road.apps:
        app.seen.clear()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda _: get("/form/", method="POST", body="x"), range(count)))
    assert {answer.status for answer in answers} == {200}
    return [len(app.seen) for app in road.apps]


def test_weights_of_the_pillar(start):
    road = start(haproxy={"weights": {"app1": 25}})
    assert forms_at_once(road, 20, 1) == [4, 16]


def test_the_host_with_the_fewest_at_work_is_asked(start):
    road = start(haproxy={"balance": "leastconn"})
    road.apps[0].slow = 0.5
    busy, idle = forms_at_once(road, 40, 4)
    assert busy * 3 < idle


def test_a_host_that_comes_back_starts_slowly(start, haproxy):
    road = start(haproxy={"balance": "leastconn", "slow_start": "10s"})
    for app in road.apps:
        app.slow = 0.05

    def state():
        return haproxy.status("site_paper")["site_paper"]["app1"]["state"]

    assert abs(forms_at_once(road, 60, 10)[0] - 30) <= 10, "who started together shares evenly"
    road.apps[0].well = False
    until(lambda: state() == "DOWN", 20)
    road.apps[0].well = True
    until(lambda: state() == "UP", 20)
    assert forms_at_once(road, 60, 10)[0] <= 12
    until(lambda: forms_at_once(road, 60, 10)[0] >= 22, 30)


MAGAZINE = {
    **roads.SITE,
    "domains": ["magazine.lab"],
    "redirect_domains": ["old.magazine.lab"],
    "redirects": {},
    "health": "/up/",
    "tls": {"certificate": "pillar", "force": True, "hsts": "1h"},
    "cache": {"session_cookie": "magazine_session", "early_404": False, "esi": True},
}


@pytest.fixture
def two_sites(start):
    """A paper with plain HTTP and HTTPS beside a magazine that forces HTTPS."""
    return start(site={"tls": {"certificate": "pillar"}}, others={"magazine": MAGAZINE})


def magazine(path, **how):
    """Ask the second site as a visitor does."""
    return get(path, "magazine.lab", at=(BALANCER, roads.TLS), tls=True, **how)


def test_two_sites_keep_their_own_rules(two_sites):
    assert get("/").status == 200
    assert "Strict-Transport-Security" not in get("/", tls=True, at=(BALANCER, roads.TLS)).headers
    moved = get("/x/", "magazine.lab")
    assert (moved.status, moved.headers["Location"]) == (301, "https://magazine.lab/x/")
    assert magazine("/x/").headers["Strict-Transport-Security"] == "max-age=3600"
    old = get("/y/", "old.magazine.lab", at=(ACCELERATORS[0], roads.VARNISH))
    assert (old.status, old.headers["Location"]) == (301, "https://magazine.lab/y/")
    assert get("/old/").status == 301
    assert magazine("/old/").status == 200, "a redirect of the other site"
    assert get("/picture.jpg").headers["X-Cache"] == "synth"
    assert "/picture.jpg from app" in magazine("/picture.jpg").text
    for name in ("paper.lab", "magazine.lab"):
        shown = subprocess.run(
            ["openssl", "s_client", "-connect", f"{BALANCER}:{roads.TLS}", "-servername", name],
            input="", capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert f"subject=CN = {name}" in shown


def test_two_sites_share_a_cache_and_no_page(two_sites):
    at = (ACCELERATORS[0], roads.VARNISH)

    def caches(path, host, **headers):
        return get(path, host, at=at, X_Forwarded_Proto="https", **headers).headers["X-Cache"]

    for app in two_sites.apps:
        app.behaviour["/p/"] = (200, {"Cache-Control": "max-age=60"}, "<p><esi:include src='/q/'/>")
        app.behaviour["/q/"] = (200, {"Cache-Control": "max-age=60"}, "part")
    assert [caches("/p/", host) for host in ("paper.lab", "magazine.lab") * 2] == [
        "miss", "miss", "hit", "hit"
    ]  # fmt: skip
    assert "esi:include" in get("/p/", at=at, X_Forwarded_Proto="https").text
    assert get("/p/", "magazine.lab", at=at, X_Forwarded_Proto="https").text == "<p>part"
    assert caches("/p/", "magazine.lab", Cookie="sessionid=s") == "hit", "no cookie of this site"
    assert caches("/p/", "magazine.lab", Cookie="magazine_session=s") == "pass"
    assert get("/p/", method="PURGE", at=at, source=APPS[0]).status == 200
    assert caches("/p/", "magazine.lab") == "hit"
    assert caches("/p/", "paper.lab") == "miss"
    banned = get("/", "magazine.lab", "BAN", at, source=APPS[0], X_Ban_Pattern=".")
    assert banned.status == 200
    assert caches("/p/", "magazine.lab") == "miss"
    assert caches("/p/", "paper.lab") == "hit"


def test_a_site_that_is_ill_leaves_the_other_alone(two_sites, haproxy):
    ill, well = two_sites.apps
    for app in two_sites.apps:
        app.behaviour["/form/"] = (200, {}, app.name)
    ill.behaviour["/up/"] = (503, {}, "ill")

    def states(site):
        return {
            name: s["state"] for name, s in haproxy.status(f"site_{site}")[f"site_{site}"].items()
        }

    until(lambda: states("magazine") == {"app1": "DOWN", "app2": "UP"}, 20)
    until(lambda: states("paper") == {"app1": "UP", "app2": "UP"}, 20)
    sent = {magazine("/form/", method="POST", body="x").text for _ in range(6)}
    assert sent == {well.name}
    assert {get("/form/", method="POST", body="x").text for _ in range(6)} == {"app1", "app2"}
    well.behaviour["/up/"] = (503, {}, "ill")
    until(lambda: magazine("/form/", method="POST", body="x").status == 503, 20)
    assert get("/form/", method="POST", body="x").status == 200


def test_what_the_balancer_does_not_know(start, haproxy):
    start()
    with pytest.raises(CommandExecutionError, match=r"no server 'ap1'. Did you mean app1"):
        haproxy.drain("ap1")
    with pytest.raises(CommandExecutionError, match="0 to 256, not 300"):
        haproxy.weight("app1", 300)
    with pytest.raises(CommandExecutionError, match="no backend 'x'"):
        haproxy.status("x")


def test_draining_waits_for_what_is_at_work(start, haproxy):
    road = start()
    road.apps[0].slow = road.apps[1].slow = 1.5
    clients = [
        threading.Thread(target=get, args=("/s/",), kwargs={"method": "POST"}) for _ in range(2)
    ]
    for client in clients:
        client.start()
    until(lambda: haproxy._sessions("app1") == 1, 2)
    with pytest.raises(CommandExecutionError, match=r"still works on 1 requests after 0.3 s"):
        haproxy.drain("app1", timeout=0.3)
    assert haproxy.drain("app1")["site_paper"]["app1"]["sessions"] == 0
    for client in clients:
        client.join()


def test_a_balancer_that_is_down_is_said_to_be(haproxy):
    with pytest.raises(CommandExecutionError, match=r"HAProxy doesn't answer on .*journalctl"):
        haproxy.status()


@pytest.fixture
def varnish(tmp_path, monkeypatch):
    """The module on the road's first accelerator."""
    modules = roads.functions("cache1", roads.pillar(), tmp_path)
    found = roads.module("varnish", modules)
    run = found._run
    monkeypatch.setattr(
        found, "_run", lambda tool, *rest: run(tool, "-n", str(tmp_path / "cache1"), *rest)
    )
    return found


def test_varnish_is_reloaded_without_losing_anything(start, varnish):
    road = start()
    vcl = road.folder / "cache1.vcl"
    at = (ACCELERATORS[0], roads.VARNISH)
    road.apps[0].behaviour["/k/"] = road.apps[1].behaviour["/k/"] = (
        200,
        {"Cache-Control": "max-age=60"},
        "k",
    )
    get("/k/", at=at)
    assert varnish.active(str(vcl)) == {"name": "boot", "current": True}

    varnish.drain("app2")
    vcl.write_text(vcl.read_text() + "\n# changed\n")
    assert not varnish.active(str(vcl))["current"]
    with Load() as load:
        for _ in range(5):
            done = varnish.reload(str(vcl))
    assert not load.failed
    assert varnish.active(str(vcl)) == {"name": done["new"], "current": True}
    assert len(varnish._vcls()) <= 2, "old ones are discarded"
    assert get("/k/", at=at).headers["X-Cache"] == "hit"
    assert varnish.backends()["paper__app2"]["drained"], "who was drained still is"

    vcl.write_text("vcl 4.1;\nnonsense\n")
    with pytest.raises(CommandExecutionError, match="nonsense"):
        varnish.reload(str(vcl))
    assert get("/k/", at=at).headers["X-Cache"] == "hit"


def test_varnish_drains_an_app_host(start, varnish):
    road = start()
    at = (ACCELERATORS[0], roads.VARNISH)
    assert varnish.drain("app1")["paper__app1"]["health"] == "sick"
    road.apps[0].seen.clear()
    for n in range(6):
        assert get(f"/{n}/", at=at).status == 200
    assert not road.apps[0].seen
    assert not varnish.ready("app1")["paper__app1"]["drained"]
    for n in range(6):
        get(f"/again/{n}/", at=at)
    assert road.apps[0].seen
    with pytest.raises(CommandExecutionError, match=r"no host 'ap1'. Did you mean app1"):
        varnish.drain("ap1")


def test_warming_in_the_minions_own_way_tells_how_far_it_is(start, tmp_path, caplog):
    """By Salt's loader: what it puts into a module isn't there in other threads."""
    road = start(accelerators=("cache1",))
    for app in road.apps:
        app.slow = 0.5
    warm = roads.functions("cache1", roads.pillar(), tmp_path)["varnish.warm"]
    with caplog.at_level("INFO"):
        warmed = warm([f"/w/{n}/" for n in range(12)], at_once=2)
    assert (warmed["pages"], warmed["fetched"], warmed["failed"]) == (12, 12, [])
    assert re.search(r"varnish.warm: \d+ of 12 pages after 2 s", caplog.text)


def test_varnish_forgets_learns_and_counts(start, varnish):
    road = start()
    at = (ACCELERATORS[0], roads.VARNISH)
    pages = {f"/p/{n}/": (200, {"Cache-Control": "max-age=60"}, f"page {n}") for n in range(20)}
    sitemap = "".join(f"<url><loc>http://paper.lab/p/{n}/</loc></url>" for n in range(20))
    xmlns = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'
    index = "<sitemap><loc>http://paper.lab/sitemap-1.xml</loc></sitemap>"
    for app in road.apps:
        app.behaviour.update(pages)
        app.behaviour["/sitemap.xml"] = (200, {}, f"<sitemapindex {xmlns}>{index}</sitemapindex>")
        app.behaviour["/sitemap-1.xml"] = (200, {}, f"<urlset {xmlns}>{sitemap}</urlset>")
        app.behaviour["/gone/"] = (404, {}, "gone")

    warmed = varnish.warm("/sitemap.xml")
    assert (warmed["pages"], warmed["fetched"], warmed["kept"], warmed["failed"]) == (20, 20, 0, [])
    assert varnish.warm("http://paper.lab/sitemap.xml")["kept"] == 20
    assert varnish.warm(["/p/1/", "/gone/"])["failed"] == ["paper.lab/gone/: 404"]

    assert varnish.purge("/p/3/") == {"purged": "paper.lab/p/3/"}
    assert get("/p/3/", at=at).headers["X-Cache"] == "miss"
    assert varnish.ban("^/p/1[0-4]/")["banned"][0] == "paper.lab ~ ^/p/1[0-4]/"
    kept = [get(f"/p/{n}/", at=at).headers["X-Cache"] for n in (10, 14, 15)]
    assert kept == ["miss", "miss", "hit"]

    assert varnish.stats()["misses"] >= 20
    threading.Timer(0.3, lambda: [get("/p/7/", at=at) for _ in range(10)]).start()
    rate = varnish.hit_rate(seconds=1.5)
    assert rate["now"] == 1.0
    assert 0 < rate["since_start"] < 1

    for call, words in {
        lambda: varnish.purge("x"): "neither a URL",
        lambda: varnish.ban("("): "no regular expression",
        lambda: varnish.ban('a" || obj.http.x ~ "'): "hold no blanks",
        lambda: varnish.warm("/nothing.txt"): "can't be read",
        lambda: varnish.warm(["/"], scheme="ftp"): "http or https",
    }.items():
        with pytest.raises(CommandExecutionError, match=words):
            call()
