"""`salt-run ship.release` with a real master and minions: a canary, batches, going back."""

import contextlib
import json
import pathlib
import tempfile
import threading

import pytest

from tests.functional import apphost, minions
from tests.functional.box import wait_for
from tests.functional.project import FILES, Project

HOSTS = ["app1", "app2", "app3"]
# Ill with the release that a file names: each host has a /srv of its own.
MAY_BE_ILL = FILES["tiny/urls.py"].replace(
    'return HttpResponse("well")',
    """ill = open("/srv/ill").read() if os.path.exists("/srv/ill") else "no release"
            return HttpResponse(status=500 if os.environ["RELEASE"].endswith(ill) else 200)""",
)


@pytest.fixture(scope="module")
def farm():
    # A short path: those of unix sockets are limited.
    with tempfile.TemporaryDirectory(prefix="sf-") as name, contextlib.ExitStack() as ended:
        folder = pathlib.Path(name)
        pillar = apphost.told({host: apphost.free_port() for host in HOSTS})
        project = Project(folder / "project", **{"tiny/urls.py": MAY_BE_ILL})
        image = minions.image(folder / "image", project, pillar)
        master = minions.Master(folder / "master", pillar)
        ended.callback(master.close)
        master.hosts, master.project = {}, project
        for host in HOSTS:
            master.hosts[host] = minions.Host(folder / host, project, pillar, host, image, master)
            ended.callback(master.hosts[host].close)
        master.wait_for_minions(len(HOSTS))
        master.start_servers(master.hosts.values())
        yield master


def answering(farm):
    """The release that each host answers with."""
    return {name: host.get("/")[1] for name, host in farm.hosts.items()}


@pytest.fixture
def live(farm):
    """The release that is live on all hosts."""
    code, report, shown = farm.runner("ship.release", "batch=100%", "canary=False")
    assert code == 0, (report, shown)
    assert set(answering(farm).values()) == {report["release"]}
    return report["release"]


@pytest.fixture
def ill(farm):
    """Lets a release be ill on a host."""
    yield lambda name, sha: farm.hosts[name].run("tee", "/srv/ill", input=sha[:8])
    for host in farm.hosts.values():
        host.run("rm", "--force", "/srv/ill")


def test_batches_behind_a_canary(farm, live):
    sha = farm.project.commit("in batches")
    code, report, shown = farm.runner("ship.release", "batch=2")
    assert (code, report["result"], report["sha"]) == (0, True, sha), report
    assert answering(farm) == dict.fromkeys(HOSTS, report["release"])
    assert sorted(report["hosts"]) == HOSTS
    assert "batch 1 of 2: app1\n" in shown
    assert "batch 2 of 2: app2, app3\n" in shown
    # Each host and phase is shown as it happens.
    for host in HOSTS:
        assert [line for line in shown.splitlines() if f" {host} " in line and "activate" in line]


def test_the_farm_knows_what_is_live(farm, live):
    """From the mine, as a host that joins asks for it."""

    def told():
        answers = farm.ask("deploy.live_elsewhere", "tiny")
        return {host: answer["release"] for host, answer in answers.items() if answer}

    wait_for(lambda: told() == dict.fromkeys(HOSTS, live), 60, "the mine's word")


def test_an_ill_canary_keeps_the_release_from_all_others(farm, live, ill):
    ill("app1", farm.project.commit("ill on the canary"))
    code, report, shown = farm.runner("ship.release")
    assert (code, report["result"]) == (1, False)
    assert "app1" in report["comment"] and "answers 500" in report["comment"], report
    assert "batch 2" not in shown
    assert answering(farm) == dict.fromkeys(HOSTS, live)


def test_an_ill_host_of_a_later_batch_takes_all_back(farm, live, ill):
    ill("app2", farm.project.commit("ill on the second"))
    code, report, _ = farm.runner("ship.release", "batch=1")
    assert code == 1
    assert report["comment"].endswith("Went back: app1."), report
    assert answering(farm) == dict.fromkeys(HOSTS, live)


def test_what_is_live_stays_where_that_is_the_policy(farm, live, ill):
    ill("app2", farm.project.commit("stays on the canary"))
    code, report, _ = farm.runner("ship.release", "batch=1", "on_failure=stop")
    assert code == 1
    assert report["comment"].endswith("Live with the new release: app1."), report
    assert answering(farm) == {"app1": report["release"], "app2": live, "app3": live}


def test_what_falls_ill_while_it_is_watched_goes_back(farm, live, ill):
    sha = farm.project.commit("falls ill")

    def watched():
        """The canary's ship has ended: an illness before that is one its own checks find."""
        history = farm.hosts["app1"].run("cat", "/srv/sites/tiny/deploy/history.jsonl").stdout
        return str(json.loads(history.splitlines()[-1])["to"]).endswith(sha[:8])

    def infect():
        wait_for(watched, 120, "the canary's ship")
        ill("app1", sha)

    watcher = threading.Thread(target=infect)
    watcher.start()
    code, report, _ = farm.runner("ship.release", "soak=30")
    watcher.join()
    assert code == 1
    assert "While watching, app1: /health/ answers 500." in report["comment"], report
    assert "Went back: app1." in report["comment"]
    assert answering(farm) == dict.fromkeys(HOSTS, live)


def test_all_hosts_go_back_by_one_command(farm, live):
    farm.project.commit("is taken back")
    code, report, _ = farm.runner("ship.release", "batch=100%")
    assert code == 0, report
    code, report, _ = farm.runner("ship.rollback")
    assert code == 0, report
    assert answering(farm) == dict.fromkeys(HOSTS, live)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["batch=0"], "it is a number of hosts or a percentage"),
        (["on_failure=panic"], "it is one of rollback, stop"),
        (["nosuch"], "has the site nosuch"),
        (["without=app9"], "there is no such host"),
        (["rev=no-such-branch"], "no branch, tag or commit"),
    ],
)
def test_what_can_not_be_meant_is_refused_in_a_sentence(farm, words, told):
    code, report, _ = farm.runner("ship.release", *words)
    assert code == 1
    assert told in report["comment"]
