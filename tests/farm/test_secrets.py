"""Each secret reaches the hosts whose roles need it, and shows nowhere there."""

import pathlib
import re

import yaml

PILLAR = pathlib.Path(__file__).parents[2] / "pillar"
# Prints the places where one of the secrets on standard input shows: a line each.
SEARCH = r"""
set -u
wanted=$(mktemp) && cat >"$wanted" && chmod 600 "$wanted"
holding() { xargs -0 -r grep -lFf "$wanted" 2>/dev/null; }
cd /
find /var/cache/salt/minion -type f -print0 | holding | sed 's/^/cached: /'
find /var/log -type f ! -path '/var/log/journal/*' -print0 | holding | sed 's/^/logged: /'
journalctl --no-pager --output=cat | grep -Ff "$wanted" | cut -c-80 | sed 's/^/journal: /'
ps axww -o args= | grep -Ff "$wanted" | cut -c-80 | sed 's/^/process: /'
# Open to everybody is only what lies in folders that are, too.
find /etc /home /opt/saltern /root /run /srv /tmp /usr/local /var -xdev -type f -perm -o=r \
    ! -path '/srv/saltern/*' ! -path '/var/lib/dpkg/*' ! -path '/var/lib/apt/*' -print0 |
    holding | while read -r file; do
        setpriv --reuid=nobody --regid=nogroup --clear-groups test -r "$file" &&
            echo "readable: $file"
    done
rm -f "$wanted"
"""


def table():
    """The table of pillar/top.sls: file of secrets -> roles."""
    source = (PILLAR / "top.sls").read_text()
    return yaml.safe_load(re.search(r"set secrets = (\{.*?\n\})", source, re.S)[1])


def texts(value):
    if isinstance(value, dict):
        return set().union(*(texts(part) for part in value.values()))
    return {str(value)}


def secrets_of(file):
    """The secret texts of one of the lab's files; of a key a line from its middle."""
    content = yaml.safe_load((PILLAR / f"environments/lab/secrets/{file}.sls").read_text())
    found = set()
    for text in texts(content["secrets"]):
        lines = text.strip().splitlines()
        found.add(lines[len(lines) // 2] if len(lines) > 1 else text)
    return found


def test_no_host_is_told_a_secret_of_another_role(lab):
    # Salt masks what pillar.items prints, and the master would keep what a host returns.
    ask = ["salt-call", "--no-return-event", "--out=json", "slsutil.renderer"]
    ask += ["string={{ pillar | json }}", "default_renderer=jinja"]
    for host in lab.hosts:
        pillar = lab.run(host, *ask).stdout
        roles = {*lab.hosts[host].roles, "*"}
        for file, readers in table().items():
            for secret in secrets_of(file):
                known = secret in pillar
                assert known == bool(roles & set(readers)), f"{host}: {file}"


def test_a_host_that_lies_in_its_grains_is_told_nothing_more(lab):
    lie = ["grains.setvals", '{"roles": ["database"], "environment": "production", "host": "db1"}']
    before = lab.salt("lb1", "pillar.keys", "secrets")["lb1"]
    try:
        lab.salt("lb1", *lie)
        lab.salt("lb1", "saltutil.refresh_pillar", "wait=True")
        assert lab.salt("lb1", "pillar.keys", "secrets")["lb1"] == before
    finally:
        lab.salt("lb1", "grains.delkey", "roles", "force=True")
        lab.salt("lb1", "grains.delkey", "environment", "force=True")
        lab.salt("lb1", "grains.delkey", "host", "force=True")
        lab.salt("lb1", "saltutil.refresh_pillar", "wait=True")


def test_no_secret_shows_on_any_host(lab):
    secrets = "\n".join(sorted(set().union(*(secrets_of(file) for file in table())))) + "\n"
    shown = {}
    for host in lab.hosts.values():
        if host.running():
            said = lab.run(host.name, "sh", "-c", SEARCH, stdin=secrets).stdout.splitlines()
            shown.update({host.name: said} if said else {})
    assert not shown


def test_the_search_finds_what_shows(lab):
    lab.run("lb1", "sh", "-c", "echo found-by-the-search | tee /tmp/shown | logger -t shown")
    said = lab.run("lb1", "sh", "-c", SEARCH, stdin="found-by-the-search\n").stdout
    lab.run("lb1", "rm", "/tmp/shown")
    assert "readable: /tmp/shown" in said
    assert "journal: " in said


def test_a_run_in_test_mode_shows_no_secret(lab):
    changed = lab.lab.hosts["app1"].run(
        "sh",
        "-c",
        "f=/srv/sites/newsroom/shared/.env; cp -p $f $f.kept; echo X=1 >>$f",
        check=False,
    )
    assert changed.returncode == 0
    try:
        told = str(lab.salt("app1", "state.apply", "django", "test=True")["app1"])
    finally:
        lab.run("app1", "sh", "-c", "cd /srv/sites/newsroom/shared; mv .env.kept .env")
    assert "show_changes=False" in told
    for file in table():
        for secret in secrets_of(file):
            assert secret not in told
