"""Environments: what differs outside production, and staging that is all on one host."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.lab import farm, network

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
HOST = {"Host": "newsroom.lab"}
ALL = ["loadbalancer", "accelerator", "app", "worker", "cache", "broker", "database", "log"]
ADDRESS = "198.18.0.81"
# A repository of the example site, made on the box itself.
PUBLISH = """
set -e
cd /srv/saltern/examples/newsroom
git init --quiet --initial-branch=main /srv/git
git --git-dir=/srv/git/.git --work-tree=. add --all
git --git-dir=/srv/git/.git -c user.name=lab -c user.email=lab@localhost commit --quiet -m first
git config --system --add safe.directory '*'
"""


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
    """A lab of a master and one more host, which has a tree of its own at /srv/saltern."""
    tree, own = tmp_path / "lab", tmp_path / "box"
    for copied in (tree, own):
        copy_checkout(copied)
    write(tree, "lab/hosts", {"hosts": {"master": host(["master"], "198.18.0.10", "1G"),
                                        "box": host([], ADDRESS, "4G")}})  # fmt: skip
    staging(own)
    lab = [sys.executable, tree / "lab", "--name", "staging"]
    try:
        subprocess.run([*lab, "up", "--no-apply", "box"], check=True)
        found = farm.Lab("staging", tree).host("box")
        fill(found, own)
        yield found
    finally:
        subprocess.run([*lab, "down"], check=True)


def copy_checkout(folder):
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (CHECKOUT / name).exists() or (CHECKOUT / name).is_symlink():
            shutil.copy2(CHECKOUT / name, target, follow_symlinks=False)


def host(roles, address, memory):
    return {"address": address, "roles": roles, "lab": {"memory": memory}}


def write(tree, name, content):
    (tree / f"pillar/environments/{name}.yaml").write_text(yaml.safe_dump(content))


def staging(tree):
    """Make staging a farm of one host, with the lab's site and secrets; production has one too."""
    environments = tree / "pillar/environments"
    sites = yaml.safe_load((environments / "lab/sites.yaml").read_text())
    sites["sites"]["newsroom"].update(repository="/srv/git", domains=["newsroom.lab"])
    write(tree, "staging/sites", sites)
    write(tree, "staging/hosts", {"hosts": {"box": {"address": ADDRESS, "roles": ALL}}})
    write(tree, "production/hosts", {"hosts": {"web": {"address": "10.0.0.1", "roles": ALL}}})
    shutil.copytree(environments / "lab/secrets", environments / "staging/secrets")


def fill(found, tree):
    """Put a tree to /srv/saltern in a host, and the example site into a repository there."""
    packed = subprocess.run(["tar", "-c", "-C", tree, "."], capture_output=True, check=True).stdout
    found.run("mkdir", "-p", "/srv/saltern", "/srv/git")
    unpack = found.inside(["tar", "-x", "--no-same-owner", "-C", "/srv/saltern"])
    subprocess.run(unpack, input=packed, check=True)
    found.run("systemctl", "stop", "salt-minion")
    found.run("apt-get", "install", "-y", "-qq", "git")
    found.run("sh", "-c", PUBLISH)


def salt_call(found, *words):
    """Salt on the box itself, as its operator types it in /srv/saltern."""
    command = 'cd /srv/saltern && exec /usr/bin/env salt-call --out=json "$@"'
    done = found.run("sh", "-c", command, "sh", *words, check=False)
    assert done.stdout.strip().startswith("{"), done.stdout + done.stderr
    return json.loads(done.stdout)["local"]


@pytest.mark.drill
def test_staging_on_one_host_without_a_master(box):
    salt_call(box, "saltutil.sync_all")
    first = salt_call(box, "state.apply")
    assert [state["comment"] for state in first.values() if state["result"] is False] == []
    shipped = salt_call(box, "deploy.ship")
    assert shipped["result"], shipped["comment"]
    second = salt_call(box, "state.apply")
    assert [s["__id__"] for s in second.values() if s["changes"] or s["result"] is False] == []

    ask = ["curl", "-sS", "--noproxy", "*", "-D", "-", "-H", "Host: newsroom.lab"]
    got = subprocess.run(
        network.on_hub("staging", [*ask, f"http://{ADDRESS}/"]), capture_output=True, text=True
    ).stdout.lower()
    assert got.startswith("http/1.1 200")
    assert "x-robots-tag: noindex" in got
    assert "web" not in salt_call(box, "pillar.keys", "hosts")
    elsewhere = salt_call(box, "deploy.ship", "environment=production")
    assert elsewhere["comment"] == "Nothing was done: this host is in staging, not in production."
    request = got.partition("x-request-id: ")[2].split()[0]
    assert salt_call(box, "logs.request", request)
