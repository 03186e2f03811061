"""Caches, broker and background work on the farm: nothing is lost when a part of it is."""

import concurrent.futures
import contextlib
import datetime
import json
import pathlib
import time

import pytest

CLIENT = pathlib.Path(__file__).with_name("cache_client.py").read_text()
SITE = "newsroom"
DATABASE = "db1"
# What the drills' tasks write; nothing else of the site is that old.
FIRST_DAY = datetime.date(1990, 1, 1)


def until(seconds, check, every=1.0):
    """What `check` returns as soon as it is true; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s; the last answer: {found!r}"
        time.sleep(every)
    return found


def site_python(lab, host, code):
    """Run Python with the live release of the site, as its own user, on a worker host."""
    root = f"/srv/sites/{SITE}"
    release = pathlib.PurePath(lab.run(host, "readlink", f"{root}/current").stdout.strip()).name
    script = "/usr/local/lib/saltern/celery_service.py"
    note, env = f"{root}/deploy/releases/{release}.json", f"{root}/shared/.env"
    command = ["python3", script, note, env, "run", "python", "-c", code]
    return lab.run(host, "runuser", "-u", f"site-{SITE}", "--", *command).stdout


def queue(lab, host, count, first=0):
    """Queue tasks on a host: the digests of so many days. The same day twice is the same task."""
    days = [str(FIRST_DAY + datetime.timedelta(first + n)) for n in range(count)]
    site_python(
        lab,
        host,
        "import django; django.setup()\n"
        "from newsroom.celery import app\n"
        "from articles.tasks import write_digest\n"
        f"for day in {days!r}: write_digest.delay(day)",
    )


def sql(lab, statement):
    """What PostgreSQL answers: lines."""
    command = ["runuser", "-u", "postgres", "--", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1"]
    return lab.run(DATABASE, *command, "-d", SITE, "-c", statement).stdout.split()


def done(lab):
    """How many of the queued tasks were done, and how many runs that took."""
    (line,) = sql(lab, "SELECT count(DISTINCT day) || '/' || count(*) FROM rehearsal")
    return tuple(int(number) for number in line.split("/"))


@pytest.fixture
def rehearsal(lab):
    """Each run of a task is counted, and takes up to half a second, by its day."""
    undo = (
        "DROP TRIGGER IF EXISTS rehearsal ON articles_digest;"
        "DROP FUNCTION IF EXISTS rehearse(); DROP TABLE IF EXISTS rehearsal;"
        "DELETE FROM articles_digest WHERE day < '2000-01-01'"
    )
    sql(lab, undo)
    sql(
        lab,
        "CREATE TABLE rehearsal (day date, at timestamptz DEFAULT clock_timestamp());"
        "CREATE FUNCTION rehearse() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        " IF NEW.day < '2000-01-01' THEN"
        " PERFORM pg_sleep((NEW.day - date '1990-01-01') % 6 * 0.1);"
        " INSERT INTO rehearsal VALUES (NEW.day);"
        " END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER rehearsal BEFORE INSERT OR UPDATE ON articles_digest"
        " FOR EACH ROW EXECUTE FUNCTION rehearse()",
    )
    yield
    sql(lab, undo)


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


def memcached(lab, host, *lines):
    """Talk to the caches through a host's twemproxy."""
    text = "".join(f"{line}\\r\\n" for line in lines)
    ask = f'exec 3<>/dev/tcp/127.0.0.1/22122; printf "{text}" >&3; timeout 1 cat <&3'
    return lab.run(host, "bash", "-c", ask, check=False).stdout


def test_all_hosts_share_the_caches(lab):
    keys = [f"shared:{n}" for n in range(10)]
    lines = [line for key in keys for line in (f"set {key} 0 60 2", "ok")]
    assert memcached(lab, "app1", *lines).count("STORED") == len(keys)
    found = memcached(lab, "worker1", *[f"get {key}" for key in keys])
    assert found.count("VALUE shared:") == len(keys)
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


