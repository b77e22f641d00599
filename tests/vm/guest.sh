#!/bin/bash
# Runs a shell script inside a real Linux NFS client (qemu without KVM: it works everywhere).
# Usage: guest.sh DIR NAME IP/PREFIX TAP SERVER LOCKS SECONDS JOB [FILE...]
# The script's output is this command's, its status too; 124 after SECONDS, 126 if the guest died.
# DIR was made by prepare.sh, TAP exists. FILEs are found in /job in the guest, which is in PATH.
# What is written to the pipe $CONTROL.in, if CONTROL is set, the job reads from the port `control`.
# DISK is a file that the guest has as /dev/vda; PIDFILE gets QEMU's process id.
# Of this environment the guest gets SEED, SEEDS, STEPS, OPS, and what VARS says (lines NAME=VALUE).
set -u
D=$1 NAME=$2 IP=$3 TAP=$4 SERVER=$5 LOCKS=$6 SECS=$7 JOB=$8; shift 8
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; mkdir -p "$T/x/job"
cp "$JOB" "$T/x/job/job.sh"; for f in "$@"; do cp "$f" "$T/x/job/"; done
printf 'NAME=%s\nIP=%s\nSERVER=%s\nLOCKS=%s\n' "$NAME" "$IP" "$SERVER" "$LOCKS" > "$T/x/job/env"
for v in SEED SEEDS STEPS OPS; do [ -z "${!v:-}" ] || echo "export $v=${!v}"; done >> "$T/x/job/env"
[ -z "${VARS:-}" ] || sed 's/^/export /' <<< "$VARS" >> "$T/x/job/env"
(cd "$T/x" && find . | cpio -o -H newc --quiet) > "$T/job.cpio"
# The kernel takes archives one after another if each starts on a 4-byte boundary.
cat "$D/base.cpio" "$T/job.cpio" > "$T/initrd"; : > "$T/status"
mac=52:54:00:$(printf '%s' "$NAME" | cksum | awk '{printf "%02x:%02x:%02x", $1%256, int($1/256)%256, int($1/65536)%256}')
more=(); [ -z "${CONTROL:-}" ] || more=(-chardev "pipe,id=ctl,path=$CONTROL" -device virtserialport,chardev=ctl,name=control)
[ -z "${DISK:-}" ] || more+=(-drive "file=$DISK,if=virtio,format=raw")
[ -z "${PIDFILE:-}" ] || more+=(-pidfile "$PIDFILE")
# no_timer_check: a guest that gets no processor for a moment while it looks for its timer finds none.
timeout "$SECS" qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max -smp 1 -m "${MEMORY:-384}" -nodefaults -no-user-config \
  -display none -no-reboot -kernel "$D/kernel" -initrd "$T/initrd" \
  -append "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable $(cat "$D/tsc") no_timer_check random.trust_cpu=on" -serial "file:$T/console" \
  -netdev "tap,id=n0,ifname=$TAP,script=no,downscript=no" -device "virtio-net-pci,netdev=n0,mac=$mac,romfile=" \
  -device virtio-rng-pci -device virtio-serial-pci \
  -chardev file,id=out,path=/dev/stdout,append=on -device virtserialport,chardev=out,name=out \
  -chardev "file,id=st,path=$T/status" -device virtserialport,chardev=st,name=status "${more[@]}" < /dev/null | cat
q=${PIPESTATUS[0]}
[ "$q" = 124 ] && { echo "guest $NAME: no end after $SECS s" >&2; tail -20 "$T/console" >&2; exit 124; }
s=$(head -1 "$T/status")
case $s in ''|*[!0-9]*) echo "guest $NAME died (qemu $q)" >&2; tail -30 "$T/console" >&2; exit 126;; esac
exit "$s"
