"""A plain host, run: a container whose first process is systemd gets the Debian package, and its units do
what docs/hosts.md says of them."""

import os

import pytest
from conftest import POSTERN, ROOT, SERVICES, run
from engine import RUN, Load, Names, Person, address, docker, reached, until
from test_hosts import UNITS

IMAGE = "postern-local/systemd-procps"
HOST = f"postern-host-{RUN}"
DOMAIN = "localhost.pomerium.io"
SITE = f"https://app.{DOMAIN}/get"
SPLIT = [f"postern-{service}" for service in SERVICES]
# All four services on one host, as a beginner with a wildcard certificate would write it.
CONFIG = f"""
authenticate_service_url: https://authenticate.{DOMAIN}
authorize_service_url: https://services.{DOMAIN}:5443
databroker_service_url: https://services.{DOMAIN}:5444
authenticate_internal_service_url: https://services.{DOMAIN}:8443
certificate_file: /etc/postern/certificate.pem
certificate_key_file: /etc/postern/certificate-key.pem
certificate_authority_file: /etc/postern/ca.pem
shared_secret_file: /etc/postern/shared-secret
cookie_secret_file: /etc/postern/cookie-secret
databroker_storage_type: file
databroker_storage_connection_string: file:///var/lib/postern
# Nobody in front has to notice that a restart comes.
drain_delay: 0s
idp_provider: oidc
idp_provider_url: https://idp.{DOMAIN}:9443
idp_client_id: postern-demo
idp_client_secret: only-for-the-demo
routes:
  - from: https://app.{DOMAIN}
    to: https://upstream.{DOMAIN}:9444
    allow_any_authenticated_user: true
"""
# What docs/hosts.md tells to type.
SECRETS = """
set -e
cd /etc/postern
head -c32 /dev/urandom | base64 >shared-secret
head -c32 /dev/urandom | base64 >cookie-secret
chgrp postern * && chmod 640 *
postern check --strict config.yaml
"""


def image(folder):
    """Debian, or what else this machine runs, with little but systemd."""
    if docker("images", "--quiet", IMAGE):
        return
    unneeded = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ["doc", "man", "locale"]]
    code, out, err = run(
        "sh", "-c", '. /etc/os-release && exec mmdebstrap "$@" "$VERSION_CODENAME" "$0"', folder / "root.tar",
        "--quiet", "--variant=essential", "--include=procps,systemd", "--dpkgopt=force-unsafe-io", *unneeded,
        timeout=300,
    )  # fmt: skip
    assert code == 0, out + err
    docker("import", folder / "root.tar", IMAGE)


def on_host(*command, check=True):
    code, out, err = run("docker", "exec", HOST, *command)
    if check and code != 0:
        journal = run("docker", "exec", HOST, "journalctl", "--no-pager", "--no-hostname", "--lines=60", "--sync")[1]
        raise AssertionError(f"{command}: {out}{err}\n{journal}")
    return out.strip()


def shown(unit, what):
    return on_host("systemctl", "show", "--value", f"--property={what}", unit)


def active(units):
    return on_host("systemctl", "is-active", *units, check=False).split() == ["active"] * len(units)


def of(units, kind):
    return [f"{unit}.{kind}" for unit in units]


