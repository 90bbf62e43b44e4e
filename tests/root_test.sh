#!/usr/bin/env bash
# root_test.sh SOURCE: the README's two commands work, as they stand there, on a clean clone in a minimal Debian 12.
# Exit 77 (skipped) when that cannot be tried: not root, no debootstrap, no packages to be had. The bare system is kept in
# WEFT_ROOT_CACHE (default /tmp/weft-root-cache).
set -euo pipefail
source=$(cd "$1" && pwd)
cache=${WEFT_ROOT_CACHE:-/tmp/weft-root-cache}

skip() {
  echo "skipped: $*"
  exit 77
}
[ "$(id -u)" -eq 0 ] || skip "needs root for debootstrap and chroot"
command -v debootstrap >/dev/null || skip "needs debootstrap (apt-get install debootstrap)"
[ -f "$source/README.md" ] || skip "no README.md"
git -C "$source" rev-parse -q --verify HEAD >/dev/null || skip "$source is no git repository with a commit"
here=$(dirname "$0")
train=$("$here/readme_command.sh" "$source/README.md" train)
tests=$("$here/readme_command.sh" "$source/README.md" test)

work=$(mktemp -d "${TMPDIR:-/tmp}/weft-root.XXXXXX")
root=$work/root
trap 'rm -rf --one-file-system "$work"' EXIT

bare=$cache/bookworm-minbase.tar
if [ ! -f "$bare" ]; then
  mkdir -p "$cache"
  echo "== debootstrap"
  debootstrap --variant=minbase bookworm "$root" >"$work/log" 2>&1 || {
    tail -n 5 "$work/log"
    skip "debootstrap failed"
  }
  tar -C "$root" --one-file-system --exclude='./proc/*' --exclude='./sys/*' --exclude='./var/cache/apt/archives/*.deb' \
    -cf "$work/bare.tar" .
  rm -rf --one-file-system "$root"
  mv "$work/bare.tar" "$bare.$$" && mv "$bare.$$" "$bare"
fi
mkdir "$root"
tar -C "$root" -xpf "$bare"

# How packages are fetched is the host's affair; which are there is not.
cp -L /etc/resolv.conf "$root/etc/resolv.conf" 2>/dev/null || true
for conf in /etc/apt/apt.conf /etc/apt/apt.conf.d/*; do
  if [ -f "$conf" ] && grep -qi 'proxy' "$conf"; then cp "$conf" "$root/etc/apt/apt.conf.d/"; fi
done
printf '#!/bin/sh\nexec "$@"\n' >"$root/usr/local/bin/sudo"  # a minimal system has none, and one is root in it
chmod 755 "$root/usr/local/bin/sudo"
git clone -q "$source" "$root/root/weft"
git -C "$source" diff --quiet HEAD 2>/dev/null || echo "note: changes that are not committed are not tested"

# In a mount namespace of its own: /proc goes away with it.
inside() {
  unshare --mount --pid --fork bash -c 'mount -t proc proc "$1/proc" || echo "note: no /proc" >&2
    exec chroot "$1" /usr/bin/env -i HOME=/root TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
      ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
      /bin/bash -c "cd /root/weft && $2"' bash "$root" "$1" </dev/null 2>&1
}
inside true || skip "no mount namespace or chroot here"
inside "apt-get update" >"$work/log" || {
  tail -n 5 "$work/log"
  skip "no packages to be had"
}
rm -rf "$root/var/lib/apt/lists/"*  # the README's command must fetch them itself

passed=0
try() {  # NAME COMMAND WORDS-IN-ITS-OUTPUT
  echo "== $1"
  echo "$2" | sed 's/^/    /'
  local begin=$SECONDS
  echo "$2" >"$root/root/$1.sh"
  if ! inside "bash -e /root/$1.sh" >"$work/log"; then
    tail -n 60 "$work/log"
    echo "the README's command '$1' failed"
    exit 1
  fi
  tail -n 25 "$work/log"
  echo "== $1: $(((SECONDS - begin) / 60)) min $(((SECONDS - begin) % 60)) s"
  if ! grep -q "$3" "$work/log"; then
    echo "the README's command '$1' printed no '$3'"
    exit 1
  fi
  passed=$((passed + 1))
}
try train "$train" "loss"
try test "$tests" "100% tests passed"
echo "$passed passed, 0 failed"
