"""The keys that a host is known by, made and judged by a real ssh-keygen."""

import pathlib
import subprocess

import pytest
import sshd

from tests.unit.conftest import load


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """The files of a host's keys by type, none of which is there yet."""
    monkeypatch.setattr(sshd, "__opts__", {"id": "app1"}, raising=False)
    return {kind: str(tmp_path / f"ssh_host_{kind}_key") for kind in ("ed25519", "rsa")}


@pytest.fixture
def state(monkeypatch):
    """The state, with the module's own functions behind it; by default no trial run."""
    module = load("_states/sshd.py")
    functions = {"sshd.lacking": sshd.lacking, "sshd.make_keys": sshd.make_keys}
    monkeypatch.setattr(module, "__salt__", functions, raising=False)
    monkeypatch.setattr(module, "__opts__", {"test": False}, raising=False)
    return module


def generate(file, *words):
    subprocess.run(["ssh-keygen", "-q", *words, "-N", "", "-f", file], check=True)


def read(file):
    return pathlib.Path(file).read_bytes()


def test_missing_keys_are_made_and_good_ones_stay(keys, state):
    generate(keys["ed25519"], "-t", "ed25519")
    before = read(keys["ed25519"])
    ret = state.keyed("keys", keys)
    assert ret["result"] is True
    assert list(ret["changes"]) == [keys["rsa"]]
    assert read(keys["ed25519"]) == before
    assert sshd._key(keys["rsa"])["bits"] == 3072
    assert pathlib.Path(keys["rsa"]).stat().st_mode & 0o777 == 0o600
    assert state.keyed("keys", keys)["changes"] == {}


def test_a_short_rsa_key_makes_way_and_is_kept(keys, state):
    generate(keys["ed25519"], "-t", "ed25519")
    generate(keys["rsa"], "-t", "rsa", "-b", "2048")
    before = read(keys["rsa"])
    assert sshd.lacking(keys) == {keys["rsa"]: "is RSA of 2048 bits"}
    state.__opts__["test"] = True
    ret = state.keyed("keys", keys)
    assert (ret["result"], read(keys["rsa"])) == (None, before)
    state.__opts__["test"] = False
    assert state.keyed("keys", keys)["result"] is True
    assert sshd.lacking(keys) == {}
    assert read(f"{keys['rsa']}.weak") == before
    public = subprocess.run(
        ["ssh-keygen", "-y", "-f", keys["rsa"]], capture_output=True, check=True
    ).stdout
    assert public.split()[:2] == read(f"{keys['rsa']}.pub").split()[:2]


def test_a_file_that_is_no_key_is_replaced(keys):
    pathlib.Path(keys["ed25519"]).write_text("")
    assert sshd.lacking(keys)[keys["ed25519"]] == "can't be read as a key"
    sshd.make_keys(keys)
    assert sshd.lacking(keys) == {}


def test_fingerprints_are_those_of_what_is_offered(keys, tmp_path, monkeypatch):
    """A stale public file tells nothing: the server shows the private one's."""
    sshd.make_keys(keys)
    ecdsa = str(tmp_path / "ecdsa")
    generate(ecdsa, "-t", "ecdsa")
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", f"{keys['rsa']}.pub"], capture_output=True, text=True, check=True
    ).stdout
    pathlib.Path(f"{keys['rsa']}.pub").write_bytes(read(f"{ecdsa}.pub"))
    told = "".join(f"hostkey {file}\n" for file in [*keys.values(), ecdsa, str(tmp_path / "none")])
    run = sshd._run

    def answer(*command, **options):
        return told if command[0] == "/usr/sbin/sshd" else run(*command, **options)

    monkeypatch.setattr(sshd, "_run", answer)
    assert sshd.fingerprints()["RSA"] == shown.split()[1]
    assert set(sshd.fingerprints()) == {"ED25519", "RSA", "ECDSA"}
    weak = {file: key["weak"] for file, key in sshd.host_keys().items() if key["weak"]}
    assert weak == {ecdsa: "is ECDSA of 256 bits"}
