#!/usr/bin/env bash
# install_test.sh SOURCE BUILD COMPILER: a user's project builds and runs against the installed package, and with weft as a
# subdirectory.
set -euo pipefail
source=$1 build=$2 compiler=$3
export CMAKE_GENERATOR
CMAKE_GENERATOR=$(sed -n 's/^CMAKE_GENERATOR:INTERNAL=//p' "$build/CMakeCache.txt")  # the default one may not be installed
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

consume() {  # NAME CMAKE-ARGUMENT...
  local name=$1
  shift
  cmake -S "$source/tests/consumer" -B "$work/$name" -DCMAKE_CXX_COMPILER="$compiler" "$@" >"$work/log" 2>&1 &&
    cmake --build "$work/$name" --target consumer --parallel "$(nproc)" >>"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
  "$work/$name/consumer" "$work/$name.safetensors"
}

echo "== installed, then moved"
cmake --install "$build" --prefix "$work/first" >"$work/log"
mv "$work/first" "$work/prefix"
if grep -rlF -e "$source/" -e "$build/" "$work/prefix" --include='*.cmake' --include='*.h'; then
  echo "the installed files above name the source or build folder" >&2
  exit 1
fi
consume installed -DCMAKE_PREFIX_PATH="$work/prefix"
if [ -x "$build/weft" ]; then
  "$work/prefix/bin/weft" --help >/dev/null
  grep -q _weft "$work/prefix/share/bash-completion/completions/weft" "$work/prefix/share/zsh/site-functions/_weft"
fi

echo "== add_subdirectory"
consume subdirectory -DWEFT_SOURCE="$source" -DCMAKE_BUILD_TYPE=Debug
echo "1 passed, 0 failed"
