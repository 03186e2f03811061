"""The lab reads where the machine gets its software from."""

import pytest

from tests.lab import sources

DEB822 = """\
# Written by the installer
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: trixie trixie-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: trixie-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://vendor.example/apt
Suites: trixie
Components: stable

Enabled: no
Types: deb
URIs: http://old.example/debian
Suites: trixie
Components: main
"""
ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [signed-by=/a.gpg arch=amd64] http://mirror.example/debian bookworm main non-free # ours
deb-src http://mirror.example/debian bookworm main
deb http://vendor.example/apt bookworm-pgdg main
"""


def test_deb822_sources_are_read():
    found = sources.read_deb822(DEB822)
    assert [(source["uri"], source["suite"]) for source in found] == [
        ("http://mirror.example/debian", "trixie"),
        ("http://mirror.example/debian", "trixie-updates"),
        ("http://mirror.example/debian-security", "trixie-security"),
        ("http://vendor.example/apt", "trixie"),
    ]
    assert found[0]["components"] == ["main", "contrib"]


def test_one_line_sources_are_read():
    assert sources.read_one_line(ONE_LINE) == [
        {
            "uri": "http://mirror.example/debian",
            "suite": "bookworm",
            "components": ["main", "non-free"],
        },
        {"uri": "http://vendor.example/apt", "suite": "bookworm-pgdg", "components": ["main"]},
    ]


def test_third_parties_are_left_out_and_the_suite_is_the_images():
    kept = sources.debian_only(sources.read_deb822(DEB822), "trixie", "bookworm")
    assert [(source["uri"], source["suite"]) for source in kept] == [
        ("http://mirror.example/debian", "bookworm"),
        ("http://mirror.example/debian", "bookworm-updates"),
        ("http://mirror.example/debian-security", "bookworm-security"),
    ]


def test_the_main_archive_comes_first():
    security = {"uri": "http://s.example", "suite": "bookworm-security", "components": ["main"]}
    archive = {"uri": "http://a.example", "suite": "bookworm", "components": ["main"]}
    assert sources.debian_only([security, archive], "bookworm", "bookworm") == [archive, security]


def test_a_source_is_written_as_apt_reads_it():
    source = {"uri": "http://a.example/debian", "suite": "bookworm", "components": ["main", "x"]}
    assert sources.source_line(source) == "deb http://a.example/debian bookworm main x\n"
    assert sources.read_one_line(sources.source_line(source)) == [source]


@pytest.mark.parametrize(
    ("written", "environment", "expected"),
    [
        ("", {}, "[global]\n"),
        (
            "[global]\nindex-url = http://index.example/simple\nfind-links = /opt/wheels\n",
            {},
            "[global]\nindex-url = http://index.example/simple\n",
        ),
        (
            "[global]\nextra-index-url = file:///opt/a http://b.example/simple\n",
            {"PIP_INDEX_URL": "http://own.example/simple"},
            "[global]\nindex-url = http://own.example/simple\n"
            "extra-index-url = http://b.example/simple\n",
        ),
        (
            "[global]\ncert = /root/corporate.pem\n",
            {},
            "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n",
        ),
    ],
)
def test_pip_settings_name_no_folder_of_the_machine(tmp_path, written, environment, expected):
    (tmp_path / "pip.conf").write_text(written)
    assert sources.pip_settings(tmp_path, tmp_path, environment) == expected


def test_the_machines_uv_settings_win(tmp_path):
    assert sources.uv_settings(tmp_path) == "native-tls = true\n"
    (tmp_path / "uv").mkdir()
    (tmp_path / "uv/uv.toml").write_text('index-url = "http://index.example"\n')
    assert sources.uv_settings(tmp_path) == 'index-url = "http://index.example"\n'
