"""The inventory changes while the farm works: hosts leave and come, brokers become several."""

import json
import time

import pytest

from tests.farm.environment import among, changed, running
from tests.farm.rehearsal import SITE, done, flower_shows, queue, rehearsal
from tests.farm.visitors import visitors
from tests.farm.waiting import until

__all__ = ["rehearsal"]  # a fixture
pytestmark = pytest.mark.drill

WORKERS = ("worker1", "worker2")
# No page that an accelerator keeps: an app host answers it.
FRESH = "http://198.18.0.11/?flush-the-cache={n}"
# One host of each of these kinds leaves; the other does its work.
LEAVING = ("app2", "worker2")
ADDED = ("cache1", "worker2")
BROKERS = (*ADDED, "worker1")
# The one that sites ask first.
FIRST = "cache1"


def with_role(lab, hosts, *roles):
    return [host for host in hosts if set(roles) & set(lab.hosts[host].roles)]


def apply(lab, hosts, *sls):
    """``state.apply`` on hosts, at once; what fails is an error. Returns what changed, by host."""
    answers = lab.salt(among(hosts), "state.apply", *sls)
    silent = [host for host in hosts if not isinstance(answers.get(host), dict)]
    assert not silent, {host: answers.get(host) for host in silent}
    wrong = {
        f"{host}: {key}": state["comment"]
        for host, states in answers.items()
        for key, state in states.items()
        if state["result"] is False
    }
    assert not wrong, wrong
    return {
        host: {key: state["changes"] for key, state in states.items() if state["changes"]}
        for host, states in answers.items()
    }


def seconds_until(lab, host, began, *words):
    """When the first line with these words came into a host's journal; it must within 2 minutes."""
    command = ["journalctl", "-q", "-o", "short-unix", f"--since=@{int(began)}", *words]
    lines = until(120, lambda: lab.run(host, *command, check=False).stdout.splitlines())
    return round(float(lines[0].split()[0]) - began, 1)


def nodes(lab):
    """The worker hosts whose workers answer; none while the broker doesn't."""
    answer = lab.salt("worker1", "celery.inspect", SITE).get("worker1")
    return {n.partition("@")[2] for n in answer["workers"]} if isinstance(answer, dict) else set()


def take_out(lab, others):
    """What docs/celery.md says to do before hosts are taken out of the inventory."""
    lab.salt(among(with_role(lab, others, "accelerator")), "varnish.drain", "app2")
    lab.salt(among(with_role(lab, others, "loadbalancer")), "haproxy.drain", "app2")
    assert lab.salt("worker2", "celery.drain")["worker2"]["stopped"]


def put_back(lab, everybody):
    """All hosts on and at work, whatever a drill that failed left."""
    apply(lab, ["master"], "firewall")
    for host in set(everybody) - set(running(lab)):
        lab.start(host)
    lab.salt(among(everybody), "saltutil.sync_all")
    apply(lab, everybody)
    lab.salt(among(with_role(lab, everybody, "accelerator")), "varnish.ready", "app2")
    lab.salt(among(with_role(lab, everybody, "loadbalancer")), "haproxy.ready", "app2")
    lab.salt("worker2", "celery.resume")


def test_hosts_leave_and_come_without_a_failed_request_or_a_lost_task(lab, rehearsal):
    everybody = running(lab)
    others = [host for host in everybody if host not in LEAVING]
    figures = {}

    def without(hosts):
        for host in LEAVING:
            del hosts["hosts"][host]

    try:
        queue(lab, "worker1", 100)
        with visitors(lab.lab, FRESH, rate=10, timeout=30) as seen:
            began = time.time()
            take_out(lab, others)
            with changed(lab, "hosts.yaml", without):
                apply(lab, others)
                for host in LEAVING:
                    lab.kill(host)
                figures["taken out after"] = round(time.time() - began, 1)
                until(200, lambda: done(lab)[0] == 100)
        figures["requests while they left"] = seen.report["sent"]
        assert seen.report["failed"] == 0, seen.report

        apply(lab, ["master"], "firewall")  # it lets them come
        for host in LEAVING:
            lab.start(host, empty=True)
        queue(lab, "worker1", 400, first=100)  # enough for worker1 until worker2 is there
        with visitors(lab.lab, FRESH, rate=10, timeout=30) as seen:
            began = time.time()
            lab.salt(among(LEAVING), "saltutil.sync_all")
            apply(lab, everybody)
            figures["applied after"] = round(time.time() - began, 1)
            answered = ["-t", "nginx", '--grep="status":200.*flush-the-cache']
            figures["first request after"] = seconds_until(lab, "app2", began, *answered)
            taken = ["-u", "celery-*", "--grep=received"]
            figures["first task after"] = seconds_until(lab, "worker2", began, *taken)
        figures["requests while they came"] = seen.report["sent"]
        assert seen.report["failed"] == 0, seen.report
        until(400, lambda: done(lab)[0] == 500)
        assert done(lab) == (500, 500), "a task was done twice"
        assert not any(apply(lab, everybody).values())
    except BaseException:
        put_back(lab, everybody)
        raise
    finally:
        print(json.dumps(figures))


