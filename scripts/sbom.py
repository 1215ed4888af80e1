#!/usr/bin/env python3
"""Writes what is in the programs of a release to standard output: a CycloneDX SBOM, from Cargo.lock and
what cargo makes of it for one target. The same commit gives the same bytes.

    sbom.py TARGET PROGRAM…"""

import json
import os
import subprocess
import sys
import tomllib
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


class Package(NamedTuple):
    name: str
    version: str
    ours: bool
    license: str
    repository: str

    def purl(self, revision):
        """Ours are on no registry, and a package of the same name there would be somebody else's."""
        name = f"pkg:cargo/{self.name}@{self.version.replace('+', '%2B')}"
        return f"{name}?vcs_url=git%2B{self.repository}%40{revision}" if self.ours else name


def tree(target):
    """What each package has compiled into it, as `cargo build --workspace` resolves it; macros included,
    build scripts and tests left out. (`cargo metadata` also names what no feature asks for.)"""
    form = "|{p}|{l}|{r}|"
    depends_on, above = {}, []
    # A subtree is printed once; later ones are only named.
    arguments = ["--workspace", "--locked", "--target", target, "--edges", "normal", "--prefix", "depth", "--format", form]
    for line in filter(None, output("cargo", "tree", *arguments).splitlines()):
        depth, package, license, repository, _ = line.split("|")
        name, version, *rest = package.split()
        path = any(word.startswith(f"({ROOT}") for word in rest)
        package = Package(name, version.removeprefix("v"), path, license, repository)
        above = [*above[: int(depth)], package]
        depends_on.setdefault(package, set())
        if len(above) > 1:
            depends_on[above[-2]].add(package)
    return depends_on


def below(depends_on, roots):
    found, next_ones = set(), list(roots)
    while next_ones:
        package = next_ones.pop()
        if package not in found:
            found.add(package)
            next_ones += depends_on[package]
    return found


def component(package, reference, checksum):
    # Before SPDX expressions there was a slash.
    expression = " OR ".join(part.strip() for part in package.license.split("/"))
    described = {
        "type": "library",
        "bom-ref": reference,
        "name": package.name,
        "version": package.version,
        "licenses": [{"expression": expression}],
        "purl": reference,
    }
    if checksum:
        described["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package.repository:
        described["externalReferences"] = [{"type": "vcs", "url": package.repository}]
    return described


def toolchain(target):
    """What the linker adds that Cargo knows nothing of: Rust's standard library, and the C library of a
    machine that builds for itself."""
    rustc = dict(line.split(": ", 1) for line in output("rustc", "-vV").splitlines()[1:])
    added = [("rust-std", rustc["release"], "MIT OR Apache-2.0")]
    if target == rustc["host"] and target.endswith("-gnu"):
        name, version = output("getconf", "GNU_LIBC_VERSION").split()
        added.append((name, version, "LGPL-2.1-or-later"))
    return [
        {"type": "library", "bom-ref": f"{name}@{version}", "name": name, "version": version, "licenses": [{"expression": license}]}
        for name, version, license in added
    ]


def sbom(target, programs):
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(package["name"], package["version"]): package.get("checksum") for package in lock["package"]}
    revision = os.environ.get("POSTERN_REVISION") or output("git", "rev-parse", "HEAD")
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or output("git", "log", "-1", "--format=%ct"))

    depends_on = tree(target)
    roots = [package for package in depends_on if package.ours and package.name in programs]
    assert len(roots) == len(programs), f"not all of {programs} are packages of this workspace"
    reference = {package: package.purl(revision) for package in below(depends_on, roots)}
    linked = toolchain(target)
    postern = roots[0]
    release = f"postern-{postern.version}-{target}"

    edges = {release: [reference[package] for package in roots] + [each["bom-ref"] for each in linked]}
    edges |= {reference[package]: [reference[other] for other in depends_on[package]] for package in reference}
    edges |= {each["bom-ref"]: [] for each in linked}
    components = linked + [
        component(package, reference[package], checksums.get((package.name, package.version))) for package in reference
    ]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"{postern.repository}@{revision}/{release}").urn,
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [{"type": "application", "name": "sbom.py", "version": postern.version}]},
            "component": {
                "type": "application",
                "bom-ref": release,
                "name": "postern",
                "version": postern.version,
                "licenses": [{"expression": postern.license}],
                "externalReferences": [{"type": "vcs", "url": postern.repository}],
            },
        },
        "components": sorted(components, key=lambda each: each["bom-ref"]),
        "dependencies": [{"ref": each, "dependsOn": sorted(others)} for each, others in sorted(edges.items())],
    }


if __name__ == "__main__":
    _, target, *programs = sys.argv
    print(json.dumps(sbom(target, programs), indent=2))
