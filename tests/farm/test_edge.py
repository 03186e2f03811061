"""The road of a request through the farm: balancers, accelerators, web servers."""

import concurrent.futures
import json
import re
import time

import pytest

from tests.farm.database_farm import apply
from tests.farm.visitors import visitors
from tests.farm.waiting import until

HOST = {"Host": "newsroom.lab"}
SHARED = "198.18.0.5"
ACCELERATORS = ("http://198.18.0.21:6081", "http://198.18.0.22:6081")
NGINX = 8080


def journal(lab, host, *options):
    return lab.run(host, "journalctl", "-q", "-o", "cat", "--since=-60s", *options).stdout


def logged(lab, hosts, name, *options, seconds=15):
    """The lines that tell of a request on any of these hosts, as soon as there are some."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = [
            line
            for host in hosts
            for line in journal(lab, host, *options).splitlines()
            if name in line
        ]
        if found:
            return found
        time.sleep(0.5)
    return []


def stylesheet(lab):
    """The path of a file whose name carries its hash."""
    page = lab.get("http://lb1/", headers=HOST).body
    return re.search(r'/static/[^"]+\.[0-9a-f]{8,}\.css', page).group()


def test_a_request_is_found_by_its_name_in_every_layer(lab):
    answer = lab.get(f"http://lb1/?flush-the-cache={time.time_ns()}", headers=HOST)
    assert answer.status == 200
    name = answer.headers["x-request-id"]
    apps, caches = ("app1", "app2"), ("cache1", "cache2")
    for hosts, options in (
        (("lb1",), ("-t", "haproxy")),
        (caches, ("-t", "varnish")),
        (apps, ("-t", "nginx")),
        (apps, ("-u", "uwsgi")),
    ):
        lines = logged(lab, hosts, name, *options)
        assert lines, f"{options} of {hosts}"
        told = json.loads(lines[0][lines[0].index("{") :])
        assert told["id"] == name
        assert int(told["status"]) == 200
        assert told["client"].startswith("198.18."), told


def test_https_with_the_farms_own_authority(lab):
    for balancer in ("lb1", "lb2"):
        address = lab.hosts[balancer].address
        authority = lab.run(balancer, "cat", "/etc/haproxy/private/authority.pem").stdout
        path = lab.lab.folder / f"authority-{balancer}.pem"
        path.write_text(authority)
        done = lab.on_hub(
            "curl", "-sS", "--noproxy", "*", "--cacert", path, "--http2", "-o", "/dev/null",
            "--resolve", f"newsroom.lab:443:{address}", "-w", "%{http_code} %{http_version}",
            "https://newsroom.lab/",
        )  # fmt: skip
        path.unlink()
        assert done.stdout == b"200 2", done.stderr


def test_redirects_and_what_django_does_not_serve(lab):
    moved = lab.get("http://lb1/a/?b=c", headers={"Host": "www.newsroom.lab"})
    assert (moved.status, moved.headers["location"]) == (301, "http://newsroom.lab/a/?b=c")
    missing = lab.get("http://lb1/wp-login.php", headers=HOST)
    assert (missing.status, missing.headers["x-cache"]) == (404, "synth")
    assert lab.get("http://lb1/", headers={"Host": "nobody.lab"}).status == 404
    assert lab.get("http://lb1/", headers=HOST, method="PURGE").status in (403, 405)
    inside = lab.run(
        "app1", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "PURGE",
        "-H", "Host: newsroom.lab", "http://198.18.0.21:6081/",
    )  # fmt: skip
    assert inside.stdout == "200"


def test_a_page_is_kept_purged_and_kept_again(lab):
    url = "http://198.18.0.21:6081/"
    lab.salt("cache1", "varnish.purge", "/")
    assert lab.get(url, headers=HOST).headers["x-cache"] == "miss"
    assert lab.get(url, headers=HOST).headers["x-cache"] == "hit"
    lab.salt("cache1", "varnish.ban", "^/$")
    assert lab.get(url, headers=HOST).headers["x-cache"] == "miss"


def test_static_files_are_packed_and_kept(lab):
    path = stylesheet(lab)
    for encoding in ("br", "gzip"):
        answer = lab.get(f"http://lb1{path}", headers={**HOST, "Accept-Encoding": encoding})
        assert answer.status == 200
        assert answer.headers["content-encoding"] == encoding
        assert "max-age=31536000" in answer.headers["cache-control"]


def test_an_unknown_name_gets_nothing_from_nginx(lab):
    with pytest.raises(ConnectionError):
        lab.get(f"http://198.18.0.31:{NGINX}/", headers={"Host": "nobody.lab"})


def test_an_app_host_is_drained_and_put_back(lab):
    def asked_of_app1():
        lines = journal(lab, "app1", "-t", "nginx").splitlines()
        return sum("drain-test" in line for line in lines)

    try:
        drained = lab.salt("lb*", "haproxy.drain", "app1")
        assert {d["site_newsroom"]["app1"]["state"] for d in drained.values()} == {"DRAIN"}
        lab.salt("cache*", "varnish.drain", "app1")
        before = asked_of_app1()
        for n in range(12):
            assert lab.get(f"http://lb1/?drain-test={n}", headers=HOST).status == 200
        assert asked_of_app1() == before
        lab.salt("lb*", "service.reload", "haproxy")
        states = lab.salt("lb*", "haproxy.status", "site_newsroom")
        assert {s["site_newsroom"]["app1"]["state"] for s in states.values()} == {"DRAIN"}
    finally:
        lab.salt("lb*", "haproxy.ready", "app1")
        lab.salt("cache*", "varnish.ready", "app1")


def test_traffic_is_split_by_weight(lab):
    def shares(name):
        """How many of 40 clients of lb1, with a request each, were given to each accelerator."""
        url = f"http://lb1/?flush-the-cache={name}-[1-40]-"
        client = ["curl", "-sSf", "--noproxy", "*", "-H", "Connection: close"]
        done = lab.on_hub(*client, "-H", "Host: newsroom.lab", url)
        assert done.returncode == 0, done.stderr

        def counted():
            texts = [journal(lab, host, "-t", "varnish") for host in ("cache1", "cache2")]
            found = [len(re.findall(f"flush-the-cache={name}-", text)) for text in texts]
            return found if sum(found) == 40 else None

        return until(20, counted)

    stamp = time.time_ns()
    assert abs(shares(f"even{stamp}")[0] - 20) <= 2
    try:
        given = lab.salt("lb*", "haproxy.weight", "cache1", "25")
        assert [w["accelerators"]["cache1"]["weight"] for w in given.values()] == [25, 25]
        assert abs(shares(f"fifth{stamp}")[0] - 8) <= 2
        lab.salt("lb*", "service.reload", "haproxy")
        time.sleep(1)
        assert abs(shares(f"reloaded{stamp}")[0] - 8) <= 2
    finally:
        lab.salt("lb*", "haproxy.weight", "cache1", "100")


def test_the_storage_is_what_the_ram_allows(lab):
    for host, stats in lab.salt("cache*", "varnish.stats").items():
        said = lab.salt(host, "settings.explain", "varnish", "storage")[host]["storage"]
        size = re.match(r"(\d+)M \| tuned \|", said)[1]
        assert stats["storage_used"] + stats["storage_free"] == int(size) << 20, said


def test_warming_tells_how_far_it_is(lab):
    pages = json.dumps([f"/slow/?seconds=1&warm={n}" for n in range(6)])
    listen = ["timeout", "120", "salt-run", "state.event", "saltern/varnish/warm", "count=1"]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        told = pool.submit(lab.run, "master", *listen)
        time.sleep(3)  # whoever listens takes a moment until it does
        for _ in range(3):
            warmed = lab.salt("cache1", "varnish.warm", pages, "at_once=1")["cache1"]
            assert (warmed["pages"], warmed["failed"]) == (6, []), warmed
            if told.done():
                break
    assert re.search(r'"done": [1-5],', told.result().stdout), told.result().stdout
    assert '"total": 6' in told.result().stdout


@pytest.mark.drill
def test_a_balancer_that_was_restarted_forgets_who_was_drained_once(lab):
    lab.salt("lb2", "haproxy.drain", "cache2")
    try:
        lab.salt("lb2", "service.reload", "haproxy")
    finally:
        lab.salt("lb2", "haproxy.ready", "cache2")
    lab.salt("lb2", "service.restart", "haproxy")
    state = lab.salt("lb2", "haproxy.status", "accelerators")["lb2"]["accelerators"]["cache2"]
    assert state["state"].startswith("UP")


def test_what_stops_with_varnish_starts_with_it(lab):
    lab.salt("lb*", "haproxy.drain", "cache2")
    try:
        lab.run("cache2", "systemctl", "stop", "varnish")
        lab.run("cache2", "systemctl", "start", "varnish")
        until(20, lambda: lab.salt("cache2", "service.status", "saltern-varnish-log")["cache2"])
    finally:
        lab.salt("lb*", "haproxy.ready", "cache2")


@pytest.mark.parametrize(
    ("target", "function", "arguments", "url"),
    [
        ("lb*", "service.reload", ["haproxy"], "http://198.18.0.11"),
        ("cache*", "varnish.reload", [], "http://198.18.0.11"),
        ("app*", "service.reload", ["nginx"], f"http://198.18.0.31:{NGINX}"),
    ],
    ids=["haproxy", "varnish", "nginx"],
)
def test_a_reload_fails_no_request(lab, target, function, arguments, url):
    # A file for nginx itself, what visitors see for the others.
    url += stylesheet(lab) if target == "app*" else "/"
    # tests/bench/edge.py asks 500 times a second; here the client has to keep up beside all else.
    with visitors(lab.lab, url, rate=100) as seen:
        for _ in range(3):
            lab.salt(target, function, *arguments)
    assert seen.report["sent"] > 300
    assert seen.report["failed"] == 0, seen.report


# What a daemon refuses: the host, the pillar, the state that fails and its file.
BAD = {
    "haproxy": (
        "lb1",
        {"overrides": {"haproxy": {"old_farm": {"servers": {"old1": "198.18.0.9:x"}, "share": 1}}}},
        "haproxy/config",
        "haproxy.cfg",
    ),
    "keepalived": (
        "lb1",
        {"overrides": {"keepalived": {"address": "198.18.0.500/24"}}},
        "keepalived/config",
        "keepalived.conf",
    ),
    "nginx": (
        "app1",
        {"sites": {"newsroom": {"redirects": {"/old/": "/new; }"}}}},
        "nginx/config",
        "nginx.conf",
    ),
    "varnish": (
        "cache1",
        {"overrides": {"varnish": {"bypass_parameter": '"); } rubbish'}}},
        "varnish/vcl",
        "saltern.vcl",
    ),
}


@pytest.mark.parametrize("service", BAD)
def test_a_bad_value_takes_nothing_down(lab, service):
    host, pillar, state, file = BAD[service]

    def as_it_is():
        text = lab.run(host, "sha256sum", f"/etc/{service}/{file}").stdout
        return text, lab.run(host, "systemctl", "show", "-pMainPID,ActiveState", service).stdout

    before = as_it_is()
    failed, _ = apply(lab, host, service, f"pillar={json.dumps(pillar)}")
    assert state in failed
    assert as_it_is() == before
    assert lab.get(f"http://{SHARED}/", headers=HOST).status == 200


@pytest.mark.parametrize(("lose", "back"), [("cut", "mend"), ("kill", "start")])
def test_the_shared_address_moves_within_three_seconds(lab, lose, back):
    def holder():
        on = [host.name for host in lab.lab.running() if "loadbalancer" in host.roles]
        shown = {name: lab.run(name, "ip", "-o", "addr").stdout for name in on}
        return [name for name, text in shown.items() if f" {SHARED}/" in text]

    (first,) = holder()
    (second,) = {"lb1", "lb2"} - {first}
    shared = f"http://{SHARED}/"
    with visitors(lab.lab, shared, rate=50, timeout=3.5, after=6) as seen:
        getattr(lab, lose)(first)
    assert second in holder()
    # Three seconds at 50 a second; those that were under way may have failed too.
    assert seen.report["failed"] <= 160, seen.report
    assert lab.get(shared, headers=HOST, timeout=3).status == 200
    # Back, it knows no live server yet: it waits until it does before it takes the address.
    with visitors(lab.lab, shared, rate=50, timeout=3.5, after=10) as seen:
        getattr(lab, back)(first)
    # What was under way when the address moved back is cut off; nothing is answered wrongly.
    assert seen.report["failed"] <= 25, seen.report
    wrong = [error for error in seen.report["errors"] if error.startswith("status")]
    assert not wrong, seen.report
    assert holder() == [first]


@pytest.mark.parametrize("lose", ["cut", "kill"])
def test_an_accelerator_is_lost(lab, lose):
    with visitors(lab.lab, "http://198.18.0.11/", rate=100, timeout=10, after=6) as seen:
        getattr(lab, lose)("cache1")
    assert seen.report["failed"] == 0, seen.report


def at_work(lab, host):
    """How many requests a host's nginx has at work: each fetch has a connection of its own."""
    states = ["state", "established", "state", "fin-wait-1"]  # the latter answered in vain
    shown = lab.run(host, "ss", "-Htn", *states, "sport", "=", f":{NGINX}").stdout
    return len(shown.splitlines())


