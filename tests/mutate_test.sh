#!/usr/bin/env bash
# mutate_test.sh [--count N] [--only REGEX] [--keep FOLDER] [WEFT_TESTS]: the mutation test. Plants the mutants of
# tests/mutate.h one at a time, in the order drawn, and runs the tests of the text concerned (tests/mutate_filters.txt) on the
# emulated device until one fails, or they take much longer than without a mutant. A mutant does not count if it does not
# compile, or if the compiler makes the same PTX of it in every kernel that the tests have: of an element past an array in
# registers, say, that it drops. Fails when fewer than 94 % of N (200) are caught, or when one survives that
# tests/mutate_survivors.txt does not list with a reason. With --only, which leaves out texts that do not match, the second
# alone counts. All cores are used, or $JOBS processes. With --keep, verdicts stay in FOLDER, and a second run goes on where
# the first ended.
set -euo pipefail
cd "$(dirname "$0")/.."
count=200 work='' least=94 only=.
while [ $# -gt 0 ]; do
  case $1 in
    --count) count=$2; shift 2 ;;
    --only) only=$2; shift 2 ;;
    --keep) work=$2; shift 2 ;;
    *) break ;;
  esac
done
jobs=${JOBS:-$(nproc)}  # before OMP_NUM_THREADS, which nproc obeys
export WEFT_TESTS=${1:-build/weft_tests} WEFT_DEVICE=emu WEFT_ARENA=split OMP_NUM_THREADS=1 WEFT_REQUIRE_NVRTC=1
if [ -z "$work" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work/verdicts"
export work=$(realpath "$work")

filter_of() { awk -v file="$1" '!/^#/ && $1 == file { print $2 }' tests/mutate_filters.txt; }

# The file with the seconds that a filter takes without a mutant.
baseline_of() { echo "$work/baseline.$(md5sum <<<"$1" | cut -c 1-8)"; }

# Without a mutant the tests of a filter pass; that also fills the cache that every mutant begins with.
baseline() {
  local begin=$SECONDS file
  file=$(baseline_of "$1")
  [ ! -f "$file" ] || return 0
  WEFT_CACHE=$work/cache "$WEFT_TESTS" --gtest_brief=1 --gtest_filter="$1" >"$file.log" 2>&1 ||
    { echo "without a mutant, tests fail: $1"; tail -n 20 "$file.log"; return 1; }
  echo $((SECONDS - begin)) >"$file"
}

# Whether the entries that a cache has beside those of the baseline are the same code.
same_code() {
  ! find "$1" -type f -links 1 ! -name '*.cu' | "$WEFT_TESTS" --fingerprints | cut -f1 | sort -u |
    comm -23 - "$work/fingerprints" | grep -q .
}

# A verdict is a line: caught, survived, same (code) or invalid; seconds; the first failure.
try() {
  local number=$1 begin=$SECONDS verdict why=''
  [ ! -f "$work/verdicts/$number" ] || return 0
  local filter log=$work/log.$number cache=$work/cache.$number
  filter=$(filter_of "$(awk -F'\t' -v n="$number" '$1 == n { print $2 }' "$work/mutants")")
  cp -al "$work/cache" "$cache"
  if WEFT_CACHE=$cache timeout $((3 * $(cat "$(baseline_of "$filter")") + 20)) "$WEFT_TESTS" --mutant="$number" \
    --gtest_brief=1 --gtest_fail_fast --gtest_filter="$filter" >"$log" 2>&1; then
    verdict=survived
    if same_code "$cache"; then verdict=same; fi
  elif grep -q 'does not compile' "$log"; then
    verdict=invalid
  else
    verdict=caught
    why=$(grep -m 1 -A 2 -E 'Failure|emu:|check_op' "$log" | tr '\n' ' ' | cut -c 1-200) || true
  fi
  rm -rf "$cache" "$log"
  printf '%s\t%d\t%s\n' "$verdict" $((SECONDS - begin)) "$why" >"$work/verdicts/$number"
}
export -f filter_of baseline_of baseline same_code try

"$WEFT_TESTS" --mutants | awk -F'\t' -v only="$only" '$2 ~ only' >"$work/mutants"
mapfile -t drawn < <(cut -f1 "$work/mutants")

# As many as it takes for `count` that count.
next=0 counted=0
while [ "$counted" -lt "$count" ] && [ "$next" -lt ${#drawn[@]} ]; do
  last=$((next + count - counted))
  sed -n "$((next + 1)),${last}p" "$work/mutants" | cut -f2 | sort -u | while read -r file; do filter_of "$file"; done | sort -u |
    xargs -P "$jobs" -I{} bash -c 'baseline "{}"'
  find "$work/cache" -type f ! -name '*.cu' | "$WEFT_TESTS" --fingerprints | cut -f1 | sort -u >"$work/fingerprints"
  sed -n "$((next + 1)),${last}p" "$work/mutants" | cut -f1 | xargs -P "$jobs" -I{} bash -c 'try {}'
  next=$((last < ${#drawn[@]} ? last : ${#drawn[@]}))
  counted=0
  for i in "${drawn[@]:0:next}"; do grep -q -e ^invalid -e ^same "$work/verdicts/$i" || counted=$((counted + 1)); done
done

caught=0 failed=0 same=0
for i in "${drawn[@]:0:next}"; do
  IFS=$'\t' read -r verdict seconds why <"$work/verdicts/$i"
  [ "$verdict" != same ] || same=$((same + 1))
  [ "$verdict" != same ] && [ "$verdict" != invalid ] || continue
  mutant=$(awk -F'\t' -v n="$i" '$1 == n { print $4 }' "$work/mutants")
  if [ "$verdict" = caught ]; then
    caught=$((caught + 1))
    continue
  fi
  reason=$(awk -v mutant="$mutant" '$0 == mutant { getline; print }' tests/mutate_survivors.txt)
  [ -n "$reason" ] || { failed=1; reason='    NOT LISTED in tests/mutate_survivors.txt'; }
  printf 'survived: %s\n%s\n' "$mutant" "$reason"
done
echo "$caught of $counted mutants caught; $same made the same code, $((next - counted - same)) did not compile"
[ "$only" != . ] || [ $((100 * caught)) -ge $((least * counted)) ] || { echo "at least $least % are wanted"; failed=1; }
exit $failed
