"""`helm install` and `helm upgrade` with the real Helm, against a stand-in for the Kubernetes API."""

import base64
import secrets

import pytest
import yaml
from api_server import Cluster
from conftest import CHART, HELM, container, run

NEEDED = {
    "postern-identity-provider": ("Opaque", ["client-secret"]),
    "postern-postgres": ("Opaque", ["connection-string"]),
    "postern-certificate": ("kubernetes.io/tls", ["tls.crt", "tls.key"]),
}
MADE = {
    "--secrets=": ["shared-secret", "cookie-secret"],
    "--internal-tls=": ["ca.crt", "tls.crt", "tls.key"],
}


def make_secrets(cluster, job):
    """What `postern kubernetes-secrets` does; its own tests are beside its code."""
    for argument in container(job["spec"]["template"]["spec"])["args"]:
        for option, keys in MADE.items():
            name = argument.removeprefix(option)
            if name != argument and not cluster.namespaced("access", "secrets", name):
                data = {key: base64.b64encode(secrets.token_bytes(32)).decode() for key in keys}
                cluster.make("access", "secrets", "Secret", name, data=data)


class Helm:
    def __init__(self, directory):
        self.cluster = Cluster(make_secrets)
        self.cluster.make("access", "serviceaccounts", "ServiceAccount", "default")
        self.config = directory / "kubeconfig"
        self.config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "clusters": [{"name": "here", "cluster": {"server": self.cluster.url}}],
                    "users": [{"name": "me", "user": {}}],
                    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                }
            )
        )

    def __call__(self, command, *arguments):
        return run(HELM, command, "--kubeconfig", self.config, "--namespace", "access", *arguments)

    def release(self, command, *arguments):
        values = ["--values", CHART / "ci/split.yaml"]
        return self(command, "postern", CHART, *values, "--timeout", "30s", *arguments)

    def given(self, name, type_, keys):
        data = {key: base64.b64encode(b"given").decode() for key in keys}
        self.cluster.make("access", "secrets", "Secret", name, type=type_, data=data)

    def give_all(self):
        for name, (type_, keys) in NEEDED.items():
            self.given(name, type_, keys)

    def secret(self, name):
        found = self.cluster.namespaced("access", "secrets", name)
        return found and found["data"]


@pytest.fixture
def helm(tmp_path):
    helm = Helm(tmp_path)
    yield helm
    helm.cluster.close()


def test_c50_secrets_are_made_once_and_kept(helm):
    helm.give_all()
    code, out, err = helm.release("install")
    assert code == 0, err
    assert "Point DNS of the routes and of https://authenticate.example.com" in out
    first = helm.secret("postern-secrets"), helm.secret("postern-internal-tls")
    assert all(first)

    code, _, err = helm.release("upgrade", "--set", "proxy.replicas=5")
    assert code == 0, err
    assert (helm.secret("postern-secrets"), helm.secret("postern-internal-tls")) == first
    deployment = helm.cluster.objects["/apis/apps/v1/namespaces/access/deployments/postern-proxy"]
    assert deployment["spec"]["replicas"] == 5
    # The Job and its rights are gone; the Secrets stay even without the release.
    assert not [path for path in helm.cluster.objects if path.endswith("make-secrets")]
    assert helm("uninstall", "postern")[0] == 0
    assert (helm.secret("postern-secrets"), helm.secret("postern-internal-tls")) == first


def test_c50_with_an_existing_secret_none_is_made(helm):
    helm.give_all()
    helm.given("mine", "Opaque", ["shared-secret", "cookie-secret"])
    code, _, err = helm.release("install", "--set", "secrets.existingSecret=mine")
    assert code == 0, err
    assert not helm.secret("postern-secrets")
    assert helm.secret("postern-internal-tls"), "that one was not given"


@pytest.mark.parametrize("missing", NEEDED)
def test_a_missing_secret_is_named(helm, missing):
    for name, (type_, keys) in NEEDED.items():
        if name != missing:
            helm.given(name, type_, keys)
    code, _, err = helm.release("install")
    assert code != 0
    assert f'there is no Secret "{missing}" in namespace "access": create it, with {NEEDED[missing][1][0]}' in err


def test_c50_a_missing_key_is_named(helm):
    helm.give_all()
    helm.given("mine", "Opaque", ["shared-secret"])
    code, _, err = helm.release("install", "--set", "secrets.existingSecret=mine")
    assert code != 0
    assert 'secrets.existingSecret: Secret "mine" has no key "cookie-secret": add it' in err


def test_a_certificate_of_the_wrong_type_is_refused(helm):
    helm.give_all()
    helm.given("postern-certificate", "Opaque", ["tls.crt", "tls.key"])
    code, _, err = helm.release("install")
    assert code != 0
    assert 'Secret "postern-certificate" is of type Opaque: create it with `kubectl create secret tls`' in err


def test_a_missing_config_map_is_named(helm):
    helm.given("access-secrets", "Opaque", ["shared-secret", "cookie-secret"])
    helm.given("access-provider", "Opaque", ["client-secret"])
    helm.given("access-postgres", "Opaque", ["connection-string"])
    helm.given("access-certificate", "kubernetes.io/tls", ["tls.crt", "tls.key"])
    code, _, err = helm("install", "postern", CHART, "--values", CHART / "ci/given.yaml")
    assert code != 0
    assert 'there is no ConfigMap "access-configuration" with a key config.yaml in namespace "access"' in err
