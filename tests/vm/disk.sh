#!/bin/bash
# A virtual machine whose disk is a qcow2 file on the FUSE mount, and QEMU's own tools on images
# there. A Debian kernel boots (QEMU without KVM) with its root file system, ext4, on that disk and
# writes to it. First QEMU is killed, then the daemon is, both with -9; each time the disk's own
# fsck is clean after its journal ran, and what was synced is there.
# Root, in namespaces of its own. Usage: disk.sh TRIVET
set -eu
H=$(cd "$(dirname "$0")" && pwd); D=${TRIVET_VM:-$H/../../target/vm}
if [ "${INSIDE:-}" != 1 ]; then
  "$H/prepare.sh" "$D" || exit 1
  INSIDE=1 exec unshare --net --mount "$0" "$(realpath "$1")"
fi
export PATH=$PATH:/usr/sbin:/sbin
trivet=$1; D=$(cd "$D" && pwd)
ip link set lo up
W=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-disk.XXXXXX"); mnt=$W/mnt; pid= vm=
say() { echo "disk: $*"; }
end() {
  status=$?
  [ $status = 0 ] || { say "FAILED; the guest and the daemon said:"; for f in console out log; do tail -n 25 "$W/$f" || true; done; }
  [ -z "$vm" ] || kill -9 $vm 2>/dev/null || true
  [ -z "$pid" ] || kill -9 $pid 2>/dev/null || true
  umount -l "$mnt" 2>/dev/null || true; rm -rf "$W"
}
trap end EXIT
start() {
  "$trivet" up --dir "$W/data" --size 8G --no-nfs --mount "$mnt" > "$W/up" 2>> "$W/log" & pid=$!
  for _ in $(seq 300); do grep -q SIGTERM "$W/up" && return; kill -0 $pid; sleep 0.1; done
  say "does not start"; return 1
}
# Waits until the guest has said something: pattern, seconds.
until_said() {
  for _ in $(seq $((10 * $2))); do
    grep -q "$1" "$W/out" && return
    kill -0 $vm 2>/dev/null || { grep -q "$1" "$W/out" && return; say "the guest ended early"; return 1; }
    sleep 0.1
  done
  say "the guest did not say '$1' within $2 s"; return 1
}

# --- the guest: an initramfs that checks the disk and goes on with what is on it -----------------
R=$W/initramfs; disk=$W/root
mkdir -p "$R"/{bin,sbin,dev,proc,sys,disk,lib/modules,lib/x86_64-linux-gnu,lib64} "$disk"/{bin,dev,proc,sys,data}
cp /bin/busybox "$R/bin/"; cp /bin/busybox "$disk/bin/"; ln -s busybox "$disk/bin/sh"
for a in sh mount insmod sleep echo cat ln switch_root poweroff; do ln -s busybox "$R/bin/$a"; done
cp "$(command -v e2fsck)" "$R/sbin/"; cp -L /lib64/ld-linux-x86-64.so.2 "$R/lib64/"
ldd "$(command -v e2fsck)" | awk '/=> \//{print $3}' | while read -r l; do cp -L "$l" "$R/lib/x86_64-linux-gnu/"; done
K=$(basename "$(readlink -f "$D/kernel")"); K=${K#kernel-}
for m in virtio_pci virtio_blk virtio_console virtio_rng; do
  modprobe -d "$D/deb/tree" -S "$K" --show-depends $m | awk '/^insmod/{print $2}'
done | awk '!s[$0]++' | while read -r f; do
  b=$(basename "$f" .xz); case $f in *.xz) xz -dc "$f" ;; *) cat "$f" ;; esac > "$R/lib/modules/$b"
  echo "$b" >> "$R/lib/modules/order"
done
cat > "$R/init" <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin LD_LIBRARY_PATH=/lib/x86_64-linux-gnu
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
while read -r m; do insmod "/lib/modules/$m"; done < /lib/modules/order
for p in /dev/vport*p1; do exec > $p 2>&1; done
# 0: clean; 1: its journal ran. Then nothing may be left to mend.
e2fsck -p /dev/vda; s=$?; [ $s -le 1 ] || { echo "bad: e2fsck says $s"; poweroff -f; }
e2fsck -f -n /dev/vda || { echo "bad: e2fsck is not clean"; poweroff -f; }
echo "disk is clean"
mount -t ext4 /dev/vda /disk && mount --move /dev /disk/dev && mount --move /proc /disk/proc
exec switch_root /disk /bin/init
INIT
cat > "$disk/bin/init" <<'INIT'
#!/bin/busybox sh
# Files 1, 2, 3, ... each synced before its number is told; files of earlier lives are looked at.
cd /data; n=0; bad=0
for f in $(busybox ls | busybox grep -v sum | busybox sort -n); do
  if [ "$(busybox sha256sum < $f)" = "$(busybox cat $f.sum 2>/dev/null)" ]; then n=$f; else bad=$f; break; fi
done
# Only the one that was not told of may be torn.
echo "whole up to $n"
for m in $(busybox seq $((n + 1)) $((n + 400))); do
  busybox dd if=/dev/urandom of=$m bs=4k count=$((m % 37 + 1)) 2>/dev/null
  busybox sha256sum < $m > $m.sum; busybox sync; echo "synced $m"
