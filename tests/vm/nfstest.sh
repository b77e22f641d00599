#!/bin/bash
# Packs nfstest for the guest: the checkout that TRIVET_NFSTEST names, this Debian's Python 3, tcpdump,
# dropbear (one guest runs commands in the other), mount. Usage: nfstest.sh TARBALL
set -eu
: "${TRIVET_NFSTEST:?name a checkout of nfstest 3 in TRIVET_NFSTEST}"
grep -q "NFSTEST_VERSION *= '3" "$TRIVET_NFSTEST/nfstest_config.py" ||
  { echo "$TRIVET_NFSTEST is no nfstest 3 (its version 2 wants Python 2)" >&2; exit 1; }
out=$(realpath -m "$1"); python=/usr/bin/python3
need=()
for p in python3:$python tcpdump:/usr/bin/tcpdump dropbear-bin:/usr/sbin/dropbear; do
  [ -e "${p#*:}" ] || need+=("${p%%:*}")
done
[ ${#need[@]} = 0 ] || { echo "missing packages: ${need[*]}" >&2; exit 1; }
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; chmod 755 "$T"; mkdir -p "$T"/{bin,usr/bin,usr/sbin,root/.ssh,etc/dropbear,mnt/t,mnt/u}
lib=$($python -I -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
mkdir -p "$T$lib"
tar -C "$lib" --exclude=./test --exclude='./config-*' --exclude=./idlelib --exclude=./lib2to3 --exclude=./unittest \
  --exclude=./pydoc_data --exclude=./ensurepip --exclude=./distutils --exclude=./sitecustomize.py -cf - . | tar -C "$T$lib" -xf -
cp -r "$TRIVET_NFSTEST" "$T/nfstest"; rm -rf "$T/nfstest/.git"
cp -L $python /usr/bin/tcpdump "$T/usr/bin/"; cp /usr/sbin/dropbear "$T/usr/sbin/"
cp /usr/bin/dbclient /bin/mount /bin/umount "$T/bin/"
# It asks for terminals that nobody needs.
printf '#!/bin/sh\nwhile [ "$1" = -t ]; do shift; done\nexec dbclient -y -y -i ~/.ssh/id "$@"\n' > "$T/bin/ssh"; chmod 755 "$T/bin/ssh"
home=$T/root
dropbearkey -t ed25519 -f "$home/.ssh/id" | grep ^ssh- > "$home/.ssh/authorized_keys"
dropbearkey -t ed25519 -f "$T/etc/dropbear/dropbear_ed25519_host_key" > /dev/null
chmod 700 "$home" "$home/.ssh"; chmod 600 "$home/.ssh/"*
find "$T" \( -name '*.so' -o -path '*bin/*' \) -type f -print0 | xargs -0 ldd 2>/dev/null | awk '/=> \//{print $3}' |
  sort -u | while read -r l; do mkdir -p "$T/lib/x86_64-linux-gnu"; cp -nL "$l" "$T/lib/x86_64-linux-gnu/"; done
tar -C "$T" -cf "$out" .
