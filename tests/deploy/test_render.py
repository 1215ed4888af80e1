"""What the chart renders is well-formed, and says what it should."""

import functools
import itertools

import kubernetes_validate
import pytest
import yaml
from conftest import (
    CHART,
    HELM,
    HELM_3,
    MATRIX,
    SERVICES,
    Rendered,
    container,
    env,
    objects,
    rendered,
    run,
    template,
)

# The oldest that Chart.yaml allows, those in support, and the newest.
KUBERNETES = ["1.27", "1.33", "1.35", "1.37"]
# Kinds of operators, which Kubernetes has no schema of.
FOREIGN = {"Certificate", "ServiceMonitor", "PrometheusRule"}

kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


def test_lint(values):
    code, out, err = run(HELM, "lint", "--strict", CHART, "--values", values)
    assert code == 0, out + err


def test_two_renders_are_equal(values):
    assert template("--values", values) == template("--values", values)


def test_the_helm_before_renders_the_same(chart, values):
    assert run(HELM, "version", "--short")[1].startswith("v4.")
    assert run(HELM_3, "version", "--short")[1].startswith("v3.")
    code, out, err = run(HELM_3, "template", "postern", CHART, "--namespace", "access", "--values", values)
    assert code == 0, err
    by_name = lambda items: sorted(items, key=lambda item: (item["kind"], item["metadata"]["name"]))  # noqa: E731
    assert by_name(objects(out)) == by_name(chart.items)


