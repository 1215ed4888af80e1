"""As much of the Kubernetes API as Helm needs to install and upgrade: it stores objects and gives
them back. A Job has succeeded as soon as it is made; `on_job` does what its pod would have done."""

import base64
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import yaml

# group/version → [(plural, kind)]
KINDS = {
    "v1": [
        ("configmaps", "ConfigMap"),
        ("namespaces", "Namespace"),
        ("pods", "Pod"),
        ("secrets", "Secret"),
        ("serviceaccounts", "ServiceAccount"),
        ("services", "Service"),
    ],
    "apps/v1": [("deployments", "Deployment"), ("replicasets", "ReplicaSet")],
    "autoscaling/v2": [("horizontalpodautoscalers", "HorizontalPodAutoscaler")],
    "batch/v1": [("jobs", "Job")],
    "networking.k8s.io/v1": [("networkpolicies", "NetworkPolicy")],
    "policy/v1": [("poddisruptionbudgets", "PodDisruptionBudget")],
    "rbac.authorization.k8s.io/v1": [("roles", "Role"), ("rolebindings", "RoleBinding")],
}
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


PROTOBUF = b"k8s\0"


def fields(message):
    """The length-delimited fields of a protobuf message, as (number, bytes)."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = varint()
        size = varint()
        if tag & 7 == 2:
            yield tag >> 3, message[at : at + size]
            at += size


def secret_of_protobuf(body):
    """Helm writes its releases, which are Secrets, in protobuf; it reads JSON as well."""
    raw = next(value for number, value in fields(body[len(PROTOBUF) :]) if number == 2)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"labels": {}}, "data": {}}
    for number, value in fields(raw):
        if number == 1:
            for part, content in fields(value):
                if part == 1:
                    secret["metadata"]["name"] = content.decode()
                elif part == 11:
                    pair = dict(fields(content))
                    secret["metadata"]["labels"][pair[1].decode()] = pair[2].decode()
        elif number == 2:
            pair = dict(fields(value))
            secret["data"][pair[1].decode()] = base64.b64encode(pair[2]).decode()
        elif number == 3:
            secret["type"] = value.decode()
    return secret


class Cluster:
    """Objects by path, such as /api/v1/namespaces/access/secrets/mine."""

    def __init__(self, on_job=lambda cluster, job: None, host="127.0.0.1", certificate=None):
        self.objects = {}
        self.version = 0
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.changes = []
        self.on_job = on_job
        handler = type("Handler", (Handler,), {"cluster": self})
        self.server = ThreadingHTTPServer((host, 0), handler)
        self.server.daemon_threads = True
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://{host}:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def put(self, path, item):
        with self.lock:
            self.version += 1
            item.setdefault("metadata", {})
            item["metadata"].setdefault("uid", f"uid-{self.version}")
            item["metadata"].setdefault("creationTimestamp", "2025-01-01T00:00:00Z")
            item["metadata"]["resourceVersion"] = str(self.version)
            if item.get("kind") == "Job":
                item["status"] = {
                    "succeeded": 1,
                    "conditions": [{"type": "Complete", "status": "True"}],
                }
                self.on_job(self, item)
            self.tell(path, "MODIFIED" if path in self.objects else "ADDED", item)
            self.objects[path] = item
            return item

    def remove(self, path):
        with self.lock:
            item = self.objects.pop(path, None)
            if item is not None:
                self.version += 1
                item["metadata"]["resourceVersion"] = str(self.version)
                self.tell(path, "DELETED", item)
            return item

    def tell(self, path, type_, item):
        self.changes.append((path.rsplit("/", 1)[0], type_, item))
        self.changed.notify_all()

    def namespaced(self, namespace, plural, name):
        return self.objects.get(f"/api/v1/namespaces/{namespace}/{plural}/{name}")

    def make(self, namespace, plural, kind, name, **rest):
        path = f"/api/v1/namespaces/{namespace}/{plural}/{name}"
        metadata = {"name": name, "namespace": namespace}
        return self.put(path, {"apiVersion": "v1", "kind": kind, "metadata": metadata, **rest})


def merge(old, new):
    """JSON merge patch, which is as much of an apply as this takes."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    result = dict(old)
    for key, value in new.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster = None

    def log_message(self, *_):
        pass

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def failure(self, status, reason):
        text = f"{self.path}: {reason}"
        self.answer(
            {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": text, "reason": reason, "code": status},
            status,
        )

    def body(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if body.startswith(PROTOBUF):
            return secret_of_protobuf(body)
        return yaml.safe_load(body) or {}

    def discovery(self, path):
        if path == "/version":
            return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = []
            for version in KINDS:
                if "/" in version:
                    entry = {"groupVersion": version, "version": version.split("/")[1]}
                    groups.append({"name": version.split("/")[0], "versions": [entry], "preferredVersion": entry})
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        # Says of every kind that the server checks fields itself, so that Helm does not.
        if path == "/openapi/v3":
            places = {("api/" if v == "v1" else "apis/") + v: v for v in KINDS}
            return {"paths": {p: {"serverRelativeURL": f"/openapi/v3/{v}"} for p, v in places.items()}}
        if path.startswith("/openapi/v3/"):
            version = path.removeprefix("/openapi/v3/")
            group, _, number = version.rpartition("/")
            paths = {
                f"/{plural}/{{name}}": {
                    "patch": {
                        "parameters": [{"name": "fieldValidation", "in": "query"}],
                        "responses": {},
                        "x-kubernetes-group-version-kind": {"group": group, "version": number, "kind": kind},
                    }
                }
                for plural, kind in KINDS[version]
            }
            return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "1"}, "paths": paths}
        for version, kinds in KINDS.items():
            if path == ("/api/v1" if version == "v1" else f"/apis/{version}"):
                resources = [
                    {"name": plural, "singularName": "", "namespaced": kind != "Namespace", "kind": kind, "verbs": VERBS}
                    for plural, kind in kinds
                ]
                return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
        return None

    def do_GET(self):
        url = urlparse(self.path)
        query = parse_qs(url.query)
        found = self.discovery(url.path)
        if found is not None:
            return self.answer(found)
        if url.path in self.cluster.objects:
            return self.answer(self.cluster.objects[url.path])
        plural = url.path.rsplit("/", 1)[1]
        known = ((k, version) for version, kinds in KINDS.items() for p, k in kinds if p == plural)
        kind, version = next(known, (None, None))
        if kind is None:
            return self.failure(404, "NotFound")
        with self.cluster.lock:
            items = [item for path, item in self.cluster.objects.items() if path.rsplit("/", 1)[0] == url.path]
        for wanted in query.get("labelSelector", [""])[0].split(","):
            key, _, value = wanted.partition("=")
            if value:
                items = [i for i in items if i["metadata"].get("labels", {}).get(key) == value]
        for wanted in query.get("fieldSelector", [""])[0].split(","):
            if wanted.startswith("metadata.name="):
                items = [i for i in items if i["metadata"]["name"] == wanted.partition("=")[2]]
        if "true" in query.get("watch", []):
            return self.watch(url.path, kind, version, items if "sendInitialEvents" in query else [])
        metadata = {"resourceVersion": str(self.cluster.version)}
        return self.answer({"kind": f"{kind}List", "apiVersion": version, "metadata": metadata, "items": items})

    def watch(self, collection, kind, version, items):
        """Until the client goes: what is there, a mark that this was all, and what changes."""
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("connection", "close")
        self.end_headers()
        metadata = {"resourceVersion": str(self.cluster.version), "annotations": {"k8s.io/initial-events-end": "true"}}
        events = [("ADDED", item) for item in items]
        events.append(("BOOKMARK", {"kind": kind, "apiVersion": version, "metadata": metadata}))
        seen = len(self.cluster.changes)
        try:
            while True:
                for type_, item in events:
                    self.wfile.write(json.dumps({"type": type_, "object": item}).encode() + b"\n")
                self.wfile.flush()
                with self.cluster.changed:
                    self.cluster.changed.wait_for(lambda: len(self.cluster.changes) > seen, timeout=1)
                    news = self.cluster.changes[seen:]
                    seen += len(news)
                events = [(type_, item) for path, type_, item in news if path == collection]
        except OSError:
            self.close_connection = True

    def do_POST(self):
        path = urlparse(self.path).path
        item = self.body()
        path = f"{path}/{item['metadata']['name']}"
        if path in self.cluster.objects:
            return self.failure(409, "AlreadyExists")
        return self.answer(self.cluster.put(path, item), 201)

    def do_PATCH(self):
        path = urlparse(self.path).path
        old = self.cluster.objects.get(path)
        if old is None and "apply" not in self.headers.get("content-type", ""):
            return self.failure(404, "NotFound")
        return self.answer(self.cluster.put(path, merge(old or {}, self.body())), 200 if old else 201)

    def do_PUT(self):
        return self.answer(self.cluster.put(urlparse(self.path).path, self.body()))

    def do_DELETE(self):
        path = urlparse(self.path).path
        self.body()
        if self.cluster.remove(path) is None:
            return self.failure(404, "NotFound")
        return self.answer({"kind": "Status", "apiVersion": "v1", "status": "Success"})
