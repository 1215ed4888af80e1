"""The Job that makes Secrets, run: its container against a stand-in for the Kubernetes API."""

import base64
import ssl

import pytest
from api_server import Cluster
from conftest import CHART, POSTERN, container, rendered, run
from engine import RUN, docker, needed

NETWORK = f"postern-job-{RUN}"


@pytest.fixture
def api(tmp_path):
    """The API, and what Kubernetes mounts into a pod that may talk to it."""
    needed()
    docker("network", "create", NETWORK)
    gateway = docker("network", "inspect", NETWORK, "--format", "{{(index .IPAM.Config 0).Gateway}}")
    code, out, err = run(POSTERN, "demo", "certificates", tmp_path / "api", gateway)
    assert code == 0, out + err
    certificate = [tmp_path / "api/certificate.pem", tmp_path / "api/certificate-key.pem"]
    cluster = Cluster(host=gateway, certificate=certificate)
    account = tmp_path / "account"
    account.mkdir()
    (account / "ca.crt").write_text((tmp_path / "api/ca.pem").read_text())
    (account / "namespace").write_text("access")
    (account / "token").write_text("a-token")
    yield cluster, [
        f"--network={NETWORK}",
        f"--env=KUBERNETES_SERVICE_HOST={gateway}",
        f"--env=KUBERNETES_SERVICE_PORT={cluster.server.server_port}",
        f"--volume={account}:/var/run/secrets/kubernetes.io/serviceaccount:ro",
    ]
    cluster.close()
    docker("network", "rm", NETWORK)


def secrets(cluster):
    names = ["postern-secrets", "postern-internal-tls"]
    found = {name: cluster.namespaced("access", "secrets", name) for name in names}
    return {name: item and {k: base64.b64decode(v) for k, v in item["data"].items()} for name, item in found.items()}


def test_c50_the_job_makes_what_is_missing_and_keeps_what_is_there(api, tmp_path):
    cluster, inside = api
    job = next(iter(rendered(CHART / "ci/split.yaml").of("Job").values()))
    own = container(job["spec"]["template"]["spec"])
    bare = ["--rm", "--read-only", "--cap-drop=ALL", "--user=65532:65532", *inside]

    said = docker("run", *bare, "postern/postern", *own["args"])
    assert said.splitlines() == ["Secret postern-secrets: made", "Secret postern-internal-tls: made"]
    first = secrets(cluster)
    for key in ["shared-secret", "cookie-secret"]:
        assert len(base64.b64decode(first["postern-secrets"][key])) == 32
    files = {key: tmp_path / key for key in ["tls.crt", "tls.key", "ca.crt"]}
    for key, file in files.items():
        file.write_bytes(first["postern-internal-tls"][key])
    ssl.create_default_context().load_cert_chain(files["tls.crt"], files["tls.key"])
    for host in [argument.removeprefix("--host=") for argument in own["args"] if argument.startswith("--host=")]:
        code, out, err = run(
            *["openssl", "verify", "-CAfile", files["ca.crt"], "-verify_hostname", host, files["tls.crt"]]
        )
        assert code == 0, out + err

    said = docker("run", *bare, "postern/postern", *own["args"])
    assert said.count("there already, kept") == 2
    assert secrets(cluster) == first