@pytest.mark.parametrize("version", KUBERNETES)
def test_objects_fit_the_schemas_of_kubernetes(chart, version):
    for item in chart.items:
        if item["kind"] in FOREIGN:
            continue
        assert item["metadata"]["namespace"] == "access"
        try:
            kubernetes_validate.validate(item, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{item['kind']} {item['metadata']['name']}: {list(error.path)}: {error.message}")


def test_nothing_is_rendered_twice(chart):
    names = [(item["kind"], item["metadata"]["name"]) for item in chart.items]
    assert len(names) == len(set(names))


def test_no_secret_is_rendered(chart):
    assert not chart.of("Secret")


def test_selectors_find_their_pods_and_no_others(chart):
    pods = {name: labels for name, labels, _ in chart.pods()}
    for name, item in chart.deployments().items():
        wanted = item["spec"]["selector"]["matchLabels"].items()
        assert [pod for pod, labels in pods.items() if wanted <= labels.items()] == [name]
    for service in chart.of("Service").values():
        wanted = service["spec"]["selector"].items()
        found = {pod for pod, labels in pods.items() if wanted <= labels.items()}
        component = service["metadata"]["labels"]["app.kubernetes.io/component"]
        if component == "metrics":
            assert found >= set(chart.deployments())
        else:
            assert found == {component}
    for budget in chart.of("PodDisruptionBudget").values():
        wanted = budget["spec"]["selector"]["matchLabels"].items()
        assert len([1 for labels in pods.values() if wanted <= labels.items()]) == 1


def test_labels_of_pods_outlive_a_new_chart(chart):
    for item in chart.of("Deployment").values():
        labels = item["spec"]["template"]["metadata"]["labels"]
        assert "helm.sh/chart" not in labels and "app.kubernetes.io/version" not in labels


def test_ports_of_services_are_ports_of_containers(chart):
    pods = {name: pod for name, _, pod in chart.pods()}
    for service in chart.of("Service").values():
        component = service["metadata"]["labels"]["app.kubernetes.io/component"]
        components = chart.deployments() if component == "metrics" else [component]
        for name, port in itertools.product(components, service["spec"]["ports"]):
            listening = {p["name"]: p["containerPort"] for p in container(pods[name])["ports"]}
            assert port["targetPort"] in listening
            if service["spec"].get("clusterIP") == "None":
                # A headless name has the addresses of pods: there is no other port to map from.
                assert port["port"] == listening[port["targetPort"]]


def test_containers_listen_where_they_say(chart):
    keys = {
        "https": "ADDRESS",
        "http": "HTTP_REDIRECT_ADDR",
        "grpc": "GRPC_ADDRESS",
        "metrics": "METRICS_ADDRESS",
        "health": "HEALTH_CHECK_ADDR",
    }
    for item in chart.deployments().values():
        pod = item["spec"]["template"]["spec"]
        told = {key: env(pod)[key] for key in keys.values() if key in env(pod)}
        listening = {keys[p["name"]]: f":{p['containerPort']}" for p in container(pod)["ports"]}
        assert told == listening
        assert all(p["containerPort"] >= 1024 for p in container(pod)["ports"])
        for probe, path in [("startup", "/startupz"), ("readiness", "/readyz"), ("liveness", "/healthz")]:
            assert container(pod)[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "health"}


def configuration(chart):
    """The file that all read, as far as the chart makes it."""
    files = [item["data"] for item in chart.of("ConfigMap").values() if "config.yaml" in item["data"]]
    return yaml.safe_load(files[0]["config.yaml"]) if files else {}


def test_what_the_front_serves_is_no_matter_of_authenticate():
    for source, clear in [("generated", "false"), ("none", "true")]:
        for front in ["split", "behind"]:
            values = ["--values", CHART / f"ci/{front}.yaml", "--set", f"internalTls.source={source}"]
            told = {
                name: env(item["spec"]["template"]["spec"])
                for name, item in Rendered(template(*values)).deployments().items()
            }
            assert told["authenticate"]["INSECURE_SERVER"] == clear, (front, source)
            assert told["proxy"]["AUTHENTICATE_INTERNAL_SERVICE_URL"].startswith("http:") == (clear == "true")
            assert "INSECURE_SERVER" not in told["proxy"]


def test_services_are_named_as_the_others_call_them(chart):
    services = chart.of("Service")
    for component, item in chart.deployments().items():
        told = env(item["spec"]["template"]["spec"])
        urls = {key: value for key, value in told.items() if key.endswith("SERVICE_URL")}
        assert bool(urls) == (component != "all-in-one")
        for key, url in urls.items():
            scheme, rest = url.split("://")
            host, port = rest.split(":")
            called = key.split("_")[0].lower()
            service = services[host.split(".")[0]]
            assert service["metadata"]["labels"]["app.kubernetes.io/component"] == called
            assert host.split(".")[1:3] == ["access", "svc"]
            assert service["spec"]["clusterIP"] == "None"
            assert service["spec"]["publishNotReadyAddresses"] is True
            assert int(port) in [p["port"] for p in service["spec"]["ports"]]
            # Both ends agree on TLS.
            other = env(chart.deployments()[called]["spec"]["template"]["spec"])
            configured = str(configuration(chart).get("insecure_server", False)).lower()
            clear = other.get("GRPC_INSECURE", other.get("INSECURE_SERVER", configured)) == "true"
            assert scheme == ("http" if clear else "https")
            assert ("CERTIFICATE_FILE" in other) != clear


@pytest.mark.parametrize("source", ["generated", "cert-manager"])
def test_the_internal_certificate_holds_the_names_that_are_called(source):
    chart = Rendered(
        template(
            *["--values", CHART / "ci/split.yaml", "--set", f"internalTls.source={source}"],
            *["--set", "internalTls.certManager.issuerRef.name=internal"],
        )
    )
    called = {
        value.split("://")[1].split(":")[0]
        for item in chart.deployments().values()
        for key, value in env(item["spec"]["template"]["spec"]).items()
        if key.endswith("SERVICE_URL")
    }
    if source == "generated":
        job = next(iter(chart.of("Job").values()))
        arguments = container(job["spec"]["template"]["spec"])["args"]
        held = {a.removeprefix("--host=") for a in arguments if a.startswith("--host=")}
    else:
        held = set(chart.of("Certificate")["postern-internal-tls"]["spec"]["dnsNames"])
    assert called == held and len(held) == 3


def test_pods_are_hardened(chart):
    for name, _, pod in chart.pods():
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] == 65532
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        own = container(pod)["securityContext"]
        assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        # Only the Job talks to Kubernetes.
        assert pod["automountServiceAccountToken"] is name.endswith("make-secrets")


