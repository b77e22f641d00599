#!/bin/bash
# Makes what a guest boots: a Debian kernel and a small root file system with a real NFS client.
# Usage: prepare.sh DIR. Does nothing that is done already. Needs the network once, and packages
# that it names if they are missing; with YES=1 and as root it installs them itself.
set -eu
D=$1; H=$(cd "$(dirname "$0")" && pwd); export DEBIAN_FRONTEND=noninteractive
need=()
for p in busybox-static:/bin/busybox nfs-common:/usr/sbin/rpc.statd rpcbind:/sbin/rpcbind kmod:/sbin/depmod \
         cpio:/usr/bin/cpio xz-utils:/usr/bin/xz gcc:/usr/bin/gcc iproute2:/sbin/ip \
         qemu-system-x86:/usr/bin/qemu-system-x86_64 libc6-dev:/usr/include/stdio.h; do
  [ -e "${p#*:}" ] || need+=("${p%%:*}")
done
if [ ${#need[@]} -gt 0 ]; then
  [ "${YES:-}" = 1 ] || { echo "missing packages: ${need[*]}; install them, or set YES=1" >&2; exit 1; }
  # Services of these packages must not start.
  P=/usr/sbin/policy-rc.d; [ -e $P ] || { printf '#!/bin/sh\nexit 101\n' > $P; chmod +x $P; trap 'rm -f $P' EXIT; }
  apt-get -qq update; apt-get -qq install -y --no-install-recommends "${need[@]}" >/dev/null
fi
mkdir -p "$D"; cd "$D"; LIBS=/lib/x86_64-linux-gnu
kernel() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image/{print $2; exit}'; }
img=$(kernel); [ -n "$img" ] || { apt-get -qq update; img=$(kernel); }
[ -n "$img" ] || { echo "no package linux-image-cloud-amd64 here: this test takes Debian's kernel" >&2; exit 1; }
K=${img#linux-image-}
if [ ! -e "kernel-$K" ]; then
  rm -rf deb; mkdir deb; (cd deb; apt-get -qq -o APT::Sandbox::User=root download "$img"; dpkg -x linux-image-*.deb tree)
  /sbin/depmod -b deb/tree "$K" 2>/dev/null || true
fi
R=$(mktemp -d)
# The suites, if scripts/tools has installed them: a guest gets them as files of its job.
for t in pjdfstest fsx; do
  built=$H/../../target/tools/bin/$t
  [ ! -e "$built" ] || [ "$t" -nt "$built" ] || strip -o "$t" "$built"
done
newer() { local f; for f in "$@"; do [ "$f" -nt base.cpio ] && return; done; return 1; }
if [ ! -e base.cpio ] || newer "$H"/{guest-init,lock.c,verify.c,durable.c,once.c,pressure.c,prepare.sh}; then
  mkdir -p "$R"/{bin,sbin,etc,proc,sys,dev,run/rpcbind,tmp,mnt,root,usr/bin,usr/sbin,lib/x86_64-linux-gnu,lib64} \
    "$R"/var/lib/nfs/{sm,sm.bak,rpc_pipefs} "$R"/lib/modules "$R"/run/sendsigs.omit.d
  cp /bin/busybox "$R/bin/"; for a in $(/bin/busybox --list); do [ -e "$R/bin/$a" ] || ln -s busybox "$R/bin/$a"; done
  for c in lock verify durable once pressure; do gcc -static -O2 -o "$R/bin/$c" "$H/$c.c"; done
  for b in /usr/sbin/mount.nfs /usr/sbin/rpc.statd /sbin/rpcbind /usr/sbin/sm-notify /usr/sbin/showmount; do
    cp "$b" "$R/sbin/"; ldd "$b" | awk '/=> \//{print $3}'
  done | { cat; echo "$LIBS"/lib{gcc_s.so.1,m.so.6,acl.so.1,attr.so.1}; } | tr ' ' '\n' | sort -u | while read -r l; do cp -L "$l" "$R/lib/x86_64-linux-gnu/"; done
  cp -L /lib64/ld-linux-x86-64.so.2 "$R/lib64/"; cp -L /lib/x86_64-linux-gnu/libnss_files* "$R/lib/x86_64-linux-gnu/" 2>/dev/null || true
  ln -sf mount.nfs "$R/sbin/umount.nfs"; rm -f "$R/bin/mount.nfs"
  cp /etc/netconfig /etc/services /etc/protocols "$R/etc/"; cp /etc/rpc "$R/etc/" 2>/dev/null || true
  printf 'root:x:0:0::/root:/bin/sh\n_rpc:x:101:65534::/run/rpcbind:/bin/false\nstatd:x:102:65534::/var/lib/nfs:/bin/false\ndaemon:x:1:1::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n' > "$R/etc/passwd"
  printf 'root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n' > "$R/etc/group"
  printf 'passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\nrpc: files\n' > "$R/etc/nsswitch.conf"
  printf '127.0.0.1 localhost\n' > "$R/etc/hosts"
  for m in virtio_pci virtio_net virtio_console nfsv3 nfs lockd sunrpc virtio_rng virtio_blk bridge veth; do
    /sbin/modprobe -d deb/tree -S "$K" --show-depends $m 2>/dev/null | awk '/^insmod/{print $2}'
  done | awk '!s[$0]++' | while read -r f; do
    b=$(basename "$f"); case $b in *.xz) b=${b%.xz}; xz -dc "$f" > "$R/lib/modules/$b";; *) cp "$f" "$R/lib/modules/";; esac
    echo "$b" >> "$R/lib/modules/order"
  done
  cp "$H/guest-init" "$R/init"; chmod 755 "$R/init"
  (cd "$R" && find . | cpio -o -H newc --quiet) > base.cpio.new; mv base.cpio.new base.cpio
  cp "deb/tree/boot/vmlinuz-$K" "kernel-$K"
fi
# Of this machine, so measured each time.
gcc -O2 -o "$R/tsc" "$H/tsc.c"; echo "tsc_early_khz=$("$R/tsc")" > tsc
rm -rf "$R"; ln -sf "kernel-$K" kernel
