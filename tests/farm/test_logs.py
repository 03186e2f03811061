"""The farm's logs: every layer of a request in one place, and nothing lost on the way there."""

import json
import time

import pytest

HOST = {"Host": "newsroom.lab"}
KEEPER = "log1"
FOLDER = "/var/log/farm"
# Says numbered lines with a time between them: name, how many at most, seconds between.
SPEAKER = """
import sys, syslog, time
name, count, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
syslog.openlog(name)
for number in range(count):
    syslog.syslog(f"line {number}")
    time.sleep(pause)
"""
# Opens a RELP session over TLS and prints whether it was taken: address, certificate or nothing.
STRANGER = """
import socket, ssl, sys
context = ssl.create_default_context(cafile="/etc/rsyslog/tls/authority.crt")
context.check_hostname = False
if sys.argv[2:]:
    context.load_cert_chain("/etc/rsyslog/tls/host.crt", "/etc/rsyslog/tls/host.key")
offer = b"relp_version=0\\nrelp_software=test\\ncommands=syslog"
try:
    with socket.create_connection((sys.argv[1], 2514), 10) as plain:
        with context.wrap_socket(plain) as connection:
            connection.sendall(b"1 open %d %s\\n" % (len(offer), offer))
            print("taken" if connection.recv(100).startswith(b"1 rsp") else "refused")
except OSError:
    print("refused")
"""


def wait_until(condition, seconds):
    """Ask again and again until the answer is truthy, and return it; the last one if time is up."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(1)
    return found


def layers(lab, request):
    """The layers that logged a request, each once, in the order of its road."""
    told = lab.salt(KEEPER, "logs.request", request).get(KEEPER) or []
    return list(dict.fromkeys(line["layer"] for line in told))


def numbers(lab, host, name):
    """The numbers of the lines of a speaker on a host that have arrived."""
    done = lab.run(KEEPER, "cat", f"{FOLDER}/{host}/{name}.log", check=False)
    return {int(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines() if " line " in line}


def speak(lab, host, name, count, pause):
    """Let a host say numbered lines, as a unit of its own, and come back at once."""
    command = [
        "systemd-run",
        "--quiet",
        f"--unit={name}",
        "--collect",
        "--setenv=PYTHONUNBUFFERED=1",
    ]
    lab.run(host, *command, "python3", "-c", SPEAKER, name, count, pause)


def test_a_request_is_followed_through_all_layers(lab):
    road = ["haproxy", "varnish", "nginx", "uwsgi", "django"]
    answer = lab.get(f"http://lb1/nothing-{time.time_ns()}/", headers=HOST)
    assert answer.status == 404
    name = answer.headers["x-request-id"]
    assert wait_until(lambda: layers(lab, name) == road, 120), layers(lab, name)
    done = lab.run("master", "salt-run", "--out=json", "logs.request", name)
    lines = [line.split() for line in json.loads(done.stdout)]
    assert list(dict.fromkeys(line[2] for line in lines)) == road
    assert [line[3] for line in lines[:4]] == ["404"] * 4


def test_a_request_that_nobody_knows_is_a_sentence(lab):
    done = lab.run("master", "salt-run", "logs.request", "0000-nobody-0000", check=False)
    assert done.returncode
    assert "No layer logged 0000-nobody-0000." in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_host_is_followed_by_its_name(lab):
    name = f"said{time.time_ns()}"
    speak(lab, "app1", name, 3, 0)
    assert wait_until(lambda: numbers(lab, "app1", name) == {0, 1, 2}, 120)
    done = lab.run("master", "salt-run", "logs.follow", "app*", name, "seconds=1")
    said = [line for line in done.stdout.splitlines() if f" {name}[" in line]
    assert [line.rsplit(" ", 1)[1] for line in said] == ["0", "1", "2"]
    assert all(line.split()[1] == "app1" for line in said)


def test_who_has_no_certificate_of_the_farm_is_not_heard(lab):
    address = lab.hosts[KEEPER].address
    assert lab.run("app1", "python3", "-c", STRANGER, address, "own").stdout.strip() == "taken"
    assert lab.run("app1", "python3", "-c", STRANGER, address).stdout.strip() == "refused"


def test_lines_go_on_after_a_rotation_and_are_found_in_both_files(lab):
    name = f"turned{time.time_ns()}"
    file = f"{FOLDER}/app1/{name}.log"

    def arrived():
        return lab.run(KEEPER, "test", "-s", file, check=False).returncode == 0

    lab.run("app1", "logger", "-t", name, f"before {name}")
    assert wait_until(arrived, 120)
    lab.run(KEEPER, "logrotate", "--force", "/etc/logrotate.d/saltern-farm", check=False)
    assert not arrived()
    lab.run("app1", "logger", "-t", name, f"after {name}")
    assert wait_until(arrived, 120)
    told = lab.salt(KEEPER, "logs.request", name, "older=True")[KEEPER]
    assert [line["text"] for line in told] == [f"before {name}", f"after {name}"]


def said(lab, host, name):
    """The numbers of the lines that a speaker has said, by its host's own journal."""
    done = lab.run(host, "journalctl", "--no-pager", "--output=cat", "-t", name)
    return {int(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines()}


def lost(lab, down):
    """
    Hosts speak while the log host is dead for some seconds; returns, for each, how many lines it
    has said and how many of them never arrived.
    """
    name = f"count{time.time_ns()}"
    speakers = ("app1", "lb1")
    for host in speakers:
        speak(lab, host, name, 10**9, 0.01)
    time.sleep(5)
    lab.kill(KEEPER)
    time.sleep(down)
    lab.start(KEEPER)
    for host in speakers:
        lab.run(host, "systemctl", "stop", name)
    wanted = {host: said(lab, host, name) for host in speakers}
    wait_until(lambda: all(wanted[h] <= numbers(lab, h, name) for h in speakers), 300)
    return {h: (len(wanted[h]), len(wanted[h] - numbers(lab, h, name))) for h in speakers}


def test_nothing_is_lost_while_the_log_host_is_down(lab):
    for host, (lines, missing) in lost(lab, down=15).items():
        assert lines > 100, host
        assert missing == 0, host


@pytest.mark.drill
def test_nothing_is_lost_in_five_minutes(lab):
    for host, (lines, missing) in lost(lab, down=300).items():
        assert lines > 1000, host
        assert missing == 0, host
