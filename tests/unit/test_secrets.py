"""Secrets in the pillar: encrypted by the runner, read by the renderer, with gpg's own keys."""

import io
import pathlib
import shutil
import subprocess

import pytest
import yaml
from salt.exceptions import SaltRenderError

from tests.unit.conftest import load

ROOT = pathlib.Path(__file__).parents[2]
VALUE = "correct-horse-battery"


class Master:
    """A master of its own: a pillar tree, and a folder for keys."""

    def __init__(self, folder, pillar):
        self.keys = folder / "keys"
        opts = {"gpg_keydir": str(self.keys), "pillar_roots": {"base": [str(pillar)]}}
        self.runner, self.renderer = load("_runners/secrets.py"), load("_renderers/gpg.py")
        self.runner.__opts__ = self.renderer.__opts__ = opts
        self.folder = pillar / "environments/production/secrets"

    def read(self, file):
        """What a host is told of a file."""
        content = yaml.safe_load((self.folder / f"{file}.sls").read_text())
        return self.renderer.render(content, sls=f"environments.production.secrets.{file}")


@pytest.fixture
def masters(tmp_path_factory):
    """Makes masters that share a pillar tree; their gpg-agents end with the test."""
    folder = tmp_path_factory.mktemp("s")  # short: gpg-agent's socket lies in it
    shutil.copytree(ROOT / "pillar", folder / "pillar")
    made = []

    def master(name):
        (folder / name).mkdir()
        made.append(Master(folder / name, folder / "pillar"))
        return made[-1]

    yield master
    for one in made:
        subprocess.run(["gpgconf", "--homedir", one.keys, "--kill", "gpg-agent"], check=False)


@pytest.fixture
def master(masters):
    return masters("m")


def add(master, monkeypatch, value, *arguments, **options):
    monkeypatch.setattr("sys.stdin", io.StringIO(value))
    return master.runner.add("production", *arguments, **options)


def test_what_is_added_is_encrypted_and_read_again(master, monkeypatch):
    key = master.runner.init("production")["key"]
    assert key == master.runner.init("production")["key"]
    assert VALUE not in add(master, monkeypatch, f"{VALUE}\n", "postgres", "postgres:users:news")
    multiline = f"-----BEGIN KEY-----\n{VALUE}\n-----END KEY-----"
    add(master, monkeypatch, multiline, "haproxy", "haproxy:authority_key")
    add(master, monkeypatch, "", "postgres", "postgres:users:shop", generate=True)
    for file in master.folder.iterdir():
        assert VALUE not in file.read_text()
    assert (master.folder / "postgres.sls").read_text().startswith("#!yaml|gpg\n#")
    users = master.read("postgres")["secrets"]["postgres"]["users"]
    assert users["news"] == VALUE
    assert len(users["shop"]) > 40
    assert master.read("haproxy")["secrets"]["haproxy"]["authority_key"] == multiline


def test_another_master_reads_after_a_rotation_and_not_before(masters, monkeypatch):
    first, second = masters("a"), masters("b")
    own = first.runner.init("production")["key"]
    add(first, monkeypatch, VALUE, "postgres", "postgres:users:news")
    other = second.runner.init("production")["key"]
    with pytest.raises(SaltRenderError) as missing:
        second.read("postgres")
    told = str(missing.value)
    assert "PGP MESSAGE" not in told
    assert "secrets.postgres" in told
    # What a message names is the subkey that it is encrypted for.
    listed = ["gpg", "--homedir", first.keys, "--with-colons", "--list-keys", own]
    keys = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    (subkey,) = [line.split(":")[4] for line in keys.splitlines() if line.startswith("sub:")]
    assert subkey in told

    export = ["gpg", "--homedir", second.keys, "--armor", "--export", other]
    public = subprocess.run(export, capture_output=True, check=True).stdout
    taken = ["gpg", "--homedir", first.keys, "--batch", "--quiet", "--import"]
    subprocess.run(taken, input=public, check=True)
    assert first.runner.rotate("production") == {"postgres.sls": 1}
    for one in (first, second):
        assert one.read("postgres")["secrets"]["postgres"]["users"]["news"] == VALUE

    recipients = (first.folder / "recipients").read_text().splitlines()
    (first.folder / "recipients").write_text(recipients[1] + "\n")
    first.runner.rotate("production")
    first.renderer._decrypted.cache_clear()
    with pytest.raises(SaltRenderError):
        first.read("postgres")


def test_what_stands_there_in_plain_text_is_encrypted_by_a_rotation(master):
    master.runner.init("production")
    plain = f"# Passwords.\nsecrets:\n  redis:\n    operator: {VALUE}\n"
    (master.folder / "redis-operator.sls").write_text(plain)
    assert master.runner.rotate("production") == {"redis-operator.sls": 1}
    written = (master.folder / "redis-operator.sls").read_text()
    assert written.startswith("#!yaml|gpg\n# Passwords.\n")
    assert VALUE not in written
    assert master.read("redis-operator")["secrets"]["redis"]["operator"] == VALUE


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("postgres", "postgres:users:news"), "salt-run secrets.init production"),
        (("postgers", "postgres:users:news"), "gives 'postgers' to no role"),
        (("postgres", ":"), "Name the secret"),
    ],
)
def test_what_cannot_be_added_is_a_sentence(master, monkeypatch, arguments, told):
    said = add(master, monkeypatch, VALUE, *arguments)
    assert said["retcode"] == 1
    assert told in said["comment"]


def test_nothing_typed_is_no_secret_and_changes_nothing(master, monkeypatch):
    master.runner.init("production")
    said = add(master, monkeypatch, "\n", "postgres", "postgres:users:news")
    assert "Nothing was typed" in said["comment"]
    assert not (master.folder / "postgres.sls").exists()


def test_an_environment_that_does_not_exist_is_a_sentence(master):
    assert "There are lab, production, staging" in master.runner.rotate("prod")["comment"]
