#!/usr/bin/env bash
# Training on several GPUs of this machine, with a weft that is built: what one GPU can check, what two can, how it scales.
#   tests/gpus.sh WEFT PART [FOLDER]     PART: one, two, zero, scale, sanitize; FOLDER for runs and figures, new or empty
# A part takes at most four minutes, ends with a table of its checks and figures, and exits with the number of checks that
# failed. Environment: RANKS (2) for all parts but `one`; WEFT_NCCL, the file of NCCL; DEVICE=cpu tries the script itself without
# a GPU, by mpirun and small models: its figures then mean nothing.
set -uo pipefail
weft=$(realpath "$1") part=$2 out=$(realpath -m "${3:-$(mktemp -d)}")
ranks=${RANKS:-2} device=${DEVICE:-cuda} failed=0 table=() limit=230 # seconds of a part
export NCCL_NVLS_ENABLE=0  # NVLink multicast stays off
mkdir -p "$out" && cd "$out" || exit 99
if [ $device = cuda ] && [ -z "${WEFT_NCCL:-}" ]; then
  nccl=$(python3 -c 'import nvidia.nccl, os; print(os.path.join(list(nvidia.nccl.__path__)[0], "lib", "libnccl.so.2"))' 2>/dev/null)
  [ ! -f "$nccl" ] || export WEFT_NCCL=$nccl
fi

# ---- checks and figures -------------------------------------------------------------------------------------------------------

row() { table+=("$(printf '%-66s %s' "$1" "$2")") && echo "${table[-1]}"; }
check() {  # WHAT COMMAND...
  if "${@:2}"; then row "$1" ok; else row "$1" FAILED && failed=$((failed + 1)); fi
}
left() { echo $((limit - SECONDS)); }
enough() {  # SECONDS WHAT: whether there is that much time for it
  [ "$(left)" -ge "$1" ] || { row "$2" "left out: no time" && return 1; }
}

# ---- runs ---------------------------------------------------------------------------------------------------------------------

# A text with some structure, the same everywhere.
[ -f text.txt ] || awk 'BEGIN { n = split("and the king went forth into a land.", w, " "); s = 1
  for (i = 0; i < 400000; ++i) { s = (s * 1664525 + 1013904223) % 4294967296; printf "%s%s", w[1 + int(s / 536870912)], s % 9 ? " " : "\n" } }' >text.txt
if [ $device = cuda ]; then
  small="--width 256 --layers 4 --batch 16 --length 256"
  mamba="--preset 130m --tokenizer bytes --length 2048 --steps 40 --eval-every 0" mamba_rows=8
  hymba="--model hymba-study --preset bench --tokenizer bytes --length 256 --steps 100 --eval-every 0" hymba_rows=16
  tiny="--width 64 --layers 1 --batch 4 --length 64 --steps 3 --eval-batches 1"
else
  mamba="--width 16 --layers 1 --state 4 --length 16 --steps 8 --eval-every 0" mamba_rows=4
  small="--width 16 --layers 1 --state 4 --batch 4 --length 16"
  hymba="--model hymba-study --width 32 --layer-kinds GL --heads 2 --kv-heads 1 --state 4 --length 16 --steps 4 --eval-every 0" hymba_rows=4
  tiny="$small --steps 3 --eval-batches 1"
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
fi
on() {  # RANKS COMMAND WORD...: 0 ranks: a process that has joined none
  local n=$1 command=$2
  shift 2
  if [ "$n" = 0 ]; then
    "$weft" "$command" "$@"
  elif [ $device = cuda ]; then
    "$weft" "$command" "$@" --gpus "$n"
  else
    mpirun --oversubscribe --bind-to none -n "$n" "$weft" "$command" "$@"
  fi
}
train() {  # NAME RANKS OPTION...
  local name=$1 n=$2
  shift 2
  rm -rf "$name"
  on "$n" train --device $device --data text.txt --sample 0 --eval-batches 2 --save-every 0 --out "$name" "$@" >"$name.log" 2>&1 &
  local pid=$! begin=$SECONDS
  while kill -0 $pid 2>/dev/null && [ $((SECONDS - begin)) -lt 100 ] && [ "$(left)" -gt 0 ]; do sleep 0.2; done
  kill $pid 2>/dev/null && echo "ended: it took too long" >>"$name.log"
  wait $pid || { echo "  $name: exit $?" && tail -n 3 "$name.log"; }
}
losses() { sed -n 's/.*"loss":\([^,}]*\).*/\1/p' "$1/metrics.jsonl"; }
# Tokens a second: the median of the second half of the steps.
speed() {
  sed -n 's/.*"tokens_per_second":\([0-9.]*\).*/\1/p' "$1/metrics.jsonl" 2>/dev/null | awk '{ v[NR] = $1 } END { for (i = int(NR / 2) + 1; i <= NR; ++i) print v[i] }' |
    sort -g | awk '{ v[NR] = $1 } END { print NR ? v[int((NR + 1) / 2)] : 0 }'
}
figure() { sed -n 's/.*"'"$2"'": *\([0-9.]*\).*/\1/p' "$1/summary.json"; }
same_bits() { [ -s "$1/metrics.jsonl" ] && [ "$(losses "$1")" = "$(losses "$2")" ] &&
  cmp -s "$1"/latest/model.safetensors "$2"/latest/model.safetensors && cmp -s "$1"/latest/optimizer.safetensors "$2"/latest/optimizer.safetensors; }
