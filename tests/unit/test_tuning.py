"""Holds the promises of the arithmetic, for every size of host and every set of roles."""

import itertools
import math

import pytest
import tuning
from hypothesis import given
from hypothesis import strategies as st

K, M, G = 1 << 10, 1 << 20, 1 << 30

# What roles bring, of that which uses RAM; a database host has one of two servers.
ROLES = {
    "master": ["salt_master"],
    "loadbalancer": ["haproxy"],
    "accelerator": ["varnish"],
    "app": ["uwsgi", "nginx"],
    "worker": ["celery"],
    "cache": ["memcached", "redis"],
    "broker": ["rabbitmq", "redis"],
    "database": ["postgres", "pgbouncer"],
    "other database": ["mariadb"],
}
SETS_OF_ROLES = [
    chosen
    for number in range(1, len(ROLES) + 1)
    for chosen in itertools.combinations(ROLES, number)
    if not {"database", "other database"} <= set(chosen)
]
TUNED = [name for name in tuning.PARTS if name != "salt_master"]


def services_of(roles):
    return ["os", *dict.fromkeys(service for role in roles for service in ROLES[role])]


def host(ram=8 * G, cores=4.0, open_files=524288, rotational=False, somaxconn=4096):
    return {
        "ram_bytes": ram,
        "cores": cores,
        "open_files": open_files,
        "rotational": rotational,
        "somaxconn": somaxconn,
    }


def tuned(hardware, services, sites=1, settings=None):
    """Service -> key -> value for all services of a host."""
    return {
        name: {
            key: value
            for key, (value, _) in getattr(tuning, name)(
                hardware, services, (settings or {}).get(name, {}), sites
            ).items()
        }
        for name in services
        if name != "salt_master"
    }


def number(value):
    return tuning._bytes(value)


def total(hardware, settings, sites=1):
    return tuning._system(hardware["ram_bytes"]) + sum(tuning.promised(settings, sites).values())


hardwares = st.builds(
    host,
    ram=st.integers(512 * M, 1024 * G),
    cores=st.one_of(st.integers(1, 128).map(float), st.floats(1, 128)),
    open_files=st.sampled_from([1024, 4096, 20000, 524288, 1 << 30]),
    rotational=st.sampled_from([True, False, None]),
    somaxconn=st.sampled_from([128, 4096]),
)
role_sets = st.sampled_from(SETS_OF_ROLES)


@given(hardwares, role_sets)
def test_never_promises_more_than_nine_tenths(hardware, roles):
    services = services_of(roles)
    settings = tuned(hardware, services)
    assert total(hardware, settings) <= 0.9 * hardware["ram_bytes"]
    assert not [w for w in tuning.warnings(hardware, services, settings) if "promise" in w]


@pytest.mark.parametrize("cores", [1, 2, 7.5, 128])
@pytest.mark.parametrize("ram", [512 * M, 640 * M, G, 1536 * M, 4 * G, 1024 * G])
def test_keeps_the_promise_for_each_set_of_roles(ram, cores):
    hardware = host(ram, float(cores), open_files=20000)
    for roles in SETS_OF_ROLES:
        services = services_of(roles)
        settings = tuned(hardware, services)
        assert total(hardware, settings) <= 0.9 * ram, (roles, tuning.promised(settings))
        for service, promise in tuning.promised(settings).items():
            assert promise <= tuning.share(hardware, services, service)[0], (roles, service)


@given(hardwares, role_sets, st.integers(1, 4))
def test_keeps_the_promise_for_several_sites(hardware, roles, sites):
    settings = tuned(hardware, services_of(roles), sites)
    assert total(hardware, settings, sites) <= 0.9 * hardware["ram_bytes"]


@given(hardwares, role_sets, st.integers(0, 512 * G))
def test_more_ram_never_gives_less(hardware, roles, more):
    services = services_of(roles)
    bigger = {**hardware, "ram_bytes": hardware["ram_bytes"] + more}
    small, big = tuned(hardware, services), tuned(bigger, services)
    for service, key in ((s, k) for s in small for k in small[s]):
        assert number(big[service][key]) >= number(small[service][key]), (service, key)


@given(st.integers(512 * M, 16 * G), role_sets, st.integers(1, 64 * M))
def test_a_little_more_ram_never_gives_less(ram, roles, more):
    """Rounding is where a value would dip: small steps on small hosts."""
    services = services_of(roles)
    small, big = tuned(host(ram), services), tuned(host(ram + more), services)
    for service, key in ((s, k) for s in small for k in small[s]):
        assert number(big[service][key]) >= number(small[service][key]), (service, key)


