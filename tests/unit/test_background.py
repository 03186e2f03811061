"""Caches, broker and background work: which daemons a host should have, for whom, with what rights.

The modules get a small Salt: the functions that they call, answering from one dictionary.
"""

import base64
import hashlib
import importlib.util
import json
import pathlib
import socket
import subprocess
import sys
import time

import pytest
from salt.exceptions import CommandExecutionError
from schema import Size

ROOT = pathlib.Path(__file__).parents[2]
SERVICE = ROOT / "salt/celery/files/celery_service.py"
HOSTS = {"cache1": "10.0.0.1", "cache2": "10.0.0.2"}


def load(path):
    """A file as a module of its own, whatever library has the same name."""
    spec = importlib.util.spec_from_file_location(f"under_test_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def module(name, host="cache1", roles=("cache",), sites=None, **settings):
    """An execution module on a host with these roles and settings."""
    sites = sites if sites is not None else {"shop": {"queues": {"high": 1}}}
    bare = {"queues": {}, "beat": False, "daemons": {}, "celery_app": "app"}
    known = {site: {**bare, **facts} for site, facts in sites.items()}
    defaults = {
        "redis": {
            "purposes": ["session"],
            "primary": None,
            "memory": Size("100M"),
            "ports": {"cache": 6379, "session": 6380, "broker": 6381},
        },
        "celery": {"broker": "rabbitmq", "concurrency": 5, "why": {"concurrency": "2 x cores"}},
        "rabbitmq": {"delivery_limit": 20},
        "memcached": {"port": 11211},
    }
    found = load(ROOT / f"_modules/{name}.py")
    found.__opts__ = {"id": host}
    found.__context__ = {}
    found.__salt__ = {
        "settings.get": lambda service: {**defaults[service], **settings.get(service, {})},
        "inventory.address": lambda: "127.0.0.1",
        "inventory.roles": lambda: list(roles),
        "inventory.peers": lambda role: [{"id": i, "address": a} for i, a in HOSTS.items()],
        "sites.list": lambda: sorted(known),
        "sites.get": lambda site: known[site],
        "sites.cache_prefix": lambda *parts: "".join(f"{part}:" for part in parts if part),
        "sites.redis_password": lambda site: f"redis of {site}",
        "sites.broker_password": lambda site: f"broker of {site}",
        "sites.secret": lambda *path: "secret of " + " ".join(path),
    }
    return found


def test_first_cache_host_takes_writes_and_others_follow():
    assert module("redis_servers").server("session")["follows"] is None
    other = module("redis_servers", host="cache2").server("session")
    assert other["follows"] == {"id": "cache1", "address": "10.0.0.1"}


def test_named_cache_host_takes_writes():
    told = {"primary": "cache2"}
    assert module("redis_servers", redis=told).server("session")["follows"]["id"] == "cache2"
    assert module("redis_servers", host="cache2", redis=told).server("session")["follows"] is None


def test_primary_that_is_no_cache_host_is_refused():
    with pytest.raises(CommandExecutionError, match=r"'cache9' is no cache host.*cache1, cache2"):
        module("redis_servers", redis={"primary": "cache9"}).servers()


def test_redis_servers_of_a_host_share_its_memory():
    both = module("redis_servers", redis={"purposes": ["cache", "session"]}).servers()
    assert [one["memory"] for one in both] == [50 << 20, 50 << 20]


def test_redis_is_the_broker_where_the_one_line_says_so():
    told = module("redis_servers", roles=["broker"], celery={"broker": "redis"})
    (broker,) = told.servers()
    assert broker["purpose"] == "broker"
    assert broker["eviction"] == "noeviction"
    assert broker["persistent"]
    assert module("redis_servers", roles=["broker"]).servers() == []


def test_unknown_purpose_is_refused():
    with pytest.raises(CommandExecutionError, match="'sessions' is no purpose"):
        module("redis_servers", redis={"purposes": ["sessions"]}).servers()


def test_a_site_reaches_only_its_own_keys_and_no_password_is_written():
    users = module("redis", sites={"shop": {}, "blog": {}}).users("session")
    rules = {user["name"]: user["rules"] for user in users}
    assert rules["shop"].startswith("~shop:* &shop:* ")
    assert "-@dangerous" in rules["blog"]
    assert "redis of" not in json.dumps(users)
    wanted = hashlib.sha256(b"redis of shop").hexdigest()
    assert [u["sha256"] for u in users if u["name"] == "shop"] == [wanted]


def test_queues_in_redis_are_a_sites_own_too():
    told = module("redis", roles=["broker"], celery={"broker": "redis"}, sites={"shop": {}})
    rules = {user["name"]: user["rules"] for user in told.users("broker")}
    assert rules["shop"].startswith("~shop:* &shop:* ")


def test_redis_configuration_is_read_without_what_needs_a_start(tmp_path):
    conf = tmp_path / "redis.conf"
    conf.write_text('# a comment\nport 6380\nsave ""\nmaxmemory 1000\nreplicaof 10.0.0.1 6380\n')
    wanted, follows = module("redis")._read(conf)
    assert wanted == {"save": "", "maxmemory": "1000"}
    assert follows == ["10.0.0.1", "6380"]


def test_broker_has_a_virtual_host_and_a_user_for_each_site_with_queues():
    told = module("broker", sites={"shop": {"queues": {"high": 1}}, "blog": {}}).definitions()
    assert [v["name"] for v in told["vhosts"]] == ["shop"]
    assert {user["name"] for user in told["users"]} == {"operator", "shop"}
    rights = {(p["user"], p["vhost"]): p for p in told["permissions"]}
    assert rights[("shop", "shop")]["configure"] == ".*"
    assert rights[("operator", "shop")]["write"] == "^$"


def test_broker_passwords_are_hashed_as_rabbitmq_does():
    told = module("broker").definitions()
    (user,) = [u for u in told["users"] if u["name"] == "shop"]
    raw = base64.b64decode(user["password_hash"])
    assert hashlib.sha256(raw[:4] + b"broker of shop").digest() == raw[4:]
    assert "broker of shop" not in json.dumps(told)
    assert module("broker").definitions() == told


@pytest.fixture
def memcached():
    """A real one: the port that it listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["memcached", "-u", "nobody", "-l", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield port
    process.kill()
    process.wait()


def test_clearing_forgets_one_sites_part_of_memcached(memcached):
    told = module("memcached", memcached={"port": memcached})
    keys = [f"shop:{v}:key%{n}" for v in (1, 10) for n in range(1500)]
    keys += ["shopper:1:a", "blog:1:a"]
    told._talk("\r\n".join([f"set {key} 0 0 1\r\nx" for key in keys] + ["mn"]), "MN")
    assert told.stats()["items"] == 3002
    assert told.clear("shop", 1) == {"cleared": 1500}
    assert told.clear("shop", 1) == {"cleared": 0}
    assert told.clear("shop") == {"cleared": 1500}
    assert told.stats()["items"] == 2


def test_memcached_tells_how_well_it_does(memcached):
    told = module("memcached", memcached={"port": memcached})
    fresh = told.stats()
    assert (fresh["hit_rate"], fresh["fill"], fresh["evictions"]) == (None, 0, 0)
    value = "x" * 900_000
    much = [f"set shop:1:{n} 0 0 {len(value)}\r\n{value}" for n in range(100)]
    told._talk("\r\n".join([*much, "get shop:1:99", "get shop:1:0", "get shop:1:1", "mn"]), "MN")
    full = told.stats()
    assert full["hit_rate"] == 33.3
    assert full["fill"] > 80
    assert full["evictions"] == 100 - full["items"] > 0


def test_a_memcached_that_is_down_is_named(memcached):
    told = module("memcached", memcached={"port": 1})
    with pytest.raises(CommandExecutionError, match=r"doesn't answer at 127\.0\.0\.1:1: .*refused"):
        told.clear("shop")


def brokers(host, clusters, tasks=0, empty=()):
    """
    The module on a broker host; `clusters` are the members that each broker that is up names,
    `empty` those without a queue.
    """
    told = module("broker", host=host, sites={"shop": {"queues": {"high": 1}}})

    def run(command, **_):
        node = command[command.index("--node") + 1] if "--node" in command else f"rabbit@{host}"
        if node not in clusters:
            return {"retcode": 69, "stderr": f"unable to connect to node {node}", "stdout": ""}
        answers = {
            "cluster_status": {"disk_nodes": clusters[node], "running_nodes": clusters[node]},
            "list_vhosts": [{"name": "/"}, {"name": "shop"}],
            "list_queues": [
                {
                    "name": "high",
                    "messages_ready": tasks,
                    "messages_unacknowledged": 0,
                    "consumers": 1,
                }
            ],
        }
        if node in empty:
            answers["list_queues"] = []
        (answer,) = [value for word, value in answers.items() if word in command]
        return {"retcode": 0, "stdout": json.dumps(answer), "stderr": ""}

    told.__salt__["cmd.run_all"] = run
    return told


ONE, TWO = "rabbit@cache1", "rabbit@cache2"


@pytest.mark.parametrize(
    ("host", "clusters", "empty", "joins"),
    [
        ("cache2", {ONE: [ONE], TWO: [TWO]}, {}, ONE),
        ("cache1", {ONE: [ONE], TWO: [TWO]}, {}, None),
        ("cache2", {ONE: [ONE], TWO: [TWO]}, {ONE, TWO}, ONE),
        ("cache1", {ONE: [ONE], TWO: [TWO]}, {ONE}, TWO),
        ("cache2", {ONE: [ONE], TWO: [TWO]}, {ONE}, None),
        ("cache2", {ONE: [ONE, TWO], TWO: [ONE, TWO]}, {}, None),
        ("cache2", {TWO: [TWO]}, {}, None),
        ("cache1", {ONE: [ONE], TWO: [TWO, "rabbit@cache3"]}, {}, TWO),
    ],
    ids=[
        "alone",
        "the first stays",
        "both are fresh",
        "a fresh one joins one in use",
        "one in use stays",
        "together",
        "nobody is up",
        "the first came back empty",
    ],
)
def test_a_broker_that_is_alone_joins_the_others(host, clusters, empty, joins):
    assert brokers(host, clusters, empty=empty).to_join() == joins


def test_a_broker_that_holds_tasks_neither_joins_nor_makes_its_queues_anew():
    told = brokers("cache2", {ONE: [ONE], TWO: [TWO]}, tasks=1)
    with pytest.raises(CommandExecutionError, match="shop's queue high holds tasks"):
        told.join(ONE)
    with pytest.raises(CommandExecutionError, match="shop's queue high holds tasks"):
        told.renew("shop")


def worker(**sites):
    return module("celery_units", host="worker1", roles=["worker"], sites=sites)


def test_each_queue_beat_and_daemon_has_a_unit():
    units = worker(
        shop={"queues": {"high": 3, "low": 1}, "beat": True, "daemons": {"feed": "manage.py feed"}}
    ).units()
    assert [(u["name"], u["kind"]) for u in units] == [
        ("celery-shop-high", "queue"),
        ("celery-shop-low", "queue"),
        ("celery-shop-beat", "beat"),
        ("daemon-shop-feed", "daemon"),
    ]
    assert [u.get("processes") for u in units] == [3, 1, None, None]


def test_queues_without_a_number_share_the_hosts_processes():
    units = worker(shop={"queues": {"high": 0, "low": 0, "mail": 1}}).units()
    assert {u["of"]: u["processes"] for u in units} == {"high": 2, "low": 2, "mail": 1}


def test_names_that_clash_are_refused():
    sites = {"a": {"queues": {"b-c": 1}}, "a-b": {"queues": {"c": 1}}}
    with pytest.raises(CommandExecutionError, match="celery-a-b-c"):
        worker(**sites).units()


def test_queues_without_an_application_are_refused():
    with pytest.raises(CommandExecutionError, match="need celery_app"):
        worker(shop={"queues": {"high": 1}, "celery_app": None}).units()


def test_a_queue_that_can_name_no_unit_is_refused():
    with pytest.raises(CommandExecutionError, match="'to do' can't name"):
        worker(shop={"queues": {"to do": 1}}).units()


def test_hosts_without_the_role_have_no_workers():
    assert module("celery_units", roles=["app"]).units() == []


def test_units_that_no_site_names_are_left_over(tmp_path):
    told = module("celery")
    told.__salt__["celery.units"] = worker(shop={"queues": {"high": 1}}).units
    told._UNITS = tmp_path
    for name in ("celery-shop-high", "celery-shop-low", "daemon-gone-feed"):
        (tmp_path / f"{name}@.service").write_text(f"{told._MARK}. Change…\n[Unit]\n")
    (tmp_path / "celery-theirs@.service").write_text("# Somebody else's\n")
    assert told.left_over() == ["celery-shop-low", "daemon-gone-feed"]
    with pytest.raises(CommandExecutionError, match="isn't left over"):
        told.remove("celery-shop-high")


@pytest.mark.parametrize("processes", [0, -1, "many", 1.5])
def test_scale_wants_a_whole_number(processes):
    with pytest.raises(CommandExecutionError, match="at least 1"):
        module("celery").scale("shop", "high", processes)


def test_scale_names_the_queues_there_are():
    with pytest.raises(CommandExecutionError, match=r"no queue 'hihg'\. Its queues: high"):
        module("celery").scale("shop", "hihg", 2)


@pytest.fixture
def release(tmp_path):
    """A release's note, whose virtualenv is the Python that runs this, and an environment."""
    note, env = tmp_path / "note.json", tmp_path / "env"
    env.write_text('PLAIN=one\nQUOTED="two" $three \\four\n')
    note.write_text(
        json.dumps(
            {
                "release": "r1",
                "code": str(tmp_path),
                "static": "/static",
                "virtualenv": sys.prefix,
            }
        )
    )
    return note, env


def run(release, *arguments):
    command = [sys.executable, SERVICE, *release, "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_programs_get_the_environment_as_it_is_written(release, tmp_path):
    said = run(release, "sh", "-c", "printenv PLAIN QUOTED RELEASE STATIC_ROOT; pwd")
    assert said.splitlines() == ["one", '"two" $three \\four', "r1", "/static", str(tmp_path)]


def test_programs_of_the_release_run_with_its_python(release, tmp_path):
    (tmp_path / "manage.py").write_text("import sys; print(sys.prefix, *sys.argv[1:])")
    assert run(release, "manage.py", "watch") == f"{sys.prefix} watch\n"


def test_systemd_is_told(tmp_path, monkeypatch):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        load(SERVICE).tell_systemd("READY=1")
        assert listener.recv(100) == b"READY=1"