close() {  # A B RELATIVE: the losses
  paste <(losses "$1") <(losses "$2") | awk -v t="$3" 'NF != 2 { bad = 1 } { d = $1 - $2; if (d < 0) d = -d; if (d > t * $2) bad = 1; if (d / $2 > m) m = d / $2 }
    END { printf "  %d losses, largest relative difference %.3g\n", NR, m; exit bad || NR == 0 }'
}
at_least() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > 0 && a >= b) }' || [ $device = cpu ]; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf("%.3f", a / b); else printf("-") }'; }
newest_rank() {  # the ranks are younger than what has started them
  for p in $(pgrep -f -- "--out $out/ended"); do [ "$(cat /proc/$p/comm)" = weft ] && echo "$p"; done | sort -n | tail -n 1
}
nothing_left() { ! pgrep -f -- "--out $out/ended" >/dev/null; }
intact() { "$weft" check ended >/dev/null; }
on_three() {  # NAME OPTION...: 10 steps on the ranks, then 15 on one GPU, then 20 on the ranks
  train "$1" "$ranks" $small --precision fp32 --steps 10 "${@:2}"
  "$weft" train --resume "$1" --steps 15 >>"$1.log" 2>&1 && on "$ranks" train --resume "$1" --steps 20 >>"$1.log" 2>&1 &&
    [ "$(losses "$1" | wc -l)" = 20 ]
}

bandwidths() {  # RANKS
  local smoke=
  [ $device = cuda ] || smoke=--smoke
  enough 30 "bandwidths" || return
  on "$1" bench collectives --device $device $smoke --json "collectives$1.json"
  row "all_reduce of the largest size, bus GB/s" "$(awk '/"bus_gbps"/ { b = $2 + 0 } /"collective": "all_reduce"/ { print b; b = 0 }' "collectives$1.json" | tail -n 1)"
}

# ---- parts --------------------------------------------------------------------------------------------------------------------

one() {
  "$weft" doctor
  for precision in fp32 bf16; do
    train "alone_$precision" 0 $small --steps 20 --precision $precision
    train "nccl_$precision" 1 $small --steps 20 --precision $precision
    check "$precision: a group of one, equal bits to none" same_bits "nccl_$precision" "alone_$precision"
    WEFT_GRAPH=0 train "plain_$precision" 1 $small --steps 20 --precision $precision
    check "$precision: a group of one in the graph, equal bits to not" same_bits "nccl_$precision" "plain_$precision"
    train "zero_$precision" 1 $small --steps 20 --precision $precision --zero
    check "$precision: a group of one with --zero, equal bits" same_bits "nccl_$precision" "zero_$precision"
  done
  local a=0 b=0
  for round in 1 2; do  # in turn: the best of each
    train cost_alone 0 $mamba --batch $mamba_rows && a=$(printf '%s\n' "$a" "$(speed cost_alone)" | sort -g | tail -n 1)
    train cost_nccl 1 $mamba --batch $mamba_rows && b=$(printf '%s\n' "$b" "$(speed cost_nccl)" | sort -g | tail -n 1)
  done
  row "Mamba-130M alone, tokens/s" "$a"
  row "Mamba-130M in a group of one, tokens/s" "$b"
  check "overhead of a group of one is under 1 %: $(ratio "$b" "$a")" at_least "$b" "$(awk -v a="$a" 'BEGIN { print 0.99 * a }')"
  bandwidths 1
}