@pytest.mark.parametrize("lose", ["cut", "kill"])
def test_an_app_host_is_lost(lab, lose):
    url, in_flight = "http://198.18.0.11/?lost={n}", 0
    with visitors(lab.lab, url, rate=20, timeout=15, after=6) as seen:
        getattr(lab, lose)("app1")
        if lose == "cut":  # with the plug pulled, Varnish is told so and asks another host
            in_flight = at_work(lab, "app1")
    assert seen.report["failed"] <= in_flight, (seen.report, in_flight)


@pytest.mark.drill
def test_every_app_host_is_lost(lab):
    home = lab.get("http://lb1/", headers=HOST).body
    pages = ["/", *dict.fromkeys(re.findall(r'href="(/(?:articles|sections)/[^"#?]+)"', home))]
    assert len(pages) > 10, pages
    for host, warmed in lab.salt("cache*", "varnish.warm", json.dumps(pages)).items():
        assert (warmed["pages"], warmed["failed"]) == (len(pages), []), (host, warmed)
    for host in ("app1", "app2"):
        lab.kill(host)
    try:
        time.sleep(35)  # longer than the pages' own time and `grace_healthy`
        answers = {
            (url, path): lab.get(url + path, headers=HOST)
            for url in ("http://lb1", "http://lb2", *ACCELERATORS)
            for path in pages
        }
        assert {answer.status for answer in answers.values()} == {200}
        assert {answer.headers["x-cache"] for answer in answers.values()} == {"stale"}
        missing = lab.get("http://lb1/never-asked-before/", headers=HOST)
        assert missing.status == 503
        assert "<h1>Back in a moment</h1>" in missing.body
    finally:
        for host in ("app1", "app2"):
            lab.start(host)
