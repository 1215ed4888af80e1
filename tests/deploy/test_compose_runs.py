"""deploy/compose/ha on a real engine: sign in, kill one of each, cut off one of each, replace all."""

import shutil

import pytest
from conftest import ROOT, SERVICES, run
from engine import RUN, Load, Names, Person, address, docker, needed, until

HA = ROOT / "deploy/compose/ha"
SITE = "https://httpbin.localhost.pomerium.io/get"
PROJECT = f"postern-ha-{RUN}"
# Each container from the others, and the database from who asks it.
CUTS = [*[(service, "services") for service in SERVICES], ("databroker", "records"), ("postgres", "records")]


def containers(service):
    label = "label=com.docker.compose"
    found = docker("ps", "--quiet", "--filter", f"{label}.project={PROJECT}", "--filter", f"{label}.service={service}")
    return found.split()


def healthy(service):
    states = [docker("inspect", "--format", "{{.State.Health.Status}}", container) for container in containers(service)]
    return states.count("healthy")


@pytest.fixture
def deployment(monkeypatch):
    needed()
    for name, value in {
        "COMPOSE_PROJECT_NAME": PROJECT,
        "POSTERN_REGISTRY": "postern",
        "HAPROXY_IMAGE": "postern-local/haproxy",
        "POSTGRES_IMAGE": "postern-local/postgres",
        # Any: the test goes to the containers' own addresses.
        "HTTPS_PORT": "0",
        "HTTP_PORT": "0",
        "PROVIDER_PORT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    code, out, err = run(HA / "run.sh", "up", timeout=300)
    try:
        assert code == 0, out + err
        at = {service: address(*containers(service), f"{PROJECT}_services") for service in ["balancer", "identity-provider"]}
        Names(
            monkeypatch,
            {
                "idp.localhost.pomerium.io": at["identity-provider"],
                "localhost.pomerium.io": at["balancer"],
            },
        )
        yield
    finally:
        code, out, err = run(HA / "run.sh", "down", "--volumes", "--timeout", "1")
    assert code == 0, out + err


def test_it_survives_kills_cuts_and_upgrades(deployment):
    ann = Person(HA / "secrets/internal-ca.crt")
    greeted = ann.sign_in(SITE)
    assert greeted.status_code == 200 and "Hello, Ann" in greeted.text, greeted.text

    code, out, err = run(HA / "run.sh", "doctor")
    assert code == 0 and " 0 errors, 0 warnings" in out, out + err

    # A container that dies: what was on its way through a dead proxy is asked again by browsers;
    # of the other services' deaths nobody hears at all.
    for service in SERVICES:
        with Load(ann, SITE, says="Hello, Ann", again=service == "proxy") as load:
            victim = containers(service)[0]
            docker("kill", victim)
            load.goes_on()
            # An engine takes `kill` for a wish and does not restart by itself.
            docker("start", victim)
            until(f"{service} to be healthy again", lambda: healthy(service) == 2)
            load.goes_on()
        assert set(load.outcomes) == {200}, f"killed {service}: {load.outcomes}"

    # A container that is cut off: nothing answers and nothing refuses, on connections that are open, too.
    for service, network in CUTS:
        with Load(ann, SITE, says="Hello, Ann", again=service == "proxy") as load:
            victim = containers(service)[0]
            docker("network", "disconnect", f"{PROJECT}_{network}", victim)
            load.goes_on(120)
            docker("network", "connect", "--alias", service, f"{PROJECT}_{network}", victim)
            until("all to be healthy again", lambda: all(healthy(service) == 2 for service in SERVICES))
            load.goes_on()
        assert set(load.outcomes) == {200}, f"cut off {service} from {network}: {load.outcomes}"

    with Load(ann, SITE, says="Hello, Ann") as load:
        before = {service: set(containers(service)) for service in SERVICES}
        code, out, err = run(HA / "run.sh", "upgrade", timeout=300)
        assert code == 0, out + err
        load.goes_on()
    assert set(load.outcomes) == {200}, load.outcomes
    for service in SERVICES:
        assert len(containers(service)) == 2 and not before[service] & set(containers(service))

    # Sessions outlive the database's container, too.
    [postgres] = containers("postgres")
    with Load(ann, SITE, says="Hello, Ann") as load:
        docker("restart", postgres)
        until("databroker to be ready again", lambda: healthy("databroker") == 2)
        load.goes_on()
    assert set(load.outcomes) == {200}, load.outcomes

    code, out, err = run(HA / "run.sh", "up", "--scale", "authorize=3")
    assert code == 0, out + err
    assert healthy("authorize") == 3
    assert "Hello, Bob" in Person(HA / "secrets/internal-ca.crt").sign_in(SITE, "bob").text


def test_records_made_with_another_password_are_left_alone(monkeypatch, tmp_path):
    needed()
    shutil.copytree(HA, tmp_path / "ha", ignore=shutil.ignore_patterns("secrets"))
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", f"postern-other-{RUN}")
    volume = docker("volume", "create", f"postern-other-{RUN}_records")
    code, out, err = run(tmp_path / "ha/run.sh", "up")
    docker("volume", "rm", volume)
    assert code == 1 and "secrets/postgres-password is missing" in err and volume in err, out + err
