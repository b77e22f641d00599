# One client: fsx, over a plain mount and over four connections without locks. SEED=n repeats.
set -e
seed=${SEED:-$(od -An -N2 -tu2 /dev/urandom | tr -d ' ')}; n=0
for o in vers=3 vers=3,nolock,nconnect=4 vers=3,nolock,sync; do
  mount.nfs "$SERVER:/vm" /mnt -o $o
  i=0; while [ $i -lt "${SEEDS:-1}" ]; do
    echo "fsx over $o, seed $seed"
    fsx -q -f /job/fsx.toml -S "$seed" -N "${OPS:-1000}" -P /tmp /mnt/fsx
    rm /mnt/fsx; seed=$((seed + 1)); i=$((i + 1)); n=$((n + 1))
  done
  umount /mnt
done
echo "fsx-ok $n runs"
