"""The package cache fetches what never changes once, and everything else each time."""

import contextlib
import http.client
import http.server
import threading

import pytest

from tests.lab import package_cache

DEB = "/debian/pool/a/a_1_all.deb"


@pytest.fixture
def origin():
    """A mirror on loopback that counts what it is asked for."""

    asked = []

    class Mirror(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Host"], dict(self.headers)))
            if "missing" in self.path:
                self.send_error(404)
                return
            body = f"content of {self.path}".encode()
            missing = 10 if "broken" in self.path else 0
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + missing))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)) as server:
        server.asked = asked
        yield server


@contextlib.contextmanager
def running(server):
    """Serve in a thread while a ``with`` lasts."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path):
    with running(package_cache.serve("127.0.0.1", 0, tmp_path / "kept")) as server:
        yield server


def get(proxy, url, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.server_port, timeout=10)
    connection.request("GET", url, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def url_of(origin, path):
    return f"http://127.0.0.1:{origin.server_port}{path}"


def test_a_package_is_fetched_once(origin, cache):
    for _ in range(3):
        assert get(cache, url_of(origin, DEB)) == (200, f"content of {DEB}".encode())
    assert [path for path, *_ in origin.asked] == [DEB]


def test_an_index_is_fetched_each_time_with_the_clients_condition(origin, cache):
    url = url_of(origin, "/debian/dists/bookworm/InRelease")
    for _ in range(2):
        assert get(cache, url, **{"If-Modified-Since": "yesterday"})[0] == 200
    assert len(origin.asked) == 2
    assert origin.asked[0][2]["If-Modified-Since"] == "yesterday"


def test_what_is_missing_is_asked_for_again(origin, cache):
    for _ in range(2):
        assert get(cache, url_of(origin, "/missing.deb"))[0] == 404
    assert len(origin.asked) == 2


def test_a_package_cut_short_is_not_kept(origin, cache, tmp_path):
    for _ in range(2):
        with pytest.raises(http.client.IncompleteRead):
            get(cache, url_of(origin, "/broken.deb"))
    assert len(origin.asked) == 2
    assert [path for path in (tmp_path / "kept").rglob("*") if path.is_file()] == []


def test_a_mirror_that_cannot_be_reached_is_named(cache):
    status, body = get(cache, "http://127.0.0.1:1/debian/a.deb")
    assert status == 502
    assert b"can't be reached" in body


def test_only_http_is_fetched(cache):
    assert get(cache, "ftp://127.0.0.1/a.deb")[0] == 400


def test_the_machines_own_proxy_is_asked_where_there_is_one(origin, tmp_path):
    beyond = f"http://127.0.0.1:{origin.server_port}"
    with running(package_cache.serve("127.0.0.1", 0, tmp_path / "x", beyond)) as cache:
        assert get(cache, "http://mirror.example/a_1.deb")[0] == 200
    path, host, _ = origin.asked[0]
    assert (path, host) == ("http://mirror.example/a_1.deb", "mirror.example")
