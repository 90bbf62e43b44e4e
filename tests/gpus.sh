#!/usr/bin/env bash
# Training on several GPUs of this machine, with a weft that is built: what one GPU can check, what two can, how it scales.
#   tests/gpus.sh WEFT PART [FOLDER]     PART: one, two, scale, sanitize; FOLDER for runs and figures, new or empty
# Ends with the number of checks that failed. Environment: RANKS (2) for the parts `two` and `scale`; WEFT_NCCL, the file of NCCL.
set -uo pipefail
weft=$(realpath "$1") part=$2 out=$(realpath -m "${3:-$(mktemp -d)}")
ranks=${RANKS:-2} failed=0
export NCCL_NVLS_ENABLE=0  # NVLink multicast stays off
mkdir -p "$out" && cd "$out" || exit 99
if [ -z "${WEFT_NCCL:-}" ]; then
  nccl=$(python3 -c 'import nvidia.nccl, os; print(os.path.join(list(nvidia.nccl.__path__)[0], "lib", "libnccl.so.2"))' 2>/dev/null)
  [ ! -f "$nccl" ] || export WEFT_NCCL=$nccl
fi

check() {  # WHAT COMMAND...
  if "${@:2}"; then echo "ok: $1"; else echo "FAILED: $1"; failed=$((failed + 1)); fi
}
# A text with some structure, the same everywhere.
[ -f text.txt ] || awk 'BEGIN { n = split("and the king went forth into a land.", w, " "); s = 1
  for (i = 0; i < 400000; ++i) { s = (s * 1664525 + 1013904223) % 4294967296; printf "%s%s", w[1 + int(s / 536870912)], s % 9 ? " " : "\n" } }' >text.txt
train() {  # NAME OPTION...
  local name=$1
  shift
  rm -rf "$name"
  timeout 300 "$weft" train --device cuda --data text.txt --sample 0 --eval-batches 2 --save-every 0 --out "$name" "$@" >"$name.log" 2>&1
}
losses() { sed -n 's/.*"loss":\([^,}]*\).*/\1/p' "$1/metrics.jsonl"; }
speed() { sed -n 's/.*"tokens_per_second": *\([0-9.]*\).*/\1/p' "$1/summary.json"; }
same_bits() { [ -s "$1/metrics.jsonl" ] && [ "$(losses "$1")" = "$(losses "$2")" ] &&
  cmp -s "$1"/latest/model.safetensors "$2"/latest/model.safetensors; }
close() {  # A B RELATIVE: the losses
  paste <(losses "$1") <(losses "$2") | awk -v t="$3" 'NF != 2 { bad = 1 } { d = $1 - $2; if (d < 0) d = -d; if (d > t * $2) bad = 1; if (d / $2 > m) m = d / $2 }
    END { printf "  %d losses, largest relative difference %.3g\n", NR, m; exit bad || NR == 0 }'
}
nothing_left() { ! pgrep -f -- "--out $out/ended" >/dev/null; }
small="--width 256 --layers 4 --batch 16 --length 256"
large="--preset 130m --tokenizer bytes --length 2048 --steps 40 --eval-every 0"

one() {
  "$weft" doctor
  for precision in fp32 bf16; do
    train "alone_$precision" $small --steps 20 --precision $precision
    train "nccl_$precision" $small --steps 20 --precision $precision --gpus 1
    check "$precision: NCCL with one rank, equal bits to none" same_bits "nccl_$precision" "alone_$precision"
    WEFT_GRAPH=0 train "plain_$precision" $small --steps 20 --precision $precision --gpus 1
    check "$precision: NCCL in the graph, equal bits to none" same_bits "nccl_$precision" "plain_$precision"
  done
  train cost_alone $large --batch 8
  train cost_nccl $large --batch 8 --gpus 1
  a=$(speed cost_alone) b=$(speed cost_nccl)
  echo "  tokens/s alone $a, NCCL with one rank $b"
  check "overhead of NCCL with one rank is under 1 %" awk -v a="$a" -v b="$b" 'BEGIN { exit !(b > 0.99 * a) }'
  "$weft" bench collectives --gpus 1 --device cuda --json collectives1.json
}