two() {
  "$weft" doctor
  for precision in fp32 bf16; do
    tolerance=1e-5
    [ $precision = fp32 ] || tolerance=1e-2
    train "one_$precision" 0 $small --steps 20 --precision $precision
    train "many_$precision" "$ranks" $small --steps 20 --precision $precision
    train "again_$precision" "$ranks" $small --steps 20 --precision $precision
    check "$precision: two runs on $ranks ranks, equal bits" same_bits "many_$precision" "again_$precision"
    check "$precision: losses of 1 and $ranks ranks within $tolerance" close "many_$precision" "one_$precision" $tolerance
    WEFT_OVERLAP=0 train "stops_$precision" "$ranks" $small --steps 20 --precision $precision
    check "$precision: exchanging beside backward, equal bits to not" same_bits "many_$precision" "stops_$precision"
  done
  WEFT_TUNE=1 train tuned "$ranks" $small --steps 20 --precision bf16
  check "products chosen by timing: within 1e-2" close tuned one_bf16 1e-2
  check "resume on 1, and back on $ranks: 20 losses" on_three run
  for signal in KILL STOP; do
    enough 60 "signal $signal" || continue
    rm -rf ended
    WEFT_RANK_TIMEOUT=20 on "$ranks" train --device $device --data text.txt --sample 0 $small --steps 1000000 --save-every 50 --eval-every 0 \
      --out "$out/ended" >ended.log 2>&1 &
    launcher=$!
    for _ in $(seq 300); do [ -e ended/checkpoints/step-50 ] && break; sleep 0.2; done
    child=$(newest_rank)
    kill -$signal "$child"
    begin=$SECONDS
    wait $launcher
    code=$?
    kill -KILL "$child" 2>/dev/null  # under mpirun a stopped one stays
    row "signal $signal: exit $code after $((SECONDS - begin)) s" "$(grep -m 1 -o 'weft:.*' ended.log)"
    if [ $device = cuda ]; then check "signal $signal: exit 3" test $code = 3; else check "signal $signal: not 0" test $code != 0; fi
    check "signal $signal: within a minute" test $((SECONDS - begin)) -lt 60
    check "signal $signal: the last checkpoint is intact" intact
    check "signal $signal: no process is left" nothing_left
  done
  bandwidths "$ranks"
}

# Each rank with a part of the optimizer's state.
zero() {
  for precision in fp32 bf16; do
    train "many_$precision" "$ranks" $small --steps 20 --precision $precision
    train "zero_$precision" "$ranks" $small --steps 20 --precision $precision --zero
    train "zero_again_$precision" "$ranks" $small --steps 20 --precision $precision --zero
    check "$precision: two runs with --zero, equal bits" same_bits "zero_$precision" "zero_again_$precision"
    if [ "$ranks" = 2 ]; then  # a sum of two has one order
      check "$precision: with and without --zero, equal bits" same_bits "many_$precision" "zero_$precision"
    else
      check "$precision: with and without --zero, losses within 1e-2" close "many_$precision" "zero_$precision" 1e-2
    fi
  done
  check "--zero on $ranks, then 1, then $ranks: 20 losses" on_three zero_run --zero
  for model in mamba hymba; do
    local options=${!model} count=${model}_rows
    for how in plain zero; do
      enough 30 "$model, $how" || continue
      train "${model}_$how" "$ranks" $options --batch $((${!count} * ranks)) $([ $how = plain ] || echo --zero)
      row "$model, $how: tokens/s, MB of a rank" "$(speed "${model}_$how") $(awk -v b="$(figure "${model}_$how" memory_bytes)" 'BEGIN { printf "%.0f", b / 1e6 }')"
    done
  done
}

