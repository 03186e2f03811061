"""Caches, broker and background work on the farm: nothing is lost when a part of it is."""

import concurrent.futures
import contextlib
import json
import pathlib
import time

import pytest

from tests.farm.rehearsal import (
    SITE,
    commit,
    done,
    flower_shows,
    queue,
    rehearsal,
    site_python,
    sql,
)
from tests.farm.waiting import until

__all__ = ["rehearsal"]  # a fixture
CLIENT = pathlib.Path(__file__).with_name("cache_client.py").read_text()
WRITE_DIGEST = "articles.tasks.write_digest"
WORKERS = ("worker1", "worker2")
# How curl ends where it is refused, or nothing answers.
UNREACHABLE = (7, 28)


@contextlib.contextmanager
def frozen(lab, host, unit):
    """A daemon that accepts connections and never answers, as one does whose host is lost."""
    lab.run(host, "systemctl", "kill", "-s", "STOP", unit)
    try:
        yield
    finally:
        lab.run(host, "systemctl", "kill", "-s", "CONT", unit)


def hammer(lab, host, seconds):
    """Use the caches from a host; see cache_client.py."""
    told = lab.run(host, "python3", "-", str(seconds), "50", stdin=CLIENT)
    return json.loads(told.stdout)


def requests_to(lab, cache):
    return lab.salt("app1", "twemproxy.stats")["app1"]["hosts"][cache]["requests"]


def memcached(lab, host, count, *lines, at="127.0.0.1/22122"):
    """Talk to the caches, by default through a host's twemproxy, until so many lines came back."""
    text = "".join(f"{line}\\r\\n" for line in lines)
    ask = f'exec 3<>/dev/tcp/{at}; printf "{text}" >&3; timeout 20 head -n {count} <&3'
    return lab.run(host, "bash", "-c", ask, check=False).stdout


def test_all_hosts_share_the_caches(lab):
    keys = [f"shared:{n}" for n in range(10)]
    lines = [line for key in keys for line in (f"set {key} 0 60 2", "ok")]
    # A machine with too much to do makes a cache too slow for twemproxy now and then.
    until(90, lambda: memcached(lab, "app1", 10, *lines).count("STORED") == len(keys))
    asked = [f"get {key}" for key in keys]
    until(90, lambda: memcached(lab, "worker1", 30, *asked).count("VALUE shared:") == len(keys))
    stats = lab.salt("cache*", "memcached.stats")
    assert all(host["items"] for host in stats.values()), "one cache host holds nothing"


def test_a_lost_cache_host_costs_three_operations_and_no_request(lab):
    lab.run("app1", "systemctl", "restart", "nutcracker")
    with frozen(lab, "cache2", "memcached"), concurrent.futures.ThreadPoolExecutor() as pool:
        told = pool.submit(hammer, lab, "app1", 15)
        answers = [
            lab.get(f"http://lb1/?flush-the-cache={n}", {"Host": "newsroom.lab"}).status
            for n in range(20)
        ]
        told = told.result()
    assert answers == [200] * 20
    # The client's and the site's: three in a row, from whomever, and the host is left out.
    assert told["failed"] <= 3, told
    assert told["operations"] > 300, told
    before = requests_to(lab, "cache2")
    until(35, lambda: hammer(lab, "app1", 1) and requests_to(lab, "cache2") > before)


@pytest.fixture
def redis(lab):
    """A command for Redis with the sessions, as a site."""

    def said(host, *command, user=SITE, password="lab-newsroom-redis", stdin=None):
        address = lab.salt(host, "inventory.address")[host]
        login = ["--user", user, "--pass", password, "--no-auth-warning"]
        command = ["redis-cli", "-h", address, "-p", "6380", *login, *command]
        return lab.run(host, *command, stdin=stdin, check=False).stdout

    return said


