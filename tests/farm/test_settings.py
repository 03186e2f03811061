"""Settings and tuning on real hosts, each in a memory group of its own."""


def test_settings_of_every_host_are_sound(lab):
    found = lab.salt("*", "settings.check")
    assert set(found) == set(lab.hosts)
    assert {host: answer for host, answer in found.items() if answer["ok"] is not True} == {}


def test_a_limited_host_is_tuned_for_its_limit(lab):
    machine = lab.salt("db1", "grains.get", "mem_total")["db1"] << 20
    hardware = lab.salt("db1", "grains.get", "hardware")["db1"]
    assert hardware["ram_bytes"] == 1536 << 20 < machine
    settings = lab.salt("db1", "settings.get", "postgres")["db1"]
    assert settings["shared_buffers"] == "384M"
    running = lab.run(
        "db1", "runuser", "-u", "postgres", "--", "psql", "-Atc", "show shared_buffers", "postgres"
    )
    assert running.stdout.strip() == "384MB"


def test_configuration_carries_the_arithmetic(lab):
    line = lab.salt("lb1", "settings.explain", "haproxy", "maxconn")["lb1"]["maxconn"]
    value, _, arithmetic = line.split(" | ")
    written = lab.run("lb1", "cat", "/etc/haproxy/haproxy.cfg").stdout
    assert f"# {arithmetic}\n    maxconn {value}\n" in written


def test_a_mistake_is_told_and_nothing_applied(lab):
    wrong = "pillar={'overrides': {'nginx': {'prot': 80}}}"
    done = lab.run("master", "salt", "app1", "state.apply", wrong, "test=True", check=False)
    assert done.returncode != 0
    assert "nginx.prot is unknown. Did you mean port?" in done.stdout
    assert "nginx/package" not in done.stdout