scale() {
  for model in mamba hymba; do
    local options=${!model} count=${model}_rows goal=1.95 base
    [ $model = mamba ] || goal=1.90
    train "${model}_1" 0 $options --batch ${!count}
    base=$(speed "${model}_1")
    row "$model, 1 GPU: tokens/s" "$base"
    train "${model}_group" 1 $options --batch ${!count}
    row "$model, a group of one: tokens/s, times one" "$(speed "${model}_group") $(ratio "$(speed "${model}_group")" "$base")"
    if [ $device = cuda ]; then  # the ceiling: as many processes that exchange nothing
      for ((n = 1; n < ranks; ++n)); do
        CUDA_VISIBLE_DEVICES=$n "$weft" train --device cuda --data text.txt --sample 0 --eval-batches 2 --save-every 0 --out "${model}_beside_$n" \
          $options --batch ${!count} >"${model}_beside_$n.log" 2>&1 &
      done
      CUDA_VISIBLE_DEVICES=0 train "${model}_beside" 0 $options --batch ${!count}
      wait
      row "$model, 1 of $ranks processes that exchange nothing: tokens/s" "$(speed "${model}_beside"), $(ratio "$(speed "${model}_beside")" "$base")"
    fi
    for n in 2 4 8; do
      [ "$n" -le "$ranks" ] || break
      enough 20 "$model, $n GPUs" || break
      train "${model}_$n" "$n" $options --batch $((${!count} * n))
      row "$model, $n GPUs: tokens/s, times one" "$(speed "${model}_$n") $(ratio "$(speed "${model}_$n")" "$base")"
    done
    check "$model on 2 GPUs is $goal times one" at_least "$(speed "${model}_2")" "$(awk -v a="$base" -v g=$goal 'BEGIN { print a * g }')"
  done
  # What hides the exchange or makes it smaller: options of weft, variables of weft and NCCL.
  for how in WEFT_OVERLAP=0 --exchange=bf16 NCCL_MAX_CTAS=8 NCCL_MAX_CTAS=4 NCCL_MAX_CTAS=16 NCCL_GRAPH_MIXING_SUPPORT=0 NCCL_CTA_POLICY=1; do
    for model in hymba mamba; do
      local options=${!model} count=${model}_rows name=${model}_${how#--} variable=$how option=
      enough 20 "$model, $how" || continue
      [ "${how#--}" = "$how" ] || variable=WEFT_OVERLAP=1 option=$how
      (export "$variable" && train "$name" "$ranks" $options --batch $((${!count} * ranks)) $option)
      row "$model, $ranks GPUs, $how: tokens/s, times one" "$(speed "$name") $(ratio "$(speed "$name")" "$(speed "${model}_1")")"
    done
  done
}

sanitize() {
  train warm "$ranks" $tiny  # so that its kernels are in the cache
  train warm_zero "$ranks" $tiny --zero
  for how in "" --zero; do
    enough 60 "memcheck $how" || continue
    if [ $device = cuda ]; then
      # NCCL's kernels wait for other GPUs, and are not weft's: they are not instrumented.
      WEFT_RANK_TIMEOUT=120 timeout $(($(left) / ($([ -n "$how" ] && echo 1 || echo 2)))) compute-sanitizer --tool memcheck --target-processes all \
        --kernel-name-exclude kernel_substring=nccl --error-exitcode 9 "$weft" train --device cuda --data text.txt --sample 0 $tiny $how \
        --gpus "$ranks" >sanitize$how.log 2>&1
    else
      on "$ranks" train --device emu --data text.txt --sample 0 $tiny $how >sanitize$how.log 2>&1  # whose memory is checked
    fi
    code=$?
    tail -n 8 sanitize$how.log
    check "memcheck over a small step $how" test $code = 0
  done
}

case $part in
  one | two | zero | scale | sanitize) $part ;;
  *) echo "gpus.sh: no part '$part': one, two, zero, scale or sanitize" >&2 && exit 99 ;;
esac
printf '\n==== %s, %s ranks, %s s ====\n' "$part" "$ranks" $SECONDS
printf '%s\n' "${table[@]}"
echo "$failed checks failed; logs in $out"
exit "$failed"
