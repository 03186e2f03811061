"""Updates: seen, held, installed; the farm taken through them, host by host, under visitors."""

import contextlib
import json

import pytest

from tests.farm.visitors import visitors
from tests.farm.waiting import until

SHARED = "http://198.18.0.5/"
APPS = ("app1", "app2")
ACCELERATORS = ("cache1", "cache2")
BALANCERS = ("lb1", "lb2")

# A package of our own in a repository of our own, which says what Debian's for security says; its
# second version does something when it is installed.
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
    if [ $version = 2 ]; then
        printf '#!/bin/sh\nset -e\n%s\n' "$2" >build/DEBIAN/postinst
        chmod 755 build/DEBIAN/postinst
    fi
    dpkg-deb --build --root-owner-group build $1_$version.deb >/dev/null
    { cat build/DEBIAN/control
      echo "Filename: ./$1_$version.deb"
      echo "Size: $(stat -c %s $1_$version.deb)"
      echo "SHA256: $(sha256sum $1_$version.deb | cut -d' ' -f1)"; echo; } >>Packages
done
. /etc/os-release
head="Origin: Debian\nLabel: Debian-Security\nCodename: $VERSION_CODENAME-security\n"
printf "${head}Date: %s\nSHA256:\n %s %s Packages\n" \
    "$(date -Ru)" $(sha256sum Packages | cut -d' ' -f1) $(stat -c %s Packages) >Release
echo 'deb [trusted=yes] file:/srv/probe ./' >/etc/apt/sources.list.d/probe.list
apt-get update -qq -o Dir::Etc::sourcelist=sources.list.d/probe.list -o Dir::Etc::sourceparts=- \
    -o APT::Get::List-Cleanup=0
apt-get install -y -qq --allow-downgrades --allow-change-held-packages $1=1 >/dev/null
"""
NO_REPOSITORY = """
apt-get purge -y -qq --allow-change-held-packages $1 >/dev/null
rm -rf /srv/probe /etc/apt/sources.list.d/probe.list /run/reboot-required*
"""
# What a package says that is in use only after a reboot, such as a kernel.
REBOOT = f"touch /run/reboot-required && echo {PACKAGE} >/run/reboot-required.pkgs"
# A service that runs no more once it is updated.
BROKEN = f"""
printf '[Service]\\nExecStart=/bin/false\\n[Install]\\nWantedBy=multi-user.target\\n' \\
    >/etc/systemd/system/{PACKAGE}.service
