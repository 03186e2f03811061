"""The farm as a whole: the road of a request, converging again, a host lost and replaced."""

import time

import pytest

SITE = "http://newsroom.lab"
# A host whose place the other of its pair takes while it is away.
LOST = "app2"


@pytest.fixture(scope="module")
def applied_again(lab):
    """What a second ``state.apply`` answered, by host."""
    return lab.salt("*", "state.apply")


def failed(states):
    """The states of a run that failed, with what they said."""
    return {key: state["comment"] for key, state in states.items() if state["result"] is False}


def test_a_page_comes_the_whole_road(lab):
    page = lab.get(f"{SITE}/?flush-the-cache={time.time()}")
    assert page.status == 200
    assert "<html" in page.body
    # HAProxy names the request, Varnish says what it did, uWSGI which release answered.
    assert page.headers["x-request-id"]
    assert page.headers["x-cache"] == "pass"
    live = lab.salt("app1", "deploy.status")["app1"]["newsroom"]["live"]
    assert page.headers["x-release"] == live


def test_the_page_was_read_from_the_database(lab):
    question = "from articles.models import Article; print(Article.objects.latest('published'))"
    title = lab.salt("app1", "deploy.manage", "newsroom", f'shell --no-imports -c "{question}"')
    assert title["app1"].strip() in lab.get(f"{SITE}/?flush-the-cache={time.time()}").body


def test_a_page_asked_for_again_comes_from_the_accelerator(lab):
    path = f"{SITE}/?page=1&again={time.time()}"
    answers = [lab.get(path).headers["x-cache"] for _ in range(4)]
    assert answers[-1] == "hit", answers


def test_every_layer_is_a_service_under_systemd(lab):
    layers = {
        "lb1": "haproxy",
        "cache1": "varnish",
        "app1": "nginx",
        "app2": "uwsgi",
        "worker1": "rabbitmq-server",
        "db1": "postgresql@15-main",
    }
    for host, unit in layers.items():
        assert lab.run(host, "systemctl", "is-active", unit).stdout.strip() == "active", host


def test_every_host_answers_a_second_run(lab, applied_again):
    assert set(applied_again) == set(lab.hosts)
    assert all(isinstance(states, dict) for states in applied_again.values()), applied_again


def test_a_second_run_changes_nothing_anywhere(applied_again):
    changed = {
        f"{host}: {key}": state["changes"]
        for host, states in applied_again.items()
        for key, state in states.items()
        if state["changes"] or state["result"] is not True
    }
    assert not changed


def test_a_host_lost_and_started_empty_converges_to_the_same(lab, applied_again):
    release = lab.salt("app1", "deploy.status")["app1"]["newsroom"]["live"]
    lab.kill(LOST)
    assert lab.get(f"{SITE}/?flush-the-cache={time.time()}").status == 200
    lab.start(LOST, empty=True)
    lab.salt(LOST, "saltutil.sync_all")

    foretold = lab.salt(LOST, "state.apply", "test=True")[LOST]
    assert not failed(foretold)
    made = lab.salt(LOST, "state.apply")[LOST]
    assert not failed(made)
    assert set(made) == set(applied_again[LOST])
    again = lab.salt(LOST, "state.apply")[LOST]
    assert not [key for key, state in again.items() if state["changes"]]

    shipped = lab.salt(LOST, "deploy.ship")[LOST]
    assert shipped["result"], shipped["comment"]
    assert shipped["release"] == release