@given(hardwares, role_sets)
def test_stays_within_what_daemons_accept(hardware, roles):
    found = tuned(hardware, services_of(roles))
    files = hardware["open_files"]
    limits = {
        ("haproxy", "maxconn"): (100, max(100, files // 2)),
        ("haproxy", "threads"): (1, 64),
        ("nginx", "workers"): (1, math.floor(hardware["cores"])),
        ("nginx", "connections"): (64, max(64, files // 2)),
        ("varnish", "storage"): (16 * M, math.inf),
        ("varnish", "threads_max"): (100, 5000),
        ("uwsgi", "processes"): (1, 2 * hardware["cores"]),
        ("uwsgi", "listen"): (100, hardware["somaxconn"]),
        ("celery", "concurrency"): (1, 2 * hardware["cores"]),
        ("memcached", "memory"): (16 * M, math.inf),
        ("memcached", "threads"): (4, 16),
        ("redis", "memory"): (8 * M, math.inf),
        ("postgres", "shared_buffers"): (16 * M, 8 * G),
        ("postgres", "work_mem"): (64 * K, math.inf),
        ("postgres", "maintenance_work_mem"): (M, 2 * G),
        ("postgres", "autovacuum_work_mem"): (M, 2 * G),
        ("postgres", "max_connections"): (10, 399),
        ("mariadb", "max_connections"): (10, 399),
        ("mariadb", "innodb_buffer_pool_size"): (16 * M, 0.8 * hardware["ram_bytes"]),
        ("pgbouncer", "pool_size"): (1, 200),
        ("nginx", "open_files"): (228, max(228, files)),
        ("os", "dirty_background"): (16 * M, 256 * M),
        ("os", "dirty"): (64 * M, G),
    }
    for (service, key), (least, most) in limits.items():
        if service in found:
            assert least <= number(found[service][key]) <= most, (service, key)


@given(hardwares, role_sets)
def test_sizes_are_whole_and_explained(hardware, roles):
    services = services_of(roles)
    for name in services:
        if name == "salt_master":
            continue
        for key, (value, why) in getattr(tuning, name)(hardware, services, {}).items():
            assert "\n" not in why, (name, key)
            assert why.strip(), (name, key)
            if isinstance(value, str):
                assert number(value) % K == 0, (name, key)


def test_shares_add_up_to_what_is_free():
    hardware = host(16 * G)
    services = services_of(["app", "accelerator", "cache"])
    shares = sum(tuning.share(hardware, services, s)[0] for s in services if s in tuning.PARTS)
    free = 0.9 * 16 * G - tuning._system(16 * G)
    assert free - len(services) <= shares <= free


def test_each_service_gets_its_floor_then_its_least_then_by_weight():
    services = services_of(role for role in ROLES if role not in ("master", "other database"))
    for ram, amount in ((512 * M, "floor"), (1152 * M, "least")):
        for service in set(services) & set(tuning.PARTS):
            least = getattr(tuning.PARTS[service], amount)
            assert tuning.share(host(ram), services, service)[0] >= least, (ram, service)
    big = {s: tuning.share(host(256 * G), services, s)[0] for s in services if s in tuning.PARTS}
    assert big["nginx"] == 512 * M
    assert big["uwsgi"] == pytest.approx(2 * big["varnish"], rel=0.01)


def test_a_service_of_no_weight_changes_nothing():
    assert tuning.share(host(), ["postgres"], "postgres") == tuning.share(
        host(), ["os", "django", "postgres"], "postgres"
    )


def test_work_mem_tells_the_book_and_the_bound():
    value, why = tuning.postgres(host(8 * G), ["os", "postgres"], {})["work_mem"]
    assert "2 x 8192M RAM / 178 connections = 92M" in why
    assert f"= {value}, at least" in why


def test_work_mem_follows_the_connections_that_are_set():
    few = tuning.postgres(host(8 * G), ["postgres"], {"max_connections": 50})
    assert number(few["work_mem"][0]) > number(
        tuning.postgres(host(8 * G), ["postgres"], {})["work_mem"][0]
    )
    assert few["max_connections"][0] == 178, "what auto would give is told all the same"


def test_processes_follow_the_memory_that_is_set():
    hardware, services = host(G, 2.0), ["os", "django", "uwsgi", "nginx"]
    assert tuning.uwsgi(hardware, services, {})["processes"][0] == 2
    assert tuning.uwsgi(hardware, services, {"worker_memory": "150M"})["processes"][0] == 4


def test_processes_by_cores():
    alone, shared = ["os", "uwsgi", "nginx"], ["os", "uwsgi", "nginx", "postgres"]
    assert tuning.uwsgi(host(64 * G, 8.0), alone, {})["processes"][0] == 16
    assert tuning.uwsgi(host(64 * G, 8.0), shared, {})["processes"][0] == 9
    assert tuning.uwsgi(host(64 * G, 1.5), alone, {})["processes"][0] == 3
    assert tuning.uwsgi(host(64 * G, 0.4), alone, {})["processes"][0] == 1


@given(hardwares, role_sets)
def test_daemons_may_open_the_files_that_they_need(hardware, roles):
    settings = tuned(hardware, services_of(roles))
    settings.get("memcached", {})["max_connections"] = settings.get("redis", {})["max_clients"] = 64
    for service, values in settings.items():
        number, why = tuning.open_files(service, values) or (1024, "1024: as any")
        assert number >= (64 if service == "memcached" else 200)
        assert why.startswith(f"{number}: ")
        key = {"pgbouncer": "max_clients", "mariadb": "max_connections"}.get(service)
        assert not key or number > values[key]


def test_connections_fit_the_open_files_there_are():
    maxconn = tuning.haproxy(host(64 * G, open_files=20000), ["haproxy"], {})["maxconn"][0]
    assert 2 * maxconn < 20000
    connections = tuning.nginx(host(64 * G, open_files=20000), ["nginx"], {})["connections"][0]
    assert 2 * connections < 20000


def test_warns_of_a_host_that_is_too_small():
    services = services_of([role for role in ROLES if role != "other database"])
    hardware = host(512 * M)
    found = tuning.warnings(hardware, services, tuned(hardware, services))
    assert any("too small for uwsgi" in warning for warning in found)
    assert not tuning.warnings(host(16 * G), services, tuned(host(16 * G), services))


def test_warns_of_settings_that_promise_too_much():
    settings = tuned(host(G), ["varnish"])
    settings["varnish"]["storage"] = "2G"
    (warning,) = tuning.warnings(host(G), ["varnish"], settings)
    assert "more than 90 % of 1024M RAM" in warning
