"""What of updates is pure: apt's words, hours of reboots, the order of hosts."""

import datetime

import pytest
import updates
from salt.exceptions import CommandExecutionError

from tests.unit.conftest import load

SAID = """\
Inst bash [5.2.15-2+b8] (5.2.15-2+b13 Debian:12.15/oldstable [amd64])
Inst openssl [3.0.17-1] (3.0.18-1 Debian:12.15/old, Debian-Security:12/old-security [amd64])
Inst linux-image-new (6.1.9 Debian-Security:12/oldstable-security [amd64])
Conf bash (5.2.15-2+b13 Debian:12.15/oldstable [amd64])
"""


def test_what_apt_would_install_is_read():
    assert updates._parsed(SAID) == {
        "bash": {"change": "5.2.15-2+b8 -> 5.2.15-2+b13", "security": False},
        "openssl": {"change": "3.0.17-1 -> 3.0.18-1", "security": True},
    }


@pytest.mark.parametrize(
    ("window", "clock", "inside"),
    [
        ("01:00-05:00", "01:00", True),
        ("01:00-05:00", "05:00", False),
        ("22:00-04:00", "23:59", True),
        ("22:00-04:00", "03:59", True),
        ("22:00-04:00", "12:00", False),
    ],
)
def test_hours_of_reboots(window, clock, inside):
    now = datetime.datetime.strptime(clock, "%H:%M").replace(tzinfo=datetime.timezone.utc)
    assert updates._inside(window, now) is inside


def test_hours_that_are_none_are_refused():
    with pytest.raises(CommandExecutionError, match="like 01:00-05:00"):
        updates._inside("at night", datetime.datetime.now(datetime.timezone.utc))


def test_a_host_may_reboot_within_its_hours_or_by_force(monkeypatch):
    now = datetime.datetime.now(datetime.timezone.utc)
    before, after = now - datetime.timedelta(hours=2), now - datetime.timedelta(hours=1)
    window = f"{before:%H:%M}-{after:%H:%M}"
    settings = {"updates": {"window": window}}
    monkeypatch.setattr(updates, "__salt__", {"settings.get": settings.get}, raising=False)
    monkeypatch.setattr(updates, "__context__", {}, raising=False)
    assert updates.may_reboot() == f"Hosts may reboot between {window} UTC only; or: force=True."
    assert updates.__context__ == {"retcode": 1}
    with pytest.raises(CommandExecutionError, match="UTC only"):
        updates.reboot()
    settings["updates"]["window"] = f"{after:%H:%M}-{before:%H:%M}"
    assert updates.may_reboot() is True


def test_balancers_come_last_and_each_host_where_the_last_of_its_roles_stands():
    runner = load("_runners/updates.py")
    farm = runner._Farm.__new__(runner._Farm)
    farm.roles = {
        "lb1": ["loadbalancer"],
        "all": ["app", "worker", "loadbalancer"],
        "app1": ["app"],
        "worker1": ["worker", "broker"],
        "bare": [],
        "log1": ["log"],
        "db2": ["mariadb"],
    }
    order = sorted(farm.roles, key=farm._place)
    assert order == ["bare", "log1", "db2", "worker1", "app1", "all", "lb1"]
