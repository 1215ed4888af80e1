"""The systemd units are well-formed and confined, and the example of two hosts is a valid
configuration for each of them."""

import shutil
from pathlib import Path

import pytest
from conftest import POSTERN, ROOT, SERVICES, run
from test_configuration import FILES

SYSTEMD = ROOT / "deploy/systemd"
UNITS = ["postern", *[f"postern-{service}" for service in SERVICES]]


def values(unit, section, key):
    return [
        line.split("=", 1)[1].strip()
        for part in (SYSTEMD / unit).read_text().split("\n[")
        if part.lstrip("[").startswith(f"{section}]")
        for line in part.splitlines()
        if line.startswith(f"{key}=")
    ]


def environment(unit):
    [line] = values(f"{unit}.service", "Service", "Environment")
    return dict(word.split("=", 1) for word in line.split())


@pytest.mark.parametrize("unit", UNITS)
def test_units_are_confined(unit):
    file = SYSTEMD / f"{unit}.service"
    code, out, err = run("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", file)
    assert code == 0, out + err


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_reads_the_units_without_a_complaint(unit, tmp_path):
    units = tmp_path / "usr/lib/systemd/system"
    system = next(path for path in [Path("/usr/lib/systemd/system"), Path("/lib/systemd/system")] if path.is_dir())
    shutil.copytree(system, units, symlinks=True, ignore_dangling_symlinks=True)
    for program in [f"usr/bin/{unit}", "bin/kill"]:
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/true", tmp_path / program)
    for kind in ["service", "socket"]:
        shutil.copy(SYSTEMD / f"{unit}.{kind}", units)
    code, out, err = run(
        "systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", f"{unit}.service", f"{unit}.socket"
    )
    complaints = [line for line in (out + err).splitlines() if unit in line]
    assert code == 0 and not complaints, out + err


@pytest.mark.parametrize("unit", UNITS)
def test_sockets_are_where_the_service_is_told_to_listen(unit):
    told = environment(unit)
    ports = {f":{port}" for port in values(f"{unit}.socket", "Socket", "ListenStream")}
    assert ports == {told[key] for key in ["ADDRESS", "HTTP_REDIRECT_ADDR", "GRPC_ADDRESS"] if key in told}


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_hears_how_the_service_is(unit):
    service = f"{unit}.service"
    assert values(service, "Service", "Type") == ["notify"]
    assert values(service, "Service", "Sockets") == [f"{unit}.socket"]
    # Sockets come from outside, so no right is needed.
    assert values(service, "Service", "CapabilityBoundingSet") == [""]
    [watchdog] = values(service, "Service", "WatchdogSec")
    # A runtime may be late for a second, and a ping may be lost: crates/common/src/lifecycle/supervisor.rs
    assert int(watchdog) >= 3 * 5


# drain_delay, idle connections, drain_timeout, streams, tasks: crates/common/src/lifecycle/drain.rs
DRAIN = 5 + 2 + 30 + 1 + 2


@pytest.mark.parametrize("unit", UNITS)
def test_a_drain_is_not_cut(unit):
    [stop] = values(f"{unit}.service", "Service", "TimeoutStopSec")
    assert int(stop) > DRAIN


def test_services_of_one_host_do_not_meet_on_a_port():
    ports = [value.rsplit(":", 1)[1] for service in SERVICES for value in environment(f"postern-{service}").values()]
    assert len(ports) == len(set(ports))


@pytest.fixture(scope="session")
def etc(tmp_path_factory):
    """/etc/postern of the example, with secrets and certificates made up."""
    etc = tmp_path_factory.mktemp("etc")
    for file in (SYSTEMD / "two-hosts").iterdir():
        (etc / file.name).write_text(file.read_text().replace("/etc/postern", str(etc)))
    for name in ["example.com", "internal"]:
        code, out, err = run(POSTERN, "demo", "certificates", etc / "made", f"*.{name}.example.com")
        assert code == 0, out + err
        shutil.copy(etc / "made/certificate.pem", etc / f"{name}.crt")
        shutil.copy(etc / "made/certificate-key.pem", etc / f"{name}.key")
    shutil.copy(etc / "made/ca.pem", etc / "internal-ca.crt")
    secrets = {
        "shared-secret": "shared-secret",
        "cookie-secret": "cookie-secret",
        "identity-provider": "client-secret",
        "postgres-url": "connection-string",
    }
    for file, kind in secrets.items():
        (etc / file).write_text(FILES[kind]())
    return etc


@pytest.mark.parametrize("service", SERVICES)
def test_the_example_of_two_hosts_is_valid(service, etc):
    lines = (etc / f"{service}.env").read_text().splitlines()
    told = environment(f"postern-{service}") | dict(line.split("=", 1) for line in lines) | {"SERVICES": service}
    code, out, err = run(POSTERN, "check", "--strict", etc / "config.yaml", env=told)
    assert code == 0, out + err
    assert "warning" not in out, out
