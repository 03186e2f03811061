"""The inventory changes while the farm works: hosts come and go, brokers become several."""

import concurrent.futures
import contextlib
import json
import pathlib
import sys
import threading
import time

import pytest
import yaml

from tests.farm.rehearsal import SITE, commit, done, queue, rehearsal, site_python, until
from tests.lab.commands import LabError

__all__ = ["rehearsal"]  # a fixture

ENVIRONMENT = "/srv/saltern/pillar/environments/lab"
STEADY = pathlib.Path(__file__).parents[1] / "bench" / "steady.py"
PAGE = "http://198.18.0.11/?flush-the-cache={n}"


@contextlib.contextmanager
def changed(lab, file, change):
    """Let the master read a file of the lab's environment as it were after a change of its data."""
    path = f"{ENVIRONMENT}/{file}"
    data = yaml.safe_load(lab.run("master", "cat", path).stdout)
    change(data)
    lab.run("master", "sh", "-c", f"cat > /run/{file}", stdin=yaml.safe_dump(data))
    lab.run("master", "mount", "--bind", f"/run/{file}", path)
    try:
        yield
    finally:
        lab.run("master", "umount", path)


def call(lab, host, *words, check=True):
    """
    A function on a host. Returns its answer; its failure is an error, or, unchecked, its message.

    On the host itself: `salt` gives up waiting where a machine has too much to do.
    """
    command = ["salt-call", "--retcode-passthrough", "--out=json", *words]
    told = lab.run(host, *command, check=False)
    if told.returncode and (check or not told.stdout):
        assert not check, f"{host} {' '.join(words)}: {told.stdout}{told.stderr}"
        return told.stderr
    return json.loads(told.stdout)["local"]


def apply(lab, *hosts, sls=()):
    """``state.apply`` on hosts, at once; what fails is an error. Returns what changed, by host."""

    def one(host):
        return call(lab, host, "state.apply", *sls, check=False)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        applied = dict(zip(hosts, pool.map(one, hosts), strict=True))
    assert all(isinstance(states, dict) for states in applied.values()), applied
    wrong = {
        f"{host}: {key}": state["comment"]
        for host, states in applied.items()
        for key, state in states.items()
        if state["result"] is False
    }
    assert not wrong, wrong
    return {
        host: {key: state["changes"] for key, state in states.items() if state["changes"]}
        for host, states in applied.items()
    }


@contextlib.contextmanager
def visitors(lab, report):
    """Ten requests a second that no cache answers, until the end; the report gets filled then."""
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            command = [sys.executable, STEADY, PAGE, "--host=newsroom.lab", "--rate=10"]
            told = json.loads(lab.on_hub(*command, "--seconds=5", "--timeout=30").stdout)
            for key in ("sent", "failed"):
                report[key] = report.get(key, 0) + told[key]
            report.setdefault("errors", []).append(told["errors"])

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield
        finally:
            stop.set()
            asking.result()


def first(lab, host, since, *options):
    """When the first line with these words stands in a host's journal, in seconds since 1970."""
    command = ["journalctl", "-q", "-o", "short-unix", f"--since=@{since}", *options]
    lines = lab.run(host, *command, check=False).stdout.splitlines()
    return float(lines[0].split()[0]) if lines else None


@pytest.mark.drill
def test_hosts_leave_and_come_without_a_failed_request_or_a_lost_task(lab, rehearsal):
    on = {name for name, host in lab.hosts.items() if host.running()}
    others = sorted(on - {"app2", "worker2"})
    figures, queued = {}, 0

    def without(hosts):
        for host in ("app2", "worker2"):
            del hosts["hosts"][host]

    report = {}
    with changed(lab, "hosts.yaml", without):
        with visitors(lab, report):
            queue(lab, "worker1", 100)
            began = time.time()
            for host in others:
                if "accelerator" in lab.hosts[host].roles:
                    call(lab, host, "varnish.drain", "app2")
                if "loadbalancer" in lab.hosts[host].roles:
                    call(lab, host, "haproxy.drain", "app2")
            call(lab, "worker2", "celery.drain")
            apply(lab, *others)
            lab.kill("app2")
            lab.kill("worker2")
            figures["taken out"] = round(time.time() - began, 1)
            time.sleep(5)
        until(200, lambda: done(lab) == (100, 100))
    assert report["failed"] == 0, report
    figures["requests meanwhile"] = report["sent"]

    for host in ("app2", "worker2"):
        lab.start(host, empty=True)
        call(lab, host, "saltutil.sync_all")
    report = {}
    with visitors(lab, report), concurrent.futures.ThreadPoolExecutor(1) as pool:
        began = time.time()
        applied = pool.submit(apply, lab, *others, "app2", "worker2")
        request = task = None
        while not (request and task):
            assert time.time() - began < 900
            queue(lab, "worker1", 20, first=100 + queued)
            queued += 20
            request = request or first(lab, "app2", began, "-t", "nginx", "--grep=flush-the-cache")
            task = task or first(lab, "worker2", began, "-u", "celery-*", "--grep=received")
        applied.result()
        figures["to the first request"] = round(request - began, 1)
        figures["to the first task"] = round(task - began, 1)
    assert report["failed"] == 0, report
    figures["requests meanwhile, too"] = report["sent"]
    until(300, lambda: done(lab) == (100 + queued, 100 + queued))
    assert not any(apply(lab, *others, "app2", "worker2").values())
    print(json.dumps(figures))


