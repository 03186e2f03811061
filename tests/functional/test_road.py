"""What visitors meet on the way through HAProxy and Varnish, on this machine's loopback."""

import concurrent.futures
import re
import subprocess
import time

import pytest

from tests.functional import road as roads
from tests.functional.road import ACCELERATORS, APPS, BALANCER, get, until

DIRECT = (ACCELERATORS[0], roads.VARNISH)


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    folder = tmp_path_factory.mktemp("road")
    folder.chmod(0o755)
    road = roads.Road(folder, roads.pillar(site={"tls": {"certificate": "pillar"}}))
    try:
        yield road.start()
    finally:
        road.stop()


@pytest.fixture(autouse=True)
def forget(road):
    yield
    for name in ("cache1", "cache2"):
        if name in road.processes:
            road.admin(name, "ban", "obj.status", "!=", "0")
    for app in road.apps:
        app.behaviour, app.well = {}, True
        app.seen.clear()


def seen(road, path):
    return [request for app in road.apps for request in app.seen if request[1] == path]


def test_a_page_is_fetched_once_and_kept(road):
    answers = [get("/kept/", at=DIRECT) for _ in range(3)]
    assert [a.headers["X-Cache"] for a in answers] == ["miss", "hit", "hit"]
    assert len({a.text for a in answers}) == 1
    assert len(seen(road, "/kept/")) == 1


def test_a_hundred_who_ask_at_once_cost_one_request(road):
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        statuses = list(pool.map(lambda _: get("/busy/", at=DIRECT).status, range(100)))
    assert statuses == [200] * 100
    assert len(seen(road, "/busy/")) == 1


def test_cookies_of_anonymous_visitors_are_dropped(road):
    get("/", at=DIRECT, Cookie="_ga=1; csrftoken=x")
    assert get("/", at=DIRECT, Cookie="_ga=2").headers["X-Cache"] == "hit"
    assert "cookie" not in seen(road, "/")[0][2]


def test_a_session_passes(road):
    for _ in range(2):
        assert get("/me/", at=DIRECT, Cookie="a=b; sessionid=s").headers["X-Cache"] == "pass"
    assert [request[2]["cookie"] for request in seen(road, "/me/")] == ["a=b; sessionid=s"] * 2


def test_what_sets_a_cookie_is_not_kept(road):
    for app in road.apps:
        app.behaviour["/form/"] = (200, {"Set-Cookie": "csrftoken=x", "Vary": "Cookie"}, "form")
    assert [get("/form/", at=DIRECT).headers["Set-Cookie"] for _ in range(3)] == ["csrftoken=x"] * 3
    assert len(seen(road, "/form/")) == 3


def test_the_bypass_parameter_reaches_the_application(road):
    get("/", at=DIRECT)
    assert get("/?flush-the-cache", at=DIRECT).headers["X-Cache"] == "pass"
    assert get("/?a=1&flush-the-cache=1", at=DIRECT).headers["X-Cache"] == "pass"
    assert len(seen(road, "/?flush-the-cache")) == 1


def test_parameters_of_campaigns_change_nothing(road):
    get("/list/?b=2&a=1", at=DIRECT)
    for query in ("a=1&b=2", "a=1&utm_source=x&b=2", "gclid=7&b=2&a=1", "b=2&a=1&fbclid"):
        assert get(f"/list/?{query}", at=DIRECT).headers["X-Cache"] == "hit", query
    get("/plain/", at=DIRECT)
    assert get("/plain/?utm_source=a&utm_medium=b", at=DIRECT).headers["X-Cache"] == "hit"
    assert get("/list/?a=1&b=3", at=DIRECT).headers["X-Cache"] == "miss"


def test_names_are_made_alike(road):
    get("/", at=DIRECT)
    assert get("/", host="PAPER.lab:15080", at=DIRECT).headers["X-Cache"] == "hit"


@pytest.mark.parametrize("path", ["/wp-login.php", "/x/y.JPG", "/a.css?v=1", "/.env"])
def test_files_that_django_does_not_serve_end_in_varnish(road, path):
    answer = get(path, at=DIRECT)
    assert answer.status == 404
    assert "<h1>Not found</h1>" in answer.text
    assert not seen(road, path)


