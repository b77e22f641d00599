#!/usr/bin/env bash
# The installed unit under the systemd of its own Debian: hardening and all. Started by package.sh:
#   package-init.sh boot ROOT   in fresh namespaces: that root's init, which runs
#   package-init.sh             this, as a unit in there, and powers off.
set -euo pipefail
if [ "${1:-}" = boot ]; then
  root=$2
  mount --make-rprivate /
  mount --bind "$root" "$root"
  mount -t proc proc "$root/proc"
  mount -t sysfs -o ro sysfs "$root/sys"
  for dir in run dev; do mount -t tmpfs -o mode=755 tmpfs "$root/$dir"; done
  for node in null zero full random urandom tty fuse; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
  done
  mkdir "$root/dev/shm" "$root/dev/pts"
  mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  ip link set lo up
  exec chroot "$root" /usr/bin/env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --log-target=console --show-status=no
fi

exec >/init.log 2>&1
trap 'echo "ended with $?" >/init.end; systemctl poweroff -ff' EXIT
say() { echo "package: with its own init: $*"; }
fail() {
  journalctl --sync || true
  systemctl status --no-pager trivet || true
  journalctl -u trivet --no-pager | tail -40
  ip -n trivet-vms addr || true
  trivet event list || true
  say "FAILED: $*"
  exit 1
}
of_unit() { systemctl show trivet -p "$1" --value; }
of_parent() { cut -d' ' -f1 "/proc/$pid/task/$pid/children"; }
until_served() {
  for _ in $(seq 300); do
    trivet status >/tmp/status 2>&1 && return
    sleep 0.1 # a takeover and a resync take their time
  done
  cat /tmp/status
  fail "not redundant"
}

ip link add br0 type bridge
ip addr add 10.99.0.1/24 dev br0
ip link set br0 up
trivet init --node a=127.0.0.1 --node b=127.0.0.2 --node c=127.0.0.3 \
  --service 10.99.0.10/24 --bridge br0 --out /etc/trivet >/dev/null
cp /etc/trivet/a.key /etc/trivet/node.key
sed -i 's|^driver = .*|driver = "manual"\nmount = "/mnt/vms"|' /etc/trivet/trivet.toml
for n in a b c; do
  sed -i "/^name = \"$n\"/,/^\[\[/s|/var/lib/trivet/pool|/var/lib/trivet/pool-$n|" \
    /etc/trivet/trivet.toml
  trivet pool create "/var/lib/trivet/pool-$n" >/dev/null
done
echo 'TRIVET_SERVE=--node a' >/etc/default/trivet

systemctl start trivet || fail "does not start"
case $(of_unit StatusText) in "ready: node a on 127.0.0.1:7100"*) ;; *) fail "no status text" ;; esac
[ "$(of_unit WatchdogTimestampMonotonic)" != 0 ] || fail "the watchdog hears nothing"
for n in b c; do # not the unit's: one machine, one unit
  trivet serve --node $n --key /etc/trivet/$n.key --state /var/lib/trivet/$n >/tmp/$n.log 2>&1 &
done
for _ in $(seq 100); do
  trivet volume create vms --size 1G >/tmp/create 2>&1 && break
  sleep 0.1 # until b and c answer
done
trivet promote vms --node a || { cat /tmp/create; fail "promote"; }
until_served

# What the unit's limits must not be in the way of: mount, namespace, bridge, ports.
mountpoint -q /mnt/vms || fail "the FUSE mount is not seen outside of the unit"
ip -n trivet-vms addr | grep 'inet 10.99.0.10' >/dev/null || fail "no service address"
echo hello >/mnt/vms/file
sync /mnt/vms/file
read_back() { [ "$(nfs-cat 'nfs://10.99.0.10/vms/file?version=3')" = hello ]; }
read_back || fail "the file is not on the export"
pid=$(of_unit MainPID)
grep -q '^CapBnd:.*0[01]203400$' "/proc/$pid/status" || fail "capabilities"
say "mounted, address up, served over NFS with $(grep CapBnd "/proc/$pid/status" | tr '\t' ' ')"
if [ "$(cat "/proc/$pid/oom_score_adj")" = -950 ]; then
  say "protected from the OOM killer"