def test_redis_keeps_what_a_transaction_wrote_when_it_starts_again(lab, redis):
    redis("cache1", stdin=f"multi\nset {SITE}:whole kept ex 600\nexec\n")
    time.sleep(2)  # what is older than a second is on the disk
    lab.run("cache1", "systemctl", "restart", "redis-server@session")
    until(30, lambda: redis("cache1", "get", f"{SITE}:whole") == "kept\n")
    for login in ({"password": ""}, {"user": "default", "password": "guess"}):
        assert "NOAUTH" in redis("cache1", "get", f"{SITE}:whole", **login)
    until(60, lambda: copied(lab))


def copied(lab):
    """Whether the sessions have a copy that is as new as they are."""
    stats = lab.salt("cache*", "redis.stats")
    followed = stats["cache1"]["session"]["replicas"] == 1
    return followed and stats["cache2"]["session"]["copy_is_current"]


def test_redis_keeps_copies_and_keeps_sites_apart(lab, redis):
    assert copied(lab)
    assert redis("cache1", "set", f"{SITE}:probe", "kept", "ex", "60") == "OK\n"
    until(5, lambda: redis("cache2", "get", f"{SITE}:probe") == "kept\n", every=0.2)
    assert "NOPERM" in redis("cache1", "set", "other:probe", "no")
    assert "NOPERM" in redis("cache1", "flushall")
    assert "NOAUTH" in redis("cache1", "get", f"{SITE}:probe", password="wrong")


def test_nothing_of_it_listens_on_every_address(lab):
    # memcached, Redis, RabbitMQ and its helpers, twemproxy, Flower.
    inside = {11211, 6379, 6380, 6381, 5672, 15672, 25672, 4369, 22122, 22222, 5555}
    seen = set()
    for host in ("cache1", "worker1", "app1"):
        for line in lab.run(host, "ss", "-Hlnt").stdout.splitlines():
            address, _, port = line.split()[3].rpartition(":")
            if int(port) in inside:
                assert address not in ("0.0.0.0", "[::]", "*"), f"{host}: {line}"
                seen.add(int(port))
    assert {11211, 6380, 5672, 15672, 22122, 5555} <= seen


def test_no_password_shows_in_a_process_list(lab):
    for host in ("cache1", "worker1", "app1"):
        shown = lab.run(host, "ps", "-eo", "args").stdout
        assert "lab-newsroom" not in shown
        assert "lab-redis" not in shown


def test_tasks_are_done_and_seen(lab, rehearsal):
    queue(lab, "worker1", 12)
    until(60, lambda: done(lab)[0] == 12)
    told = lab.salt("worker1", "celery.inspect", SITE)["worker1"]
    assert told["queues"] == {"high": 0, "low": 0}
    assert {name.partition("@")[2] for name in told["workers"]} == {"worker1", "worker2"}
    assert set(lab.salt("worker1", "broker.stats")["worker1"]["queues"][SITE]) == {"high", "low"}


@pytest.fixture
def soon(lab):
    """The title of an article that comes out in a few seconds; it is gone after the test."""
    title = f"Seen by a daemon {time.time_ns()}"
    site_python(
        lab,
        "worker1",
        "import django; django.setup()\n"
        "from datetime import timedelta\n"
        "from django.utils import timezone\n"
        "from articles.models import Article, Author, Section\n"
        f"Article.objects.create(title={title!r}, slug={title.replace(' ', '-').lower()!r},"
        " section=Section.objects.first(), author=Author.objects.first(),"
        " published=timezone.now() + timedelta(seconds=5))",
    )
    yield title
    sql(lab, f"DELETE FROM articles_article WHERE title = '{title}'")


def test_a_daemon_runs_on_every_worker_host(lab, soon):
    def told(host):
        log = ["journalctl", "-q", "-u", f"daemon-{SITE}-published@*", "-o", "cat", "--since=-5m"]
        return f"Published: {soon}" in lab.run(host, *log).stdout

    until(60, lambda: all(told(host) for host in WORKERS))


