"""What `just release` adds to the programs: the SBOM tells what is in them, the Debian package brings
what the units and the documents expect."""

import json
import re
import stat
import sys
import tomllib

import pytest
from conftest import ROOT, SERVICES, run
from cyclonedx.schema import SchemaVersion
from cyclonedx.spdx import is_expression
from cyclonedx.validation.json import JsonStrictValidator

PROGRAMS = ["postern", *[f"postern-{service}" for service in SERVICES]]
AT = {"SOURCE_DATE_EPOCH": "1700000000", "POSTERN_REVISION": "0123456789abcdef0123456789abcdef01234567"}


@pytest.fixture
def at_a_commit(monkeypatch):
    for name, value in AT.items():
        monkeypatch.setenv(name, value)


def sbom():
    code, out, err = run(sys.executable, ROOT / "scripts/sbom.py", "x86_64-unknown-linux-gnu", *PROGRAMS)
    assert code == 0, err
    return out


def test_the_sbom_fits_its_schema_and_is_complete(at_a_commit):
    text = sbom()
    assert text == sbom(), "two runs differ"
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert error is None, error

    bom = json.loads(text)
    assert bom["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    parts = {part["name"]: part for part in bom["components"]}
    for name in [*PROGRAMS, "postern-policy", "tokio", "rustls", "aws-lc-sys", "rust-std"]:
        assert name in parts, name
    # Tests, benchmarks, what compiles them, what other systems need, and what no feature asks for.
    for name in ["postern-tests", "postern-bench", "proptest", "fantoccini", "protox", "windows-sys", "ring"]:
        assert name not in parts, name
    for name, part in parts.items():
        [license] = part["licenses"]
        assert is_expression(license["expression"]), f"{name}: {license}"
        crate = part.get("purl", "").startswith("pkg:cargo/") and "vcs_url" not in part["purl"]
        assert crate == ("hashes" in part), f"{name}: {part}"

    references = {part["bom-ref"] for part in bom["components"]} | {bom["metadata"]["component"]["bom-ref"]}
    edges = {edge["ref"]: edge["dependsOn"] for edge in bom["dependencies"]}
    assert set(edges) == references
    reached, next_ones = set(), [bom["metadata"]["component"]["bom-ref"]]
    while next_ones:
        reference = next_ones.pop()
        if reference not in reached:
            reached.add(reference)
            next_ones += edges[reference]
    assert reached == references


@pytest.fixture
def package(tmp_path, at_a_commit):
    """Of programs that are none: what is around them is looked at here."""
    for program in PROGRAMS:
        (tmp_path / program).write_text("#!/bin/sh\n")

    def make(folder):
        (tmp_path / folder).mkdir()
        code, out, err = run(ROOT / "scripts/deb.sh", tmp_path, "amd64", tmp_path / folder)
        assert code == 0, out + err
        return out.strip()

    return make


def test_every_program_is_stripped():
    """cargo strips only debug information of a program whose package has a profile of its own."""
    release = tomllib.loads((ROOT / "Cargo.toml").read_text())["profile"]["release"]
    assert release["strip"] == "symbols"
    for name, own in release["package"].items():
        if (ROOT / "crates" / name.removeprefix("postern-") / "src/main.rs").exists():
            assert own.get("strip") == "symbols", name


def test_the_debian_package_brings_what_the_units_expect(package, tmp_path):
    first, second = package("first"), package("second")
    with open(first, "rb") as one, open(second, "rb") as other:
        assert one.read() == other.read(), "two runs differ"

    listing = run("dpkg-deb", "--contents", first)[1]
    assert all(line.split()[1] == "root/root" for line in listing.splitlines()), listing
    root = tmp_path / "root"
    assert run("dpkg-deb", "--raw-extract", first, root)[0] == 0
    for program in PROGRAMS:
        assert stat.S_IMODE((root / "usr/bin" / program).stat().st_mode) == 0o755
        unit = (root / f"usr/lib/systemd/system/{program}.service").read_text()
        assert re.search(r"^ExecStart=(\S+)", unit, re.MULTILINE)[1] == f"/usr/bin/{program}"
        assert (root / f"usr/lib/systemd/system/{program}.socket").is_file()
    assert (root / "usr/lib/sysusers.d/postern.conf").is_file()
    assert (root / "usr/lib/tmpfiles.d/postern.conf").is_file()
    # /etc/postern is the host's own: nothing here may overwrite it, or ask about it.
    assert not (root / "etc").exists()
    control = (root / "DEBIAN/control").read_text()
    assert "Package: postern\n" in control and "Architecture: amd64\n" in control
    for script in ["postinst", "prerm", "postrm"]:
        assert stat.S_IMODE((root / "DEBIAN" / script).stat().st_mode) == 0o755
