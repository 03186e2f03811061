"""Where releases come from: private repositories by ssh and https, submodules, shallow mirrors."""

import base64
import functools
import http.server
import pathlib
import shutil
import ssl
import subprocess
import threading

import pytest

from tests.functional.apphost import free_port
from tests.functional.box import machine_has, wait_for
from tests.functional.project import Project
from tests.functional.road import self_signed

RELEASES = "/srv/sites/tiny/releases"
TOKEN = "a-token-that-nobody-sees"


def build(host, **named):
    """Fetch and build a revision; nothing of it runs."""
    return host.call("deploy.ship", until="build", **named)


def refused(host, **named):
    """Why it can't be fetched or built."""
    return host.call("deploy.ship", until="build", fails=True, **named)["comment"]


def content(host, report, path):
    return host.run("cat", f"{RELEASES}/{report['release']}/{path}").stdout


@pytest.fixture(scope="module")
def ssh(host):
    """An ssh server in the box whose user `git` may read /srv; what the pillar says of it."""
    lacks = machine_has("sshd", "ssh-keygen")
    assert not lacks, f"This machine lacks {', '.join(lacks)}."
    port, folder = free_port(), host.folder / "srv/git"
    host.run("useradd", "--system", "--home-dir", "/srv/git", "--create-home", "--shell",
             "/bin/sh", "--password", "*", "git")  # fmt: skip
    for name in ("host_key", "deploy_key", "other_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", folder / name],
            check=True,
        )
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey /srv/git/host_key\nPidFile none\n"
        "AuthorizedKeysFile /srv/git/deploy_key.pub\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\n"
    )
    host.run("mkdir", "-p", "/run/sshd")
    host.start("/usr/sbin/sshd", "-D", "-e", "-f", "/srv/git/sshd_config", log="sshd.log")
    log = host.folder / "sshd.log"
    wait_for(lambda: "listening" in log.read_text(), what="sshd")

    def pinned(name):
        return f"[127.0.0.1]:{port} {(folder / name).read_text().strip()}"

    return {
        "url": f"ssh://git@127.0.0.1:{port}/srv",
        "deploy_key": (folder / "deploy_key").read_text(),
        "other_key": (folder / "other_key").read_text(),
        "known_hosts": pinned("host_key.pub"),
        "impostor": pinned("other_key.pub"),
        "log": log,
    }


def by_ssh(told, ssh, **secrets):
    given = {"deploy_key": ssh["deploy_key"], "known_hosts": ssh["known_hosts"], **secrets}
    told(given, repository=f"{ssh['url']}/project")


def test_a_deploy_key_opens_the_repository_and_is_gone_afterwards(host, told, ssh):
    by_ssh(told, ssh)
    sha = host.project.commit("by ssh")
    report = build(host)
    assert report["sha"] == sha
    assert "Accepted publickey for git" in ssh["log"].read_text()
    assert host.run("find", "/run", "-name", "saltern-key*").stdout == ""


def test_a_host_that_is_not_the_pinned_one_gets_nothing(host, told, ssh):
    host.project.commit("from an impostor")
    by_ssh(told, ssh, known_hosts=ssh["impostor"])
    before = ssh["log"].read_text().count("Accepted publickey")
    why = refused(host)
    assert why.startswith("fetch:") and "Host key verification failed" in why
    assert ssh["log"].read_text().count("Accepted publickey") == before
    assert "PRIVATE KEY" not in why
    assert host.run("find", "/run", "-name", "saltern-key*").stdout == ""


def test_a_key_without_a_pinned_host_is_refused(host, told, ssh):
    by_ssh(told, ssh, known_hosts="")
    assert "deploy_key but no known_hosts" in refused(host)


def test_a_key_that_does_not_fit_is_told(host, told, ssh):
    by_ssh(told, ssh, deploy_key=ssh["other_key"])
    assert "Permission denied (publickey" in refused(host)


@pytest.fixture
def library(host, ssh):
    """A second repository beside the site's own; a commit of it that isn't its newest."""
    library = Project(host.folder / "srv/library", **{"name.txt": "VERSION"})
    pinned = library.git("rev-parse", "HEAD")
    library.commit("two")
    yield pinned
    shutil.rmtree(library.folder)


