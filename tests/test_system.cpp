// The program among others: folders that are not its own, a second process, planted links and programs, closed descriptors,
// limits of the system, and files whose bytes are not those that were written.
#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <regex>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "jit/driver.h"
#include "jit/file.h"
#include "jit/memory.h"
#include "jit/print.h"
#include "jit/sizes.h"
#include "tests/expect_error.h"
#include "tests/program.h"
#include "tests/words_text.h"
#include "tools/data/data.h"
#include "tools/data/shards.h"
#include "tools/system/folder.h"
#include "tools/system/process.h"
#include "tools/train/checkpoint.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// Commands of a shell on a tiny model. `train` is the program itself, and its number $! that of the process.
class System : public ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    if (!IsSkipped()) folder_.write("text.txt", words_text(6000));
  }
  Outcome shell(const std::string& script) const {
    return ProgramTest::shell(
        "set -e; export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive WEFT=$(unset -f weft; command -v weft)\n"
        "train() { exec \"$WEFT\" train --device cpu --data text.txt --width 16 --layers 1 --state 4 --batch 2 --length 16 "
        "--sample 0 --eval-every 0 --eval-batches 1 \"$@\"; }\n"
        "resume() { exec \"$WEFT\" train --resume \"$@\"; }\n"
        "until_saved() { until [ -L \"$1/latest\" ]; do sleep 0.02; done; }\n" +
        script);
  }
  // All succeed, and the output has the words.
  void expect(const std::string& script, const std::vector<std::string>& words = {}) const {
    expect_words(shell(script), 0, words);
  }
};

// ---- what is not weft's stays as it is --------------------------------------------------------------------------------------

using ForeignFolders = System;

TEST_F(ForeignFolders, AFolderThatHoldsNoRunIsRefused) {
  expect(R"(
    mkdir -p mine/latest mine/checkpoints.tmp; echo 1 >mine/config.json; echo 2 >mine/latest/a; echo 3 >mine/b.tmp
    find mine | sort >before
    (train --steps 2 --out mine) || echo "code $?"
    (train --steps 2 --out other >/dev/null); (resume other --steps 4 --out mine) || echo "resume $?"
    find mine | sort | cmp - before; cat mine/config.json mine/latest/a mine/b.tmp)",
         {"the folder is not empty, and holds no run: mine", "code 2", "resume 2", "1\n2\n3\n"});
}

TEST_F(ForeignFolders, OnlyWhatWeftMadeIsRemovedAndByItsExactName) {
  expect(R"(
    (train --steps 4 --save-every 2 --keep 0 --out run >/dev/null)
    cd run
    mkdir sub.tmp; for f in step-x.tmp step-9.tmp step-8.weft-1-2.tmp x.weft-1-2.tmp; do mkdir checkpoints/$f; done
    for f in notes.tmp latest.tmp .weft-1-x.tmp checkpoints/notes.tmp checkpoints/step-3.txt; do echo mine >$f; done
    cd ..; echo left >run/.weft-77-0.tmp
    (resume run/checkpoints/step-2 >/dev/null)
    cat run/notes.tmp run/latest.tmp run/.weft-1-x.tmp run/checkpoints/notes.tmp run/checkpoints/step-3.txt | grep -c mine
    ls -A run run/checkpoints)",
         {"5\n", "sub.tmp", "step-x.tmp", "x.weft-1-2.tmp", "step-4"});
  EXPECT_FALSE(fs::exists(folder_ / "run/.weft-77-0.tmp"));
  EXPECT_FALSE(fs::exists(folder_ / "run/checkpoints/step-9.tmp"));
  EXPECT_FALSE(fs::exists(folder_ / "run/checkpoints/step-8.weft-1-2.tmp"));
}

TEST_F(ForeignFolders, ALatestThatIsNoLinkIsNotReplaced) {
  expect(R"(
    (train --steps 2 --out run >/dev/null); rm run/latest; mkdir run/latest; echo mine >run/latest/a
    (resume run --steps 3) || echo "code $?"; cat run/latest/a)",
         {"latest: it is not the link that weft makes there", "code 4", "mine"});
}

TEST_F(ForeignFolders, MakingShardsTouchesNothingBesideThem) {
  expect(R"(
    mkdir shards.tmp; echo mine >shards.tmp/a
    weft data make --data text.txt --out shards >/dev/null; cat shards.tmp/a; ls -A | grep -c 'weft-' || true)",
         {"mine\n0\n"});
}