@pytest.fixture(scope="module", autouse=True)
def engine():
    reached()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Of the debug build, without what only a debugger reads."""
    binaries = tmp_path_factory.mktemp("binaries")
    for unit in UNITS:
        code, out, err = run("strip", "-o", binaries / unit, POSTERN.with_name(unit))
        assert code == 0, out + err
    quickly = os.environ | {"DPKG_DEB_COMPRESSOR_TYPE": "none"}
    code, out, err = run(ROOT / "scripts/deb.sh", binaries, "amd64", binaries, env=quickly)
    assert code == 0, out + err
    return out.strip()


@pytest.fixture(scope="module")
def ann(package, tmp_path_factory):
    """Somebody whose browser finds the host, on which everything is installed and nothing runs yet."""
    tmp_path = tmp_path_factory.mktemp("host")
    image(tmp_path)
    names = ["app", "authenticate", "services", "idp", "upstream"]
    docker(
        "run", "--detach", "--name", HOST, "--env=container=docker",
        # What systemd needs of its surroundings: cgroups of its own, mounts for its services.
        "--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup", "--cap-add=SYS_ADMIN", "--cap-add=SYS_PTRACE",
        "--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined", "--tmpfs=/run", "--tmpfs=/run/lock",
        *[f"--add-host={name}.{DOMAIN}:127.0.0.1" for name in names],
        IMAGE, "/lib/systemd/systemd",
    )  # fmt: skip
    try:
        until("systemd to be up", lambda: on_host("systemctl", "is-system-running", check=False) in ["running", "degraded"])
        docker("cp", package, f"{HOST}:/root/postern.deb")
        on_host("dpkg", "--install", "/root/postern.deb")
        code, out, err = run(POSTERN, "demo", "certificates", tmp_path, f"*.{DOMAIN}")
        assert code == 0, out + err
        (tmp_path / "config.yaml").write_text(CONFIG)
        for file in ["ca.pem", "certificate.pem", "certificate-key.pem", "config.yaml"]:
            docker("cp", tmp_path / file, f"{HOST}:/etc/postern/{file}")
        on_host("sh", "-c", "chown root:root /etc/postern/*")
        on_host("sh", "-c", SECRETS)
        # The provider and the application are no services of ours: two programs beside them.
        own = ["--certificate-file=/etc/postern/certificate.pem", "--certificate-key-file=/etc/postern/certificate-key.pem"]
        demo = ["docker", "exec", "--detach", HOST, "postern", "demo"]
        assert run(*demo, "provider", "--address=:9443", f"--issuer=https://idp.{DOMAIN}:9443", *own)[0] == 0
        upstream = ["--address=:9444", f"--public-url=https://app.{DOMAIN}", "--authority-file=/etc/postern/ca.pem"]
        assert run(*demo, "upstream", *upstream, *own)[0] == 0
        with pytest.MonkeyPatch.context() as monkeypatch:
            Names(monkeypatch, {DOMAIN: address(HOST, "bridge")})
            yield Person(tmp_path / "ca.pem")
    finally:
        run("docker", "rm", "--force", "--volumes", HOST)


def survives(ann, units, *command):
    """Runs something that restarts `units`, and them alone, while people work."""
    before = {unit: shown(unit, "MainPID") for unit in of(UNITS, "service")}
    with Load(ann, SITE) as load:
        on_host(*command)
        load.goes_on()
    assert set(load.outcomes) == {200}, f"{command}: {load.outcomes}"
    assert {unit for unit, pid in before.items() if shown(unit, "MainPID") != pid} == set(units)


def test_four_services_restart_and_start_by_their_sockets(ann):
    # Installed is not started.
    assert set(on_host("systemctl", "is-active", *of(UNITS, "service"), check=False).split()) == {"inactive"}
    on_host("systemctl", "enable", "--now", *of(SPLIT, "socket"), *of(SPLIT, "service"))
    assert active(of(SPLIT, "socket") + of(SPLIT, "service"))
    assert "Sample application" in ann.sign_in(SITE).text
    # As confined as it was read from the files, now by the systemd that does it.
    for unit in of(SPLIT, "service"):
        on_host("systemd-analyze", "security", "--no-pager", "--threshold=20", unit)

    for unit in of(SPLIT, "service"):
        survives(ann, [unit], "systemctl", "restart", unit)

    # Who comes starts the proxy, and its questions the others.
    on_host("systemctl", "stop", *of(SPLIT, "service"))
    until("a decision", lambda: ann.client.get(SITE).status_code == 200)
    until("databroker and authorize to be started", lambda: active(of(["postern-databroker", "postern-authorize"], "service")))
    on_host("systemctl", "disable", "--now", *of(SPLIT, "socket"), *of(SPLIT, "service"))


def test_one_process_is_restarted_upgraded_watched_and_removed(ann):
    on_host("systemctl", "enable", "--now", "postern.socket", "postern.service")
    # Who signed in at the four is still known: the records are in a file.
    assert "Sample application" in ann.client.get(SITE).text
    on_host("systemd-analyze", "security", "--no-pager", "--threshold=20", "postern.service")
    survives(ann, ["postern.service"], "systemctl", "restart", "postern.service")
    survives(ann, [], "systemctl", "reload", "postern.service")
    survives(ann, ["postern.service"], "dpkg", "--install", "/root/postern.deb")

    # One that hangs is ended and started again.
    quick = "[Service]\nWatchdogSec=6\n"
    on_host("sh", "-c", f"cd /run/systemd/system && mkdir postern.service.d && printf '{quick}' >postern.service.d/quick.conf")
    on_host("systemctl", "daemon-reload")
    on_host("systemctl", "restart", "postern.service")
    hangs = shown("postern.service", "MainPID")
    on_host("kill", "-STOP", hangs)
    until("another process", lambda: active(["postern.service"]) and shown("postern.service", "MainPID") != hangs)
    assert "Watchdog timeout" in on_host("journalctl", "--unit=postern.service", "--no-pager")
    assert ann.client.get(SITE).status_code == 200

    # A mistake is over once it is mended, however long that took: more starts than systemd allows by default.
    on_host("sh", "-c", "echo 'nonsense: [' >>/etc/postern/config.yaml")
    on_host("systemctl", "restart", "postern.service", check=False)
    until("six failures", lambda: int(shown("postern.service", "NRestarts")) > 5)
    on_host("sed", "--in-place", "/nonsense/d", "/etc/postern/config.yaml")
    assert ann.client.get(SITE).status_code == 200

    # Gone is gone, what the host's operator wrote excepted.
    on_host("dpkg", "--purge", "postern")
    assert on_host("find", "/etc/systemd", "-name", "postern*") == ""
    assert on_host("systemctl", "list-units", "--no-legend", "--state=active", "postern*") == ""
    on_host("test", "-f", "/etc/postern/config.yaml")
