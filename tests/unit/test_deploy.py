"""What of shipping is pure: revisions, the order of rollbacks, requirements, batches."""

import deploy
import pytest
import release
from salt.exceptions import CommandExecutionError

from tests.unit.conftest import load

runner = load("_runners/ship.py")


@pytest.mark.parametrize(
    ("typed", "meant"), [("main", "main"), (1234567, "1234567"), ("1.10", "1.10"), ("a/b", "a/b")]
)
def test_a_revision_is_text(typed, meant):
    assert deploy._revision("site", typed) == meant


@pytest.mark.parametrize("typed", [1.1, True, "", "--upload-pack=x", "a b", "main~1", "a..b\n"])
def test_what_can_not_be_a_revision_is_refused(typed):
    with pytest.raises(CommandExecutionError):
        deploy._revision("site", typed)


def entry(action, to, result=True):
    return {"action": action, "to": to, "result": result}


def test_a_rollback_goes_to_what_was_live_before():
    entries = [entry("ship", "a"), entry("ship", "b"), entry("ship", "bad", result=False)]
    assert deploy._stacked(entries) == ["a", "b"]
    entries += [entry("prepare", None), entry("ship", "c"), entry("reload", "c")]
    assert deploy._stacked(entries) == ["a", "b", "c"]
    entries.append(entry("rollback", "b"))
    assert deploy._stacked(entries) == ["a", "b"]
    entries.append(entry("rollback", "a"))
    assert deploy._stacked(entries) == ["a"]
    entries.append(entry("ship", "c"))
    assert deploy._stacked(entries) == ["a", "c"]
    entries.append(entry("ship", "a"))
    assert deploy._stacked(entries) == ["c", "a"]


def test_a_rollback_to_a_named_release_that_was_never_live_is_on_top():
    entries = [entry("ship", "a"), entry("ship", "b"), entry("rollback", "prepared")]
    assert deploy._stacked(entries) == ["a", "b", "prepared"]


def test_requirements_with_all_that_they_include(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "requirements.txt").write_text("-r more/base.txt\n-c limits.txt\ndjango\n")
    (tmp_path / "more/base.txt").write_text("--requirement=deep.txt\n")
    (tmp_path / "more/deep.txt").write_text("celery\n")
    (tmp_path / "limits.txt").write_text("django<6\n")
    facts = {"name": "x", "requirements": ["requirements.txt"]}
    found = release._requirements(facts, str(tmp_path))
    assert sorted(found) == ["limits.txt", "more/base.txt", "more/deep.txt", "requirements.txt"]


@pytest.mark.parametrize("name", ["missing.txt", "../outside.txt", "link.txt"])
def test_requirements_stay_inside_the_release(tmp_path, name):
    (tmp_path / "outside.txt").write_text("secret")
    inside = tmp_path / "release"
    inside.mkdir()
    (inside / "link.txt").symlink_to("../outside.txt")
    with pytest.raises(CommandExecutionError, match="has no"):
        release._requirements({"name": "x", "requirements": [name]}, str(inside))


@pytest.mark.parametrize(
    ("line", "local"),
    [
        ("django==5.2", False),
        ("-e .", True),
        ("./vendor/thing", True),
        ("thing @ file:///opt/thing", True),
        ("thing @ https://example.com/a.zip", False),
        ("../thing", True),
        ("--index-url https://example.com", False),
    ],
)
def test_what_is_installed_from_the_release_itself_is_recognised(line, local):
    assert bool(release._LOCAL.search(f"six\n{line}\n".encode())) is local


@pytest.mark.parametrize("outside", ["..", "/etc", "a/../.."])
def test_the_subdirectory_stays_inside(tmp_path, outside):
    with pytest.raises(CommandExecutionError, match="leads out"):
        release._folder({"name": "x", "subdirectory": outside}, str(tmp_path / "r"), "0" * 40)


HOSTS = ["app1", "app2", "app3", "app4", "app5"]


