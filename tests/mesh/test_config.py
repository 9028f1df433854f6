"""mesh.config: precedence, origins, and every mistake named with its place."""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

from mesh.config import (
    KEYS,
    Config,
    ConfigError,
    Layer,
    config_command,
    environment_layer,
    file_layer,
    flag_layer,
    flag_of,
    load,
    load_config,
    merge,
    render,
    variable_of,
)

BUILT_IN = Config(node_name="n1")


def write(root: Path, name: str, text: str) -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_each_source_wins_over_those_below(tmp_path: Path) -> None:
    vendor = write(tmp_path, "usr/lib/meshd/meshd.toml", 'state_dir="/a"\nsocket="/a"\nlisten="1.1.1.1:1"\n')
    main = write(tmp_path, "etc/meshd/meshd.toml", 'socket="/b"\nlisten="2.2.2.2:2"\nnetns_dir="/b"\nnode_name="b"')
    write(tmp_path, "etc/meshd/conf.d/10-x.toml", 'listen="3.3.3.3:3"\nnetns_dir="/c"\nnode_name="c"')
    drop_in = write(tmp_path, "etc/meshd/conf.d/20-x.toml", 'netns_dir="/d"\nnode_name="d"\nlog_level="debug"')
    loaded = load(
        {"log_level": "error"},
        {"MESHD_NODE_NAME": "e", "MESHD_LOG_LEVEL": "warning", "PATH": "/bin"},
        root=tmp_path,
        hostname="host",
    )
    got = asdict(loaded.config)
    assert got == asdict(Config()) | {
        "state_dir": "/a",
        "socket": "/b",
        "listen": "3.3.3.3:3",
        "netns_dir": "/d",
        "node_name": "e",
        "log_level": "error",
    }
    assert {key: loaded.origins[key] for key in ("state_dir", "socket", "netns_dir")} == {
        "state_dir": vendor,
        "socket": main,
        "netns_dir": drop_in,
    }
    assert loaded.origins["node_name"] == "MESHD_NODE_NAME"
    assert loaded.origins["log_level"] == "--log-level"
    assert loaded.origins["executor"] == "built-in"
    assert set(loaded.origins) == set(KEYS)


def test_one_file_instead_of_all(tmp_path: Path) -> None:
    write(tmp_path, "etc/meshd/meshd.toml", 'log_level="debug"')
    mine = write(tmp_path, "mine.toml", 'node_name="me"')
    loaded = load({}, {}, only_file=mine, root=tmp_path, hostname="host")
    assert (loaded.config.node_name, loaded.config.log_level) == ("me", "info")