def test_submodules_come_along_by_the_same_key(host, told, ssh, library):
    by_ssh(told, ssh)
    project = host.project
    (project.folder / "vendor/library").mkdir(parents=True)
    project.git("update-index", "--add", "--cacheinfo", f"160000,{library},vendor/library")
    modules = '[submodule "library"]\n\tpath = vendor/library\n\turl = ../library\n'
    try:
        project.commit("with a submodule", {".gitmodules": modules})
        report = build(host)
        assert content(host, report, "vendor/library/name.txt") == "one"
        left = host.run("find", f"{RELEASES}/{report['release']}", "-name", ".git").stdout
        assert left == ""
    finally:
        project.forget(".gitmodules")
        shutil.rmtree(project.folder / "vendor")


class Private(http.server.SimpleHTTPRequestHandler):
    """A repository's files for who knows the token; looks for it among the machine's processes."""

    def do_GET(self):
        for process in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if TOKEN.encode() in process.read_bytes():
                    self.server.seen.append(process.read_bytes())
            except OSError:
                continue
        login = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
        if self.headers["Authorization"] == f"Basic {login}":
            self.server.let_in += 1
            super().do_GET()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="private"')
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def https(host, tmp_path, monkeypatch):
    """The site's repository behind a token, by https; the server."""
    key, certificate = self_signed(tmp_path, "IP:127.0.0.1")
    shutil.copy(certificate, host.folder / "srv/https.pem")
    monkeypatch.setenv("GIT_SSL_CAINFO", "/srv/https.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = functools.partial(Private, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.seen, server.let_in, server.folder = [], 0, tmp_path
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def publish(host, server):
    """The repository as a server of plain files offers it."""
    host.project.git("clone", "--quiet", "--bare", ".", str(server.folder / "site.git"))
    host.project.git(f"--git-dir={server.folder}/site.git", "update-server-info")
    return f"https://127.0.0.1:{server.server_port}/site.git"


def test_a_token_opens_the_repository_and_shows_nowhere(host, told, https):
    sha = host.project.commit("by https")
    told({"token": TOKEN}, repository=publish(host, https))
    report = build(host)
    assert report["sha"] == sha
    assert https.let_in
    assert https.seen == []
    assert TOKEN not in str(report)
    found = host.run("grep", "-rl", TOKEN, "/srv/sites/tiny/repo", "/srv/sites/tiny/deploy",
                     "/srv/sites/tiny/build", RELEASES, host.folder / "salt/var/log",
                     check=False)  # fmt: skip
    assert found.stdout == ""


def test_a_token_that_is_refused_is_not_told(host, told, https):
    told({"token": "another-token"}, repository=publish(host, https))
    why = refused(host)
    assert "Authentication failed" in why
    assert "another-token" not in why


def test_a_password_in_the_address_is_refused(host, told):
    told(repository="https://ada:known-to-all@127.0.0.1/site.git")
    why = refused(host)
    assert "sites.tiny.repository holds a password" in why
    assert "known-to-all" not in why


@pytest.fixture
def shallow(host, told):
    """A mirror that begins anew, shallow; a branch, two kinds of tags and an older commit."""
    git = host.project.git
    older = host.project.commit("older")
    git("tag", "light", older)
    git("tag", "--annotate", "--message=Heavy", "heavy", older)
    newest = host.project.commit("newest")
    host.run("find", "/srv/sites/tiny/repo", "-mindepth", "1", "-delete")
    told(shallow=True)
    yield {older: older, "main": newest, "light": older, "heavy": older}
    git("tag", "--delete", "light", "heavy")
    host.run("find", "/srv/sites/tiny/repo", "-mindepth", "1", "-delete")


def test_a_shallow_mirror_holds_no_history(host, shallow):
    for rev, sha in shallow.items():
        report = build(host, rev=rev)
        assert report["sha"] == sha
        assert sha[:8] in report["release"]
        command = ["git", "--git-dir=/srv/sites/tiny/repo", "rev-list", "--count", sha]
        assert host.run(*command).stdout.strip() == "1", rev
        assert "site.css" in content(host, report, "tiny/urls.py")


def test_a_shallow_mirror_says_what_it_can_not_find(host, shallow):
    build(host)
    why = refused(host, rev="no-such-branch")
    assert "no branch, tag or commit" in why
    assert build(host)["result"]
