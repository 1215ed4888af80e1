"""The rendered split deployment, run: its pods become containers on a Docker engine, as they are in
their images, arguments, environment, mounts, users and probes, with the names of the headless
Services as aliases. Somebody signs in, one of each dies, and all are replaced one after another."""

import base64
import json
import secrets
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import CHART, POSTERN, SERVICES, Rendered, container, env, run, template
from engine import RUN, Load, Names, Person, address, docker, needed, until

NETWORK = f"postern-chart-{RUN}"
LABEL = f"postern-test=chart-{RUN}"
SITE = "https://app.corp.test/get"
VALUES = {
    "image": {"registry": "postern", "tag": "latest"},
    "config": {
        "authenticate_service_url": "https://authenticate.corp.test",
        "idp_provider": "oidc",
        "idp_provider_url": "https://idp.corp.test:9443",
        "idp_client_id": "postern-demo",
    },
    "routes": [
        {
            "from": "https://app.corp.test",
            "to": "https://upstream.corp.test:8443",
            "allow_any_authenticated_user": True,
            "pass_identity_headers": True,
        }
    ],
    "identityProvider": {"existingSecret": "provider"},
    "storage": {"postgres": {"existingSecret": "postgres"}},
    "certificates": {"existingSecrets": ["certificate"]},
}
BALANCER = """
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    retries 3
    option redispatch 1
resolvers docker
    nameserver dns 127.0.0.11:53
    accepted_payload_size 8192
    timeout resolve 500ms
    timeout retry 500ms
    hold valid 1s
    # An address that has left the name may be another pod's a moment later, which is healthy, too.
    hold obsolete 0s
listen https
    bind :443
    balance leastconn
    # What a Service does by the readiness probe.
    option httpchk GET /readyz
    default-server check port 28080 inter 500ms fall 2 rise 1 resolvers docker init-addr none
    server-template pod 10 HOST:8443
"""


class Deployment:
    def __init__(self, directory):
        self.directory = directory
        self.number = 0
        self.chart = Rendered(template("--values", self.write("values.yaml", json.dumps(VALUES))))
        self.pods = {name: pod for name, _, pod in self.chart.pods() if not name.endswith("make-secrets")}
        self.running = {service: [] for service in SERVICES}
        self.mounted = self.mount_all()

    def write(self, name, text):
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def certificate(self, name, hosts):
        code, out, err = run(POSTERN, "demo", "certificates", self.directory / name, *hosts)
        assert code == 0, out + err
        read = lambda file: (self.directory / name / file).read_text()  # noqa: E731
        return {"tls.crt": read("certificate.pem"), "tls.key": read("certificate-key.pem"), "ca.crt": read("ca.pem")}

    def mount_all(self):
        """A directory for each Secret and ConfigMap, as the kubelet would mount it."""
        public = self.certificate("public", ["*.corp.test"])
        job = container(next(iter(self.chart.of("Job").values()))["spec"]["template"]["spec"])
        hosts = [a.removeprefix("--host=") for a in job["args"] if a.startswith("--host=")]
        internal = self.certificate("internal", hosts)
        # The provider and the application show the public certificate, so its issuer is trusted, too.
        self.authority = self.directory / "public/ca.pem"
        random = lambda: base64.b64encode(secrets.token_bytes(32)).decode()  # noqa: E731
        password = secrets.token_urlsafe(16)
        self.write("password", password)
        return {
            "postern": dict(self.chart.of("ConfigMap")["postern"]["data"]),
            "postern-secrets": {"shared-secret": random(), "cookie-secret": random()},
            "postern-internal-tls": internal | {"ca.crt": internal["ca.crt"] + public["ca.crt"]},
            "provider": {"client-secret": "only-for-the-demo"},
            "postgres": {"connection-string": f"postgres://postern:{password}@postgres/postern?sslmode=disable"},
            "certificate": {key: public[key] for key in ["tls.crt", "tls.key"]},
        }

    def mounts(self, service):
        pod = self.pods[service]
        for mount in container(pod)["volumeMounts"]:
            volume = next(v for v in pod["volumes"] if v["name"] == mount["name"])
            if "configMap" in volume:
                content, items = self.mounted[volume["configMap"]["name"]], None
            else:
                content, items = self.mounted[volume["secret"]["secretName"]], volume["secret"].get("items")
            items = items or [{"key": key, "path": key} for key in content]
            place = self.directory / "mounts" / service / mount["name"]
            for item in items:
                self.write(f"mounts/{service}/{mount['name']}/{item['path']}", content[item["key"]])
            yield f"--volume={place}:{mount['mountPath']}:ro"

    def run(self, name, image, *arguments, alias=(), options=()):
        aliases = [f"--network-alias={name}" for name in alias]
        common = ["--detach", f"--name={NETWORK}-{name}", f"--label={LABEL}", f"--network={NETWORK}"]
        return docker("run", *common, *aliases, *options, image, *arguments)

    def options(self, name):
        """What a pod gives its container, beside image and arguments."""
        pod = self.pods[name]
        security = pod["securityContext"]
        options = [f"--env={key}={value}" for key, value in env(pod).items()]
        options += [f"--user={security['runAsUser']}:{security['runAsGroup']}", "--read-only", "--cap-drop=ALL"]
        return [*options, "--security-opt=no-new-privileges", *self.mounts(name)]

    def start(self, service):
        """One pod more; returns when its startup and readiness probes have succeeded."""
        own = container(self.pods[service])
        name = f"postern-{service}"
        host = f"{name}.access.svc.cluster.local"
        options = self.options(service)
        self.number += 1
        alias = [host, name] if service != "proxy" else [name]
        id = self.run(f"{service}-{self.number}", own["image"], *own["args"], alias=alias, options=options)
        self.running[service].append(id)
        for probe in ["startupProbe", "readinessProbe"]:
            until(f"{service}: {probe}", lambda probe=probe: self.probe(id, own, probe), 90)
        return id

    def probe(self, id, own, probe):
        get = own[probe]["httpGet"]
        port = next(p["containerPort"] for p in own["ports"] if p["name"] == get["port"])
        state = docker("inspect", "--format", "{{.State.Status}}", id)
        assert state == "running", docker("logs", "--tail", "20", id)
        try:
            url = f"http://{address(id, NETWORK)}:{port}{get['path']}"
            return urllib.request.urlopen(url, timeout=2).status == 200
        except OSError:
            return False

    def helm_test(self):
        """The pod of `helm test`, to its end; gives what it says."""
        [name] = self.chart.of("Pod")
        own = container(self.pods[name])
        return docker("run", "--rm", f"--network={NETWORK}", *self.options(name), own["image"], *own["args"])

    def end(self, service, id):
        """As the kubelet ends a pod."""
        grace = self.pods[service]["terminationGracePeriodSeconds"]
        docker("stop", "--time", str(grace), id)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", id) == "0"
        docker("rm", id)
        self.running[service].remove(id)

    def surroundings(self):
        """What Postern needs and the chart does not bring: provider, application, Postgres, a balancer."""
        public = self.directory / "mounts/proxy/certificate-0"
        list(self.mounts("proxy"))
        pem = [f"--volume={public}:/t:ro", f"--volume={self.authority}:/ca.pem:ro"]
        files = ["--certificate-file=/t/tls.crt", "--certificate-key-file=/t/tls.key"]
        password = [f"--volume={self.directory}/password:/password:ro"]
        for key, value in {"USER": "postern", "DB": "postern", "PASSWORD_FILE": "/password"}.items():
            password.append(f"--env=POSTGRES_{key}={value}")
        self.run("postgres", "postern-local/postgres", alias=["postgres"], options=password)
        balancer = self.write("balancer/haproxy.cfg", BALANCER.replace("HOST", "postern-proxy"))
        front = self.run(
            *["balancer", "postern-local/haproxy"],
            alias=["app.corp.test", "authenticate.corp.test"],
            options=[f"--volume={balancer}:/usr/local/etc/haproxy/haproxy.cfg:ro"],
        )
        provider = self.run(
            *["idp", "postern/postern:latest", "demo", "provider", "--address=:9443"],
            *["--issuer=https://idp.corp.test:9443", *files],
            alias=["idp.corp.test"],
            options=["--no-healthcheck", *pem],
        )
        self.run(
            *["upstream", "postern/postern:latest", "demo", "upstream", "--address=:8443"],
            *["--public-url=https://app.corp.test", "--authority-file=/ca.pem", *files],
            alias=["upstream.corp.test"],
            options=["--no-healthcheck", *pem],
        )
        return {
            "app.corp.test": address(front, NETWORK),
            "authenticate.corp.test": address(front, NETWORK),
            "idp.corp.test": address(provider, NETWORK),
        }


