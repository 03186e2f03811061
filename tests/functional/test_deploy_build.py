"""What virtualenvs are made of: requirement files, hashes, pyproject.toml, uv.lock, an index."""

import functools
import hashlib
import http.server
import pathlib
import subprocess
import sys
import threading
import zipfile

import pytest

UV = "/opt/saltern/uv/bin/uv"
NAME = "saltern_trial"


def wheel(folder, version):
    """A package that says its version; the SHA-256 of its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}-{version}-py3-none-any.whl"
    meta = f"{NAME}-{version}.dist-info"
    files = {
        f"{NAME}.py": f'VERSION = "{version}"\n',
        f"{meta}/METADATA": f"Metadata-Version: 2.1\nName: saltern-trial\nVersion: {version}\n",
        f"{meta}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{meta}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{meta}/RECORD": record}.items():
            archive.writestr(name, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A package index on loopback with two versions of one package; its address and hashes."""
    folder = tmp_path_factory.mktemp("index")
    files = folder / "simple/saltern-trial"
    hashes = {version: wheel(files, version) for version in ("1.0", "2.0")}
    links = (f'<a href="{p.name}#sha256={hashes[p.name.split("-")[1]]}">{p.name}</a>'
             for p in files.glob("*.whl"))  # fmt: skip
    (files / "index.html").write_text("".join(links))
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple/", hashes
        server.shutdown()


@pytest.fixture(params=["uv", "pip"])
def tool(host, request):
    """What installs: uv, and pip where there is none."""
    if request.param == "pip":
        host.run("mv", UV, f"{UV}.away")
    yield request.param
    if request.param == "pip":
        host.run("mv", f"{UV}.away", UV)


@pytest.fixture
def build(host):
    """Commits files, and builds: the version that is installed, and what the phase said."""

    def do(version, files, fails=False):
        host.project.commit(version, files)
        report = host.call("deploy.ship", until="build", fails=fails)
        if fails:
            return report["comment"]
        python = f"/srv/sites/tiny/releases/{report['release']}/.venv/bin/python"
        installed = host.run(python, "-c", f"import {NAME} as m; print(m.VERSION)").stdout.strip()
        return installed, report["phases"][-1]["comment"]

    yield do
    for name in ("wanted.txt", "pyproject.toml", "uv.lock"):
        host.project.forget(name)


def test_a_further_index_and_nothing_installed_twice(told, index, tool, build):
    told(requirements=["wanted.txt"], extra_indexes=[index[0]])
    files = {"wanted.txt": f"saltern-trial==1.0  # by {tool}\n"}
    assert build("one", files) == ("1.0", "built, dependencies installed")
    assert build("two", files) == ("1.0", "built, dependencies unchanged")
    files = {"wanted.txt": f"saltern-trial==2.0  # by {tool}\n"}
    assert build("three", files) == ("2.0", "built, dependencies installed")


def test_hashes_are_insisted_on(told, index, tool, build):
    told(requirements=["wanted.txt"], extra_indexes=[index[0]])
    line = "saltern-trial==1.0 --hash=sha256:{}  # by " + tool + "\n"
    wrong = build("wrong hash", {"wanted.txt": line.format("0" * 64)}, fails=True)
    assert wrong.startswith("build: Installing wanted.txt failed"), wrong
    assert "hash" in wrong.lower()
    right = {"wanted.txt": line.format(index[1]["1.0"])}
    assert build("right hash", right) == ("1.0", "built, dependencies installed")


PROJECT = """
[project]
name = "tiny"
version = "0"  # by {tool}
requires-python = ">=3.8"
dependencies = ["saltern-trial=={version}"]
"""


def test_a_pyproject_toml(told, index, tool, build):
    told(requirements=["pyproject.toml"], extra_indexes=[index[0]])
    files = {"pyproject.toml": PROJECT.format(version="2.0", tool=tool)}
    assert build("a pyproject", files) == ("2.0", "built, dependencies installed")
    assert build("the same", files) == ("2.0", "built, dependencies unchanged")


def locked(folder, index):
    """The files of a project that was locked when there was 1.0."""
    folder.mkdir()
    text = PROJECT.format(version="1.0", tool="lock")
    (folder / "pyproject.toml").write_text(text)
    uv = pathlib.Path(sys.executable).with_name("uv")
    command = [uv, "lock", "--quiet", "--directory", folder, "--default-index", index[0]]
    subprocess.run(command, check=True)
    return {"pyproject.toml": text, "uv.lock": (folder / "uv.lock").read_text()}


def test_a_lock_file_and_its_hashes(host, told, index, build, tmp_path):
    told(requirements=["uv.lock"], extra_indexes=[index[0]])
    files = locked(tmp_path / "project", index)
    assert index[1]["1.0"] in files["uv.lock"]
    wrong = {**files, "uv.lock": files["uv.lock"].replace(index[1]["1.0"], "0" * 64)}
    assert "hash" in build("a tampered lock", wrong, fails=True).lower()
    assert build("a lock", files) == ("1.0", "built, dependencies installed")


def test_a_lock_file_without_uv_is_refused_in_a_sentence(host, told, index, build, tmp_path):
    told(requirements=["uv.lock"], extra_indexes=[index[0]])
    files = locked(tmp_path / "project", index)
    files["uv.lock"] += "# another one\n"
    host.run("mv", UV, f"{UV}.away")
    try:
        assert "uv.lock needs uv on this host" in build("no uv", files, fails=True)
    finally:
        host.run("mv", f"{UV}.away", UV)
