# One client, a plain hard mount with locks, while the server moves from host to host under it
# (takeover-client.sh): durable writes, verified; a lock that is held throughout; no error.
set -e
mount.nfs "$SERVER:$EXPORT" /mnt -o vers=3,hard; mkdir /mnt/kernel
lock /mnt/kernel-held 0:posix:w:0:100 0:sleep:u:1000000:0 > /tmp/held & holder=$!
n=0; until grep -q 'posix w 0 100 = ok' /tmp/held; do n=$((n + 1)); [ $n -lt 300 ]; sleep 0.1; done
# Whoever waits outside says by this port that nothing happens any more.
(read -r _ < /dev/virtio-ports/control; : > /tmp/end) &
echo "holds kernel-held"; echo ready
durable /mnt/kernel /tmp/end "$SEED"
[ "$(lock /mnt/kernel-held 0:posix:w:0:100)" = '0 posix w 0 100 = EAGAIN' ]
kill $holder; wait $holder || true
[ "$(lock /mnt/kernel-held 0:posix:w:0:100)" = '0 posix w 0 100 = ok' ]
rm -r /mnt/kernel /mnt/kernel-held; umount /mnt; echo "no error, the lock was held throughout"