systemctl daemon-reload
systemctl enable --now {PACKAGE}
"""
MENDED = f"""
systemctl disable --now {PACKAGE}
rm -f /etc/systemd/system/{PACKAGE}.service
systemctl daemon-reload
systemctl reset-failed
"""


@contextlib.contextmanager
def waiting(lab, host, then=":"):
    """An update waits on a host; what it does is in shell."""
    lab.run(host, "sh", "-c", REPOSITORY, "sh", PACKAGE, then)
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


@pytest.mark.drill
def test_a_security_update_comes_by_itself_unless_it_is_held(lab):
    """What a timer starts once a day, but not in the lab, is started now."""
    with waiting(lab, "log1"):
        lab.salt("log1", "updates.hold", json.dumps([PACKAGE]))
        lab.run("log1", "unattended-upgrade")
        assert lab.salt("log1", "updates.status")["log1"]["held"] == {PACKAGE: CHANGE}
        lab.salt("log1", "updates.hold", "[]")
        lab.run("log1", "unattended-upgrade")
        told = lab.salt("log1", "updates.status")["log1"]
        assert told["pending"].get(PACKAGE) is None
        assert lab.run("log1", "dpkg-query", "-W", "-f=${Version}", PACKAGE).stdout == "2"


def test_the_database_is_held(lab):
    held = lab.run("db1", "apt-mark", "showhold").stdout.split()
    assert any(name.startswith("postgresql-1") for name in held)
    assert lab.salt("db1", "updates.healthy")["db1"] is True


def test_the_farm_leaves_to_the_operator_what_takes_the_writes(lab):
    report = roll(lab, "hosts=db1", "reboot=always")
    assert report["hosts"] == {}
    assert "takes the writes" in report["left"]["db1"]


def on(lab, hosts, function, *arguments):
    return lab.salt(f"L@{','.join(hosts)}", function, *arguments)


def asked_by_accelerators(lab):
    """For each accelerator, the health of the app hosts: by name, without directors."""
    return [
        {name: backend["health"] for name, backend in told.items() if "__" in name}
        for told in on(lab, ACCELERATORS, "varnish.backends").values()
    ]


def all_are_asked(lab):
    """Whether nobody is left out of the road."""
    servers = [
        server["state"].startswith("UP")
        for told in on(lab, BALANCERS, "haproxy.status").values()
        for pool in told.values()
        for server in pool.values()
    ]
    backends = [
        health == "healthy" for told in asked_by_accelerators(lab) for health in told.values()
    ]
    return len(servers) == 8 and len(backends) == 4 and all(servers + backends)


def rolled(lab, hosts, kinds):
    """
    Take hosts with an update that wants a reboot through it, under visitors; all goes well.

    kinds
        For each kind of visitors: the URL and how many ask in a second.

    Returns what the runner said, and what each kind of visitors met.
    """
    before = on(lab, hosts, "updates.boot")
    with contextlib.ExitStack() as all_of_it:
        for host in hosts:
            all_of_it.enter_context(waiting(lab, host, REBOOT))
        with contextlib.ExitStack() as while_they_come:
            seen = [
                while_they_come.enter_context(visitors(lab.lab, url, rate=rate, timeout=30))
                for url, rate in kinds.items()
            ]
            report = roll(lab, f"hosts={','.join(hosts)}", "security=True")
    assert report["result"], report["comment"]
    assert list(report["hosts"]) == list(hosts)
    for told in report["hosts"].values():
        assert told["installed"][PACKAGE] == CHANGE
        assert told["rebooted"]
    after = on(lab, hosts, "updates.boot")
    assert all(after[host] != before[host] for host in hosts)
    assert all_are_asked(lab)
    return report, [found.report for found in seen]


@pytest.mark.drill
def test_a_host_is_rebooted_and_comes_back(lab):
    before = lab.salt("log1", "updates.boot")["log1"]
    report = roll(lab, "hosts=log1", "reboot=always")
    assert report["result"], report["comment"]
    assert report["hosts"]["log1"]["rebooted"]
    assert lab.salt("log1", "updates.boot")["log1"] != before


@pytest.mark.drill
def test_app_hosts_and_accelerators_are_updated_and_nobody_notices(lab):
    kinds = {
        "http://lb1/": 50,
        "http://lb1/?fresh={n}": 5,
        "http://lb1/slow/?seconds=5&visitor={n}": 0.2,
    }
    _, seen = rolled(lab, APPS + ACCELERATORS, kinds)
    for report in seen:
        assert report["sent"] > 10
        assert report["failed"] == 0, seen


@pytest.mark.drill
def test_balancers_are_updated_and_nobody_notices(lab):
    _, seen = rolled(lab, BALANCERS, {SHARED: 50, SHARED + "?fresh={n}": 5})
    for report in seen:
        assert report["sent"] > 10
        assert report["failed"] == 0, seen


@pytest.mark.drill
def test_a_host_that_is_not_well_stays_out_and_ends_it(lab):
    before = on(lab, APPS, "updates.boot")
    with waiting(lab, "app1", BROKEN + REBOOT), waiting(lab, "app2", BROKEN + REBOOT):
        with visitors(lab.lab, "http://lb1/?fresh={n}", rate=5, timeout=30) as seen:
            report = roll(lab, "hosts=app*", "security=True")
            states = on(lab, BALANCERS, "haproxy.status", "site_newsroom")
            asked = asked_by_accelerators(lab)
        lab.run("app1", "sh", "-c", MENDED)
        done = lab.run("master", "salt-run", "--out=json", "updates.ready", "app1", check=False)
        left = lab.salt("app2", "updates.status")["app2"]
    assert not report["result"]
    assert f"failed units: {PACKAGE}.service" in report["comment"]
    assert "app1 stays out of the road" in report["comment"]
    assert seen.report["failed"] == 0, seen.report
    for told in states.values():
        found = {name: server["state"] for name, server in told["site_newsroom"].items()}
        assert found == {"app1": "DRAIN", "app2": "UP"}
    assert asked == [{"newsroom__app1": "sick", "newsroom__app2": "healthy"}] * 2
    assert left["pending"][PACKAGE] == CHANGE
    after = on(lab, APPS, "updates.boot")
    assert (after["app1"] == before["app1"], after["app2"] == before["app2"]) == (False, True)
    assert done.returncode == 0, done.stdout
    assert all_are_asked(lab)


@pytest.mark.drill
def test_the_last_one_that_serves_is_not_taken_out(lab):
    before = lab.salt("app1", "updates.boot")["app1"]
    on(lab, ACCELERATORS, "varnish.drain", "app2")
    try:
        report = roll(lab, "hosts=app1", "reboot=always")
    finally:
        on(lab, ACCELERATORS, "varnish.ready", "app2")
    assert not report["result"]
    assert "app1 has to serve, and wasn't touched" in report["comment"]
    assert lab.salt("app1", "updates.boot")["app1"] == before
    until(60, lambda: all_are_asked(lab))
