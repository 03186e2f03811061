"""What the master tells a host: its environment, and the secrets of its roles, and nothing else."""

import re

import pytest
import yaml

from tests.render import hosts, matrix, tree

PILLAR = tree.ROOT / "pillar"
LAB = matrix.FARMS["lab"]
# Encrypted for a key that was thrown away.
KEY = "5AEF7EAC7A4A5CE8"
LOCKED = """#!yaml|gpg
# A file of secrets.
secrets:
  locked: |
    -----BEGIN PGP MESSAGE-----

    hF4DWu9+rHpKXOgSAQdALKDF3Gg7aUIlBA6JReTkDVdX2mgCDCU8mJJoAx+Z+How
    TeYODIVygFDXmt770t0TSwIIZtywQlJb5tY3yBQZWwT59WHZPdw0gSW4uD3GItbD
    0k8B/v7ZIelV3EfEjfOhT7o5h3JSl74NJ8AxG8TEYf4y0/th7BjJj71nmNy7tdm1
    lWw2JdaY2qVZYR5tXUn/n0TvwvuxOIsH9qh/hHtZvDHF
    =RPCf
    -----END PGP MESSAGE-----
"""


def _table():
    """The table of secrets in pillar/top.sls: name -> roles."""
    source = (PILLAR / "top.sls").read_text()
    return yaml.safe_load(re.search(r"set secrets = (\{.*?\n\})", source, re.S)[1])


def _words(value):
    """All texts that stand somewhere in a structure."""
    if isinstance(value, dict):
        return set().union(*(_words(part) for part in value.values()))
    if isinstance(value, list):
        return set().union(*(_words(part) for part in value))
    return {value} if isinstance(value, str) else set()


def _secrets(name):
    """The secret texts of one of the lab's files, which are plain YAML: all that aren't names."""
    written = yaml.safe_load((PILLAR / f"environments/lab/secrets/{name}.sls").read_text())
    return {word for word in _words(written) if len(word) >= 12}


def test_every_file_of_secrets_has_readers_and_each_reader_is_a_role():
    files = {path.stem for path in (PILLAR / "environments/lab/secrets").glob("*.sls")}
    assert files == set(_table())
    assert set().union(*_table().values()) <= {*tree.roles(), "*"}


@pytest.mark.parametrize("minion", LAB)
def test_secrets_reach_only_the_roles_that_need_them(minion):
    told = _words(hosts.pillar("lab", minion))
    for name, readers in _table().items():
        secret = _secrets(name)
        assert secret, f"secrets/{name}.sls holds nothing"
        if {*LAB[minion]["roles"], "*"} & set(readers):
            assert secret <= told
        else:
            assert not secret & told, f"{minion} is told what stands in secrets/{name}.sls"


def test_what_a_host_says_of_itself_changes_nothing():
    lies = {"id": "db1", "host": "db1", "fqdn": "db1", "nodename": "db1", "roles": ["database"]}
    assert tree.pillar(PILLAR, "lb1", lies) == tree.pillar(PILLAR, "lb1")


def test_a_host_that_no_inventory_lists_is_told_no_secret_and_no_environment():
    told = tree.pillar(PILLAR, "stranger")
    assert told["environment"] is None
    assert not {"secrets", "hosts", "sites"} & set(told)


def test_an_environment_tells_only_its_own():
    folder = tree.pillar_tree("two", {"web": LAB["app1"]}, environment="production")
    told = tree.pillar(folder, "web")
    assert told["environment"] == "production"
    assert set(told["hosts"]) == {"web"}
    assert not _words(told) & _secrets("postgres")


def test_a_host_that_two_environments_list_is_refused():
    folder = tree.pillar_tree("twice", {"db1": LAB["db1"]}, environment="production")
    errors = "\n".join(tree.pillar(folder, "db1")["_errors"])
    assert "db1 is listed in two environments, production and lab" in errors


def test_a_pattern_is_a_host_whose_address_the_mine_tells():
    pattern = {"network": "198.18.0.0/24", "roles": ["app"]}
    folder = tree.pillar_tree("elastic", {"app*": pattern, "app1": LAB["app1"]})
    assert "mine_functions" in tree.pillar(folder, "app7")
    assert "mine_functions" not in tree.pillar(folder, "app1")
    assert "secrets" in tree.pillar(folder, "app7")


def test_a_staging_host_is_told_nothing_of_production():
    folder = tree.pillar_tree("both", {"web": LAB["app1"]}, environment="production")
    staging = folder / "environments/staging"
    (staging / "hosts.yaml").write_text(yaml.safe_dump({"hosts": {"test": LAB["app1"]}}))
    for name, word in (("production", "of-production-only"), ("staging", "of-staging-only")):
        secrets = folder / f"environments/{name}/secrets"
        secrets.mkdir(exist_ok=True)
        (secrets / "django.sls").write_text(f"secrets: {{sites: {{shop: {{secret_key: {word}}}}}}}")
    told = tree.pillar(folder, "test")
    assert "of-staging-only" in _words(told)
    assert "of-production-only" not in _words(told)
    assert "web" not in told["hosts"]
    assert told["environments"] == ["production", "staging"]
    assert tree.pillar(folder, "app1")["environments"] == ["lab"]


def test_what_nobody_wrote_down_is_missed_by_whoever_needs_it_only():
    folder = tree.pillar_tree("bare", {"web": LAB["app1"]}, environment="production")
    told = tree.pillar(folder, "web")
    assert "_errors" not in told
    assert "secrets" not in told


def test_a_missing_key_is_named_and_the_ciphertext_is_not(caplog):
    folder = tree.pillar_tree("locked", {"web": LAB["app1"]}, environment="production")
    secrets = folder / "environments/production/secrets"
    secrets.mkdir(exist_ok=True)
    (secrets / "django.sls").write_text(LOCKED)
    told = tree.pillar(folder, "web")["_errors"]
    assert "secrets.django' failed" in "\n".join(told)  # a minion learns no more than that
    assert f"encrypted for {KEY}" in caplog.text
    assert "PGP MESSAGE" not in caplog.text
