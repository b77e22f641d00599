# One client: buffered, O_DIRECT and O_SYNC writes mixed on one file and checked (verify.c), over
# every way of mounting that people use. SEED=n repeats, STEPS=n shortens or prolongs.
set -e
seed=${SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
for o in vers=3 vers=3,nolock vers=3,nolock,nconnect=4 vers=3,nolock,sync vers=3,nolock,sync,nconnect=4 \
    vers=3,nolock,noac,wsize=4096,rsize=4096; do
  mount.nfs "$SERVER:/vm" /mnt -o $o
  verify /mnt/file "$seed" "${STEPS:-120}" || { echo "over $o"; exit 1; }
  rm /mnt/file; umount /mnt; seed=$((seed + 1))
done
echo verify-ok
