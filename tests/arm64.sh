#!/usr/bin/env bash
# The package for arm64, made here by Debian's cross compiler: what it says of itself, lintian, and
# regions that the two architectures write and read for each other, by QEMU's user emulation.
# Usage: arm64.sh TRIVET (a build for this machine).
set -euo pipefail
say() { echo "arm64: $*"; }
for tool in aarch64-linux-gnu-gcc qemu-aarch64 lintian; do
  command -v $tool >/dev/null || {
    say "skipped: needs $tool (gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user lintian)"
    exit 77
  }
done
fail() { say "FAILED: $*"; exit 1; }
native=$(realpath "$1")
cd "$(dirname "$0")/.."
work=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-arm64.XXXXXX")
trap 'rm -rf "$work"' EXIT
package=$(deploy/deb/cross arm64)
[ "$(dpkg-deb -f "$package" Architecture)" = arm64 ] || fail "its architecture"
say "$(stat -c %s "$package") bytes; $(dpkg-deb -f "$package" Depends)"
lintian --allow-root --fail-on error,warning,info "$package"
say "lintian: nothing to say"
dpkg-deb -x "$package" "$work/unpacked"
there() { qemu-aarch64 -L /usr/aarch64-linux-gnu "$work/unpacked/usr/bin/trivet" "$@"; }
here() { "$native" "$@"; }
there --version
cd "$work"
head -c 20004864 /dev/urandom >raw
for way in "there here" "here there"; do
  read -r writes reads <<<"$way"
  rm -rf region back
  $writes region import raw region >said
  for reader in "$writes" "$reads"; do
    $reader region verify region >said || { cat said; fail "verify $reader what $writes wrote"; }
  done
  $reads region export region back >said
  cmp raw back || fail "$reads reads otherwise what $writes wrote"
done
say "regions of either architecture are verified and read by both"
