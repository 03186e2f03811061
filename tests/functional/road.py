"""
The road of a request on this machine's loopback: real HAProxy, real Varnish and two stand-ins for
app hosts that do as they are told. The configurations are those that the states would write.
"""

import contextlib
import functools
import http.client
import http.server
import importlib.util
import os
import pathlib
import socket
import ssl
import subprocess
import threading
import time

import salt.config
import salt.loader
import salt.pillar
import salt.utils.dictupdate

CHECKOUT = pathlib.Path(__file__).parents[2]
BALANCER, ACCELERATORS, APPS = (
    "127.55.0.11",
    ("127.55.0.21", "127.55.0.22"),
    ("127.55.0.31", "127.55.0.32"),
)
WEB, TLS, STATS, VARNISH, APP = 15080, 15443, 15404, 15061, 15031

HOSTS = {
    "lb1": {"address": BALANCER, "roles": ["loadbalancer"]},
    "cache1": {"address": ACCELERATORS[0], "roles": ["accelerator"]},
    "cache2": {"address": ACCELERATORS[1], "roles": ["accelerator"]},
    "app1": {"address": APPS[0], "roles": ["app"]},
    "app2": {"address": APPS[1], "roles": ["app"]},
}
SITE = {
    "repository": "git://master/paper.git",
    "settings_module": "paper.settings",
    "wsgi_module": "paper.wsgi",
    "domains": ["paper.lab", "paper2.lab"],
    "redirect_domains": ["www.paper.lab"],
    "redirects": {"/old/": "/new/", "/away/": "https://elsewhere.lab/"},
}
OVERRIDES = {
    "haproxy": {"port": WEB, "tls_port": TLS, "maxconn": 400, "threads": 1, "log": "all",
                "stats": {"port": STATS}, "check": {"interval": "200ms"}, "slow_start": "0s"},
    "varnish": {"port": VARNISH, "storage": "16M", "threads_min": 10, "threads_max": 100,
                "ttl": "1s", "grace_healthy": "1s", "probe": {"interval": "1s"}},
    "nginx": {"port": APP},
}  # fmt: skip


def self_signed(folder, name):
    """A key and a certificate of its own for a name such as ``DNS:paper.lab``; their paths."""
    key, certificate = folder / "key", folder / "crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-subj", f"/CN={name.partition(':')[2]}", "-addext", f"subjectAltName={name}",
         "-days", "2", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


def pillar(site=None, others=None, **overrides):
    """The pillar of this farm: what a test wants different is merged in; further sites by name."""
    merged = salt.utils.dictupdate.merge(OVERRIDES, overrides)
    return {
        "environment": "lab",
        "hosts": HOSTS,
        "sites": {"paper": {**SITE, **(site or {})}, **(others or {})},
        "overrides": merged,
        "secrets": {},
    }


def functions(host, told, folder):
    """Salt's execution modules as this host would have them, with this pillar."""
    opts = salt.config.minion_config(None)
    opts.update(
        id=host,
        file_client="local",
        root_dir=str(folder),
        cachedir=str(folder / "cache"),
        extension_modules=str(folder / "cache" / "extmods"),
        file_roots={"base": [str(CHECKOUT / "salt")]},
        module_dirs=[str(CHECKOUT)],
    )
    opts["grains"] = _grains()
    opts["pillar"] = told
    return salt.loader.minion_mods(opts, utils=salt.loader.utils(opts))


@functools.lru_cache
def _grains():
    return salt.loader.grains({**salt.config.minion_config(None), "module_dirs": [str(CHECKOUT)]})


