"""The farm's logs: every layer of a request in one place, and nothing lost on the way there."""

import contextlib
import json
import pathlib
import re
import subprocess
import sys
import time

import pytest
import yaml

from tests.farm.conftest import CHECKOUT
from tests.farm.waiting import until
from tests.lab import network

HOST = {"Host": "newsroom.lab"}
KEEPER = "log1"
# Where everything is passed on to: a client's place on the network, outside of the farm.
RECEIVERS = pathlib.Path(__file__).with_name("receivers.py")
OUTSIDE, PORT = str(network.HUB_ADDRESS), 6514
AUTHORITY, NAME = "/etc/rsyslog/outside.crt", "logs.outside.example"
REFUSED = "/var/log/saltern-elasticsearch.json"
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


@contextlib.contextmanager
def receiver(lab, *words):
    """A receiver outside of the farm takes what comes, until it is ended in the midst of it."""
    command = [sys.executable, RECEIVERS, *words]
    process = subprocess.Popen(network.on_hub(lab.lab.name, list(map(str, command))))
    try:
        until(30, lambda: lab.on_hub("ss", "-Hlntu", f"sport = :{PORT}").stdout, every=0.2)
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def passing_on(lab, **settings):
    """The log host passes on what it gets, by these settings."""
    try:
        lab.apply(KEEPER, "rsyslog", {"overrides": {"rsyslog": settings}})
        yield
    finally:
        lab.apply(KEEPER, "rsyslog")


@pytest.fixture
def certificate(lab, tmp_path):
    """A certificate with its key, in a file; the log host knows who signed it."""
    path, key = tmp_path / "server.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-keyout", key, "-out", path, "-subj", f"/CN={NAME}",
            "-addext", f"subjectAltName=DNS:{NAME}",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    lab.run(KEEPER, "tee", AUTHORITY, stdin=path.read_text())
    path.write_text(path.read_text() + key.read_text())
    yield path
    lab.run(KEEPER, "rm", AUTHORITY)


def said_now(lab, name, count=50):
    """A host says so many numbered lines under a name of their own, all in the log host's files."""
    name = f"{name}{time.time_ns()}"
    speak(lab, "app1", name, count, 0)
    until(120, lambda: numbers(lab, "app1", name) == set(range(count)))
    return name


def came(file, name):
    """The numbers of a speaker's lines that came to a receiver, in the order in which they did."""
    text = file.read_text() if file.exists() else ""
    return [
        int(n)
        for line in text.splitlines()
        if name in line
        for n in re.findall(r"line (\d+)", line)
    ]


def all_came(file, name, count=50):
    """Every line of a speaker comes, and each once."""
    until(90, lambda: len(came(file, name)) >= count)
    assert sorted(came(file, name)) == list(range(count))


@pytest.mark.parametrize("transport", ["tls", "tcp", pytest.param("udp", marks=pytest.mark.drill)])
def test_an_outside_syslog_server_is_told_everything(lab, tmp_path, certificate, transport):
    file = tmp_path / "lines"
    words = ["syslog", PORT, file, "--transport", transport, "--certificate", certificate]
    where = {"host": OUTSIDE, "port": PORT, "transport": transport}
    where |= {"name": NAME, "authorities": AUTHORITY}
    with passing_on(lab, outside=where):
        with receiver(lab, *words):
            name = said_now(lab, "early")
            all_came(file, name)
        line = next(line for line in file.read_text().splitlines() if name in line)
        form = rf"<\d+>1 \d{{4}}-\d\d-\d\dT[\d:.]+\+00:00 app1 {name} \d+ - - ?line 0"
        assert re.fullmatch(form, line), line
        if transport == "udp":
            return  # nobody asks whether it arrives
        name = said_now(lab, "away")
        time.sleep(10)
        with receiver(lab, *words):
            all_came(file, name)


def test_an_outside_syslog_server_of_another_name_is_told_nothing(lab, tmp_path, certificate):
    file, log = tmp_path / "lines", f"{FOLDER}/{KEEPER}/rsyslogd.log"
    words = ["syslog", PORT, file, "--transport", "tls", "--certificate", certificate]
    where = {"host": OUTSIDE, "port": PORT, "name": "other.example", "authorities": AUTHORITY}
    before = lab.run(KEEPER, "cat", log, check=False).stdout
    with receiver(lab, *words), passing_on(lab, outside=where):
        said_now(lab, "secret")
        now = until(60, lambda: lab.run(KEEPER, "cat", log).stdout.removeprefix(before))
        until(60, lambda: NAME in lab.run(KEEPER, "cat", log).stdout.removeprefix(before))
    assert not file.exists(), now


def noted(lab, name):
    """How many of a speaker's lines stand in the file of what Elasticsearch refused."""
    # Its name in quotes: systemd speaks of the unit of that name, too.
    lines = lab.run(KEEPER, "grep", "-Eo", rf'{name}\\*"', REFUSED, check=False)
    return lines.stdout.count(name)


@pytest.mark.drill
def test_elasticsearch_is_told_everything(lab, tmp_path):
    """What stands in for it is in receivers.py, which says what it can't be."""
    file = tmp_path / "documents"
    busy = file.with_name("documents.busy")
    secrets = CHECKOUT / "pillar/environments/lab/secrets/elasticsearch.sls"
    password = yaml.safe_load(secrets.read_text())["secrets"]["elasticsearch"]["password"]
    words = ["bulk", PORT, file, "--user", "saltern", "--password", password]
    servers = {"servers": [f"http://{OUTSIDE}:{PORT}"], "user": "saltern"}
    with passing_on(lab, elasticsearch=servers):
        with receiver(lab, *words):
            name = said_now(lab, "early")
            all_came(file, name)
        found = [json.loads(line) for line in file.read_text().splitlines()]
        (first,) = (one for one in found if one["program"] == name and "line 0" in one["message"])
        day = first["@timestamp"].partition("T")[0].replace("-", ".")
        assert first.pop("@timestamp") and first.pop("message").strip() == "line 0"
        facts = {"index": f"saltern-{day}", "host": "app1", "program": name, "severity": "info"}
        assert first == facts
        name = said_now(lab, "away")
        time.sleep(10)
        with receiver(lab, *words):
            all_came(file, name)
            busy.write_text("429")
            name = said_now(lab, "toomany")
            time.sleep(5)
            busy.unlink()
            all_came(file, name)
            # What is refused for good isn't sent again, but noted; likewise what an error answers.
            busy.write_text("400")
            name = said_now(lab, "odd")
            until(60, lambda: len(came(file, name)) + noted(lab, name) == 50)
            assert noted(lab, name)
            busy.write_text("503")
            name = said_now(lab, "starting")
            until(60, lambda: noted(lab, name) == 50)
            assert came(file, name) == []
