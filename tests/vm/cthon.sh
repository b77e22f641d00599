#!/bin/bash
# Builds Connectathon (cthon04) for the guest out of the checkout that TRIVET_CTHON names, static,
# in a copy. Usage: cthon.sh TARBALL
set -eu
: "${TRIVET_CTHON:?name a checkout of cthon04 (cthon-nfs-tests) in TRIVET_CTHON}"
out=$(realpath -m "$1"); T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
cp -r "$TRIVET_CTHON" "$T/cthon"; cd "$T/cthon"
# Its settings for Linux; what its age needs of a compiler of today.
cat >> tests.init <<'INIT'
CC=gcc
CFLAGS=`echo -DLINUX -DGLIBC=22 -DMMAP -DSTDARG -D_GNU_SOURCE -std=gnu89 -w -fcommon -static -O1 -include string.h -include stdlib.h -include unistd.h`
LIBS=
PATH=/bin:/sbin:/usr/bin:/usr/sbin:.
LOCKTESTS=`echo tlocklfs tlock64`
INIT
# `make` reads the same file as the shell does; a backquote is text to it, and a shell later.
for d in basic special lock; do make -C $d >"$T/log" 2>&1 || { tail -5 "$T/log"; exit 1; }; done
tar -C "$T" -cf "$out" cthon/tests.init cthon/basic cthon/special cthon/lock
