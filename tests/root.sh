# Sourced: minimal Debian 12 systems to try things in. $work is a folder that goes away at the end, with the roots in it.
# The bare system is kept in WEFT_ROOT_CACHE (default /tmp/weft-root-cache).
cache=${WEFT_ROOT_CACHE:-/tmp/weft-root-cache}

skip() {
  echo "skipped: $*"
  exit 77
}
[ "$(id -u)" -eq 0 ] || skip "needs root for debootstrap and chroot"
command -v debootstrap >/dev/null || skip "needs debootstrap (apt-get install debootstrap)"
work=$(mktemp -d "${TMPDIR:-/tmp}/weft-root.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT

# In a mount namespace of its own: /proc goes away with it.
inside() {  # ROOT COMMAND
  unshare --mount --pid --fork bash -c 'mount -t proc proc "$1/proc" || echo "note: no /proc" >&2
    exec chroot "$1" /usr/bin/env -i HOME=/root TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
      ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
      /bin/bash -c "cd /root && $2"' bash "$1" "$2" </dev/null 2>&1
}

new_root() {  # FOLDER: a bare system there; packages can be had, but their lists are not there yet
  local root=$1 bare=$cache/bookworm-minbase.tar conf
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
  inside "$root" true || skip "no mount namespace or chroot here"
  inside "$root" "apt-get update" >"$work/log" || {
    tail -n 5 "$work/log"
    skip "no packages to be had"
  }
  rm -rf "$root/var/lib/apt/lists/"*  # what is tried must fetch them itself
}

passed=0
try() {  # ROOT NAME COMMAND WORDS-IN-ITS-OUTPUT
  echo "== $2"
  echo "$3" | sed 's/^/    /'
  local begin=$SECONDS
  echo "$3" >"$1/root/$2.sh"
  if ! inside "$1" "bash -e /root/$2.sh" >"$work/log"; then
    tail -n 1000 "$work/log"  # what failed may stand far above the end
    echo "'$2' failed"
    exit 1
  fi
  tail -n 25 "$work/log"
  echo "== $2: $(((SECONDS - begin) / 60)) min $(((SECONDS - begin) % 60)) s"
  if ! grep -q "$4" "$work/log"; then
    echo "'$2' printed no '$4'"
    exit 1
  fi
  passed=$((passed + 1))
}