@pytest.mark.drill
def test_redis_is_the_broker_by_one_line(lab, rehearsal):
    def one_line(overrides):
        overrides["celery"] = {"broker": "redis"}

    try:
        with changed(lab, "overrides.yaml", one_line):
            for host in ("worker1", "worker2", "app1"):  # the broker first
                apply(lab, host)
            until(120, lambda: set(nodes(lab)) == {"worker1", "worker2"})
            queue(lab, "worker1", 100)
            until(60, lambda: done(lab)[0] > 5)
            time.sleep(2)  # what was queued longer than a second ago is on the disk
            kill = ["systemctl", "kill", "-s", "KILL", "redis-server@broker"]
            lab.run("worker1", *kill)
            until(300, lambda: done(lab)[0] == 100)
            told = call(lab, "worker1", "redis.stats", "broker")["broker"]
            assert told["up"]
            beats = ["systemctl", "show", f"celery-{SITE}-beat@*", "--property=StatusText"]
            said = [lab.run(host, *beats).stdout for host in ("worker1", "worker2")]
            assert sorted(text.partition("=")[2].partition(":")[0] for text in said) == [
                "Runs",
                "Stands by",
            ]
            code = (
                "import django; django.setup(); from newsroom.celery import app\n"
                "app.connection().default_channel.client.get('other')"
            )
            with pytest.raises(LabError, match="NoPermissionError"):
                site_python(lab, "worker1", code)
    finally:
        for host in ("worker1", "worker2", "app1"):
            apply(lab, host)
        lab.run("worker1", "systemctl", "disable", "--now", "redis-server@broker")
    until(120, lambda: set(nodes(lab)) == {"worker1", "worker2"})


def nodes(lab):
    """The worker hosts whose workers answer."""
    told = call(lab, "worker1", "celery.inspect", SITE, check=False)
    return {name.partition("@")[2] for name in told["workers"]} if isinstance(told, dict) else ()


@pytest.mark.drill
def test_three_brokers_go_on_when_one_is_lost(lab, rehearsal):
    brokers = ("worker1", "worker2", "cache1")

    def three(hosts):
        for host in brokers[1:]:
            hosts["hosts"][host]["roles"].append("broker")

    def quorum(overrides):
        overrides["rabbitmq"] = {"queue_type": "quorum"}

    def running(host="worker1"):
        return len(call(lab, host, "broker.stats")["nodes"])

    try:
        with changed(lab, "hosts.yaml", three), changed(lab, "overrides.yaml", quorum):
            for host in brokers:
                apply(lab, host, sls=["rabbitmq"])
            assert running() == 3
            for host in brokers:
                assert not apply(lab, host, sls=["rabbitmq"])[host]
            # Queues of another type: made anew once they are empty.
            for host in ("worker1", "worker2"):
                call(lab, host, "celery.drain")
            call(lab, "worker1", "broker.renew", SITE)
            apply(lab, "worker1", "worker2", "app1")
            for host in ("worker1", "worker2"):
                call(lab, host, "celery.resume")
            until(120, lambda: set(nodes(lab)) == {"worker1", "worker2"})
            queue(lab, "worker1", 100)
            until(60, lambda: done(lab)[0] > 5)
            lab.kill("worker2")
            before = done(lab)[0]
            assert before < 100
            until(300, lambda: done(lab)[0] == 100)
            lab.start("worker2", empty=True)  # it comes back without anything: a new member
            call(lab, "worker2", "saltutil.sync_all")
            apply(lab, "worker2")
            assert running() == 3
            call(lab, "cache1", "broker.leave")
            assert running() == 2
    finally:
        for host in brokers:
            if not lab.hosts[host].running():
                lab.start(host)
            wipe = "systemctl disable --now rabbitmq-server; rm -rf /var/lib/rabbitmq/mnesia"
            lab.run(host, "sh", "-c", wipe)
        apply(lab, "worker1")
        apply(lab, "worker2", "app1")
    until(120, lambda: set(nodes(lab)) == {"worker1", "worker2"})


@pytest.mark.drill
def test_flower_comes_reachable_inside_only_and_goes(lab):
    unit = f"daemon-{SITE}-flower@*"

    def packages(sites):
        sites["sites"][SITE]["requirements"] = ["requirements.txt", "requirements-flower.txt"]

    def flower(sites):
        packages(sites)
        sites["sites"][SITE]["daemons"]["flower"] = (
            f"celery -A {SITE} flower --address=127.0.0.1 --port=5555"
        )

    def answers(host, address):
        ask = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{address}:5555/"]
        return lab.run(host, *ask, check=False).stdout

    commit(lab, "Flower")
    with changed(lab, "sites.yaml", packages):
        call(lab, "worker1", "deploy.ship")
    with changed(lab, "sites.yaml", flower):
        apply(lab, "worker1", sls=["celery"])
        until(60, lambda: answers("worker1", "127.0.0.1") == "200")
        assert answers("worker2", "198.18.0.41") == "000"
    removed = apply(lab, "worker1", sls=["celery"])["worker1"]
    assert [f"daemon-{SITE}-flower"] in [list(changes) for changes in removed.values()]
    assert "flower" not in lab.run("worker1", "systemctl", "list-units", "--all", unit).stdout
