"""A host without a minion: settings and states over ssh, as an operator with sudo."""

import json

HOST = "lb2"
KEY = "/root/operator"


def over_ssh(lab, *words):
    """What `salt-ssh` on the master answers for the host; its failures raise."""
    done = lab.run(
        "master", "salt-ssh", "--ignore-host-keys", "--priv", KEY, "--user", "grace", "--sudo",
        "--out", "json", HOST, *words,
    )  # fmt: skip
    return json.loads(done.stdout)[HOST]


def test_a_host_is_set_up_over_ssh_as_by_its_minion(lab):
    lab.run("master", "sh", "-c", f"test -f {KEY} || ssh-keygen -q -t ed25519 -N '' -f {KEY}")
    public = lab.run("master", "cat", f"{KEY}.pub").stdout.strip()
    operators = {"operators": {"grace": {"keys": [public]}}}
    lab.salt(HOST, "state.apply", "accounts,ssh", f"pillar={json.dumps(operators)}")
    try:
        told = lab.salt(HOST, "settings.get", "haproxy")[HOST]
        assert over_ssh(lab, "settings.get", "haproxy") == told
        states = over_ssh(lab, "state.apply", "haproxy,keepalived,rsyslog", "test=True")
        assert len(states) > 10
        assert [key for key, state in states.items() if state["result"] is not True] == []
        left = over_ssh(lab, "state.apply", "accounts", "test=True")
        assert {"grace": "removed"} in [state["changes"] for state in left.values()]
    finally:
        lab.salt(HOST, "state.apply", "accounts,ssh")
