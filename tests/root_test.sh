#!/usr/bin/env bash
# root_test.sh SOURCE: the README's two commands work, as they stand there, on a clean clone in a minimal Debian 12.
# Exit 77 (skipped) when that cannot be tried: not root, no debootstrap, no packages to be had.
set -euo pipefail
source=$(cd "$1" && pwd)
here=$(dirname "$0")
. "$here/root.sh"
[ -f "$source/README.md" ] || skip "no README.md"
git -C "$source" rev-parse -q --verify HEAD >/dev/null || skip "$source is no git repository with a commit"
train=$("$here/readme_command.sh" "$source/README.md" train)
tests=$("$here/readme_command.sh" "$source/README.md" test)

new_root "$work/root"
printf '#!/bin/sh\nexec "$@"\n' >"$work/root/usr/local/bin/sudo"  # a minimal system has none, and one is root in it
chmod 755 "$work/root/usr/local/bin/sudo"
git clone -q "$source" "$work/root/root/weft"
git -C "$source" diff --quiet HEAD 2>/dev/null || echo "note: changes that are not committed are not tested"

try "$work/root" train "cd weft
$train" "loss"
try "$work/root" test "cd weft
$tests" "100% tests passed"
echo "$passed passed, 0 failed"