def test_flower_shows_the_workers_inside_only(lab):
    for host in WORKERS:
        until(60, lambda host=host: set(WORKERS) <= flower_shows(lab, host))
    address = f"http://{lab.hosts['worker1'].address}:5555/"
    ask = ["curl", "-s", "--noproxy", "*", "--max-time", "5", address]
    for host in ("worker1", "worker2", "app1"):
        assert lab.run(host, *ask, check=False).returncode in UNREACHABLE, host
    assert lab.on_hub(*ask).returncode in UNREACHABLE


def test_a_failed_task_is_seen(lab):
    def failed():
        told = lab.salt("worker*", "celery.inspect", SITE)
        return sum(host["failed"].get(WRITE_DIGEST, 0) for host in told.values())

    before = failed()
    task = "from articles.tasks import write_digest; write_digest.delay('no day')"
    site_python(lab, "worker1", f"import django; django.setup()\nimport newsroom.celery\n{task}")
    until(60, lambda: failed() == before + 1)


def test_one_site_is_cleared_from_the_caches(lab):
    lines = [f"set {SITE}:1:probe 0 60 2", "ok", "set other:1:probe 0 60 2", "ok"]
    until(90, lambda: memcached(lab, "app1", 2, *lines).count("STORED") == 2)
    assert sum(host["cleared"] for host in lab.salt("cache*", "memcached.clear", SITE).values())
    asked = [f"get {SITE}:1:probe", "get other:1:probe"]
    left = until(60, lambda: memcached(lab, "app1", 4, *asked))
    assert "VALUE other:1:probe" in left
    assert f"VALUE {SITE}:1:probe" not in left

    def sessions():
        return lab.salt("cache1", "redis.stats")["cache1"]["session"]["keys"]

    code = "from django.core.cache import caches; caches['sessions'].set('probe', 1, 60)"
    site_python(lab, "worker1", f"import django; django.setup()\n{code}")
    assert sessions()
    assert lab.salt("cache1", "redis.clear", SITE, "session")["cache1"]["cleared"]
    assert sessions() == 0


def beats(lab, *hosts):
    """What the beats of these hosts say that they do, by host."""
    command = ["systemctl", "show", f"celery-{SITE}-beat@*", "--property=StatusText", "--value"]
    return {host: lab.run(host, *command).stdout.strip() for host in hosts or WORKERS}


def the_only_beat(lab):
    """The host whose beat runs, while the other's stands by; nobody else."""
    said = sorted((told, host) for host, told in beats(lab).items())
    if [told.partition(":")[0] for told, _ in said] == ["Runs", "Stands by"]:
        return said[0][1]
    return None


def test_one_beat_for_the_farm(lab):
    until(60, lambda: the_only_beat(lab))


def test_beats_that_stand_by_keep_to_one_channel_each(lab):
    """Each look at the lock once left a channel behind, until the broker had no RAM for tasks."""

    def channels():
        listed = ["rabbitmqctl", "-q", "list_connections", "channels"]
        return max(int(n) for n in lab.run("worker1", *listed).stdout.split() if n.isdigit())

    until(60, lambda: the_only_beat(lab))
    before = channels()
    time.sleep(15)  # five looks
    assert channels() <= before < 10


def test_a_drained_host_takes_no_tasks_until_it_is_resumed(lab):
    def nodes():
        told = lab.salt("worker1", "celery.inspect", SITE)["worker1"]
        return {name.partition("@")[2] for name in told["workers"]}

    try:
        stopped = lab.salt("worker2", "celery.drain")["worker2"]["stopped"]
        assert len(stopped) == 5  # two queues, beat, two daemons
        assert nodes() == {"worker1"}
        applied = lab.salt("worker2", "state.apply", "celery")["worker2"].values()
        assert all(state["result"] for state in applied)
        assert nodes() == {"worker1"}
    finally:
        resumed = lab.salt("worker2", "celery.resume")["worker2"]
    assert len(resumed[SITE]["started"]) == 5
    assert nodes() == {"worker1", "worker2"}


def test_scaling_a_queue(lab):
    assert lab.salt("worker2", "celery.scale", SITE, "low", "2")["worker2"]["new"] == 2
    told = lab.salt("worker2", "celery.inspect", SITE)["worker2"]["workers"]
    (node,) = [told[name] for name in told if name.startswith("low.") and "worker2" in name]
    assert node["processes"] == 2
    assert lab.salt("worker2", "celery.scale", SITE, "low", "1")["worker2"] == {"old": 2, "new": 1}


