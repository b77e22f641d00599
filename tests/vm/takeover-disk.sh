#!/bin/bash
# A virtual machine beside takeovers (trivet-takeover takeovers --beside THIS; what it is told, and
# how: tests/takeover/src/beside.rs). Its disk is a qcow2 on the export, through QEMU's own NFS
# driver. It writes files with fsync all the while. At the end it looks at each again, past its
# cache; its file system is clean, and so is the image.
set -eu
H=$(cd "$(dirname "$0")" && pwd); D=${TRIVET_VM:-$H/../../target/vm}
"$H/prepare.sh" "$D"; D=$(cd "$D" && pwd)
export PATH=$PATH:/usr/sbin:/sbin TMPDIR=$SCRATCH
exec 3<&0 # of which a command in the background would get nothing
client() { nsenter --net="$CLIENT" "$@"; }
url=nfs://$SERVICE$EXPORT/guest.qcow2
R=$SCRATCH/initramfs
mkdir -p "$R"/{bin,sbin,dev,proc,sys,disk,tmp,lib/modules,lib/x86_64-linux-gnu,lib64} "$SCRATCH/root"
cp /bin/busybox "$R/bin/"; for a in $(/bin/busybox --list); do [ -e "$R/bin/$a" ] || ln -s busybox "$R/bin/$a"; done
cp "$(command -v e2fsck)" "$R/sbin/"; cp -L /lib64/ld-linux-x86-64.so.2 "$R/lib64/"
ldd "$(command -v e2fsck)" | awk '/=> \//{print $3}' | while read -r l; do cp -L "$l" "$R/lib/x86_64-linux-gnu/"; done
K=$(basename "$(readlink -f "$D/kernel")"); K=${K#kernel-}
for m in virtio_pci virtio_blk virtio_console virtio_rng ext4; do
  modprobe -d "$D/deb/tree" -S "$K" --show-depends $m | awk '/^insmod/{print $2}'
done | awk '!s[$0]++' | while read -r f; do
  b=$(basename "$f" .xz); case $f in *.xz) xz -dc "$f" ;; *) cat "$f" ;; esac > "$R/lib/modules/$b"
  echo "$b" >> "$R/lib/modules/order"
done
cat > "$R/init" <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin LD_LIBRARY_PATH=/lib/x86_64-linux-gnu
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
while read -r m; do insmod "/lib/modules/$m"; done < /lib/modules/order
for p in /sys/class/virtio-ports/*; do ln -s "/dev/${p##*/}" "/dev/$(cat "$p/name")"; done
exec > /dev/out 2>&1
bad() { echo "bad: $*"; poweroff -f; }
whole() { # each file is what was written last, by sums that only this guest's memory holds
  mount -t ext4 -o ro /dev/vda /disk || bad "mount"
  for s in /tmp/sums/*; do
    [ "$(sha256sum < "/disk/${s##*/}")" = "$(cat "$s")" ] || bad "file ${s##*/} is not what was written"
  done
  umount /disk
}
mkdir /tmp/sums; (read -r _ < /dev/control; : > /tmp/end) &
mount -t ext4 -o errors=remount-ro /dev/vda /disk || bad "mount"
echo ready; n=0
while [ ! -e /tmp/end ]; do
  f=$((n % 97)); dd if=/dev/urandom of=/tmp/new bs=4k count=$((n % 37 + 1)) 2>/dev/null
  dd if=/tmp/new of="/disk/$f" bs=64k conv=fsync 2>/tmp/said || bad "write of $f: $(cat /tmp/said)"
  sha256sum < /tmp/new > "/tmp/sums/$f"; echo +; n=$((n + 1))
done
umount /disk || bad "umount"
e2fsck -f -n /dev/vda || bad "e2fsck: $?"
whole; echo "whole: $n files written"; poweroff -f
INIT
chmod 755 "$R/init"; (cd "$R" && find . | cpio -o -H newc --quiet) > "$SCRATCH/initrd"
truncate -s 192M "$SCRATCH/disk.raw"; mke2fs -q -F -t ext4 "$SCRATCH/disk.raw"
client qemu-img convert -f raw -O qcow2 "$SCRATCH/disk.raw" "$url"
mkfifo "$SCRATCH/control.in" "$SCRATCH/control.out"
(while read -r _; do :; done; echo end > "$SCRATCH/control.in") <&3 &
# An error of the disk is the guest's to see, and then its end.
client timeout 7200 qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max -smp 1 -m 256 -nodefaults \
  -no-user-config -display none -no-reboot -kernel "$D/kernel" -initrd "$SCRATCH/initrd" \
  -append "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable random.trust_cpu=on" \
  -serial "file:$SCRATCH/console" \
  -drive "file=$url,format=qcow2,if=virtio,cache=none,werror=report,rerror=report" \
  -device virtio-rng-pci -device virtio-serial-pci \
  -chardev "file,id=out,path=/dev/stdout,append=on" -device virtserialport,chardev=out,name=out \
  -chardev "pipe,id=ctl,path=$SCRATCH/control" -device virtserialport,chardev=ctl,name=control \
  < /dev/null | tee "$SCRATCH/guest"
grep -q '^whole: ' "$SCRATCH/guest" || { tail -20 "$SCRATCH/console"; exit 1; }
client qemu-img check "$url"
client qemu-img convert -f qcow2 -O raw "$url" "$SCRATCH/after.raw"
e2fsck -f -n "$SCRATCH/after.raw"
echo "$(sed -n 's/^whole: //p' "$SCRATCH/guest" | tr -d '\r'), all whole; qemu-img check and e2fsck are clean"
