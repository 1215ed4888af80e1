"""What `postern check` says about the configuration that the chart renders, service by service."""

import base64
import secrets

import pytest
import yaml
from conftest import CHART, POSTERN, container, env, rendered, run

FILES = {
    "shared-secret": lambda: base64.b64encode(secrets.token_bytes(32)).decode(),
    "cookie-secret": lambda: base64.b64encode(secrets.token_bytes(32)).decode(),
    "client-secret": lambda: "of-the-client",
    "connection-string": lambda: "postgres://postern:secret@postgres.example.com/postern?sslmode=verify-full",
}


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certificate")
    code, out, err = run(POSTERN, "demo", "certificates", directory, "*.example.com")
    assert code == 0, out + err
    return {
        "tls.crt": (directory / "certificate.pem").read_text(),
        "tls.key": (directory / "certificate-key.pem").read_text(),
        "ca.crt": (directory / "ca.pem").read_text(),
    }


def check(pod, config_map, component, directory, certificate, *arguments):
    """Runs it as the pod would, with the pod's directories below `directory`."""

    def here(text):
        return text.replace("/run/secrets", f"{directory}/secrets").replace("/etc/postern", f"{directory}/etc")

    (directory / "etc").mkdir(parents=True)
    for name, text in config_map["data"].items():
        (directory / "etc" / name).write_text(here(text))
    for mount in container(pod)["volumeMounts"]:
        volume = next(v for v in pod["volumes"] if v["name"] == mount["name"])
        if "secret" not in volume:
            continue
        place = directory / "secrets" / mount["mountPath"].removeprefix("/run/secrets/")
        place.mkdir(parents=True)
        keys = volume["secret"].get("items") or [{"path": "tls.crt"}, {"path": "tls.key"}]
        for path in [item["path"] for item in keys]:
            if path == "signing-key":
                (place / path).write_text(certificate["tls.key"])
            else:
                (place / path).write_text(certificate[path] if path in certificate else FILES[path]())
    [config] = container(pod)["args"]
    told = {key: here(value) for key, value in env(pod).items()}
    services = {"SERVICES": "all" if component == "all-in-one" else component}
    return run(POSTERN, "check", *arguments, here(config.removeprefix("--config=")), env=told | services)


@pytest.mark.parametrize(
    "values,component",
    [
        (values, component)
        for values in ["split", "everything", "all-in-one"]
        for component in rendered(CHART / f"ci/{values}.yaml").deployments()
    ],
)
def test_the_rendered_configuration_is_valid(values, component, tmp_path, certificate):
    chart = rendered(CHART / f"ci/{values}.yaml")
    name = "access" if values == "everything" else "postern"
    pod = chart.deployments()[component]["spec"]["template"]["spec"]
    code, out, err = check(pod, chart.of("ConfigMap")[name], component, tmp_path, certificate, "--strict")
    assert code == 0, out + err
    assert "is valid: 1 route" in out
    assert "warning" not in out, out


def test_a_given_configuration_is_valid_in_clear_text(tmp_path, certificate):
    chart = rendered(CHART / "ci/given.yaml")
    config = yaml.safe_load((CHART / "ci/split.yaml").read_text())
    text = yaml.safe_dump(config["config"] | {"routes": config["routes"]})
    for component, deployment in chart.deployments().items():
        pod = deployment["spec"]["template"]["spec"]
        config_map = {"data": {"config.yaml": text}}
        code, out, err = check(pod, config_map, component, tmp_path / component, certificate)
        assert code == 0, out + err
