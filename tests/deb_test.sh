#!/usr/bin/env bash
# deb_test.sh SOURCE BUILD: the Debian package of a build installs in a minimal Debian 12, trains, completes, and goes away.
# Exit 77 (skipped) when that cannot be tried: no package of this build (see CMakeLists.txt), not root, no debootstrap, ...
set -euo pipefail
source=$(cd "$1" && pwd) build=$(cd "$2" && pwd)
here=$(dirname "$0")
. "$here/root.sh"
[ -f "$build/CPackConfig.cmake" ] || skip "a build for this machine's own processor makes no package; give -DWEFT_ARCH=x86-64-v3"
command -v dpkg-shlibdeps >/dev/null && command -v file >/dev/null || skip "needs dpkg-shlibdeps and file"
grep -q '^12' /etc/debian_version || skip "the package would be for the system that it is made on, which is no Debian 12"

cpack --config "$build/CPackConfig.cmake" -B "$work/package" >"$work/log" 2>&1 || { tail -n 20 "$work/log"; exit 1; }
deb=$(echo "$work"/package/weft_*.deb)
dpkg-deb --info "$deb"
for library in libc6 libstdc++6 libfmt libopenblas libgomp1 libxxhash0 libsentencepiece0; do
  dpkg-deb --field "$deb" Depends | grep -qF "$library" || { echo "the package does not depend on $library"; exit 1; }
done

new_root "$work/root"
cp "$deb" "$work/root/root/weft.deb"
try "$work/root" install "apt-get update -qq
apt-get install -y -qq --no-install-recommends /root/weft.deb
weft --version
weft doctor" "weft $(sed -n 's/^project(weft VERSION \([0-9.]*\).*/\1/p' "$source/CMakeLists.txt")"
try "$work/root" train "for i in {1..400}; do echo \"line \$i of a text\"; done >text.txt
weft train --data text.txt --steps 5 --batch 2 --length 32 --width 32 --layers 1 --sample 0 --out run
test -s run/latest/model.safetensors" "step *5/5"
try "$work/root" complete 'source /usr/share/bash-completion/completions/weft
COMP_WORDS=(weft train --dev) COMP_CWORD=2
_weft || true  # its status means nothing
echo "${COMPREPLY[@]}"
test -s /usr/share/zsh/vendor-completions/_weft' "^--device$"
try "$work/root" remove "apt-get remove -y -qq weft
test ! -e /usr/bin/weft -a ! -e /usr/include/weft && echo gone" "^gone$"
echo "$passed passed, 0 failed"