def clean():
    for id in docker("ps", "--all", "--quiet", "--filter", f"label={LABEL}").split():
        docker("rm", "--force", "--volumes", id)
    docker("network", "rm", NETWORK)


@pytest.fixture
def deployment(tmp_path, monkeypatch):
    needed()
    docker("network", "create", NETWORK)
    try:
        deployment = Deployment(tmp_path)
        Names(monkeypatch, deployment.surroundings())
        for service in ["databroker", "authorize", "authenticate", "proxy"]:
            for _ in range(deployment.chart.deployments()[service]["spec"]["replicas"]):
                deployment.start(service)
        yield deployment
    finally:
        clean()


def test_the_rendered_deployment_survives_kills_and_rollouts(deployment):
    ann = Person(deployment.authority)
    greeted = until("the balancer to find the proxies", lambda: signed_in(ann))
    assert "Hello, Ann" in greeted.text, greeted.text

    said = deployment.helm_test()
    assert ": 0 errors, 0 warnings, " in said, said

    for service in SERVICES:
        with Load(ann, SITE, again=service == "proxy") as load:
            victim = deployment.running[service].pop(0)
            docker("kill", victim)
            docker("rm", victim)
            load.goes_on()
            deployment.start(service)
            load.goes_on()
        assert set(load.outcomes) == {200}, f"killed {service}: {load.outcomes}"

    # maxUnavailable: 0, maxSurge: 1.
    for service in SERVICES:
        with Load(ann, SITE) as load:
            with ThreadPoolExecutor() as pool:
                endings = []
                # As a ReplicaSet does: the next one starts while the one before drains.
                for old in list(deployment.running[service]):
                    deployment.start(service)
                    endings.append(pool.submit(deployment.end, service, old))
                for ending in endings:
                    ending.result()
            load.goes_on()
        assert set(load.outcomes) == {200}, f"rolled out {service}: {load.outcomes}"

    assert "Hello, Bob" in Person(deployment.authority).sign_in(SITE, "bob").text


def signed_in(person):
    try:
        return person.sign_in(SITE)
    except OSError:
        return None
