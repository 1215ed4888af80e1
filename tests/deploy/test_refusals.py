"""Values that can't work are refused with one sentence that says what to set."""

import pytest
import yaml
from conftest import CHART, refusal

REFUSED = [
    ({"foo": 1}, "additional properties 'foo' not allowed"),
    ({"proxy": {"replica": 3}}, "at '/proxy': additional properties 'replica' not allowed"),
    ({"mode": "both"}, "at '/mode'"),
    ({"image": {"digests": {"postern-proxy": "latest"}}}, "at '/image/digests/postern-proxy'"),
    ({"config": {"authenticate_service_url": None}}, "set it to the URL at which browsers sign in"),
    ({"config": {"shared_secret": "x"}}, "config.shared_secret can't be set here: set secrets.existingSecret"),
    ({"config": {"GRPC_ADDRESS": ":1"}}, "config.GRPC_ADDRESS can't be set here: set mode"),
    ({"config": {"idp_client_secret": "x"}}, "set identityProvider.existingSecret"),
    ({"config": {"routes": []}, "existingConfigMap": "mine"}, "leave existingConfigMap empty"),
    ({"config": {"routes": [{"from": "https://a.b"}]}}, "keep one of them"),
    ({"secrets": {"signingKey": "key"}}, "set both, or neither"),
    ({"internalTls": {"source": "secret"}}, "set internalTls.existingSecret"),
    ({"internalTls": {"existingSecret": "mine"}}, "set internalTls.source to `secret`"),
    ({"internalTls": {"source": "cert-manager"}}, "set internalTls.certManager.issuerRef.name"),
    ({"certificates": {"existingSecrets": []}}, "set certificates.existingSecrets"),
    ({"certificates": {"certManager": {"enabled": True}}}, "set certificates.certManager.issuerRef.name"),
    (
        {"certificates": {"certManager": {"enabled": True, "issuerRef": {"name": "x"}}}},
        "set certificates.certManager.dnsNames",
    ),
    ({"config": {"insecure_server": True}}, "keep one of them"),
    ({"storage": {"postgres": {"existingSecret": ""}}}, "set storage.type to `memory`"),
    ({"storage": {"type": "memory"}}, "leave the Secret out"),
    (
        {"storage": {"type": "memory", "postgres": {"existingSecret": ""}}},
        "set databroker.replicas to 1, or storage.type to `postgres`",
    ),
    (
        {"mode": "all-in-one", "storage": {"type": "memory", "postgres": {"existingSecret": ""}}},
        "set allInOne.replicas to 1, or storage.type to `postgres`",
    ),
    (
        {
            "databroker": {"autoscaling": {"enabled": True}},
            "storage": {"type": "memory", "postgres": {"existingSecret": ""}},
        },
        "set databroker.autoscaling.enabled to false",
    ),
    ({"proxy": {"autoscaling": {"enabled": True, "maxReplicas": 1}}}, "proxy.autoscaling.minReplicas is above"),
    (
        {"proxy": {"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}}},
        "set proxy.resources.requests.cpu",
    ),
    ({"common": {"terminationGracePeriodSeconds": 30}}, "a drain takes up to 40 seconds and would be cut; set it to 45"),
    ({"config": {"drain_timeout": "1m30s"}}, "a drain takes up to 100 seconds and would be cut; set it to 105"),
    ({"config": {"drain_delay": "1h500ms"}}, "a drain takes up to 3636 seconds"),
    ({"config": {"drain_timeout": "1.5m"}}, "a drain takes up to 100 seconds"),
    ({"metrics": {"enabled": False, "serviceMonitor": {"enabled": True}}}, "set it to true"),
]


@pytest.mark.parametrize("changes,sentence", REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_contradictions_are_refused(tmp_path, changes, sentence):
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(changes))
    said = refusal("--values", CHART / "ci/split.yaml", "--values", file)
    assert sentence in said
    # One sentence, not a stack of them.
    assert len([line for line in said.splitlines() if line.startswith(("Error", "- "))]) <= 2, said
