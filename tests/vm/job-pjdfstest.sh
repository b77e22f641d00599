# One client: pjdfstest. What fails must be listed, with its reason, in pjdfstest-known.
set -e
mount.nfs "$SERVER:/vm" /mnt -o "${OPTIONS:-vers=3}"; chmod 755 /mnt
umask 022
pjdfstest -c /job/pjdfstest.toml -p /mnt > /tmp/pjd 2>&1 || true
grep '^Summary: ' /tmp/pjd || { tail -20 /tmp/pjd; exit 1; }
sed -nE 's/^([a-z0-9_:]+) +FAILED$/\1/p' /tmp/pjd | sort -u > /tmp/failed
grep -v '^#' /job/pjdfstest-known | sort -u > /tmp/known || true
# Lines of the first file that are not in the second.
only() { awk 'FILENAME == ARGV[1] { there[$0]; next } !($0 in there)' "$2" "$1"; }
unknown=$(only /tmp/failed /tmp/known)
[ -z "$unknown" ] || { echo "failed, not listed:" $unknown; grep -A6 FAILED /tmp/pjd | head -120; exit 1; }
# A case that the list names and that passes is taken off the list.
passed=$(only /tmp/known /tmp/failed)
[ -z "$passed" ] || { echo "listed, but passes:" $passed; exit 1; }
cd /; umount /mnt; echo "pjdfstest-ok, $(grep -c . /tmp/failed || true) listed failures"