two() {
  "$weft" doctor
  for precision in fp32 bf16; do
    tolerance=1e-5
    [ $precision = fp32 ] || tolerance=1e-2
    train "one_$precision" $small --steps 20 --precision $precision
    train "many_$precision" $small --steps 20 --precision $precision --gpus "$ranks"
    train "again_$precision" $small --steps 20 --precision $precision --gpus "$ranks"
    check "$precision: two runs on $ranks GPUs, equal bits" same_bits "many_$precision" "again_$precision"
    check "$precision: losses of 1 and $ranks GPUs within $tolerance" close "many_$precision" "one_$precision" $tolerance
    WEFT_OVERLAP=0 train "stops_$precision" $small --steps 20 --precision $precision --gpus "$ranks"
    check "$precision: exchanging beside backward, equal bits to not" same_bits "many_$precision" "stops_$precision"
  done
  train run $small --precision fp32 --gpus "$ranks" --steps 10
  check "10 steps on $ranks GPUs" test -e run/checkpoints/step-10
  check "resume on 1 GPU" "$weft" train --resume run --steps 15 >/dev/null
  check "and back on $ranks" "$weft" train --resume run --steps 20 --gpus "$ranks" >/dev/null
  check "20 losses" test "$(losses run | wc -l)" = 20
  for signal in KILL STOP; do
    rm -rf ended
    WEFT_RANK_TIMEOUT=20 "$weft" train --device cuda --data text.txt --sample 0 $small --steps 1000000 --save-every 50 --eval-every 0 \
      --gpus "$ranks" --out "$out/ended" >ended.log 2>&1 &
    launcher=$!
    for _ in $(seq 300); do [ -e ended/checkpoints/step-50 ] && break; sleep 0.2; done
    child=$(pgrep -P $launcher | tail -n 1)
    kill -$signal "$child"
    begin=$SECONDS
    wait $launcher
    code=$?
    echo "  signal $signal: exit $code after $((SECONDS - begin)) s: $(grep -m 1 'weft:' ended.log)"
    check "signal $signal: exit 3" test $code = 3
    check "signal $signal: within a minute" test $((SECONDS - begin)) -lt 60
    check "signal $signal: the last checkpoint is intact" "$weft" check ended >/dev/null
    check "signal $signal: no process is left" nothing_left
  done
  "$weft" bench collectives --gpus "$ranks" --device cuda --json "collectives$ranks.json"
}

scale() {
  hymba="--model hymba-study --preset bench --tokenizer bytes --length 256 --steps 100 --eval-every 0"
  for n in 1 2 4 8; do
    [ "$n" -le "$ranks" ] || break
    train "mamba_$n" $large --batch $((8 * n)) --gpus "$n"
    train "hymba_$n" $hymba --batch $((16 * n)) --gpus "$n"
    for model in mamba hymba; do
      echo "$model, $n GPUs: $(speed ${model}_$n) tokens/s, $(awk -v a="$(speed ${model}_1)" -v b="$(speed ${model}_$n)" 'BEGIN { if (a) printf "%.3f", b / a }') times one"
    done
    [ "$n" = 1 ] && continue
    WEFT_OVERLAP=0 train "mamba_stops_$n" $large --batch $((8 * n)) --gpus "$n"
    echo "mamba, $n GPUs, exchange not beside backward: $(speed mamba_stops_$n) tokens/s"
  done
  check "2 GPUs: Mamba-130M 1.95 times one" awk -v a="$(speed mamba_1)" -v b="$(speed mamba_2)" 'BEGIN { exit !(a > 0 && b >= 1.95 * a) }'
  check "2 GPUs: Hymba-style 1.90 times one" awk -v a="$(speed hymba_1)" -v b="$(speed hymba_2)" 'BEGIN { exit !(a > 0 && b >= 1.90 * a) }'
}

sanitize() {
  timeout 580 compute-sanitizer --tool memcheck --target-processes all --error-exitcode 9 "$weft" train --device cuda --data text.txt --sample 0 \
    --width 64 --layers 1 --batch 4 --length 64 --steps 3 --eval-batches 1 --gpus "$ranks" >sanitize.log 2>&1
  code=$?
  tail -n 15 sanitize.log
  check "compute-sanitizer memcheck over a small step" test $code = 0
}

case $part in
  one | two | scale | sanitize) $part ;;
  *) echo "gpus.sh: no part '$part': one, two, scale or sanitize" >&2 && exit 99 ;;
esac
echo "$failed checks failed; logs in $out"
exit "$failed"
