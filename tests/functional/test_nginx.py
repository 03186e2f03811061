"""The web server alone: real nginx for two sites, with a real uWSGI behind it, on loopback."""

import concurrent.futures
import contextlib
import gzip
import json
import socket
import subprocess
import threading
import time

import pytest

from tests.functional import road as roads
from tests.functional.road import ACCELERATORS, APP, APPS, BALANCER, get, until

AT = (APPS[0], APP)
# Answers with what it was told; `?seconds=1` takes its time.
APPLICATION = """
import json, time, urllib.parse

def application(environ, start_response):
    asked = urllib.parse.parse_qs(environ["QUERY_STRING"])
    time.sleep(float(asked.get("seconds", ["0"])[0]))
    body = environ["wsgi.input"].read()
    told = {key: value for key, value in environ.items() if isinstance(value, str)}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({**told, "length": len(body)}).encode()]
"""
MAGAZINE = {**roads.SITE, "domains": ["magazine.lab"], "redirect_domains": [], "max_body": "64k"}
SLOW = {"head": "1s", "body": "1s", "answer": "1s", "connections": 3}


class Host:
    """An app host's web server, the log that it writes to, and the sites' files."""

    def __init__(self, folder):
        self.folder, self.lines = folder, []
        told = roads.pillar(
            others={"magazine": MAGAZINE},
            nginx={"slow_clients": SLOW},
            django={"root": str(folder)},
        )
        modules = roads.functions("app1", told, folder)
        self.paths = {name: modules["sites.paths"](name) for name in told["sites"]}
        pages = folder / "error-pages"
        pages.mkdir()
        for status in (400, 404, 413, 429, 500, 502, 503, 504):
            page = roads.render(modules, "nginx/files/error.html", status=status)
            (pages / f"{status}.html").write_text(page)
        text = roads.render(modules, "nginx/files/nginx.conf")
        for path, here in {
            "user www-data": "user root",
            "/run/nginx.pid": f"{folder}/nginx.pid",
            "/usr/share/nginx/saltern": str(pages),
            "/dev/log": f"{folder}/log",
        }.items():
            text = text.replace(path, here)
        (folder / "nginx.conf").write_text(text)
        (folder / "app.py").write_text(APPLICATION)
        self.log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.log.bind(str(folder / "log"))
        threading.Thread(target=self._listen, daemon=True).start()
        sockets = [f"--socket={self.file(name, 'socket')}" for name in told["sites"]]
        commands = (
            ["uwsgi", "--plugin=python3", f"--wsgi-file={folder}/app.py", "--threads=8",
             "--die-on-term", *sockets],
            ["nginx", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"],
        )  # fmt: skip
        with (folder / "output").open("w") as output:
            self.processes = [
                subprocess.Popen(command, stdout=output, stderr=output) for command in commands
            ]
        until(
            lambda: (
                {get("/", name, at=AT).status for name in ("paper.lab", "magazine.lab")} == {200}
            )
        )

    def file(self, site, kind, name=""):
        """One of a site's files; its folder is made."""
        path = self.folder / self.paths[site][kind] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def logged(self, word):
        """The lines with a word in them, as soon as there is one."""
        until(lambda: any(word in line for line in self.lines), 10)
        return [line for line in self.lines if word in line]

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait(10)
        self.log.close()

    def _listen(self):
        with contextlib.suppress(OSError):
            while True:
                self.lines.append(self.log.recv(65536).decode())


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    host = Host(tmp_path_factory.mktemp("nginx"))
    yield host
    host.stop()


@contextlib.contextmanager
def connected():
    with socket.create_connection(AT, timeout=15) as connection:
        yield connection


def answered(connection):
    """All that comes until the web server closes, which may be with a reset."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 20):
            parts.append(part)
    return b"".join(parts)


def test_each_site_has_its_own_app_server(host):
    told = json.loads(get("/x/?y=1", "magazine.lab", at=AT, X_Forwarded_Proto="https").text)
    assert (told["HTTP_HOST"], told["REQUEST_URI"]) == ("magazine.lab", "/x/?y=1")
    assert (told["REQUEST_SCHEME"], told["HTTP_X_FORWARDED_PROTO"]) == ("https", "https")
    away = host.file("magazine", "socket")
    kept = away.with_suffix(".kept")
    away.rename(kept)
    try:
        assert get("/", "magazine.lab", at=AT).status == 502
        assert get("/", at=AT).status == 200
    finally:
        kept.rename(away)


def test_the_largest_body_is_the_sites_own(host):
    body = "x" * 65537
    refused = get("/", "magazine.lab", "POST", at=AT, body=body)
    assert refused.status == 413
    assert "<h1>Too large</h1>" in refused.text
    assert (
        json.loads(get("/", "magazine.lab", "POST", at=AT, body=body[1:]).text)["length"] == 65536
    )
    assert json.loads(get("/", method="POST", at=AT, body=body).text)["length"] == 65537


def test_a_name_that_no_site_has_is_closed_without_a_word(host):
    with connected() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: nobody.lab\r\n\r\n")
        assert answered(connection) == b""


def test_the_balancer_is_told_that_the_web_server_lives(host):
    for path in ("/health/", "/.saltern/nginx"):
        answer = get(path, APPS[0], at=AT)
        assert (answer.status, answer.text) == (200, "OK\n")
    assert json.loads(get("/health/", at=AT).text)["PATH_INFO"] == "/health/", "the site's own"


def test_static_files_are_kept_and_packed(host):
    plain = "body { color: red }\n" * 100
    host.file("paper", "static", "site.0a1b2c3d.css").write_text(plain)
    host.file("paper", "static", "site.css").write_text(plain)
    host.file("paper", "static", "site.0a1b2c3d.css.gz").write_bytes(gzip.compress(b"packed"))
    host.file("paper", "static", "site.0a1b2c3d.css.br").write_bytes(b"as brotli has it")
    hashed = get("/static/site.0a1b2c3d.css", at=AT)
    assert hashed.text == plain
    assert "max-age=31536000" in hashed.headers["Cache-Control"]
    assert "max-age=3600" in get("/static/site.css", at=AT).headers["Cache-Control"]
    gzipped = get("/static/site.0a1b2c3d.css", at=AT, Accept_Encoding="gzip")
    assert gzip.decompress(gzipped.body) == b"packed", "not packed anew"
    brotli = get("/static/site.0a1b2c3d.css", at=AT, Accept_Encoding="gzip, br")
    assert (brotli.headers["Content-Encoding"], brotli.body) == ("br", b"as brotli has it")
    anew = get("/static/site.css", at=AT, Accept_Encoding="gzip")
    assert gzip.decompress(anew.body).decode() == plain
    missing = get("/static/none.css", at=AT)
    assert missing.status == 404
    assert "<h1>Not found</h1>" in missing.text
    assert get("/static/site.css", "magazine.lab", at=AT).status == 404, "the other site's"


def test_uploads_are_served_and_never_run(host):
    host.file("paper", "media", "x.html").write_text("<script>alert(1)</script>")
    answer = get("/media/x.html", at=AT)
    assert answer.status == 200
    assert "max-age=3600" in answer.headers["Cache-Control"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert get("/media/x.html", "magazine.lab", at=AT).status == 404


def test_error_pages_are_flat_or_the_sites_own(host):
    live = host.file("paper", "socket")
    kept = live.with_suffix(".kept")
    live.rename(kept)
    own = host.file("paper", "pages", "502.html")
    try:
        assert "<h1>Back in a moment</h1>" in get("/", at=AT).text
        own.write_text("our own words")
        failed = get("/", at=AT)
        assert (failed.status, failed.text) == (502, "our own words")
        assert failed.headers["Cache-Control"] == "no-store"
    finally:
        own.unlink(missing_ok=True)
        kept.rename(live)
    off = host.file("paper", "root", "maintenance")
    off.touch()
    try:
        assert get("/", at=AT).status == 503
        assert get("/", "magazine.lab", at=AT).status == 200
    finally:
        off.unlink()


def test_the_layers_in_front_get_the_sites_own_pages(host):
    own = host.file("paper", "pages", "503.html")
    live = host.file("paper", "current")
    live.mkdir()
    own.write_text("our own words")

    def asked(number, source=ACCELERATORS[0], **headers):
        return get(f"/.saltern/pages/{number}.html", at=AT, source=source, **headers)

    try:
        for source in (ACCELERATORS[0], BALANCER):
            assert (asked(503, source).status, asked(503, source).text) == (200, "our own words")
        assert asked(404).status == 404, "it has no such one"
        assert asked(503, "127.55.0.99").status == 403
        assert asked(503, X_Forwarded_For="6.6.6.6").status == 403
    finally:
        live.rmdir()
    try:
        assert asked(503).status == 503, "nothing is live"
    finally:
        own.unlink()


def test_the_client_is_whom_the_farms_own_hosts_say(host):
    def client(source):
        told = get("/", at=AT, source=source, X_Forwarded_For="6.6.6.6").text
        return json.loads(told)["HTTP_X_FORWARDED_FOR"]

    assert client(ACCELERATORS[0]) == "6.6.6.6"
    assert client("127.55.0.99") == "127.55.0.99"


def test_requests_and_errors_are_logged_in_one_place(host):
    get('/told/?"=x', at=AT, source="127.55.0.98", X_Request_ID="the-name", User_Agent='"\\ \x01')
    (line,) = host.logged("the-name")
    told = json.loads(line[line.index("{") :])
    assert told["id"] == "the-name"
    assert (told["client"], told["site"], told["status"]) == ("127.55.0.98", "paper.lab", 200)
    assert (told["uri"], told["method"], told["agent"]) == ('/told/?"=x', "GET", '"\\ \x01')
    assert float(told["app_seconds"]) <= told["seconds"] + 0.01
    get("/static/not-there.css", at=AT)
    errors = [line for line in host.logged("not-there.css") if "[error]" in line]
    assert "No such file" in errors[0]
    assert all(" nginx: " in line for line in host.lines)


def test_slow_clients_are_let_go(host):
    with connected() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: paper.lab\r\n")
        assert answered(connection) == b"", "the head never ends"
    with connected() as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: paper.lab\r\nX-Request-ID: half\r\n"
            b"Content-Length: 9\r\n\r\n1"
        )
        assert answered(connection) == b"", "the body never ends"
    (line,) = host.logged('"id":"half"')
    assert '"status":408' in line
    size = 64 << 20  # more than the kernel takes in advance
    with host.file("paper", "media", "large").open("wb") as file:
        file.truncate(size)
    with connected() as connection:
        connection.sendall(b"GET /media/large HTTP/1.1\r\nHost: paper.lab\r\n\r\n")
        host.logged("/media/large")
        assert len(answered(connection)) < size, "the answer isn't taken"


def test_a_client_holds_only_so_many_connections(host):
    def ask(client):
        return get("/?seconds=1", at=AT, source=ACCELERATORS[0], X_Forwarded_For=client)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        greedy = [pool.submit(ask, "6.6.6.6") for _ in range(5)]
        time.sleep(0.3)
        other = pool.submit(ask, "7.7.7.7")
    statuses = sorted(answer.result().status for answer in greedy)
    assert statuses == [200, 200, 200, 429, 429]
    assert other.result().status == 200
    refused = next(a.result() for a in greedy if a.result().status == 429)
    assert "<h1>Too many requests</h1>" in refused.text


def test_redirects_where_no_accelerator_answers_them(host):
    moved = get("/old/?page=2", at=AT, X_Forwarded_Proto="https")
    assert (moved.status, moved.headers["Location"]) == (301, "https://paper.lab/new/?page=2")
    named = get("/x/?y=1", "www.paper.lab", at=AT)
    assert (named.status, named.headers["Location"]) == (301, "http://paper.lab/x/?y=1")