def test_redis_keeps_copies_and_keeps_sites_apart(lab):
    def redis(host, *command, user=SITE, password="lab-newsroom-redis"):
        address = lab.salt(host, "inventory.address")[host]
        login = ["--user", user, "--pass", password, "--no-auth-warning"]
        return lab.run(host, "redis-cli", "-h", address, "-p", "6380", *login, *command).stdout

    stats = lab.salt("cache*", "redis.stats")
    assert stats["cache1"]["session"]["replicas"] == 1
    assert stats["cache2"]["session"]["copy_is_current"]
    assert redis("cache1", "set", f"{SITE}:probe", "kept", "ex", "60") == "OK\n"
    until(5, lambda: redis("cache2", "get", f"{SITE}:probe") == "kept\n", every=0.2)
    assert "NOPERM" in redis("cache1", "set", "other:probe", "no")
    assert "NOPERM" in redis("cache1", "flushall")
    assert "NOAUTH" in redis("cache1", "get", f"{SITE}:probe", password="wrong")


def test_nothing_of_it_listens_on_every_address(lab):
    # memcached, Redis, RabbitMQ and its helpers, twemproxy.
    inside = {11211, 6379, 6380, 6381, 5672, 15672, 25672, 4369, 22122, 22222}
    seen = set()
    for host in ("cache1", "worker1", "app1"):
        for line in lab.run(host, "ss", "-Hlnt").stdout.splitlines():
            address, _, port = line.split()[3].rpartition(":")
            if int(port) in inside:
                assert address not in ("0.0.0.0", "[::]", "*"), f"{host}: {line}"
                seen.add(int(port))
    assert {11211, 6380, 5672, 15672, 22122} <= seen


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


def test_one_beat_for_the_farm(lab):
    def running():
        command = ["systemctl", "show", f"celery-{SITE}-beat@*", "--property=StatusText"]
        said = [lab.run(host, *command).stdout for host in ("worker1", "worker2")]
        return "".join(said).count("the only beat"), "".join(said).count("Stands by")

    until(60, lambda: running() == (1, 1))


def test_a_drained_host_takes_no_tasks_until_it_is_resumed(lab):
    def nodes():
        told = lab.salt("worker1", "celery.inspect", SITE)["worker1"]
        return {name.partition("@")[2] for name in told["workers"]}

    try:
        stopped = lab.salt("worker2", "celery.drain")["worker2"]["stopped"]
        assert len(stopped) == 3
        assert nodes() == {"worker1"}
        applied = lab.salt("worker2", "state.apply", "celery")["worker2"].values()
        assert all(state["result"] for state in applied)
        assert nodes() == {"worker1"}
    finally:
        resumed = lab.salt("worker2", "celery.resume")["worker2"]
    assert len(resumed[SITE]["started"]) == 3
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
    """1,000 tasks of mixed length; ten releases meanwhile."""
    queue(lab, "worker1", 1000)
    for number in range(10):
        commit(lab, f"Rehearsal {number}")
        for host in ("worker1", "worker2"):
            told = lab.run(host, "salt-call", "--out=json", "deploy.ship").stdout
            assert json.loads(told)["local"]["result"], told
    until(600, lambda: done(lab)[0] == 1000, every=5)
    assert done(lab) == (1000, 1000), "a task was done twice"


@pytest.mark.drill
def test_the_other_worker_does_the_tasks_of_a_killed_one(lab, rehearsal):
    queue(lab, "worker1", 100)
    until(30, lambda: done(lab)[0] > 5)
    lab.kill("worker2")
    until(300, lambda: done(lab)[0] == 100, every=2)
    lab.start("worker2")


@pytest.mark.drill
def test_a_killed_broker_comes_back_with_all_tasks(lab, rehearsal):
    queue(lab, "worker1", 200)
    until(30, lambda: done(lab)[0] > 5)
    lab.kill("worker1")
    time.sleep(5)
    assert done(lab)[0] < 200, "it was done before the broker was killed"
    lab.start("worker1")
    until(400, lambda: done(lab)[0] == 200, every=2)


def commit(lab, message):
    """A new commit in the site's repository, so that there is a release to ship."""
    git = "git --git-dir=/srv/git/newsroom.git -c user.name=lab -c user.email=lab@localhost"
    lab.run(
        "master",
        "sh",
        "-c",
        f'new=$({git} commit-tree "main^{{tree}}" -p main -m "{message}") &&'
        f" {git} update-ref refs/heads/main $new",
    )
