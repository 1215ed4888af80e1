"""A client of databroker that this project did not write: grpcio, with stubs that protoc made from /proto.

usage: databroker_client.py ADDRESS SHARED_SECRET PROTO_DIRECTORY
Exits with 0 when everything is as existing clients expect it.
"""

import base64
import hashlib
import hmac
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc
import grpc_tools
from google.protobuf import any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2
from grpc_tools import protoc

address, secret, protos = sys.argv[1:]
key = base64.b64decode(secret)

out = tempfile.mkdtemp()
included = Path(grpc_tools.__file__).parent / "_proto"
made = protoc.main([
    "protoc", f"-I{protos}", f"-I{included}", f"--python_out={out}", f"--grpc_python_out={out}",
    *(f"{protos}/{name}/{name}.proto" for name in ("databroker", "session", "user")),
])
assert made == 0, "protoc failed"
sys.path.insert(0, out)
from databroker import databroker_pb2 as db  # noqa: E402
from databroker import databroker_pb2_grpc as db_grpc  # noqa: E402
from session import session_pb2  # noqa: E402

SESSION = "type.googleapis.com/session.Session"


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def token(claims=None):
    """Signed as Pomerium's services do it: good for an hour."""
    header = base64url(b'{"alg":"HS256","typ":"JWT"}')
    payload = base64url(json.dumps(claims or {"exp": int(time.time()) + 3600}).encode())
    message = header + b"." + payload
    return (message + b"." + base64url(hmac.new(key, message, hashlib.sha256).digest())).decode()


def metadata(**claims):
    return (("jwt", token(claims)),)


stub = db_grpc.DataBrokerServiceStub(grpc.insecure_channel(address))


def call(method, request, **options):
    return getattr(stub, method)(request, metadata=metadata(), timeout=20, wait_for_ready=True, **options)


def fails(code, method, request, with_metadata=None):
    try:
        answer = getattr(stub, method)(request, metadata=with_metadata or metadata(), timeout=20)
        if hasattr(answer, "__next__"):
            next(answer)
    except grpc.RpcError as error:
        assert error.code() == code, f"{method}: {error.code()}, wanted {code}: {error.details()}"
    else:
        raise AssertionError(f"{method} should fail with {code}")


def record(kind, id, message=None):
    data = any_pb2.Any()
    if message is not None:
        data.Pack(message)
    return db.Record(type=kind, id=id, data=data)


def session(id, user):
    return record(SESSION, id, session_pb2.Session(id=id, user_id=user))


def put(*records):
    return list(call("Put", db.PutRequest(records=records)).records)


# The first call waits for the storage.
deadline = time.time() + 30
while True:
    try:
        first = call("ServerInfo", empty_pb2.Empty())
        break
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE and time.time() < deadline, error
        time.sleep(0.1)
assert first.server_version != 0

# Tokens.
fails(grpc.StatusCode.UNAUTHENTICATED, "Get", db.GetRequest(type="t", id="x"), (("x", "y"),))
session_like = metadata(exp=int(time.time()) + 60, sub="ann")
fails(grpc.StatusCode.UNAUTHENTICATED, "Get", db.GetRequest(type="t", id="x"), session_like)
fails(grpc.StatusCode.UNAUTHENTICATED, "Get", db.GetRequest(type="t", id="x"), metadata(exp=int(time.time()) - 5))

# Put, Get, delete.
fails(grpc.StatusCode.NOT_FOUND, "Get", db.GetRequest(type=SESSION, id="s1"))
written = put(session("s1", "ann"), session("s2", "bob"))
assert [it.id for it in written] == ["s1", "s2"] and written[0].version < written[1].version
got = call("Get", db.GetRequest(type=SESSION, id="s1")).record
assert got == written[0], (got, written[0])
unpacked = session_pb2.Session()
assert got.data.Unpack(unpacked) and unpacked.user_id == "ann"
assert abs(got.modified_at.ToSeconds() - time.time()) < 60

# A payload whose type nobody here knows passes through byte for byte.
unknown = any_pb2.Any(type_url="type.googleapis.com/unknown.Thing", value=b"\xff\x00\x01")
put(db.Record(type="unknown.Thing", id="u", data=unknown))
assert call("Get", db.GetRequest(type="unknown.Thing", id="u")).record.data == unknown
assert list(call("ListTypes", empty_pb2.Empty()).types) == sorted([SESSION, "unknown.Thing"])

