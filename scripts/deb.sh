#!/usr/bin/env bash
# Packs programs, units and documents as a Debian package.
#   deb.sh BINARIES ARCHITECTURE FOLDER    of the static programs in BINARIES, into FOLDER; prints its name
# With SOURCE_DATE_EPOCH the same input gives the same package.
set -euo pipefail
binaries=$(realpath "$1") architecture=$2 folder=$(realpath "$3")
cd "$(dirname "$0")/.."
umask 022

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)-1
# What GitHub gives the owner of the repository. Nobody reads mail to it: `Homepage` says where to write.
maintainer="The Postern authors <postern-proxy@users.noreply.github.com>"
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH=$epoch
root=$(mktemp -d)
trap 'rm -r "$root"' EXIT
chmod 755 "$root"

# into FOLDER MODE FILE…
into() { install -D --mode="$2" --target-directory="$root/$1" "${@:3}"; }

into usr/bin 755 "$binaries"/postern{,-proxy,-authorize,-authenticate,-databroker}
into usr/lib/systemd/system 644 deploy/systemd/*.{service,socket}
install -D --mode=644 deploy/systemd/sysusers.conf "$root/usr/lib/sysusers.d/postern.conf"
install -D --mode=644 deploy/systemd/tmpfiles.conf "$root/usr/lib/tmpfiles.d/postern.conf"
into usr/share/doc/postern 644 README.md
gzip --no-name --best <CHANGELOG.md >"$root/usr/share/doc/postern/changelog.gz"
into usr/share/doc/postern/docs 644 docs/*.md
into usr/share/doc/postern/two-hosts 644 deploy/systemd/two-hosts/*
cat >"$root/usr/share/doc/postern/copyright" <<COPYRIGHT
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: Postern
Source: https://github.com/postern-proxy/postern

Files: *
Copyright: 2026 The Postern authors
License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.
COPYRIGHT
gzip --no-name --best >"$root/usr/share/doc/postern/changelog.Debian.gz" <<CHANGELOG
postern ($version) stable; urgency=medium

  * See changelog.gz.

 -- $maintainer  $(date --utc --rfc-email --date="@$epoch")
CHANGELOG
# On purpose: static, one program for every distribution and for the images; no Debian bug asked for it; its
# documents are not manual pages; restarts keep the sockets open, which no helper for packages does.
mkdir -p "$root/usr/share/lintian/overrides"
printf 'postern: %s\n' shared-library-lacks-prerequisites initial-upload-closes-no-bugs no-manual-page \
    maintainer-script-calls-systemctl >"$root/usr/share/lintian/overrides/postern"

size=$(du --summarize --apparent-size --block-size=1024 "$root" | cut -f1)
into DEBIAN 755 deploy/systemd/debian/*
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
# No conffiles: what is in /etc/postern is the host's own.
cat >"$root/DEBIAN/control" <<CONTROL
Package: postern
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Installed-Size: $size
Depends: procps, systemd
Recommends: ca-certificates
Section: net
Priority: optional
Homepage: https://github.com/postern-proxy/postern
Description: Identity-aware access proxy, compatible with Pomerium Core
 Decides for every request to internal web applications whether the person
 or program behind it may pass, and forwards it only then.
 .
 Services are installed and not started: there is no configuration yet.
CONTROL
dpkg-deb --root-owner-group --build "$root" "$folder/postern_${version}_$architecture.deb" >/dev/null
echo "$folder/postern_${version}_$architecture.deb"
