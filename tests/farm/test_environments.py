"""Environments: what differs outside production; staging that is all on one host."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.farm.conftest import CHECKOUT
from tests.farm.waiting import until
from tests.lab import farm, network, salt

HOST = {"Host": "newsroom.lab"}
NAME, BOX, ADDRESS = "staging", "box", "198.18.0.81"
ALL = ["loadbalancer", "accelerator", "app", "worker", "cache", "broker", "database", "log"]
# What only production knows.
PRODUCTION = "a-secret-of-production-alone"
WHOLE_PILLAR = ["slsutil.renderer", "string={{ pillar | json }}", "default_renderer=jinja"]


def test_search_engines_are_told_to_stay_away(lab):
    answer = lab.get("http://lb1/", headers=HOST)
    assert answer.headers["x-robots-tag"] == "noindex, nofollow"
    refused = lab.get("http://lb1/.saltern/varnish", headers=HOST)
    assert refused.status == 403
    assert refused.headers["x-robots-tag"] == "noindex, nofollow"


def test_mail_is_caught(lab):
    send = (
        "from django.core.mail import send_mail; send_mail('caught', 'text', None, ['a@b.example'])"
    )
    told = lab.salt("app1", "deploy.manage", "newsroom", f'shell -c "{send}"')["app1"]
    assert "Subject: caught" in told


def test_a_ship_for_another_environment_does_nothing_and_says_so(lab):
    before = lab.salt("app*", "deploy.status")
    told = lab.salt("app*", "deploy.ship", "environment=lab", "until=fetch")
    assert all(report["result"] for report in told.values())
    wrong = lab.salt("app1", "deploy.ship", "environment=production")["app1"]
    assert "There is no environment 'production'. There are lab." in str(wrong)
    after = lab.salt("app*", "deploy.status")
    assert {h: s["newsroom"]["live"] for h, s in after.items()} == {
        h: s["newsroom"]["live"] for h, s in before.items()
    }


@pytest.fixture
def box(tmp_path):
    """
    A lab of a master and one more host, in a copy of the tree in which staging is all on that host
    and production is somewhere else. The box has the tree itself, too, and no minion that runs.
    """
    tree = tmp_path / "tree"
    copy_checkout(tree)
    master = {"address": "198.18.0.10", "roles": ["master"], "lab": {"memory": "1G"}}
    host = {"address": ADDRESS, "roles": ALL, "lab": {"memory": "4G"}}
    write(tree, "lab/hosts", {"hosts": {"master": master, BOX: host}})
    command = [sys.executable, tree / "lab", "--name", NAME]
    try:
        subprocess.run([*command, "up", "--no-apply"], check=True)
        lab = farm.Lab(NAME, tree)
        found = lab.host(BOX)  # read before the lab's inventory loses it to staging's
        salt.publish_example(lab)
        write(tree, "lab/hosts", {"hosts": {"master": master}})
        write(tree, "staging/hosts", {"hosts": {BOX: host}})
        write(tree, "production/hosts", {"hosts": {"web": {"address": "10.0.0.1", "roles": ALL}}})
        fill(tree)
        found.run("systemctl", "stop", "salt-minion")
        packed = [
            "tar",
            "-c",
            "-C",
            tree,
            "--exclude=./pillar/environments/production/secrets",
            ".",
        ]
        packed = subprocess.run(packed, capture_output=True, check=True).stdout
        found.run("mkdir", "-p", "/srv/saltern")
        unpack = found.inside(["tar", "-x", "--no-same-owner", "-C", "/srv/saltern"])
        subprocess.run(unpack, input=packed, check=True)
        yield found
    finally:
        subprocess.run([*command, "down"], check=True)


def copy_checkout(folder):
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        source, target = CHECKOUT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.exists() or source.is_symlink():
            shutil.copy2(source, target, follow_symlinks=False)


def write(tree, name, content):
    (tree / f"pillar/environments/{name}.yaml").write_text(yaml.safe_dump(content))


def fill(tree):
    """Staging and production get the lab's site and secrets; production one of its own, too."""
    environments = tree / "pillar/environments"
    sites = yaml.safe_load((environments / "lab/sites.yaml").read_text())
    # Staging's hosts don't know the lab's master by its name.
    sites["sites"]["newsroom"].update(
        repository="git://198.18.0.10/newsroom.git", domains=["newsroom.lab"]
    )
    for name in ("staging", "production"):
        write(tree, f"{name}/sites", sites)
        shutil.copytree(environments / "lab/secrets", environments / name / "secrets")
    path = environments / "production/secrets/django.sls"
    path.write_text(path.read_text() + f"    only_here: {PRODUCTION}\n")


def local(box, *words):
    """Salt on the box itself, as its operator types it in /srv/saltern."""
    command = 'cd /srv/saltern && exec salt-call --out=json "$@"'
    done = box.run("sh", "-c", command, "sh", *words, check=False)
    assert done.stdout.strip().startswith("{"), done.stdout + done.stderr
    return json.loads(done.stdout)["local"]


def wrong(states):
    """The comments of the states that failed."""
    assert isinstance(states, dict), states
    return [state["comment"] for state in states.values() if state["result"] is False]


def changed(states):
    """The states that changed something."""
    return [state["__id__"] for state in states.values() if state["changes"]]


@pytest.mark.drill
def test_staging_on_one_host_without_a_master_and_then_with_one(box):
    local(box, "saltutil.sync_all")
    assert wrong(local(box, "state.apply")) == []
    shipped = local(box, "deploy.ship", "environment=staging")
    assert shipped["result"], shipped["comment"]
    again = local(box, "state.apply")
    assert wrong(again) == changed(again) == []

    ask = ["curl", "-sS", "--noproxy", "*", "-D", "-", "-H", "Host: newsroom.lab"]
    ask = network.on_hub(NAME, [*ask, f"http://{ADDRESS}/"])
    got = subprocess.run(ask, capture_output=True, check=True, text=True).stdout.lower()
    assert got.startswith("http/1.1 200")
    assert "x-robots-tag: noindex" in got
    request = got.partition("x-request-id: ")[2].split()[0]
    assert until(60, lambda: local(box, "logs.request", request))

    assert "10.0.0.1" not in str(local(box, *WHOLE_PILLAR))
    elsewhere = local(box, "deploy.ship", "environment=production")
    assert elsewhere["comment"] == "Nothing was done: this host is in staging, not in production."
    with_a_master(box)


def with_a_master(box):
    """A master that holds production, too, finds the host as it wants it, and tells it no more."""
    box.run("systemctl", "start", "salt-minion")
    salt.wait_for_minions(box.lab, [box])
    patience = ["-t", "300"]
    salt.call(box.lab, BOX, "saltutil.sync_all", options=patience)
    states = salt.call(box.lab, BOX, "state.apply", options=patience)[BOX]
    assert wrong(states) == changed(states) == []
    refused = salt.call(box.lab, BOX, "deploy.ship")[BOX]
    assert "environment=staging" in str(refused)
    shipped = salt.call(box.lab, BOX, "deploy.ship", "environment=staging", options=patience)
    assert shipped[BOX]["result"], shipped

    told = box.run("salt-call", "--no-return-event", "--out=json", *WHOLE_PILLAR).stdout
    assert "newsroom" in told
    assert PRODUCTION not in told
    assert "10.0.0.1" not in told