# Drills


@pytest.mark.drill
def test_ten_ships_lose_no_task(lab, rehearsal):
    """1,000 tasks of mixed length; ten releases meanwhile, which neither wait nor empty a cache."""
    at_work, seconds = 0, []
    cache = f"{lab.hosts['cache1'].address}/11211"
    stored = [f"set {SITE}:1:kept 0 0 2", "ok"]
    assert memcached(lab, "cache1", 1, *stored, at=cache) == "STORED\n"
    queued = 300  # they are at work from the first ship on
    queue(lab, "worker1", queued)
    for number in range(10):
        if queued < 1000:
            queue(lab, "worker1", 100, first=queued)
            queued += 100
        commit(lab, f"Rehearsal {number}")
        shipped = lab.salt("app* or worker*", "deploy.ship")
        assert set(shipped) == {"app1", "app2", *WORKERS}
        assert all(host["result"] for host in shipped.values()), shipped
        seconds.append(max(host["seconds"] for host in shipped.values()))
        at_work += done(lab)[0] < queued
    assert at_work >= 3, "the workers had nothing to do while releases were shipped"
    until(900, lambda: done(lab)[0] == 1000, every=5)
    assert done(lab) == (1000, 1000), "a task was done twice"
    asked = memcached(lab, "cache1", 3, f"get {SITE}:1:kept", at=cache)
    assert asked.startswith(f"VALUE {SITE}:1:kept"), asked
    print(f"ships took {min(seconds)} to {max(seconds)} s; at work after {at_work} of them")


@pytest.mark.drill
def test_the_other_worker_does_the_tasks_of_a_killed_one(lab, rehearsal):
    queue(lab, "worker1", 100)
    until(60, lambda: busy(lab) == set(WORKERS) and done(lab)[0] > 5)
    lab.kill("worker2")
    before = done(lab)[0]
    assert before < 100, "all was done before the worker was killed"
    until(400, lambda: done(lab)[0] == 100, every=2)
    lab.start("worker2")
    until(120, lambda: {host for host, told in beats(lab).items() if told} == set(WORKERS))


def busy(lab):
    """The worker hosts that are at a task."""
    told = lab.salt("worker1", "celery.inspect", SITE)["worker1"]["workers"]
    return {name.partition("@")[2] for name, node in told.items() if node["running"]}


@pytest.mark.drill
def test_a_killed_broker_comes_back_with_all_tasks(lab, rehearsal):
    queue(lab, "worker1", 100)
    until(60, lambda: done(lab)[0] > 5)
    lab.kill("worker1")
    time.sleep(5)
    assert done(lab)[0] < 100, "it was done before the broker was killed"
    lab.start("worker1")
    until(400, lambda: done(lab)[0] == 100, every=2)


@pytest.mark.drill
def test_beat_moves_by_one_command_and_when_its_host_is_lost(lab):
    """The broker's host stays: without a broker there is nothing for a beat to do."""
    first = until(60, lambda: the_only_beat(lab))
    (other,) = set(WORKERS) - {first}
    stop = ["systemctl", "stop", f"celery-{SITE}-beat@*"]
    lab.run(first, *stop)
    until(60, lambda: "only beat" in beats(lab, other)[other])
    lab.salt(first, "state.apply", "celery")
    until(60, lambda: the_only_beat(lab) == other)
    if other == "worker1":
        lab.run("worker1", *stop)
        until(60, lambda: "only beat" in beats(lab, "worker2")["worker2"])
        lab.salt("worker1", "state.apply", "celery")
        until(60, lambda: the_only_beat(lab) == "worker2")
    lab.kill("worker2")
    until(120, lambda: "only beat" in beats(lab, "worker1")["worker1"])
    lab.start("worker2")
    until(120, lambda: the_only_beat(lab) == "worker1")