def module(name, modules):
    """An execution module whose own names a test may change."""
    spec = importlib.util.spec_from_file_location(name, CHECKOUT / "_modules" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    found.__salt__, found.__opts__ = modules, {}
    return found


def render(modules, template, **context):
    """The text of a template of the state tree."""
    return modules["slsutil.renderer"](f"salt://{template}", default_renderer="jinja", **context)


class App(http.server.BaseHTTPRequestHandler):
    """A stand-in for an app host. What it does is said in `server.behaviour`, by path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        path = self.path.partition("?")[0]
        time.sleep(server.slow if path != "/health/" else 0)
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        if path != "/health/":
            told = {name.lower(): value for name, value in self.headers.items()}
            server.seen.append((self.command, self.path, told))
        status, headers, body = 200, {}, f"{path} from {server.name} #{len(server.seen)}"
        if path in server.behaviour:
            status, headers, body = server.behaviour[path]
        if not server.well:
            status, headers, body = 503, {}, "unwell"
        body = body.encode()
        self.send_response(status)
        for name, value in {"Content-Type": "text/html", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - http.server's own names

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, name, address):
        super().__init__((address, APP), App)
        self.name, self.seen, self.behaviour, self.well = name, [], {}, True
        self.slow = 0.0  # seconds that an answer takes
        self.open = set()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def get_request(self):
        connection, address = super().get_request()
        self.open.add(connection)
        return connection, address

    def handle_error(self, request, client_address):
        """Who asked has gone away: no matter."""

    def die(self):
        """As a host does that loses power: nothing listens any more, no answer is finished."""
        self.shutdown()
        self.server_close()
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Answer:
    def __init__(self, response):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def text(self):
        return self.body.decode()


def get(path, host="paper.lab", method="GET", at=(BALANCER, WEB), tls=False, source=None, body=None,
        **headers):  # fmt: skip
    """Ask over HTTP. Headers are given with _ for -."""
    asked = {"Host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    if tls:
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(*at, timeout=10, context=context)
    else:
        connection = http.client.HTTPConnection(
            *at, timeout=10, source_address=(source, 0) if source else None
        )
    with contextlib.closing(connection):
        connection.request(method, path, body=body, headers=asked)
        return Answer(connection.getresponse())


class Road:
    """Everything between a client and the app hosts, started and stopped."""

    def __init__(self, folder, told):
        self.folder, self.told = folder, told
        self.processes = {}
        self.apps = [Server(f"app{n}", address) for n, address in enumerate(APPS, 1)]

    def start(self, accelerators=("cache1", "cache2"), balancer=True):
        for name in accelerators:
            self.start_varnish(name)
        if balancer:
            self.start_haproxy()
        return self

    def start_varnish(self, name):
        address = HOSTS[name]["address"]
        vcl = self.write_vcl(name)
        # On a host it listens there, too, for its own module; here one alone can.
        local = ["-a", f"local=127.0.0.1:{VARNISH},HTTP"] if address == ACCELERATORS[0] else []
        self.processes[name] = self._spawn(
            "varnishd", "-j", "none", "-F", "-n", str(self.folder / name), "-f", str(vcl),
            "-a", f"http={address}:{VARNISH},HTTP", "-a", f"proxy={address}:6086,PROXY",
            "-s", "malloc,16M", "-p", "thread_pool_min=10", "-p", "vsl_space=8M", *local,
        )  # fmt: skip
        until(lambda: get("/.saltern/varnish", at=(address, VARNISH)).status == 200)
        until(lambda: self.healthy(name) == len(APPS) * len(self.told["sites"]))

    def write_vcl(self, name):
        modules = functions(name, self.told, self.folder)
        pages = self.folder / f"{name}-pages"
        pages.mkdir(exist_ok=True)
        for site in self.told["sites"]:
            if not (pages / f"{site}.vcl").exists():
                empty = render(modules, "varnish/files/pages.vcl", label=site.replace("-", "_"))
                (pages / f"{site}.vcl").write_text(empty)
        vcl = self.folder / f"{name}.vcl"
        text = render(modules, "varnish/files/saltern.vcl")
        vcl.write_text(text.replace("/etc/varnish/pages/", f"{pages}/"))
        return vcl

    def healthy(self, name):
        shown = self.admin(name, "backend.list")
        return sum(line.split()[3] == "healthy" for line in shown.splitlines() if "__" in line)

    def admin(self, name, *command):
        return subprocess.run(
            ["varnishadm", "-n", str(self.folder / name), *command],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    def start_haproxy(self):
        configuration = self.write_haproxy()
        self.processes["lb1"] = self._spawn("haproxy", "-W", "-db", "-f", str(configuration))
        until(lambda: get("/.saltern/haproxy").status == 200)
        until(lambda: get("/health/", Cookie="sessionid=1").status in (200, 301))

    def write_haproxy(self):
        modules = functions("lb1", self.told, self.folder)
        errors, pages = self.folder / "errors", self.folder / "pages"
        errors.mkdir(exist_ok=True)
        pages.mkdir(exist_ok=True)
        for status in (400, 403, 408, 429, 500, 502, 503, 504):
            page = render(modules, "haproxy/files/error.http", status=status)
            (errors / f"saltern-{status}.http").write_text(page)
            for site in self.told["sites"] if status >= 500 else ():
                if not (pages / f"{site}-{status}.http").exists():
                    (pages / f"{site}-{status}.http").write_text(page)
        self._certificates()
        text = render(modules, "haproxy/files/haproxy.cfg")
        for path, here in {
            "/etc/haproxy/": f"{self.folder}/",
            "/run/haproxy/admin.sock": f"{self.folder}/admin.sock",
            "/var/lib/haproxy/servers": f"{self.folder}/servers",
            "chroot /var/lib/haproxy": "# no chroot",
            "log /dev/log local0": f"log {self.folder}/log.sock local0",
        }.items():
            text = text.replace(path, here)
        configuration = self.folder / "haproxy.cfg"
        configuration.write_text(text)
        return configuration

    def _certificates(self):
        folder = self.folder / "certificates"
        folder.mkdir(exist_ok=True)
        if any(folder.iterdir()):
            return
        for name, site in self.told["sites"].items():
            key, certificate = self_signed(self.folder, f"DNS:{site['domains'][0]}")
            (folder / f"{name}.pem").write_text(certificate.read_text() + key.read_text())

    def kill(self, name):
        """End one of the daemons without a warning."""
        process = self.processes.pop(name)
        os.killpg(process.pid, 9)
        process.wait(10)

    def stop(self):
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait(10)
        for app in self.apps:
            app.die()

    def _spawn(self, *command):
        log = (self.folder / f"{command[0]}.log").open("a")
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def until(true, seconds=60):
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException, subprocess.CalledProcessError):
            if true():
                return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s")
        time.sleep(0.05)
