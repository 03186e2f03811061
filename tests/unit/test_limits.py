"""What is said of a running daemon's file limit, from files of /proc and words of systemctl."""

import limits
import pytest
import tuning

SHOWN = """\
Id=nginx.service
MainPID=59
LimitNOFILESoft=1024

Id=redis-server@session.service
MainPID=44
LimitNOFILESoft=65535

Id=memcached.service
MainPID=0
LimitNOFILESoft=4096
"""


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host with nginx and Redis; returns what writes a process with a limit, and children."""
    settings = {"nginx": {"open_files": 3056}, "redis": {"max_clients": 4096}, "os": {}}
    functions = {
        "inventory.services": lambda: list(settings),
        "settings.get": settings.get,
        "tuning.open_files": tuning.open_files,
    }
    blocks = SHOWN.split("\n\n")

    def systemctl(*command):
        patterns = command[command.index("--") + 1 :]
        assert patterns
        return blocks[0] if "nginx.service" in patterns else "\n\n".join(blocks[1:])

    def process(number, limit, children=""):
        folder = tmp_path / str(number)
        (folder / "task" / str(number)).mkdir(parents=True)
        (folder / "task" / str(number) / "children").write_text(children)
        (folder / "limits").write_text(
            "Limit           Soft Limit  Hard Limit  Units\n"
            f"Max open files  {limit}     999999      files\n"
        )

    monkeypatch.setattr(limits, "_PROC", tmp_path)
    monkeypatch.setattr(limits, "_run", systemctl)
    monkeypatch.setattr(limits, "__salt__", functions, raising=False)
    monkeypatch.setattr(limits, "__opts__", {"id": "cache1"}, raising=False)
    hardware = {"hardware": {"open_files": 524288}}
    monkeypatch.setattr(limits, "__grains__", hardware, raising=False)
    return process


def test_daemons_that_have_what_they_should(host):
    """nginx's main process opens little; its workers set themselves."""
    host(59, 1024, "60 61 ")
    host(60, 3056)
    host(44, 65535)
    found = limits.files()
    assert set(found) == {"nginx.service", "redis-server@session.service"}
    assert found["nginx.service"]["may"] == found["nginx.service"]["wanted"] == 3056
    assert not [one for one in found.values() if "wrong" in one or "bounded" in one]


def test_a_daemon_under_an_older_limit_is_to_be_restarted(host):
    host(59, 3056)
    host(44, 4128)
    assert limits.files()["redis-server@session.service"]["wrong"] == (
        "redis-server@session.service runs with 4128 open files instead of 65535. When it suits: "
        "salt 'cache1' service.restart redis-server@session"
    )


def test_a_container_that_allows_no_more_is_no_fault(host):
    limits.__grains__["hardware"]["open_files"] = 20000
    host(59, 3056)
    host(44, 20000)
    found = limits.files()["redis-server@session.service"]
    assert "wrong" not in found
    assert found["bounded"].endswith("has 20000 of 65535 open files: this host allows no more")


def test_a_daemon_that_has_just_ended_is_left_out(host):
    host(44, 65535)
    assert set(limits.files()) == {"redis-server@session.service"}


def test_what_its_unit_gives_counts_too(host):
    assert "6500" in limits._judged("pgbouncer.service", 5500, 6500, 5500, 524288)["wrong"]
    assert limits._judged("varnish.service", 131072, 0, 131072, 524288) == {}


def test_every_service_with_a_limit_has_units_to_look_at():
    assert set(limits._UNITS) == set(tuning._OPEN_FILES)
