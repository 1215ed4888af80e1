"""The images: what they say about themselves, and that they run with nothing but their own rights."""

import json

import pytest
from conftest import ROOT, run
from engine import IMAGES, docker, needed, until


@pytest.fixture(autouse=True)
def engine():
    needed()


@pytest.mark.parametrize("image", IMAGES)
def test_images_tell_what_they_are(image):
    [told] = json.loads(docker("image", "inspect", f"postern/{image}"))
    config = told["Config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == [f"/{image}"]
    assert config["Healthcheck"]["Test"] == ["CMD", f"/{image}", "health"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["title"] == image and labels["licenses"] == "Apache-2.0"
    assert labels["version"] == docker("run", "--rm", f"postern/{image}", "--version").split()[-1]
    assert len(labels["revision"]) == 40 and labels["source"].startswith("https://")


def test_images_of_another_architecture_say_so_and_leave_the_others_alone(tmp_path):
    before = docker("image", "inspect", "--format={{.Id}}", *[f"postern/{image}:latest" for image in IMAGES])
    for image in IMAGES:
        (tmp_path / image).write_text("not run here\n")
    try:
        code, out, err = run(ROOT / "deploy/docker/build.sh", tmp_path, "arm64")
        assert code == 0, out + err
        for image in IMAGES:
            [told] = json.loads(docker("image", "inspect", f"postern/{image}:latest-arm64"))
            assert (told["Architecture"], told["Os"]) == ("arm64", "linux")
        after = docker("image", "inspect", "--format={{.Id}}", *[f"postern/{image}:latest" for image in IMAGES])
        assert after == before
    finally:
        run("docker", "image", "rm", *[f"postern/{image}:latest-arm64" for image in IMAGES])


ENVIRONMENT = {
    "AUTHENTICATE_SERVICE_URL": "https://authenticate.corp.test",
    "IDP_PROVIDER": "google",
    "IDP_CLIENT_ID": "postern",
    "IDP_CLIENT_SECRET": "secret",
    "SHARED_SECRET": "yM8aAeZc3VOSnmgCcCIKVmz6kSC5YtULfKQr2LDIFeY=",
    "COOKIE_SECRET": "1pvXsrWdiTKPnNv3x6ehRzqrOYLM9TMmvE3tKmXQ9vM=",
}
BARE = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp:noexec"]


def start(*more):
    told = [f"--env={key}={value}" for key, value in ENVIRONMENT.items()]
    return run("docker", "run", "--rm", *BARE, *told, *more)


def test_c55_without_any_rights_it_runs_above_1023():
    here = ["--env=ADDRESS=:8443", "--env=HEALTH_CHECK_ADDR=:28080", "--env=DATABROKER_STORAGE_TYPE=memory"]
    code, id, err = start("--detach", *here, "--user=65532:65532", "postern/postern")
    assert code == 0, err
    try:
        until("it to be healthy", lambda: run("docker", "exec", id.strip(), "/postern", "health")[0] == 0)
    finally:
        docker("kill", id.strip())


def test_c55_a_port_that_takes_a_right_is_named_with_ways_out():
    limit = "--sysctl=net.ipv4.ip_unprivileged_port_start=1024"
    elsewhere = [f"--env={name}_SERVICE_URL=http://elsewhere:5443" for name in ["AUTHORIZE", "DATABROKER"]]
    code, out, err = start(limit, "--env=ADDRESS=:443", *elsewhere, "postern/postern-proxy")
    assert code == 1
    [line] = [line for line in (out + err).splitlines() if "CAP_NET_BIND_SERVICE" in line]
    assert ":443" in line and "setcap" in line and "above 1023" in line
