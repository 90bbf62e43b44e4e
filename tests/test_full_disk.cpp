// The program on a disk that is full: what it says, and that nothing is lost which was there.
#include <gtest/gtest.h>

#include "tests/program.h"
#include "tests/words_text.h"

namespace weft {
namespace {

// A file system of 600 kB in ./disk, which only the script sees.
class FullDisk : public ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    if (IsSkipped()) return;
    const Outcome mounted = on_disk("true");
    if (mounted.code != 0) GTEST_SKIP() << "no file system can be mounted here: " << mounted.text;
    folder_.write("text.txt", words_text(400'000));
  }
  Outcome on_disk(const std::string& script) const {
    folder_.write(
        "script",
        "export OMP_NUM_THREADS=1\nmkdir -p disk && mount -t tmpfs -o size=600k none disk || exit 77\n"
        "train() { weft train --data text.txt --width 16 --layers 1 --state 4 --batch 2 --length 16 --sample 0 --eval-every 0 "
        "--eval-batches 1 \"$@\"; }\n" +
            script);
    return shell("unshare -m sh -e ./script");
  }
};

const std::string kFull = "No space left on device\n  hint: free some space or choose another folder";

TEST_F(FullDisk, ASaveKeepsThePreviousCheckpointWhichGoesOn) {
  expect_words(on_disk(R"(
    train --steps 12 --save-every 1 --keep 0 --out whole >/dev/null
    train --steps 12 --save-every 1 --keep 0 --out disk/run >output 2>&1 && exit 1 || echo "train: $?"
    grep 'weft: cannot write .*disk/run/checkpoints/step-' -A 1 output
    ls disk/run/checkpoints | grep tmp && exit 2
    last=$(readlink disk/run/latest)
    cmp disk/run/latest/model.safetensors whole/$last/model.safetensors
    weft train --resume disk/run >output 2>&1 && exit 3 || echo "resume: $?"
    [ $last = $(readlink disk/run/latest) ]
    mount -o remount,size=50m disk
    weft train --resume disk/run | grep resumed
    cmp disk/run/latest/model.safetensors whole/latest/model.safetensors
    cmp disk/run/latest/optimizer.safetensors whole/latest/optimizer.safetensors
    grep -c grad_norm disk/run/metrics.jsonl)"),
               0, {"train: 4", kFull, "resume: 4", "resumed after step", "\n12\n"});
}

TEST_F(FullDisk, AStepThatCannotBeRecorded) {
  expect_words(on_disk(R"(
    train --steps 3 --out disk/run >/dev/null
    weft train --resume disk/run --steps 1000000 --save-every 0 >output 2>&1 &
    until [ $(wc -l <disk/run/metrics.jsonl) -gt 10 ]; do sleep 0.01; done
    head -c 1000000 /dev/zero >disk/filler || echo filled
    wait $! && exit 1 || echo "train: $?"
    grep 'weft: cannot write .*disk/run/.*: No space' -A 1 output
    rm disk/filler
    weft train --resume disk/run --steps 8 | grep resumed
    grep -c grad_norm disk/run/metrics.jsonl)"),
               0, {"filled", "train: 4", kFull, "resumed after step 3", "\n8\n"});
}

TEST_F(FullDisk, ARunThatCannotBegin) {
  expect_words(on_disk(R"(
    head -c 1000000 /dev/zero >disk/filler || echo filled
    train --steps 3 --out disk/run && exit 1 || echo "train: $?")"),
               0, {"filled", "weft: cannot ", "disk/run", kFull, "train: 4"});
}

TEST_F(FullDisk, APictureAppearsWholeOrNotAtAll) {
  expect_words(on_disk(R"(
    command -v gnuplot >/dev/null || { echo "plot: 4 loss.png: No space left on device"; exit 0; }
    train --steps 3 --out disk/run >/dev/null
    rm -f disk/run/loss.*; left=$(df --output=avail -k disk | tail -n 1)
    head -c $(((left - 12) * 1024)) /dev/zero >disk/filler  # what is left takes the curve's data and script
    weft plot disk/run >output 2>&1 && exit 1 || echo "plot: $?"
    cat output; [ -f disk/run/loss.gp ]; [ ! -e disk/run/loss.png ])"),
               0, {"plot: 4", "loss.png: No space left on device"});
}

TEST_F(FullDisk, ShardsAppearWholeOrNotAtAll) {
  expect_words(on_disk(R"(
    weft data make --data text.txt --out disk/shards --shard-tokens 120000 && exit 1 || echo "make: $?"
    ls -A disk | grep . && exit 2
    mount -o remount,size=2m disk
    weft data make --data text.txt --out disk/shards --shard-tokens 120000
    weft data check disk/shards)"),
               0, {"weft: cannot write ", "training-00002.tokens: " + kFull, "make: 4", "every token is as it was written"});
}

}  // namespace
}  // namespace weft
