"""What an opening in a firewall.yaml comes to, for whom; and which sentence a wrong one gets."""

import ipaddress

import firewall
import pytest
from salt.exceptions import CommandExecutionError

PEERS = {
    "app": ["10.0.0.31", "10.0.0.32"],
    "loadbalancer": ["10.0.0.11"],
    "log": ["fd00::7", "10.0.0.7"],
    "worker": [],
}
SETTINGS = {"port": 6081, "stats": {"port": 8404, "allow": ["192.0.2.0/24"]}, "allow": []}


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """A host with the role `app`, in a farm without workers and with an elastic host."""
    found = {
        "inventory.roles": lambda: ["app"],
        "inventory.all_roles": lambda: list(PEERS),
        "inventory.peers": lambda role: [{"id": a, "address": a} for a in PEERS[role]],
        "inventory.all": lambda: [{"id": "x", "address": "10.0.0.31"}],
        "settings.get": lambda service: SETTINGS,
        "sshd.answers": lambda port, patience: port == 2222,
    }
    monkeypatch.setattr(firewall, "__salt__", found, raising=False)
    pillar = {"hosts": {"app*": {"network": "10.1.0.0/16"}, "x": {"address": "10.0.0.31"}}}
    monkeypatch.setattr(firewall, "__pillar__", pillar, raising=False)


def opened(text):
    return firewall._opening("varnish", "http", text, "salt/varnish/firewall.yaml: http")


@pytest.mark.parametrize(
    ("text", "protocol", "port", "ipv4", "ipv6"),
    [
        ("port from app", "tcp", 6081, ["10.0.0.31/32", "10.0.0.32/32"], []),
        ("udp 514 from log", "udp", 514, ["10.0.0.7/32"], ["fd00::7/128"]),
        ("stats.port from loadbalancer, stats.allow", "tcp", 8404,
         ["10.0.0.11/32", "192.0.2.0/24"], []),
        ("4505 from farm", "tcp", 4505, ["10.0.0.31/32", "10.1.0.0/16"], []),
        ("9100 from 203.0.113.7, 2001:db8::/32", "tcp", 9100, ["203.0.113.7/32"],
         ["2001:db8::/32"]),
        ("vrrp from loadbalancer", "vrrp", None, ["10.0.0.11/32"], []),
    ],
)  # fmt: skip
def test_an_opening_is_for_those_that_it_names(text, protocol, port, ipv4, ipv6):
    found = opened(text)
    assert (found["protocol"], found["port"], found["everyone"]) == (protocol, port, False)
    for version, wanted in (("ipv4", ipv4), ("ipv6", ipv6)):
        addresses = {a for n in wanted for a in _ends(n)}
        assert {a for n in found[version] for a in _ends(n)} == addresses


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("9100 from app", 9100, 9100),
        ("udp 60000-60010 from app", 60000, 60010),
        ("port-6090 from app", 6081, 6090),
        ("vrrp from app", None, None),
    ],
)
def test_an_opening_may_be_for_several_ports_in_a_row(text, first, last):
    found = opened(text)
    assert (found["port"], found["last"]) == (first, last)


def _ends(network):
    network = ipaddress.ip_network(network)
    return {network[0], network[-1]}


@pytest.mark.parametrize(
    "text", ["port from everyone", "port from worker or everyone", "port from 0.0.0.0/0, ::/0"]
)
def test_an_opening_for_everyone(text):
    assert opened(text)["everyone"]


def test_everyone_comes_only_where_nobody_else_would():
    assert not opened("port from app or everyone")["everyone"]


@pytest.mark.parametrize("text", ["port from worker", "port from allow", "port from app on log"])
def test_an_opening_for_nobody_here_is_none(text):
    assert opened(text) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("port", "is 'port'. It should be `<port> from <whom>`"),
        ("prot from app", "names the port 'prot', which is neither a port nor a setting"),
        ("70000 from app", "names the port '70000'"),
        ("60000-70000 from app", "names the port '70000'"),
        ("60010-60000 from app", "is for ports 60010-60000: the last comes first"),
        ("port from aps", "is for 'aps', which is neither `everyone`, nor `farm`, nor a role"),
        ("port from 10.0.0.300", "is for '10.0.0.300', which is neither"),
    ],
)
def test_a_wrong_opening_is_refused_with_a_sentence(text, sentence):
    with pytest.raises(CommandExecutionError) as error:
        opened(text)
    assert str(error.value).startswith("salt/varnish/firewall.yaml: http")
    assert sentence in str(error.value)


SSH = {"service": "ssh", "protocol": "tcp", "everyone": False, "ipv4": ["192.0.2.0/24"], "ipv6": []}


@pytest.mark.parametrize(
    ("opening", "address", "port", "let_in"),
    [
        ({**SSH, "port": 22}, "192.0.2.9", 22, True),
        ({**SSH, "port": 22}, "203.0.113.9", 22, False),
        ({**SSH, "port": 22, "everyone": True}, "203.0.113.9", 22, True),
        ({**SSH, "port": 2222}, "192.0.2.9", 22, True),  # it moved, and answers there already
        ({**SSH, "port": 2223}, "192.0.2.9", 22, False),
        ({**SSH, "port": 80, "service": "haproxy"}, "192.0.2.9", 22, False),
        ({**SSH, "port": 20, "last": 30}, "192.0.2.9", 22, True),
        ({**SSH, "port": 20, "last": 21}, "192.0.2.9", 22, False),
    ],
)
def test_who_is_here_can_come_again(opening, address, port, let_in):
    opening = {"last": opening["port"], **opening}
    assert firewall._lets_in(opening, ipaddress.ip_address(address), port) is let_in
