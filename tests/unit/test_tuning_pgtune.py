"""Our values for PostgreSQL beside what pgtune gives the same hosts.

pgtune's formulas are public (for the type `web`, an SSD and PostgreSQL 14 and later):

    shared_buffers        RAM / 4
    effective_cache_size  RAM * 3 / 4
    maintenance_work_mem  RAM / 16, at most 2 GB
    max_connections       200
    parallel              half of the CPUs, 1 to 4, from 4 CPUs on 2 to 4
    work_mem              (RAM - shared_buffers) / (max_connections * 3) / parallel, at least 64 kB

docs/tuning.md tells why ours differ where they do.
"""

import math

import pytest
import tuning

K, M, G = 1 << 10, 1 << 20, 1 << 30


def pgtune(ram, cpus, connections=200):
    """What pgtune's formulas give, in bytes."""
    parallel = min(4, max(1, math.ceil(cpus / 2)))
    buffers = ram // 4
    return {
        "shared_buffers": buffers,
        "effective_cache_size": ram * 3 // 4,
        "maintenance_work_mem": min(ram // 16, 2 * G),
        "max_connections": connections,
        "work_mem": max(64 * K, (ram - buffers) // (connections * 3) // parallel),
    }


def ours(ram, cpus, connections):
    """What a host with no other service gets with the same number of connections."""
    hardware = {
        "ram_bytes": ram,
        "cores": float(cpus),
        "rotational": False,
        "open_files": 524288,
        "somaxconn": 4096,
    }
    settings = {"max_connections": connections}
    found = tuning.postgres(hardware, ["os", "postgres"], settings)
    return {key: tuning._bytes(value) for key, (value, _) in found.items()}


@pytest.mark.parametrize(
    ("ram", "cpus", "published_kb"),
    [(4 * G, 2, 5242), (12 * G, 16, 3932)],  # from configurations that pgtune's users publish
)
def test_the_formulas_are_pgtunes(ram, cpus, published_kb):
    assert pgtune(ram, cpus)["work_mem"] // K == published_kb


# RAM, CPUs, then ours / pgtune's for each key.
TABLE = [
    # GiB cpus  shared_buffers  effective_cache_size  maintenance_work_mem
    (2, 2, 1, 2 / 3, 1),
    (4, 2, 1, 2 / 3, 1),
    (8, 4, 1, 2 / 3, 1),
    (16, 4, 1, 2 / 3, 1),
    (32, 8, 1, 2 / 3, 1),
    (64, 16, 1 / 2, 2 / 3, 1),
    (256, 32, 1 / 8, 2 / 3, 1),
    (1024, 128, 1 / 32, 2 / 3, 1),
]


@pytest.mark.parametrize(("gib", "cpus", "buffers", "cache", "maintenance"), TABLE)
def test_where_ours_differ_it_is_by_design(gib, cpus, buffers, cache, maintenance):
    theirs, own = pgtune(gib * G, cpus), ours(gib * G, cpus, 200)
    for key, ratio in (
        ("shared_buffers", buffers),
        ("effective_cache_size", cache),
        ("maintenance_work_mem", maintenance),
    ):
        assert own[key] / theirs[key] == pytest.approx(ratio, rel=0.01), key


# GiB, CPUs, then work_mem for 200 connections: ours and pgtune's, in M. What is left of our promise
# bounds ours; pgtune divides by parallel workers, and by 3 for several sorts in one query.
WORK_MEM = [
    (2, 2, 1, 2.56),
    (4, 2, 5, 5.12),
    (8, 4, 13, 5.12),
    (16, 4, 36, 10.24),
    (32, 8, 80, 10.24),
    (64, 16, 227, 20.48),
    (256, 32, 1112, 81.92),
    (1024, 128, 4651, 327.68),
]


@pytest.mark.parametrize(("gib", "cpus", "own", "theirs"), WORK_MEM)
def test_work_mem_beside_pgtunes(gib, cpus, own, theirs):
    assert ours(gib * G, cpus, 200)["work_mem"] / M == own
    assert pgtune(gib * G, cpus)["work_mem"] / M == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize(("gib", "cpus"), [row[:2] for row in WORK_MEM])
def test_ours_hold_with_every_connection_at_work(gib, cpus):
    values = {**ours(gib * G, cpus, 200), "max_connections": 200}
    promise = tuning.promised({"postgres": values})["postgres"]
    assert promise + tuning._system(gib * G) <= 0.9 * gib * G