@pytest.mark.parametrize(
    "path", ["/static/a.1234abcd.css", "/media/x.jpg", "/robots.txt", "/x.php/y/"]
)
def test_files_that_a_site_does_serve_are_asked_for(road, path):
    assert get(path, at=DIRECT).status == 200
    assert len(seen(road, path)) == 1


def test_redirects(road):
    moved = get("/old/?page=2", at=DIRECT)
    assert (moved.status, moved.headers["Location"]) == (301, "http://paper.lab/new/?page=2")
    away = get("/away/", at=DIRECT)
    assert (away.status, away.headers["Location"]) == (301, "https://elsewhere.lab/")
    named = get("/x/?y=1", host="www.paper.lab", at=DIRECT)
    assert (named.status, named.headers["Location"]) == (301, "http://paper.lab/x/?y=1")
    assert get("/old/", tls=True, at=(BALANCER, roads.TLS)).headers["Location"].startswith("https:")


def test_an_unknown_name_gets_no_site(road):
    assert get("/", host="nobody.lab", at=DIRECT).status == 404
    assert get("/", host="nobody.lab").status == 404


def test_the_time_that_pages_are_kept(road):
    for app in road.apps:
        app.behaviour["/long/"] = (200, {"Cache-Control": "max-age=60"}, "long")
        app.behaviour["/public/"] = (200, {"Cache-Control": "public"}, "short")
        app.behaviour["/denied/"] = (403, {}, "denied")
        app.behaviour["/private/"] = (200, {"Cache-Control": "private, max-age=60"}, "mine")
    for path in ("/long/", "/public/", "/denied/", "/private/", "/silent/"):
        get(path, at=DIRECT)
    time.sleep(2.3)  # ttl and grace_healthy are 1 s here
    kept = {
        path: get(path, at=DIRECT).headers["X-Cache"] for path in ("/long/", "/public/", "/silent/")
    }
    assert kept == {"/long/": "hit", "/public/": "miss", "/silent/": "miss"}
    assert get("/denied/", at=DIRECT).status == 403
    get("/private/", at=DIRECT)
    assert len(seen(road, "/denied/")) == 2
    assert len(seen(road, "/private/")) == 2


def test_a_page_that_fails_is_served_as_it_was(road):
    page = get("/news/", at=DIRECT).text
    for app in road.apps:
        app.behaviour["/news/"] = (500, {}, "broken")
    time.sleep(2.3)
    for _ in range(3):
        answer = get("/news/", at=DIRECT)
        assert (answer.status, answer.text) == (200, page)
        assert answer.headers["X-Cache"] == "stale"
    for app in road.apps:
        app.behaviour["/never/"] = (500, {}, "the site's own page")
    failed = get("/never/", at=DIRECT)
    assert (failed.status, failed.text) == (500, "the site's own page")
    for app in road.apps:
        app.behaviour["/news/"] = (200, {}, "new")
    until(lambda: get("/news/", at=DIRECT).text == "new", 5)


def test_purge(road):
    get("/a/", at=DIRECT)
    get("/b/", at=DIRECT)
    assert get("/a/", method="PURGE", at=DIRECT, source="127.55.0.99").status == 405
    assert get("/a/", at=DIRECT).headers["X-Cache"] == "hit"
    purge = get("/a/", method="PURGE", at=DIRECT, source=APPS[0])
    assert purge.status == 200
    assert get("/a/", at=DIRECT).headers["X-Cache"] == "miss"
    assert get("/b/", at=DIRECT).headers["X-Cache"] == "hit"


def test_purge_finds_every_form_of_a_page(road):
    for scheme in ("http", "https"):
        get("/static/x.css", at=DIRECT, X_Forwarded_Proto=scheme, Accept_Encoding="br, gzip")
        get("/static/x.css", at=DIRECT, X_Forwarded_Proto=scheme, Accept_Encoding="gzip")
    assert len(seen(road, "/static/x.css")) == 4
    assert {r[2]["accept-encoding"] for r in seen(road, "/static/x.css")} == {"br", "gzip"}
    get("/static/x.css", method="PURGE", at=DIRECT, source=APPS[0])
    answer = get("/static/x.css", at=DIRECT, X_Forwarded_Proto="http", Accept_Encoding="gzip")
    assert answer.headers["X-Cache"] == "miss"
    assert "Saltern" not in str(answer.headers)