else
  say "not tried: OOMScoreAdjust= (this machine lets nobody set it)"
fi

# The daemon dies: its parent, which systemd watches, starts it again.
daemon=$(of_parent)
kill -9 "$daemon"
for _ in $(seq 100); do
  case "$(of_parent)" in "$daemon" | "") ;; *) break ;; esac
  sleep 0.1 # the parent's pause
done
[ "$(of_unit MainPID)" = "$pid" ] || fail "the unit was started again by systemd"
for _ in $(seq 100); do
  trivet promote vms --node a --wait >/tmp/promote 2>&1 && break
  sleep 0.1 # until its members are open again
done
until_served
read_back || fail "the file is gone after kill -9"
systemctl restart trivet || fail "restart"
for _ in $(seq 100); do
  trivet promote vms --node a --wait >/tmp/promote 2>&1 && break
  sleep 0.1 # as above
done
until_served
read_back || fail "the file is gone after a restart"

# Both stand still: nothing but the watchdog can help, and does.
systemctl stop trivet || fail "stop"
[ "$(of_unit Result)" = success ] || fail "stop: $(of_unit Result)"
mkdir -p /run/systemd/system/trivet.service.d
printf '[Service]\nWatchdogSec=2\n' >/run/systemd/system/trivet.service.d/soon.conf
systemctl daemon-reload
systemctl start trivet || fail "starts no second time"
pid=$(of_unit MainPID)
daemon=$(of_parent)
kill -STOP "$daemon" "$pid"
for _ in $(seq 200); do
  [ "$(of_unit MainPID)" != "$pid" ] && [ "$(of_unit ActiveState)" = active ] && break
  sleep 0.1 # the watchdog's 2 s
done
[ "$(of_unit NRestarts)" = 1 ] || fail "the watchdog did nothing: $(of_unit NRestarts)"
[ ! -d "/proc/$daemon" ] || fail "the daemon that stood still is still there"
systemctl stop trivet || fail "stop"
say "killed, restarted, stopped, woken by the watchdog; the file is the same"

# mount(8) finds the program by the package's link; fstab's line is that of docs/command-line.md.
rm -r /run/systemd/system/trivet.service.d
sed -i '/^mount = /d' /etc/trivet/trivet.toml
echo 'vms  /mnt/vms  trivet  noauto,nosuid,_netdev,x-systemd.requires=trivet.service  0  0' >>/etc/fstab
systemctl daemon-reload
has() { [ "$(cat /mnt/vms/file)" = hello ] || fail "$1: the file is not there"; }
systemctl start mnt-vms.mount || { journalctl -u mnt-vms.mount | tail -5; fail "fstab's line"; }
has "fstab"
grep ' /mnt/vms ' /proc/mounts | grep -w nosuid >/dev/null || fail "nosuid"
case $(systemctl show mnt-vms.mount -p After) in
  *remote-fs-pre.target*trivet.service* | *trivet.service*remote-fs-pre.target*) ;;
  *) fail "the mount's place in the order: $(systemctl show mnt-vms.mount -p After)" ;;
esac
# As at shutdown: the mount ends before the daemon does.
systemctl stop trivet || fail "stop, mounted"
[ "$(of_unit Result)" = success ] || fail "stop, mounted: $(of_unit Result)"
[ "$(systemctl show mnt-vms.mount -p Result --value)" = success ] || fail "the mount's end"
! mountpoint -q /mnt/vms || fail "still mounted"
systemctl start trivet || fail "starts no third time"
mount -t trivet vms /mnt/vms || fail "mount -t trivet"
has "mount"
umount /mnt/vms
mount /mnt/vms || fail "mount, of fstab"
has "mount, of fstab"
umount /mnt/vms
systemctl stop trivet || fail "stop"
say "mounted by fstab, by systemd and by hand, with the package's mount.trivet"