TEST_F(ForeignFolders, LinksAreReplacedAndNotFollowed) {
  expect(R"(
    (train --steps 2 --out run >/dev/null)
    for f in config.json environment.json metrics.jsonl events.out.tfevents.weft summary.json \
        loss.dat loss.gp loss.png loss.svg; do
      echo precious >target-$f; ln -sf ../target-$f run/$f; done
    echo '[]' >target-environment.json; rm run/metrics.jsonl; ln -s ../target-none run/metrics.jsonl
    (resume run --steps 3 >/dev/null)
    grep -c precious target-config.json target-summary.json target-loss.* target-events*
    [ ! -e target-none ]; for f in run/*.json run/loss.dat; do [ ! -L $f ]; done)",
         {"target-config.json:1", "target-loss.gp:1", "target-loss.dat:1", "target-summary.json:1", "tfevents.weft:1"});
}

TEST_F(ForeignFolders, ARecordThatCannotBeReadIsNotReplaced) {
  expect(R"(
    (train --steps 2 --out run >/dev/null); mv run/environment.json aside; mkdir run/environment.json
    (resume run --steps 3) || echo "code $?"
    rmdir run/environment.json; mv aside run/environment.json; (resume run --steps 3 >/dev/null)
    grep -c after_step run/environment.json
    head -c 9 run/environment.json >cut; mv cut run/environment.json; (resume run --steps 4 >/dev/null)
    grep -c after_step run/environment.json)",
         {"cannot read run/environment.json: Is a directory", "code 4", "2\n1\n"});
}

TEST(TemporaryNames, AreToldFromOthers) {
  EXPECT_EQ(temporary_of(temporary_name("some/folder/")), "");
  EXPECT_EQ(temporary_of(temporary_name("some/step-3")), "step-3");
  EXPECT_NE(temporary_name("a"), temporary_name("a"));
  for (const char* name :
       {".weft-1-2.tmp.txt", ".weft-1.tmp", ".weft-a-2.tmp", "notes.tmp", ".weft--1-2.tmp", ".weft-01-2.tmp"})
    EXPECT_FALSE(temporary_of(name)) << name;
}

// ---- one writer -------------------------------------------------------------------------------------------------------------

using OneWriter = System;

TEST_F(OneWriter, ASecondTrainerOfARunIsRefused) {
  expect(R"(
    (train --steps 100000000 --save-every 5 --out run) >output & first=$!
    until [ -d run/checkpoints ]; do sleep 0.02; done
    (train --steps 2 --out run) || echo "train $?"
    until_saved run
    (resume run) || echo "resume $?"
    (resume run/latest --steps 9 --out run) || echo "latest $?"
    kill -TERM $first; wait $first || echo "first $?"
    (resume run --steps 1 >/dev/null) || echo "again $?")",
         {"another process writes this folder: run", "train ", "resume 4", "latest 4", "first 143"});
}

TEST_F(OneWriter, AKillLeavesNoLockBehind) {
  expect(R"(
    (train --steps 100000000 --save-every 2 --out run) >output & first=$!
    until_saved run; kill -KILL $first; wait $first || true
    [ -f run/weft.lock ]; (resume run --steps 3 --save-every 0 >/dev/null) || [ $? = 0 ]; echo went on)",
         {"went on"});
}

TEST_F(OneWriter, ALockIsForOneAndNoChildHasIt) {
  {
    const FolderLock lock(folder_ / "a");
    expect_error(ErrorKind::io, {"another process writes this folder", (folder_ / "a").string(), "--out"},
                 [&] { FolderLock second(folder_ / "a"); });
    const FolderLock other(folder_ / "b");
    const auto files = output_of({.program = "/bin/ls", .arguments = {"-l", "/proc/self/fd"}});
    ASSERT_TRUE(files);
    EXPECT_EQ(files->find(kLockFile), std::string::npos) << *files;
  }
  const FolderLock again(folder_ / "a");
  fs::create_directory(folder_ / "c");
  fs::create_symlink(folder_ / "planted", folder_ / "c" / kLockFile);
  expect_error(ErrorKind::io, {"cannot write", kLockFile}, [&] { FolderLock lock(folder_ / "c"); });
  EXPECT_FALSE(fs::exists(folder_ / "planted"));
}

TEST_F(OneWriter, WithoutLocksOneLineSaysSo) {
#ifdef WEFT_SANITIZED
  GTEST_SKIP() << "LeakSanitizer does not work under strace";
#endif
  if (shell("strace -o /dev/null /bin/true").code != 0) GTEST_SKIP() << "strace is missing or may not trace";
  expect(
      "strace -o /dev/null -e trace=flock -e inject=flock:error=ENOLCK \"$WEFT\" train --task induction --steps 1 --batch 2 "
      "--eval-batches 1 --device cpu --out run; [ -L run/latest ]",
      {"weft: run: its file system has no locks (No locks available)"});
}

TEST_F(OneWriter, AModelIsReadWhileItsRunTrains) {
  expect(R"(
    (train --steps 100000000 --save-every 1 --keep 1 --out run) >output & first=$!
    until_saved run
    for i in 1 2 3 4 5 6 7 8; do
      "$WEFT" generate --from run --tokens 1 --device cpu >/dev/null 2>said || { cat said; echo "failed $?"; }
      "$WEFT" generate --from run/latest --tokens 1 --device cpu >/dev/null 2>said || { cat said; echo "failed $?"; }
    done
    kill -KILL $first; echo done)",
         {"done"});
}

// What the test above meets by chance.
TEST(OneReader, GoesOnWithTheNewerCheckpointWhenItsOwnIsRemoved) {
  const TempFolder run;
  const Checkpoints checkpoints(run.path());
  const auto write = [&](std::int64_t step) {
    checkpoints.write(step, 1, [](const fs::path& to) { write_file(to / "x", {}); });
  };
  write(1);
  for (const fs::path& path : {run.path(), run / "latest"}) {
    std::vector<fs::path> read;
    const std::int64_t next = std::stol(checkpoints.newest()->filename().string().substr(5)) + 1;
    read_model_folder(path, [&](const fs::path& folder) {
      read.push_back(folder.filename());
      if (read.size() == 1) write(next);
      return read_text(folder / "x");
    });
    EXPECT_EQ(read.size(), 2u);
    EXPECT_EQ(read.back(), "step-" + std::to_string(next));
  }
  int calls = 0;
  expect_error(ErrorKind::io, {"No such file"}, [&] {
    read_model_folder(run.path(), [&](const fs::path& folder) { return ++calls, read_text(folder / "none"); });
  });
  EXPECT_EQ(calls, 1) << "nothing was removed: there is no newer one to read";
}

// ---- what others wrote ------------------------------------------------------------------------------------------------------

TEST(Printable, EscapesWhatControlsATerminal) {
  EXPECT_EQ(printable("a\tb\n\x1b[2Jc\x7f\r"), "a\tb\n\\x1b[2Jc\\x7f\\x0d");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "\\xc2\\x9b31m")
      << "C1, as UTF-8";
  EXPECT_EQ(printable("\x9b"
                      "31m \xff"),
            "\\x9b31m \\xff")
      << "C1 as a byte, and what is no UTF-8";
  for (const char* turn :
       {"\xe2\x80\xae", "\xe2\x80\xaa", "\xe2\x81\xa6", "\xe2\x81\xa9", "\xe2\x80\x8f", "\xd8\x9c", "\xe2\x80\xa8"})
    EXPECT_EQ(printable(turn).substr(0, 2), "\\x") << turn;
  for (const char* fine :
       {"Grüße, 世界", "\xf0\x9f\x8c\x8d \xe2\x80\x94 \xc2\xa0 \xe2\x81\xb0", "\xd8\xb9\xd8\xb1\xd8\xa8\xd9\x8a"})
    EXPECT_EQ(printable(fine), fine);
}

// So that nothing is said past it: what prints otherwise is listed here, and makes its text printable or has it from nobody.
TEST(Printable, IsTheWayOfAllThatIsPrinted) {
  const std::set<std::string> others = {"print.cpp",         // print() itself
                                        "progress.cpp",      // moves the cursor
                                        "cmd_generate.cpp",  // a pipe gets the text as it is
                                        "coverage.cpp",      // into a file
                                        "program.cpp"};      // the text of another program
  const std::regex prints(R"(fmt::print|std::cout|std::cerr|std::fputs|std::fwrite|[^a-z_]puts\(|[^a-z_]f?printf\()");
  for (const char* folder : {"jit", "autograd", "ops", "nn", "optim", "models", "tools"})
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(WEFT_SOURCE_DIR) / folder)) {
      if (entry.path().extension() != ".cpp" || others.contains(entry.path().filename())) continue;
      std::istringstream lines(read_text(entry.path()));
      for (std::string line; std::getline(lines, line);)
        EXPECT_FALSE(std::regex_search(line, prints)) << entry.path() << ": use print() or print_error(): " << line;
    }
}

using Trust = System;

TEST_F(Trust, NamesInFilesDoNotReachTheTerminalAsTheyAre) {
  folder_.write("key.json", "{\"\\u001b]0;owned\\u0007\\u202e\": 1}");
  fs::create_directory(folder_ / "model");
  folder_.write("model/config.json", "{\"model_type\": \"\\u001b[31mmamba\\u009b\"}");
  for (const char* command :
       {"train --config key.json", "verify model", "generate --from model", "eval --data text.txt --from model",
        "inspect model", "data check model", "train --set $'\\033[2J=1'", "train --data $'\\033[2J'"}) {
    const Outcome outcome = shell(std::string("bash -c \"weft ") + command + "\"");
    EXPECT_NE(outcome.code, 0) << command;
    EXPECT_EQ(outcome.text, printable(outcome.text)) << command;
  }
}

TEST_F(Trust, NamesOfPicturesAreNoCommands) {
  if (shell("command -v gnuplot").code != 0) GTEST_SKIP() << "gnuplot is not installed";
  expect(R"sh(
    (train --steps 3 --out run >/dev/null)
    for name in '|touch hacked;' '<touch hacked' '-' '+' "it's" 'a`touch hacked`b' '$(touch hacked)' '@x'; do
      weft plot run --out "$name"; [ -s "./$name.png" ]; [ -s "./$name.svg" ]; done
    weft plot run --out "$(printf 'a\ntouch hacked')" || echo "code $?"
    mkdir 'in | here'; mv run "in | here/<run"; weft plot "in | here/<run"
    ls | grep hacked$ || echo safe)sh",
         {"code 2", "no control characters", "safe"});
}

TEST_F(Trust, ProgramsAreNotLookedForWhereOneHappensToStand) {
  expect(R"(
    (train --steps 3 --out run >/dev/null)
    printf '#!/bin/sh\necho ran >hacked\n' >gnuplot; chmod +x gnuplot; mkdir bin run/bin
    for place in bin run run/bin; do cp gnuplot $place; done
    for path in : . .: bin ''; do (PATH=$path; "$WEFT" plot run) || echo "code $?"; done
    [ ! -e hacked ] && [ ! -e run/hacked ] && echo safe)",
         {"gnuplot is not installed", "code 4", "safe"});
}

TEST_F(Trust, AGnuplotThatFailsDoesNotTakeTheTrainingWithIt) {
  expect(R"(
    mkdir bin; printf '#!/bin/sh\nexit 3\n' >bin/gnuplot; chmod +x bin/gnuplot
    (PATH=$PWD/bin:$PATH train --steps 3 --out run); [ -L run/latest ]; [ -f run/summary.json ])",
         {"no picture of the curve: plot: gnuplot failed", "afterwards: weft plot run"});
}

TEST(Processes, AreKilledWhenTheyTakeTooLong) {
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_FALSE(output_of({.program = "/bin/sleep", .arguments = {"100"}, .seconds = 0.2}));
  EXPECT_FALSE(output_of({.program = "/bin/sh", .arguments = {"-c", "exec >&-; sleep 100"}, .seconds = 0.2}));
  EXPECT_FALSE(output_of({.program = "/bin/sh", .arguments = {"-c", "sleep 100 & echo x"}, .seconds = 0.2}));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(50));
  EXPECT_FALSE(output_of({.program = "/bin/false"}));
  EXPECT_FALSE(output_of({.program = "/no/such/program"}));
  const std::string much(1'000'000, 'x');
  EXPECT_EQ(output_of({.program = "/bin/cat", .input = much}), much);
  EXPECT_EQ(output_of({.program = "/bin/pwd", .folder = "/usr"}), "/usr\n");
}

TEST(Processes, AreKilledWhenTheyPrintWithoutEnd) {
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_FALSE(output_of({.program = "/bin/cat", .arguments = {"/dev/zero"}}));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(50));  // before their minute is over
}

using NamedPipes = System;

TEST_F(NamedPipes, AreRefusedWhereverAFileIsRead) {
  expect("(train --steps 2 --out run >/dev/null); weft data make --data text.txt --out shards >/dev/null", {});
  for (const char* row : {"run/latest/config.json:weft eval --from run --data run/config.json",
                          "run/latest/model.safetensors:weft generate --from run --tokens 1",
                          "run/latest/optimizer.safetensors:weft train --resume run --steps 3",
                          "run/latest/state.json:weft check run", "run/environment.json:weft train --resume run --steps 3",
                          "run/metrics.jsonl:weft plot run", "shards/data.json:weft check shards",
                          "shards/training-00000.tokens:weft train --data shards --width 16 --length 16 --steps 1"}) {
    SCOPED_TRACE(row);
    const std::string text = row, file = text.substr(0, text.find(':')), command = text.substr(file.size() + 1);
    expect_words(shell("mv " + file + " aside; mkfifo " + file + "; timeout -s KILL 50 " + command), 4,
                 {file.substr(file.rfind('/') + 1), "cannot "});
    expect_words(shell("mv aside " + file), 0, {});
  }
}

TEST_F(NamedPipes, OfAShellAreRead) {
  expect("(train --steps 2 --out run >/dev/null); bash -c '\"$WEFT\" eval --from run --data <(cat run/config.json)'",
         {"bits per character"});
}

// ---- descriptors and signals ------------------------------------------------------------------------------------------------

using Descriptors = System;

TEST_F(Descriptors, WhatIsClosedIsNotWrittenInto) {
  expect(R"(
    (train --steps 6 --save-every 2 --out run >&- 2>&- <&-)
    grep -vc '^{.*}$' run/metrics.jsonl || true
    grep -c grad_norm run/metrics.jsonl; weft check run)",
         {"0\n6\n", "step-6: every byte is as it was written"});
}

TEST_F(Descriptors, AnErrorThatCannotBeSaidIsStillACode) {
  expect(R"(
    weft train --stpes 3 2>/dev/full || echo "usage $?"
    weft verify none 2>/dev/full || echo "io $?"
    weft verify none 2>&- || echo "closed $?"
    (train --steps 2 --out run 2>/dev/full >/dev/full) || echo "train $?"; [ -L run/latest ])",
         {"usage 2", "io 4", "closed 4", "train 4"});
}

TEST_F(Descriptors, AReaderThatGoesAwayEndsWhatIsPrintedAlone) {
  expect(R"(
    { (train --steps 60 --save-every 10 --out run) 2>said || echo $? >code; } | head -n 1
    cat code said; readlink run/latest; weft check run)",
         {"4\n", "the output cannot be written", "checkpoints/step-60", "as it was written"});
}

TEST_F(Descriptors, AHangupSavesUnlessItIsIgnored) {
  expect(R"(
    (train --steps 100000000 --save-every 0 --out run) >output & pid=$!
    until grep -q '^step ' output; do sleep 0.02; done
    kill -HUP $pid; wait $pid || echo "hangup $?"
    weft check run
    (trap '' HUP INT; train --steps 100000000 --save-every 0 --out other) >output2 & pid=$!
    until grep -q '^step ' output2; do sleep 0.02; done
    kill -HUP $pid; kill -INT $pid; sleep 0.3; kill -0 $pid; kill -TERM $pid; wait $pid || echo "ignored $?")",
         {"hangup 129", "as it was written", "ignored 143"});
}

// ---- limits of the system ---------------------------------------------------------------------------------------------------

class LimitsOfTheSystem : public System {
 protected:
  void SetUp() override {
    System::SetUp();
#ifdef WEFT_SANITIZED
    GTEST_SKIP() << "AddressSanitizer reserves more memory than the limits leave";
#endif
  }
};

TEST_F(LimitsOfTheSystem, AFileSizeLimitIsAFullDiskEverywhere) {
  expect(R"(
    (ulimit -f 40; train --steps 100000 --save-every 0 --out run) >said 2>&1 || echo "metrics $?"
    grep -A 1 'weft: cannot write' said
    (ulimit -f 1; weft train --help >help) || echo "output $?")",
         {"metrics 4", "File too large", "output 4", "the output cannot be written"});
}

TEST_F(LimitsOfTheSystem, FewAddressesAreEnough) {
  expect("(ulimit -v 2000000; train --steps 2 --out run | grep 'step 2/2'); weft check run", {"step 2/2", "as it was written"});
  if (!missing_library(CudaLibrary::nvrtc))
    expect(
        "(ulimit -v 8000000; weft train --device emu --task induction --steps 1 --batch 1 --length 8 --width 8 --layers 1 "
        "--state 2 --eval-batches 1 | grep 'step 1/1')",
        {"step 1/1"});
}

// Where OpenBLAS cannot map its buffers it would try for ever.
TEST_F(LimitsOfTheSystem, TooLittleDataForTheBlasIsAnError) {
  expect("(ulimit -d 100000; timeout -s KILL 50 \"$WEFT\" train --task induction --steps 1 --device cpu) || echo \"code $?\"",
         {"memory: the BLAS has no room for its buffers", "ulimit -d", "code 3"});
}

// Its own threads begin with the process, and its end waits for them.
TEST_F(LimitsOfTheSystem, TooLittleDataForTheThreadsOfTheBlasKeepsNoCommandFromEnding) {
  expect(R"(export OMP_NUM_THREADS=2; ulimit -d 100000
    timeout -s KILL 50 "$WEFT" --version
    timeout -s KILL 50 "$WEFT" train --task induction --steps 1 --device cpu || echo "code $?")",
         {"weft 0", "memory: the BLAS has no room for its buffers", "code 3"});
}

// OpenBLAS would start them before any code of the program, and end it.
TEST_F(LimitsOfTheSystem, NoThreadsOfTheBlasAreStartedWhereDataIsLimited) {
  expect(R"(unset OMP_WAIT_POLICY OPENBLAS_NUM_THREADS WEFT_ARENA; export OMP_NUM_THREADS=8 PWD; ulimit -d 5000
    timeout -s KILL 50 "$WEFT" --version
    timeout -s KILL 50 "$WEFT" train --task induction --steps 1 --device cpu || echo "code $?")",
         {"weft 0", "memory: ", "code 3"});
}

TEST_F(LimitsOfTheSystem, ALimitOfProcessorTimeSavesAndComesAgainUntilItKills) {
  expect(R"(
    (train --steps 100000000 --save-every 0 --out run) >output & pid=$!
    until grep -q '^step ' output; do sleep 0.02; done
    for i in 1 2 3; do kill -XCPU $pid 2>/dev/null || true; done; wait $pid || echo "limit $?"
    weft check run)",
         {"limit 152", "as it was written"});
}

TEST_F(LimitsOfTheSystem, ABatchBeyondTheAddressesIsRefused) {
  expect("(ulimit -v 4000000; weft train --task induction --batch 1000000 --length 200) || echo \"code $?\"",
         {"memory: more than this machine has", "a batch of 1000000 x 200 tokens", "code 3"});
}

// Each fits, and none is touched: what is promised to all counts.
TEST(Limits, BlocksThatDoNotFitTogetherAreRefused) {
#ifdef WEFT_SANITIZED
  GTEST_SKIP() << "AddressSanitizer has a limit of its own";
#endif
  const std::size_t part = host_memory() / 5 * 2;
  const Memory first(Device::cpu, part, "the first");
  const auto second = std::make_unique<Memory>(Device::cpu, part, "the second");
  expect_error(ErrorKind::device, {"memory: out of memory", "the third", "that are in use"},
               [&] { Memory(Device::cpu, part, "the third"); });
}

TEST(Limits, ClearedBlocksAreZero) {
  for (const std::size_t bytes : {std::size_t(1), std::size_t(5000), (std::size_t(2) << 20) + 1, std::size_t(9'999'999)}) {
    Memory memory(Device::cpu, bytes, "a block");
    memory.fill(7);
    EXPECT_EQ(std::count(memory.data(), memory.data() + bytes, std::byte(7)), std::ptrdiff_t(bytes));
    memory.fill(0);
    EXPECT_EQ(std::count(memory.data(), memory.data() + bytes, std::byte(0)), std::ptrdiff_t(bytes));
  }
}

TEST(Limits, ProductsAreChecked) {
  EXPECT_EQ(checked_product("x", {}), 1);
  EXPECT_EQ(checked_product("x", {1 << 20, 3, 1 << 20}), std::int64_t(3) << 40);
  expect_error(ErrorKind::usage, {"a batch: more than 64 bits can count", "4294967296 x 2147483648"}, [] {
    checked_product("a batch", {std::int64_t(1) << 32, std::int64_t(1) << 31});
  });
  expect_error(ErrorKind::usage, {"a size is negative"}, [] { checked_product("x", {-1, 2}); });
  expect_error(ErrorKind::device, {"more than this machine has", "rows"}, [] { check_memory(std::size_t(1) << 60, "rows"); });
}

// ---- bytes that are not those that were written -----------------------------------------------------------------------------

using Checksums = System;

TEST_F(Checksums, ADamagedCheckpointIsNamedAndNotResumed) {
  const Outcome made = shell("(train --steps 2 --out run >/dev/null); weft check run; weft check run/latest");
  expect_words(made, 0, {"step-2: every byte is as it was written"});
  const fs::path checkpoint = folder_ / "run/checkpoints/step-2";
  for (const auto& entry : fs::directory_iterator(checkpoint)) {
    SCOPED_TRACE(entry.path());
    const std::string good = read_text(entry.path());
    std::string bad = good;
    const std::size_t digit = bad.find_last_of("0123456789");  // of a JSON file: it stays one
    bad[entry.path().extension() == ".json" ? digit : bad.size() - 1] ^= 1;
    write_file(entry.path(), std::as_bytes(std::span(bad)));
    expect_words(shell("weft check run"), 4, {"step-2: damaged", entry.path().filename().string(), "1 of 1"});
    expect_words(shell("resume run --steps 3"), 4,
                 {entry.path().filename() == "state.json" ? "state.json" : "the checkpoint is damaged"});
    write_file(entry.path(), std::as_bytes(std::span(good)));
  }
  expect_words(shell("mv run/latest/config.json .; weft check run"), 4, {"config.json: cannot read"});
  expect_words(shell("mv config.json run/latest/; weft check run"), 0, {});
  expect_words(shell("weft check none"), 4, {"there is nothing to check"});
}

class Shards : public testing::Test {
 protected:
  void SetUp() override { ShardFolder::make(folder_ / "d", {"t", words_text(200'000)}, Tokenizer::bytes(), 1'000'000); }
  TokenStream open() const { return open_data(folder_ / "d", {}, {.batch = 4, .length = 50}); }
  const TempFolder folder_;
};

TEST_F(Shards, AreComparedWithTheirChecksumsAsTheyAreRead) {
  const fs::path file = folder_ / "d/training-00000.tokens";
  std::string bytes = read_text(file);
  bytes[200'000] ^= 4;
  write_file(file, std::as_bytes(std::span(bytes)));
  TokenStream data = open();
  expect_error(ErrorKind::io, {"training-00000.tokens", "not those that were written"}, [&] {
    for (int i = 0; i < 500; ++i) data.next();
  });
  EXPECT_NO_THROW(data.validation(0));
}

TEST_F(Shards, OneThatShrinksWhileItIsReadIsAnError) {
  TokenStream data = open();
  data.next();
  fs::resize_file(folder_ / "d/training-00000.tokens", 100);
  expect_error(ErrorKind::io, {"training-00000.tokens", "become shorter"}, [&] { data.next(); });
  fs::resize_file(folder_ / "d/training-00000.tokens", 0);
  expect_error(ErrorKind::io, {"training-00000.tokens"}, [&] { data.next(); });
}

// As weft wrote them before: without checksums of their blocks.
TEST_F(Shards, OfTheFirstVersionAreReadToo) {
  TokenStream now = open();
  std::vector<std::vector<std::int64_t>> expected;
  for (int i = 0; i < 5; ++i) expected.push_back(now.next().inputs.to_host<std::int64_t>());
  const std::uint64_t hash = now.hash();
  for (const char* name : {"d/training-00000.tokens", "d/validation-00000.tokens"}) {
    std::string bytes = read_text(folder_ / name);
    std::uint64_t count = 0, zero = 0;
    std::memcpy(&count, bytes.data() + 16, 8);
    bytes.resize(64 + 2 * count);
    bytes[8] = 1;
    std::memcpy(bytes.data() + 48, &zero, 8);
    const std::uint64_t own = XXH3_64bits(bytes.data(), 56);
    std::memcpy(bytes.data() + 56, &own, 8);
    write_file(folder_ / name, std::as_bytes(std::span(bytes)));
  }
  TokenStream before = open();
  EXPECT_EQ(before.hash(), hash) << "a run goes on with shards that were made again";
  for (const auto& inputs : expected) EXPECT_EQ(before.next().inputs.to_host<std::int64_t>(), inputs);
  ShardFolder(folder_ / "d").verify();
}

}  // namespace
}  // namespace weft