def test_redis_is_the_broker_by_one_line(lab, rehearsal):
    def one_line(overrides):
        overrides["celery"] = {"broker": "redis"}

    sites = with_role(lab, running(lab), "app", "worker")
    beats = ["systemctl", "show", f"celery-{SITE}-beat@*", "--property=StatusText", "--value"]
    try:
        with changed(lab, "overrides.yaml", one_line):
            apply(lab, ["worker1"])  # the broker first
            apply(lab, sites)
            lab.run("worker1", "grep", "-q", "^BROKER_URL=redis", f"/srv/sites/{SITE}/shared/.env")
            until(120, lambda: nodes(lab) == set(WORKERS))
            queue(lab, "worker1", 100)
            until(60, lambda: done(lab)[0] > 5)
            time.sleep(2)  # what was queued longer than a second ago is on the disk
            lab.run("worker1", "systemctl", "kill", "-s", "KILL", "redis-server@broker")
            assert done(lab)[0] < 100, "all was done before the broker was killed"
            # A task that nobody holds any more is given out again after the visibility timeout.
            until(800, lambda: done(lab)[0] == 100)
            assert lab.salt("worker1", "redis.stats", "broker")["worker1"]["broker"]["up"]
            said = [lab.run(host, *beats).stdout.partition(":")[0] for host in WORKERS]
            assert sorted(said) == ["Runs", "Stands by"]
            for host in WORKERS:
                until(60, lambda host=host: set(WORKERS) <= flower_shows(lab, host))
    finally:
        apply(lab, sites)
        # Workers that end are done with the old broker only then.
        until(120, lambda: nodes(lab) == set(WORKERS))
        lab.run("worker1", "systemctl", "disable", "--now", "redis-server@broker", check=False)


def of_another_kind(lab, sites):
    """What docs/rabbitmq.md says to do to change the type of queues that are there."""

    def renewed():
        lab.salt("worker*", "celery.drain")
        if lab.salt("worker1", "broker.renew", SITE)["worker1"] is True:
            return True
        # A periodic task came while the workers ended.
        lab.salt("worker*", "celery.resume")
        until(60, lambda: nodes(lab) == set(WORKERS))
        return False

    until(240, renewed)
    apply(lab, sites)
    lab.salt("worker*", "celery.resume")
    until(120, lambda: nodes(lab) == set(WORKERS))


def test_three_brokers_go_on_when_one_is_lost(lab, rehearsal):
    def three(hosts):
        for host in ADDED:
            hosts["hosts"][host]["roles"].append("broker")

    def quorum(overrides):
        overrides["rabbitmq"] = {"queue_type": "quorum"}

    def up():
        return set(lab.salt("worker1", "broker.cluster")["worker1"]["running"])

    sites = with_role(lab, running(lab), "app", "worker")
    everyone = {f"rabbit@{host}" for host in BROKERS}
    try:
        with changed(lab, "hosts.yaml", three), changed(lab, "overrides.yaml", quorum):
            apply(lab, BROKERS, "os,firewall")  # each lets the others in
            apply(lab, ["worker1"], "rabbitmq")
            apply(lab, ADDED, "rabbitmq")
            assert up() == everyone
            assert not any(apply(lab, BROKERS, "rabbitmq").values())
            of_another_kind(lab, sites)
            listed = ["rabbitmqctl", "-q", "list_queues", "-p", SITE, "name", "type"]
            lines = lab.run("worker1", *listed).stdout.splitlines()
            assert {"high\tquorum", "low\tquorum"} <= set(lines)
            queue(lab, "worker1", 100)
            until(60, lambda: done(lab)[0] > 5)
            lab.kill(FIRST)
            assert done(lab)[0] < 100, "all was done before the broker was killed"
            until(300, lambda: done(lab)[0] == 100)
            lab.start(FIRST)
            until(120, lambda: up() == everyone)
            lab.salt("worker2", "broker.leave")
            assert up() == everyone - {"rabbit@worker2"}
            queue(lab, "worker1", 10, first=100)
            until(60, lambda: done(lab)[0] == 110)
    finally:
        for host in set(BROKERS) - set(running(lab)):
            lab.start(host)
        # A worker that goes on would make its queues again as they were: of the other type.
        lab.salt("worker*", "celery.drain")
        wipe = "systemctl disable --now rabbitmq-server; rm -rf /var/lib/rabbitmq/mnesia"
        for host in BROKERS:
            lab.run(host, "sh", "-c", wipe)
        for host in ADDED:
            purge = ["apt-get", "-qq", "--allow-change-held-packages", "--autoremove", "purge"]
            lab.run(host, *purge, "rabbitmq-server")
        apply(lab, ["worker1"])
        apply(lab, sorted({*sites, *BROKERS}))
        lab.salt("worker*", "celery.resume")
    until(120, lambda: nodes(lab) == set(WORKERS))