def test_what_is_mounted_can_change_while_the_process_runs(chart):
    for name, _, pod in chart.pods():
        mounts = container(pod).get("volumeMounts", [])
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        assert {mount["name"] for mount in mounts} == set(volumes)
        assert not [mount for mount in mounts if "subPath" in mount]
        # Every file that the environment names is in something that is mounted.
        for key, path in env(pod).items():
            if key.endswith("_FILE"):
                mount = next(m for m in mounts if path.startswith(m["mountPath"] + "/"))
                secret = volumes[mount["name"]]["secret"]
                file = path.removeprefix(mount["mountPath"] + "/")
                items = secret.get("items")
                assert items is None or file in [item["path"] for item in items], (name, key)


def test_keys_are_where_they_are_needed_and_nowhere_else(chart):
    for component, item in chart.deployments().items():
        volumes = item["spec"]["template"]["spec"]["volumes"]
        names = {volume["name"].split("-")[0] for volume in volumes}
        in_front = component in ("proxy", "all-in-one") and not configuration(chart).get("insecure_server")
        assert ("certificate" in names) == in_front
        assert ("postgres" in names) <= (component in ("databroker", "all-in-one"))
        for volume in volumes:
            if volume["name"] == "internal-tls" and component == "proxy":
                assert [i["key"] for i in volume["secret"]["items"]] == ["ca.crt"]