@pytest.mark.parametrize(
    ("hostname", "name"), [("vm", "vm"), ("h1.example.org", "h1"), ("", "node"), ("-bad", "node"), ("a_b", "node")]
)
def test_node_name_comes_from_the_host(tmp_path: Path, hostname: str, name: str) -> None:
    assert load({}, {}, root=tmp_path, hostname=hostname).config.node_name == name


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("dns_upstreams", ["9.9.9.9", "10.0.0.1:5353"], ("9.9.9.9", "10.0.0.1:5353")),
        ("dns_upstreams", "9.9.9.9, 10.0.0.1", ("9.9.9.9", "10.0.0.1")),
        ("dns_upstreams", "", ()),
        ("listen", "[::]:7377", "[::]:7377"),
        ("metrics_listen", "", ""),
        ("metrics_listen", "127.0.0.1:9000", "127.0.0.1:9000"),
        ("advertise_address", "10.0.0.1", "10.0.0.1"),
        ("advertise_address", "eth0:7000", "eth0:7000"),
        ("advertise_address", "fe80::1", "fe80::1"),
        ("data_address", "eth1.100", "eth1.100"),
        ("executor", "docker", "docker"),
        ("store", "", ""),
        ("store", "etcds://10.0.0.1,10.0.0.2/mesh?ca=/etc/ca.pem", "etcds://10.0.0.1,10.0.0.2/mesh?ca=/etc/ca.pem"),
        ("store", "file:/etc/meshd/store@home", "file:/etc/meshd/store@home"),
        ("managers", "10.0.0.1:7377 boss.lan:7377", ("10.0.0.1:7377", "boss.lan:7377")),
    ],
)
def test_good_values(key: str, value: object, read: object) -> None:
    loaded = merge([Layer({key: value}, lambda _: "f")], BUILT_IN)
    assert getattr(loaded.config, key) == read


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("log_level = 3", 'f.toml: log_level must be debug, info, warning or error, not "3"'),
        ('state_dir = "lib"', 'f.toml: state_dir must be an absolute path, not "lib"'),
        ("socket = 1", "f.toml: socket must be a string, not 1"),
        ('listen = "7377"', 'f.toml: listen must be ADDRESS:PORT such as 0.0.0.0:7377, not "7377"'),
        ('listen = "host:7377"', 'f.toml: listen must be ADDRESS:PORT such as 0.0.0.0:7377, not "host:7377"'),
        ('listen = "0.0.0.0:0"', 'f.toml: listen must be ADDRESS:PORT such as 0.0.0.0:7377, not "0.0.0.0:0"'),
        ('listen = "0.0.0.0:65536"', 'f.toml: listen must be ADDRESS:PORT such as 0.0.0.0:7377, not "0.0.0.0:65536"'),
        ('data_address = "10.0.0.1:80"', 'f.toml: data_address must be an address or a device, not "10.0.0.1:80"'),
        (
            'advertise_address = "a b"',
            'f.toml: advertise_address must be an address or a device, with or without a port, not "a b"',
        ),
        ('dns_upstreams = ["dns.org"]', 'f.toml: dns_upstreams must list ADDRESS or ADDRESS:PORT, not "dns.org"'),
        (
            'store = "redis://x:secret@y"',
            'f.toml: store must be empty, etcd://..., etcds://... or file:/PATH of a file with a URL, not "redis..."',
        ),
        (
            'store = "etcd://me:secret@host/mesh"',
            "f.toml: store must not hold a user name or password: everybody here sees it; use etcds:// with cert=",
        ),
        ('managers = ["10.0.0.1"]', 'f.toml: managers must list HOST:PORT, not "10.0.0.1"'),
        ("dns_upstreams = [1]", "f.toml: dns_upstreams must be a list of addresses, not [1]"),
        (f"dns_upstreams = {['1.1.1.1'] * 17}", "f.toml: dns_upstreams takes at most 16 servers, not 17"),
        (
            'node_name = "a.b"',
            'f.toml: node_name must be a host name of one label (letters, digits, hyphens; at most 63), not "a.b"',
        ),
        ('log_levle = "info"', "f.toml: log_levle is not a setting; did you mean log_level?"),
        ('log-level = "info"', "f.toml: log-level is not a setting; did you mean log_level?"),
        ("[tls]\na = 1", f"f.toml: tls is not a setting; known are {', '.join(KEYS)}"),
    ],
)
def test_mistakes_name_file_and_key(text: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        merge([file_layer("f.toml", text)], BUILT_IN)
    assert caught.value.mistakes == (mistake,)


def test_mistakes_of_variables_and_flags_name_them() -> None:
    with pytest.raises(ConfigError) as caught:
        merge([environment_layer({"MESHD_LOGLEVEL": "x"}), flag_layer({"listen": "y"})], BUILT_IN)
    assert caught.value.mistakes == (
        "MESHD_LOGLEVEL is not a setting; did you mean log_level?",
        '--listen must be ADDRESS:PORT such as 0.0.0.0:7377, not "y"',
    )


def test_all_mistakes_of_all_files_at_once(tmp_path: Path) -> None:
    broken = write(tmp_path, "etc/meshd/meshd.toml", "log_level =")
    wrong = write(tmp_path, "etc/meshd/conf.d/a.toml", "log_level = 1\nsocket = 2")
    with pytest.raises(ConfigError) as caught:
        load({}, {}, root=tmp_path, hostname="h")
    assert [m.split(":")[0] for m in caught.value.mistakes] == [broken, wrong, wrong]
    assert caught.value.mistakes[0].startswith(f"{broken}: not valid TOML: ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    binary = tmp_path / "b.toml"
    binary.write_bytes(b"\xff\xfe")
    large = tmp_path / "l.toml"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    for path, reason in (
        (missing, "cannot be read: No such file or directory"),
        (binary, "not UTF-8 text"),
        (large, "larger than 1048576 bytes"),
    ):
        with pytest.raises(ConfigError) as caught:
            load({}, {}, only_file=str(path), hostname="h")
        assert caught.value.mistakes == (f"{path}: {reason}",)


def test_every_key_has_a_flag_and_a_variable() -> None:
    assert (flag_of("log_level"), variable_of("log_level")) == ("--log-level", "MESHD_LOG_LEVEL")
    for key in KEYS:
        built_in = getattr(BUILT_IN, key)
        given = ",".join(built_in) if isinstance(built_in, tuple) else built_in
        loaded = merge([environment_layer({variable_of(key): given})], BUILT_IN)
        assert getattr(loaded.config, key) == built_in
        assert loaded.origins[key] == variable_of(key)


def test_render_reads_back_and_names_origins() -> None:
    loaded = merge([flag_layer({"dns_upstreams": "9.9.9.9 1.1.1.1", "node_name": "x"})], BUILT_IN)
    text = render(loaded, origin=True)
    assert merge([file_layer("f", text)], Config()).config == loaded.config
    assert tomllib.loads(render(loaded, origin=False))["dns_upstreams"] == ["9.9.9.9", "1.1.1.1"]
    assert [line.split("  # ")[1] for line in text.splitlines()] == [loaded.origins[key] for key in KEYS]


def test_config_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path, "good.toml", 'node_name = "me"\n')
    bad = write(tmp_path, "bad.toml", 'nodename = "me"\n')
    assert config_command(["show", "--origin", "--config", good]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["node_name", "=", '"me"', "#", str(good)] in shown
    assert config_command(["check", "--config", good]) == 0
    assert capsys.readouterr().out == "the configuration is valid\n"
    assert config_command(["check", "--config", bad]) == 1
    assert capsys.readouterr().err == f"{bad}: nodename is not a setting; did you mean node_name?\n"
    with pytest.raises(SystemExit) as ended:
        load_config(["config", "check", "--config", bad])
    assert ended.value.code == 1


def test_the_command_line_wins_and_wrong_flags_are_usage_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHD_NODE_NAME", "variable")
    mine = write(tmp_path, "f.toml", 'state_dir = "/s"\n')
    config = load_config(["--config", mine, "--node-name", "flag"])
    assert (config.node_name, config.state_dir) == ("flag", "/s")
    with pytest.raises(SystemExit) as ended:
        load_config(["--node-nam", "flag"])
    assert ended.value.code == 2
