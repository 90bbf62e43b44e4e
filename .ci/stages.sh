# Sourced by .ci/run and .ci/deep: the stages that they are made of. As root, in a clone, without standard input.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null
export DEBIAN_FRONTEND=noninteractive
export WEFT_REQUIRE_NVRTC=1  # what compiles kernels fails without NVRTC instead of being skipped
jobs=$(nproc)
summary=() running=
trap 'print_minutes $?' EXIT

minutes() { printf '%5d.%d min  %s' $(($1 / 60)) $(($1 % 60 / 6)) "$2"; }

# Also when a stage has failed, or was stopped.
print_minutes() {
  [ -z "$running" ] || summary+=("$(minutes $((SECONDS - begin)) "$running")")
  printf '%s\n' '' "======== ${running:+FAILED: }${running:-all stages passed}" "${summary[@]}" "$(minutes $SECONDS 'in all')"
  exit "$1"
}

stage() {  # NAME FUNCTION ARGUMENT...; the first that fails ends the run
  local status
  running=$1 begin=$SECONDS
  printf '\n======== %s\n' "$1"
  # Not in a condition, where set -e would be off inside the function.
  set +e
  (trap - EXIT; set -e; "${@:2}")
  status=$?
  set -e
  [ "$status" -eq 0 ] || exit "$status"
  summary+=("$(minutes $((SECONDS - begin)) "$1")")
  running=
}

packages=(g++ cmake ninja-build git libfmt-dev nlohmann-json3-dev libcli11-dev libopenblas-dev libxxhash-dev libsentencepiece-dev
          gnuplot-nox strace openmpi-bin libgtest-dev bible-kjv clang-16 libclang-rt-16-dev libomp-16-dev clang-format-14)
install_packages() {  # ALSO...
  local package missing=()
  for package in "${packages[@]}" "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "installing ${missing[*]}"
  apt-get update -qq || echo "not all package lists could be fetched"
  apt-get install -qq -y --no-install-recommends "${missing[@]}" >/tmp/apt.log 2>&1 || { tail -n 30 /tmp/apt.log; return 1; }
}

# The project's own files, those not yet committed among them.
files() { git ls-files -co --exclude-standard "$@"; }

# clang-format knows nothing of kernels' texts, of which the width alone is checked.
formatting() {
  files '*.cpp' '*.h' | xargs -P "$jobs" -n 16 clang-format-14 --dry-run -Werror
  ! files '*.cuh' | xargs awk 'length > 128 { print FILENAME ":" FNR ": " length " columns" }' | grep .
}

# As packages are built; the minimal root builds for its own processor.
build() {
  local arch=
  [ "$(uname -m)" != x86_64 ] || arch=-DWEFT_ARCH=x86-64-v3
  cmake -G Ninja -B build -DWEFT_WERROR=ON $arch
  cmake --build build
}

# The cases behind ctest's entries, which are files.
count_cases() {  # BUILD
  local passed skipped
  passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$1/Testing/Temporary/LastTest.log" | paste -sd+)
  skipped=$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) test.*/\1/p' "$1/Testing/Temporary/LastTest.log" | paste -sd+)
  echo "cases: $((${passed:-0})) passed, 0 failed, $((${skipped:-0})) skipped"
}

label() {  # LABEL OPTION...
  ctest --test-dir build -L "$@" --output-on-failure --no-tests=error
  count_cases build
}

mutants() { tests/mutate_test.sh "$@"; }