def test_rollouts_and_drains_lose_nothing(chart):
    for component, item in chart.deployments().items():
        strategy = item["spec"]["strategy"]
        pod = item["spec"]["template"]["spec"]
        if env(pod)["DATABROKER_STORAGE_TYPE"] == "memory" and component in ("databroker", "all-in-one"):
            assert strategy == {"type": "Recreate"} and item["spec"]["replicas"] == 1
        else:
            assert strategy["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        # 5 s + 2 s + 30 s + 1 s + 2 s: crates/common/src/lifecycle/drain.rs
        assert pod["terminationGracePeriodSeconds"] > 40


# ARCHITECTURE.md: who calls whom.
EDGES = {
    ("proxy", "authorize", "grpc"),
    ("proxy", "authenticate", "https"),
    ("proxy", "databroker", "grpc"),
    ("authorize", "databroker", "grpc"),
    ("authenticate", "databroker", "grpc"),
}


def test_network_policies_allow_the_edges_and_nothing_else(split):
    pods = {name: (labels, pod) for name, labels, pod in split.pods() if name in SERVICES}
    [doctor] = split.of("Pod").values()
    pods["doctor"] = (doctor["metadata"]["labels"], doctor["spec"])

    def selected(peers):
        return {
            name
            for peer in peers
            for name, (labels, _) in pods.items()
            if peer["podSelector"]["matchLabels"].items() <= labels.items()
        }

    def port_name(component, port):
        ports = {p["name"]: p["containerPort"] for p in container(pods[component][1])["ports"]}
        return next(name for name, number in ports.items() if port in (name, number))

    into, out, anywhere = set(), set(), {}
    for policy in split.of("NetworkPolicy").values():
        [me] = selected([{"podSelector": policy["spec"]["podSelector"]}])
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for rule in policy["spec"]["ingress"]:
            ports = [port_name(me, port["port"]) for port in rule["ports"]]
            if "from" in rule:
                into |= {(caller, me, port) for caller in selected(rule["from"]) for port in ports}
            else:
                assert me == "proxy" and ports == ["https", "http"]
        for rule in policy["spec"]["egress"]:
            if "to" in rule:
                for called, port in itertools.product(selected(rule["to"]), rule["ports"]):
                    out.add((me, called, port_name(called, port["port"])))
            else:
                anywhere.setdefault(me, []).append([p["port"] for p in rule.get("ports", [])])
    # The pod of `helm test` tries what a proxy calls.
    assert into == EDGES | {("doctor", called, port) for caller, called, port in EDGES if caller == "proxy"}
    assert out == EDGES
    assert anywhere == {
        "proxy": [[53, 53], []],
        "authorize": [[53, 53], [443]],
        "authenticate": [[53, 53], [443]],
        "databroker": [[53, 53], [443], [5432]],
    }


def test_pinned_images_and_other_switches_arrive():
    chart = rendered(CHART / "ci/everything.yaml")
    deployments = chart.deployments()
    images = {name: container(d["spec"]["template"]["spec"])["image"] for name, d in deployments.items()}
    assert images["proxy"].startswith("registry.example.com/postern/postern-proxy@sha256:0123")
    assert images["authorize"] == "registry.example.com/postern/postern-authorize:1.2.3"
    assert "replicas" not in deployments["proxy"]["spec"] and deployments["databroker"]["spec"]["replicas"] == 3
    assert set(chart.of("HorizontalPodAutoscaler")) == {"access-proxy", "access-authorize"}
    pod = deployments["authenticate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "somebody" and "somebody" not in chart.of("ServiceAccount")
    assert [c["name"] for c in pod["containers"]] == ["postern", "beside"]
    secrets = {v["name"]: v["secret"] for v in pod["volumes"] if "secret" in v}
    assert {"key": "signing", "path": "signing-key"} in secrets["secrets"]["items"]
    assert secrets["identity-provider"]["items"] == [{"key": "oauth", "path": "client-secret"}]
    # Two certificates: only what faces browsers lists them.
    data = chart.of("ConfigMap")["access"]["data"]
    assert "certificates" not in yaml.safe_load(data["config.yaml"])
    assert [c["key"] for c in yaml.safe_load(data["front.yaml"])["certificates"]] == [
        "/run/secrets/certificates/0/tls.key",
        "/run/secrets/certificates/1/tls.key",
    ]
    assert chart.of("ServiceMonitor") and chart.of("PrometheusRule")["access"]["spec"]["groups"]
    assert len([name for name in chart.of("ConfigMap") if name.startswith("access-board-")]) == 4
    assert not chart.of("Job"), "both Secrets are given"


def changed(*arguments):
    """Kinds of the objects that differ from the split render when `arguments` are added."""
    values = CHART / "ci/split.yaml"
    before = {(i["kind"], i["metadata"]["name"]): i for i in rendered(values).items}
    after = {(i["kind"], i["metadata"]["name"]): i for i in Rendered(template("--values", values, *arguments)).items}
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def test_the_configuration_changes_without_a_rollout_where_it_can():
    assert changed("--set", "routes[0].from=https://other.example.com") == {("ConfigMap", "postern")}
    assert changed("--set", "config.log_level=debug") == {("ConfigMap", "postern")}
    pods = {("Deployment", f"postern-{service}") for service in SERVICES}
    assert changed("--set", "config.dns_refresh_rate=9s") == {("ConfigMap", "postern")}
    assert changed("--set", "config.metrics_certificate_file=/tls.crt") == {("ConfigMap", "postern")} | pods
    assert changed("--set", "authorize.replicas=9") == {("Deployment", "postern-authorize")}


def test_the_matrix_is_all_there():
    assert [path.stem for path in MATRIX] == ["all-in-one", "behind", "everything", "given", "split"]


def test_pods_are_rolled_out_only_for_what_running_ones_do_not_take_over():
    def marked(*settings):
        chart = Rendered(template("--values", CHART / "ci/split.yaml", *settings))
        pods = [deployment["spec"]["template"] for deployment in chart.deployments().values()]
        return {pod["metadata"]["annotations"]["postern.dev/restart-keys"] for pod in pods}

    before = marked()
    for followed in ["dns_query_tries=5", "override_certificate_name=x", "metrics_basic_auth=x", "log_level=debug"]:
        assert marked("--set", f"config.{followed}") == before, followed
    assert marked("--set", "config.metrics_certificate_file=/x") != before