def test_ban_by_pattern(road):
    for path in ("/section/a/", "/section/b/", "/other/"):
        get(path, at=DIRECT)
    denied = get("/", method="BAN", at=DIRECT, source="127.55.0.99", X_Ban_Pattern="^/section/")
    assert denied.status == 405
    banned = get("/", method="BAN", at=DIRECT, source=APPS[0], X_Ban_Pattern="^/section/")
    assert banned.status == 200
    kept = [
        get(path, at=DIRECT).headers["X-Cache"]
        for path in ("/section/a/", "/section/b/", "/other/")
    ]
    assert kept == ["miss", "miss", "hit"]


def test_writes_go_past_the_cache_to_the_hosts(road):
    answer = get("/form/", method="POST", body="x=1")
    assert answer.status == 200
    assert "X-Cache" not in answer.headers
    assert get("/form/", method="DELETE", at=DIRECT).headers["X-Cache"] == "pass"


def test_a_request_keeps_its_name_on_the_whole_road(road):
    answer = get("/named/", X_Request_ID="mine", X_Forwarded_For="6.6.6.6")
    name = answer.headers["X-Request-ID"]
    assert re.fullmatch(r"[0-9a-f-]{36}", name)
    told = seen(road, "/named/")[0][2]
    assert told["x-request-id"] == name
    assert "6.6.6.6" not in told["x-forwarded-for"]


def test_the_client_is_known_behind_both(road):
    get("/who/", source="127.55.0.99")
    assert seen(road, "/who/")[0][2]["x-forwarded-for"] == "127.55.0.99"
    get("/who/post/", method="POST", body="", source="127.55.0.99")
    assert seen(road, "/who/post/")[0][2]["x-forwarded-for"] == "127.55.0.99"


def test_tls_with_http2_and_nothing_old(road):
    assert get("/tls/", tls=True, at=(BALANCER, roads.TLS)).status == 200
    assert seen(road, "/tls/")[0][2]["x-forwarded-proto"] == "https"
    assert get("/tls/").headers["X-Cache"] == "miss", "plain HTTP is another page"
    assert {request[2]["x-forwarded-proto"] for request in seen(road, "/tls/")} == {"http", "https"}

    def handshake(*options):
        return subprocess.run(
            ["openssl", "s_client", "-connect", f"{BALANCER}:{roads.TLS}", *options],
            input="", capture_output=True, text=True,
        )  # fmt: skip

    assert "ALPN protocol: h2" in handshake("-alpn", "h2,http/1.1").stdout
    assert handshake("-tls1_2").returncode == 0
    assert handshake("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0").returncode != 0
    assert handshake("-tls1_2", "-cipher", "AES128-SHA").returncode != 0


def test_statistics_are_for_the_farm_only(road):
    at = (BALANCER, roads.STATS)
    assert get("/", at=at, source="127.55.0.99").status == 403
    assert "Statistics Report" in get("/", at=at, source=ACCELERATORS[0]).text
    assert "haproxy_process" in get("/metrics", at=at, source=ACCELERATORS[0]).text
    assert get("/.saltern/varnish", source="127.55.0.99").status == 403


def test_errors_of_the_balancer_have_a_page(road):
    answer = get("/.saltern/varnish", source="127.55.0.99")
    assert "<h1>Not allowed</h1>" in answer.text


def test_a_host_that_is_unwell_gets_nothing(road):
    road.apps[0].well = False
    until(lambda: road.healthy("cache1") == 1, 20)
    road.apps[0].seen.clear()
    for n in range(8):
        assert get(f"/n{n}/", at=DIRECT).status == 200
        assert get("/post/", method="POST", body="").status == 200
    assert not road.apps[0].seen
    road.apps[0].well = True
    until(lambda: road.healthy("cache1") == 2, 20)


def test_reloading_varnish_keeps_what_is_cached(road):
    for app in road.apps:
        app.behaviour["/keep-me/"] = (200, {"Cache-Control": "max-age=60"}, "kept")
    get("/keep-me/", at=DIRECT)
    road.admin("cache1", "vcl.load", "second", str(road.write_vcl("cache1")))
    until(lambda: road.admin("cache1", "backend.list", "second.*").count("healthy") >= 2)
    road.admin("cache1", "vcl.use", "second")
    assert get("/keep-me/", at=DIRECT).headers["X-Cache"] == "hit"
