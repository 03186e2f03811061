"""Updates: seen, held, installed; a host rebooted by the runner."""

import contextlib
import json

import pytest

# A package of our own in a repository of our own, whose second version is a security update.
PACKAGE = "saltern-probe"
CHANGE = "1 -> 2"
REPOSITORY = r"""
set -e
umask 022
mkdir -p /srv/probe/build/DEBIAN && cd /srv/probe
: >Packages
for version in 1 2; do
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: lab\nDescription: probe\n' \
        "$1" $version >build/DEBIAN/control
    dpkg-deb --build --root-owner-group build $1_$version.deb >/dev/null
    { cat build/DEBIAN/control
      echo "Filename: ./$1_$version.deb"
      echo "Size: $(stat -c %s $1_$version.deb)"
      echo "SHA256: $(sha256sum $1_$version.deb | cut -d' ' -f1)"; echo; } >>Packages
done
head='Origin: Lab\nLabel: Lab-Security\nSuite: lab-security\n'
printf "${head}Date: %s\nSHA256:\n %s %s Packages\n" \
    "$(date -Ru)" $(sha256sum Packages | cut -d' ' -f1) $(stat -c %s Packages) >Release
echo 'deb [trusted=yes] file:/srv/probe ./' >/etc/apt/sources.list.d/probe.list
apt-get update -qq -o Dir::Etc::sourcelist=sources.list.d/probe.list -o Dir::Etc::sourceparts=- \
    -o APT::Get::List-Cleanup=0
apt-get install -y -qq --allow-downgrades --allow-change-held-packages $1=1 >/dev/null
"""
NO_REPOSITORY = """
apt-get purge -y -qq --allow-change-held-packages $1 >/dev/null
rm -rf /srv/probe /etc/apt/sources.list.d/probe.list
"""


@contextlib.contextmanager
def waiting(lab, host):
    """An update waits on a host."""
    lab.run(host, "sh", "-c", REPOSITORY, "sh", PACKAGE)
    try:
        yield
    finally:
        lab.run(host, "sh", "-c", NO_REPOSITORY, "sh", PACKAGE)


def roll(lab, *options):
    command = ["salt-run", "--out=json", "updates.roll", *options]
    done = lab.run("master", *command, check=False)
    print(done.stderr)
    return json.loads(done.stdout)


def test_an_update_that_waits_is_seen_and_installed(lab):
    with waiting(lab, "log1"):
        told = lab.salt("log1", "updates.status")["log1"]
        assert told["pending"][PACKAGE] == CHANGE
        assert PACKAGE in told["security"]
        done = lab.salt("log1", "updates.apply", "security=True", "refresh=False")["log1"]
        assert done[PACKAGE] == CHANGE
        assert PACKAGE not in lab.salt("log1", "updates.status")["log1"]["pending"]


def test_what_is_held_stays_unless_it_is_meant(lab):
    with waiting(lab, "log1"):
        lab.salt("log1", "updates.hold", json.dumps([PACKAGE]))
        told = lab.salt("log1", "updates.status")["log1"]
        assert PACKAGE not in told["pending"]
        assert told["held"][PACKAGE] == CHANGE
        assert PACKAGE not in lab.salt("log1", "updates.apply", "refresh=False")["log1"]
        done = lab.salt("log1", "updates.apply", "held=True", "refresh=False")["log1"]
        assert done[PACKAGE] == CHANGE
        lab.salt("log1", "updates.hold", "[]")


def test_the_database_is_held(lab):
    held = lab.run("db1", "apt-mark", "showhold").stdout.split()
    assert any(name.startswith("postgresql-1") for name in held)
    assert lab.salt("db1", "updates.healthy")["db1"] is True


def test_the_farm_leaves_to_the_operator_what_takes_the_writes(lab):
    report = roll(lab, "hosts=db1", "reboot=always")
    assert report["hosts"] == {}
    assert "takes the writes" in report["left"]["db1"]


@pytest.mark.drill
def test_a_host_is_rebooted_and_comes_back(lab):
    before = lab.salt("log1", "updates.boot")["log1"]
    report = roll(lab, "hosts=log1", "reboot=always")
    assert report["result"], report["comment"]
    assert report["hosts"]["log1"]["rebooted"]
    assert lab.salt("log1", "updates.boot")["log1"] != before