done
busybox sync; echo "done"; busybox poweroff -f
INIT
chmod 755 "$R/init" "$disk/bin/init"
start
(cd "$R" && find . | cpio -o -H newc --quiet) > "$mnt/initramfs"
cp "$D/kernel" "$mnt/kernel"
truncate -s 256M "$mnt/disk.raw"; mke2fs -q -F -t ext4 -d "$disk" "$mnt/disk.raw"
qemu-img convert -t none -T none -f raw -O qcow2 "$mnt/disk.raw" "$mnt/disk.qcow2"
qemu-img compare -q -T none "$mnt/disk.raw" "$mnt/disk.qcow2"
sync "$mnt"/*

boot() {
  : > "$W/out"
  timeout 120 qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max -smp 1 -m 256 -nodefaults -no-user-config \
    -display none -no-reboot -kernel "$mnt/kernel" -initrd "$mnt/initramfs" \
    -append "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable random.trust_cpu=on" \
    -serial "file:$W/console" -drive "file=$mnt/disk.qcow2,format=qcow2,if=virtio,cache=none,werror=report" \
    -device virtio-rng-pci -device virtio-serial-pci \
    -chardev "file,id=out,path=$W/out" -device virtserialport,chardev=out,name=out < /dev/null & vm=$!
}
synced() { sed -nE 's/^synced ([0-9]+).*/\1/p' "$W/out" | tail -1; }
# What the guest told of before must be whole now.
whole() {
  until_said "whole up to" 60
  grep -q "disk is clean" "$W/out"
  have=$(sed -nE 's/^whole up to ([0-9]+).*/\1/p' "$W/out")
  [ "$have" -ge "$1" ] || { say "$1 files were synced, $have are whole"; return 1; }
}

boot; whole 0; until_said "synced 60" 60
kill -9 "$(pgrep -P $vm)"; { wait $vm; } 2>/dev/null || true; vm=; told=$(synced)
qemu-img check -q "$mnt/disk.qcow2" || [ $? = 3 ] # 3: clusters that nobody refers to, no harm
say "the guest was killed after $told synced files"
boot; whole "$told"; until_said "synced $((have + 40))" 60
kill -9 $pid; { wait $pid; } 2>/dev/null || true; pid=
told=$(synced)
kill -9 "$(pgrep -P $vm)" || true; { wait $vm; } 2>/dev/null || true; vm=
start
qemu-img check -q "$mnt/disk.qcow2" || [ $? = 3 ]
say "the daemon was killed after $told synced files"
boot; whole "$told"; until_said "synced $((have + 20))" 60
kill -9 "$(pgrep -P $vm)"; { wait $vm; } 2>/dev/null || true; vm=
say "boots again clean, all of them there"

# --- QEMU's tools on images -----------------------------------------------------------------------
cd "$mnt"
for f in raw qcow2; do
  qemu-img create -q -f $f t.$f 2G
  # Past the page cache and through it; whole, torn and zeroed clusters; the end of the disk.
  qemu-io -f $f -t none -c "write -P 1 0 8M" -c "write -P 2 65k 3k" -c "write -z 2M 1M" \
    -c "discard 4M 1M" -c "aio_write -P 3 1G 4M" -c aio_flush -c "write -P 4 2047M 1M" -c flush t.$f > "$W/out"
  qemu-io -f $f -t writeback -c "write -P 5 3M 64k" -c flush t.$f >> "$W/out"
  qemu-io -f $f -t directsync -c "write -P 6 7M 4k" t.$f >> "$W/out"
  qemu-io -r -f $f -t none -c "read -P 1 0 65k" -c "read -P 2 65k 3k" -c "read -P 0 2M 1M" -c "read -P 5 3M 64k" \
    -c "read -P 0 4M 1M" -c "read -P 6 7M 4k" -c "read -P 3 1G 4M" -c "read -P 0 100M 1M" -c "read -P 4 2047M 1M" \
    t.$f >> "$W/out"
  ! grep -iE "failed|error|mismatch" "$W/out" || exit 1
done
qemu-img check -q t.qcow2
qemu-img compare -q t.raw t.qcow2
qemu-img snapshot -c one t.qcow2
qemu-io -f qcow2 -c "write -P 9 0 64k" t.qcow2 > "$W/out"
qemu-img snapshot -a one t.qcow2; qemu-img snapshot -d one t.qcow2
qemu-img compare -q t.raw t.qcow2
qemu-img create -q -f qcow2 -b t.qcow2 -F qcow2 top.qcow2
qemu-io -f qcow2 -c "write -P 7 512M 1M" top.qcow2 > "$W/out"
qemu-img commit -q top.qcow2; qemu-io -f raw -c "write -P 7 512M 1M" t.raw > "$W/out"
qemu-img resize -q t.qcow2 3G; qemu-img resize -q -f raw t.raw 3G
qemu-img check -q t.qcow2; qemu-img compare -q t.raw t.qcow2
qemu-img convert -O qcow2 -c t.raw packed.qcow2; qemu-img convert -O raw packed.qcow2 again.raw
cmp t.raw again.raw
[ "$(du -m again.raw | cut -f1)" -lt 64 ] || { say "holes were stored"; exit 1; }
say "images: created, written, checked, compared, converted, resized, with snapshots and a backing file"
cd /
kill $pid; wait $pid; pid=
"$trivet" fsck --dir "$W/data" > /dev/null 2>> "$W/log"
say ok