@pytest.mark.parametrize(
    ("batch", "canary", "groups"),
    [
        (None, True, [1, 1, 1, 1, 1]),
        (2, True, [1, 2, 2]),
        ("50%", True, [1, 2, 2]),
        ("100%", False, [5]),
        (99, False, [5]),
        ("1%", False, [1, 1, 1, 1, 1]),
    ],
)
def test_batches_hold_every_host_once(batch, canary, groups):
    found = runner._Policy(batch, canary, 0, False, "stop").batches(HOSTS)
    assert [len(group) for group in found] == groups
    assert [host for group in found for host in group] == HOSTS


def test_a_new_host_takes_what_most_others_have_live(monkeypatch):
    def elsewhere(**mine):
        told = {host: {"shop": {"release": name, "sha": name}} for host, name in mine.items()}
        monkeypatch.setattr(deploy, "__opts__", {"id": "new"}, raising=False)
        functions = {
            "inventory.peers": lambda role: [{"id": host} for host in (*mine, "new")],
            "mine.get": lambda hosts, function, kind: {h: told[h] for h in hosts.split(",")},
        }
        monkeypatch.setattr(deploy, "__salt__", functions, raising=False)
        found = deploy.live_elsewhere("shop")
        return found and found["release"]

    assert elsewhere(app1="1", app2="2", app3="1") == "1"
    assert elsewhere(app1="1", app2="2") == "2"
    assert elsewhere() is None


def test_one_host_is_its_own_canary():
    assert runner._Policy(None, True, 0, False, "stop").batches(["app1"]) == [["app1"]]


@pytest.mark.parametrize("batch", ["", "x", 0, "-1", "0%"])
def test_a_batch_is_a_number_or_a_percentage(batch):
    with pytest.raises(runner._ShipError):
        runner._size(batch, 5)


@pytest.fixture
def in_staging(monkeypatch):
    """This host is in staging; its master has production, too."""
    told = {"environment": "staging", "environments": ["production", "staging"]}
    monkeypatch.setattr(deploy, "__pillar__", told, raising=False)


@pytest.mark.parametrize("target", [None, "salt-call"])
def test_a_host_that_was_asked_directly_needs_no_environment(in_staging, target):
    assert deploy._elsewhere(None, {"__pub_tgt": target} if target else {}) is None


def test_a_master_of_several_environments_names_the_one_that_is_meant(in_staging):
    sent = {"__pub_tgt": "app*"}
    with pytest.raises(CommandExecutionError, match="There are production, staging: environment="):
        deploy._elsewhere(None, sent)
    assert deploy._elsewhere("staging", sent) is None
    said = deploy._elsewhere("production", sent)
    assert said["result"]
    assert said["comment"] == "Nothing was done: this host is in staging, not in production."


def test_an_environment_that_does_not_exist_is_refused(in_staging):
    with pytest.raises(CommandExecutionError, match="no environment 'stagging'"):
        deploy._elsewhere("stagging", {})


class Events:
    """The master's event bus: what is on it, in order."""

    def __init__(self):
        self.waiting = []

    def get_event(self, **_):
        return self.waiting.pop(0) if self.waiting else None


def test_a_host_that_becomes_ready_while_it_is_asked_is_not_taken_for_dead(monkeypatch):
    monkeypatch.setattr(runner, "_QUIET", 0)
    monkeypatch.setattr(runner, "_LATE", 0.1)
    events, farm = Events(), runner._Farm.__new__(runner._Farm)
    farm.timeout = 10

    def at_work(hosts, jid):
        for number in range(3):  # of other jobs
            events.waiting.append({"tag": f"salt/job/{number}/ret/app9", "data": {}})
        told = {"id": "app1", "return": {"result": True}}
        events.waiting.append({"tag": f"salt/job/{jid}/ret/app1", "data": told})
        return []

    farm._at_work = at_work
    returned = farm._collect(events, "77", "ship", ["app1", "app2"], quiet=True)
    assert returned == {"app1": {"result": True}, "app2": "It doesn't answer."}
