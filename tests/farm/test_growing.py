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

from tests.farm.rehearsal import SITE, done, queue, rehearsal, site_python, until

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


def apply(lab, *hosts, sls=()):
    """
    ``state.apply`` on hosts, at once; what fails is an error. Returns what changed, by host.

    On the hosts themselves: `salt` gives up waiting where a machine has too much to do.
    """

    def one(host):
        told = lab.run(host, "salt-call", "--out=json", "state.apply", *sls, check=False).stdout
        return json.loads(told)["local"]

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
            lab.salt("cache*", "varnish.drain", "app2")
            lab.salt("lb*", "haproxy.drain", "app2")
            lab.salt("worker2", "celery.drain")
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
    lab.salt("app2 or worker2", "saltutil.sync_all")
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
            told = lab.salt("worker1", "redis.stats", "broker")["worker1"]["broker"]
            assert told["up"]
            beats = ["systemctl", "show", f"celery-{SITE}-beat@*", "--property=StatusText"]
            said = [lab.run(host, *beats).stdout for host in ("worker1", "worker2")]
            assert sorted(text.partition("=")[2].partition(":")[0] for text in said) == [
                "Runs",
                "Stands by",
            ]
            code = (
                "from newsroom.celery import app; app.connection().default_channel.client.get('a')"
            )
            assert "NOPERM" in site_python(lab, "worker1", f"import django; django.setup()\n{code}")
    finally:
        for host in ("worker1", "worker2", "app1"):
            apply(lab, host)
        lab.run("worker1", "systemctl", "disable", "--now", "redis-server@broker")
    until(120, lambda: set(nodes(lab)) == {"worker1", "worker2"})


def nodes(lab):
    """The worker hosts whose workers answer."""
    told = lab.salt("worker1", "celery.inspect", SITE)["worker1"]
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
        return len(lab.salt(host, "broker.stats")[host]["nodes"])

    try:
        with changed(lab, "hosts.yaml", three), changed(lab, "overrides.yaml", quorum):
            for host in brokers:
                apply(lab, host, sls=["rabbitmq"])
            assert running() == 3
            for host in brokers:
                assert not apply(lab, host, sls=["rabbitmq"])[host]
            # Queues of another type: made anew once they are empty.
            lab.salt("worker*", "celery.drain")
            lab.salt("worker1", "broker.renew", SITE)
            apply(lab, "worker1", "worker2", "app1")
            lab.salt("worker*", "celery.resume")
            until(120, lambda: set(nodes(lab)) == {"worker1", "worker2"})
            queue(lab, "worker1", 200)
            until(60, lambda: done(lab)[0] > 5)
            lab.kill("worker2")
            before = done(lab)[0]
            assert before < 200
            until(300, lambda: done(lab)[0] == 200)
            lab.start("worker2", empty=True)  # it comes back without anything: a new member
            lab.salt("worker2", "saltutil.sync_all")
            apply(lab, "worker2")
            assert running() == 3
    finally:
        pass
