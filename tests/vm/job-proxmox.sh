# What Proxmox VE does with an `nfs:` storage (PVE::Storage::NFSPlugin), step by step.
set -e
online() { timeout 10 showmount --no-headers --exports "$SERVER" | grep -qE '^(/\S+)\s+(.+)$'; }
mounted() { # nfs_is_mounted: source, mount point and type, as they were given
  grep -qE "^$SERVER:/vm/? $1 nfs[0-9]* " /proc/mounts
}
# The storage's options: none (then the client tries version 4 first), and those that `trivet up`
# prints.
for o in "" "-o vers=3,proto=tcp,hard"; do
  at=/mnt/pve/trivet; mkdir -p $at; online
  mount.nfs "$SERVER:/vm" $at $o; mounted $at
  grep " $at " /proc/mounts | grep -q 'vers=3'
  online; timeout 2 df -P $at > /tmp/df; timeout 2 test -d $at
  for d in images dump template/iso template/cache snippets private import; do mkdir -p $at/$d; done
  # A disk: allocated, opened, renamed while it is open (a snapshot in a chain), made a template.
  mkdir -p $at/images/100; disk=$at/images/100/vm-100-disk-0.raw
  truncate -s 4G $disk; [ "$(stat -c %s $disk)" = 4294967296 ]; [ "$(du -k $disk | cut -f1)" -lt 64 ]
  exec 3<> $disk; echo guest >&3; mv $disk $at/images/100/snap.raw; echo more >&3
  exec 3>&-; [ "$(head -c 11 $at/images/100/snap.raw | tr '\n' ' ')" = 'guest more ' ]
  # One lock of QEMU's pattern keeps the second one out.
  lock $at/images/100/snap.raw 0:ofd:r:100:1 0:ofd:w:201:1 1:test:w:201:1 > /tmp/l
  grep -q '^1 test w 201 1 = w' /tmp/l
  chmod 0444 $at/images/100/snap.raw; rm $at/images/100/snap.raw
  # A backup: streamed, then its notes by a new file and a rename.
  dd if=/dev/urandom bs=1M count=12 2>/dev/null | tee $at/dump/a.dat | md5sum > /tmp/sum
  mv $at/dump/a.dat $at/dump/a.vma.zst; md5sum < $at/dump/a.vma.zst | cmp - /tmp/sum
  echo n > $at/dump/a.notes.tmp; mv $at/dump/a.notes.tmp $at/dump/a.notes; : > $at/dump/a.protected
  rm -r $at/images $at/dump $at/template $at/snippets $at/private $at/import
  umount $at; if mounted $at; then exit 1; fi
done
echo proxmox-ok