# Patch keeps what it does not name, unknown fields included.
data = any_pb2.Any(type_url=SESSION, value=session_pb2.Session(id="s1", user_id="ann").SerializeToString() + b"\xc2\x3e\x03new")
put(db.Record(type=SESSION, id="s1", data=data))
mask = field_mask_pb2.FieldMask(paths=["user_id"])
patched = call("Patch", db.PatchRequest(records=[session("s1", "cy"), session("none", "x")], field_mask=mask)).records
assert len(patched) == 1 and b"\xc2\x3e\x03new" in patched[0].data.value
assert session_pb2.Session.FromString(patched[0].data.value).user_id == "cy"
wrong = field_mask_pb2.FieldMask(paths=["nope"])
fails(grpc.StatusCode.INVALID_ARGUMENT, "Patch", db.PatchRequest(records=[session("s1", "x")], field_mask=wrong))

# Query.
everything = call("Query", db.QueryRequest(type=SESSION, limit=10))
assert [it.id for it in everything.records] == ["s1", "s2"] and everything.total_count == 2
assert everything.server_version == first.server_version
assert len(call("Query", db.QueryRequest(type=SESSION)).records) == 0
assert [it.id for it in call("Query", db.QueryRequest(type=SESSION, query="BOB", limit=10)).records] == ["s2"]
filter = struct_pb2.Struct()
filter.update({"$or": [{"id": "s2"}, {"$index": "s2"}]})
assert [it.id for it in call("Query", db.QueryRequest(type=SESSION, filter=filter, limit=1)).records] == ["s2"]
fails(grpc.StatusCode.INVALID_ARGUMENT, "Query", db.QueryRequest(type=SESSION, limit=-1))

# Options.
fails(grpc.StatusCode.NOT_FOUND, "GetOptions", db.GetOptionsRequest(type="capped"))
capped = db.Options(capacity=1)
assert call("SetOptions", db.SetOptionsRequest(type="capped", options=capped)).options == capped
assert call("GetOptions", db.GetOptionsRequest(type="capped")).options == capped

# Leases.
half_a_minute = duration_pb2.Duration(seconds=30)
lease = call("AcquireLease", db.AcquireLeaseRequest(name="l", duration=half_a_minute)).id
fails(grpc.StatusCode.ALREADY_EXISTS, "AcquireLease", db.AcquireLeaseRequest(name="l", duration=half_a_minute))
call("RenewLease", db.RenewLeaseRequest(name="l", id=lease, duration=half_a_minute))
fails(grpc.StatusCode.ALREADY_EXISTS, "RenewLease", db.RenewLeaseRequest(name="l", id="x", duration=half_a_minute))
call("ReleaseLease", db.ReleaseLeaseRequest(name="l", id=lease))
call("RenewLease", db.RenewLeaseRequest(name="l", id="x", duration=half_a_minute))

# SyncLatest, then Sync from where it ended.
messages = list(call("SyncLatest", db.SyncLatestRequest(type=SESSION)))
assert [it.WhichOneof("response") for it in messages[:2]] == ["record", "record"]
versions = messages[-1].versions
assert versions.server_version == first.server_version
stream = stub.Sync(
    db.SyncRequest(server_version=versions.server_version, record_version=versions.latest_record_version),
    metadata=metadata(),
)
seen = []


def read():
    try:
        for message in stream:
            if message.WhichOneof("response") == "record":
                seen.append(message.record)
    except grpc.RpcError as error:
        seen.append(error)


reader = threading.Thread(target=read, daemon=True)
reader.start()
put(record("capped", "a"))
put(record("capped", "b"))
put(db.Record(type=SESSION, id="s2", deleted_at=timestamp_pb2.Timestamp(seconds=1)))


def until(condition):
    end = time.time() + 20
    while not condition():
        assert time.time() < end, seen
        time.sleep(0.01)


until(lambda: len(seen) >= 4)
changes = [(it.id, it.HasField("deleted_at")) for it in seen[:4]]
# The eviction is a change as well.
assert changes == [("a", False), ("b", False), ("a", True), ("s2", True)], changes
assert [it.version for it in seen] == sorted({it.version for it in seen})

# Another data set: everybody starts again.
fails(grpc.StatusCode.ABORTED, "Sync", db.SyncRequest(server_version=versions.server_version ^ 1))
cleared = call("Clear", empty_pb2.Empty())
assert cleared.old_server_version == first.server_version != cleared.new_server_version
until(lambda: isinstance(seen[-1], grpc.RpcError))
assert seen[-1].code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED), seen[-1]
assert list(call("ListTypes", empty_pb2.Empty()).types) == []
print("ok")
