// Folders that appear whole, the options of a run, its metrics, and TensorBoard's form of them.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "jit/file.h"
#include "nn/safetensors.h"
#include "tests/expect_error.h"
#include "tests/temp_folder.h"
#include "tools/system/folder.h"
#include "tools/train/checkpoint.h"
#include "tools/train/events.h"
#include "tools/train/metrics.h"
#include "tools/train/plot.h"
#include "tools/train/train_options.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

void put(const fs::path& file, const std::string& text) { write_file(file, std::as_bytes(std::span(text))); }

// ---- folders ----------------------------------------------------------------------------------------------------------------

TEST(WriteFolder, ReplacesAFolderOrLeavesItAsItWas) {
  const TempFolder temp;
  const fs::path folder = temp / "a/b";
  write_folder(folder, [](const fs::path& to) { put(to / "x", "old"); });
  EXPECT_EQ(read_text(folder / "x"), "old");
  const auto half = [](const fs::path& to) {
    put(to / "x", "half");
    throw std::runtime_error("disk");
  };
  const auto whole = [](const fs::path& to) { put(to / "y", "new"); };
  EXPECT_THROW(write_folder(folder, half, Replace::whatever), std::runtime_error);
  EXPECT_EQ(read_text(folder / "x"), "old");
  expect_error(ErrorKind::io, {folder.string(), "the folder is not empty"}, [&] { write_folder(folder, whole); });
  EXPECT_EQ(read_text(folder / "x"), "old");
  write_folder(folder, whole, Replace::whatever);
  EXPECT_EQ(read_text(folder / "y"), "new");
  EXPECT_FALSE(fs::exists(folder / "x"));
  EXPECT_EQ(std::distance(fs::directory_iterator(temp / "a"), {}), 1) << "something is left beside it";
  temp.write("file", "");
  expect_error(ErrorKind::io, {(temp / "file").string()}, [&] { write_folder(temp / "file/sub", [](const fs::path&) {}); });
}

class CheckpointFolder : public testing::Test {
 protected:
  void write(std::int64_t step, std::int64_t keep = 2) {
    checkpoints_.write(step, keep, [&](const fs::path& to) { put(to / "step", std::to_string(step)); });
  }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(temp_ / "checkpoints")) found.push_back(entry.path().filename());
    std::sort(found.begin(), found.end());
    return found;
  }
  TempFolder temp_;
  Checkpoints checkpoints_{temp_.path()};
};

TEST_F(CheckpointFolder, KeepsTheNewestAndPointsToIt) {
  EXPECT_FALSE(checkpoints_.newest());
  EXPECT_EQ(model_folder(temp_.path()), temp_.path());
  for (const int step : {5, 10, 100}) write(step);
  EXPECT_EQ(names(), (std::vector<std::string>{"step-10", "step-100"}));
  EXPECT_EQ(fs::read_symlink(temp_ / "latest"), "checkpoints/step-100");
  EXPECT_EQ(read_text(model_folder(temp_.path()) / "step"), "100");
  EXPECT_EQ(*run_of(temp_ / "latest"), fs::canonical(temp_.path()));
  EXPECT_EQ(*run_of(temp_.path()), temp_.path());
  write(101, 0);
  EXPECT_EQ(names().size(), 3u);
}

TEST_F(CheckpointFolder, AnUnfinishedSaveIsNoCheckpoint) {
  write(10);
  fs::create_directory(temp_ / "checkpoints/step-20.tmp");
  EXPECT_EQ(*checkpoints_.newest(), checkpoints_.of_step(10));
  write(20, 0), write(30, 0);
  fs::remove(temp_ / "latest");  // killed before the link was made
  EXPECT_EQ(*checkpoints_.newest(), checkpoints_.of_step(30));
  fs::create_symlink("checkpoints/step-40", temp_ / "latest");  // dangling
  EXPECT_EQ(*checkpoints_.newest(), checkpoints_.of_step(30));
  fs::create_directory(temp_ / "checkpoints/step-50.tmp");
  checkpoints_.rewind(20);
  EXPECT_EQ(*checkpoints_.newest(), checkpoints_.of_step(20));
  EXPECT_EQ(names(), (std::vector<std::string>{"step-10", "step-20"}));
  checkpoints_.rewind(0);
  EXPECT_FALSE(checkpoints_.newest());
}

// ---- options ----------------------------------------------------------------------------------------------------------------

TEST(TrainOptionsTable, SettingsChangeDefaultsInTheirOrder) {
  const TrainOptions o = options_from({{"lr", "1e-3"},
                                       {"weight-decay", "0.2"},
                                       {"preset", "small"},
                                       {"layers", "3"},
                                       {"tf32", "true"},
                                       {"seed", "18446744073709551615"},
                                       {"steps", "7"}});
  EXPECT_EQ(o.lr, 1e-3);
  EXPECT_EQ(o.weight_decay, 0.2);
  EXPECT_EQ(o.model_options.at("width"), OptionValue(384));  // of the preset
  EXPECT_EQ(o.model_options.at("layers"), OptionValue(3));
  EXPECT_TRUE(o.tf32);
  EXPECT_EQ(o.seed, ~std::uint64_t(0));
  EXPECT_EQ(options_from(settings_from_json(to_json(o), "config.json")).model_options, o.model_options);
  EXPECT_EQ(to_json(options_from(settings_from_json(to_json(o), "config.json"))), to_json(o));
  EXPECT_EQ(options_from({{"epochs", "2"}}).epochs, 2);
  EXPECT_EQ(options_from({{"epochs", "2"}, {"steps", "5"}}).epochs, 0);
}

TEST(TrainOptionsTable, MistakesAreNamed) {
  const auto from = [](const std::vector<OptionSetting>& settings) { return [=] { options_from(settings); }; };
  expect_error(ErrorKind::usage, {"unknown option 'stepz'; did you mean 'steps'?"}, from({{"stepz", "1"}}));
  expect_error(ErrorKind::usage, {"--steps must be a whole number", "'1.5'"}, from({{"steps", "1.5"}}));
  expect_error(ErrorKind::usage, {"--steps must be a whole number"}, from({{"steps", "99999999999999999999"}}));
  expect_error(ErrorKind::usage, {"--lr must be a finite number", "'nan'"}, from({{"lr", "nan"}}));
  expect_error(ErrorKind::usage, {"--tf32 must be true or false"}, from({{"tf32", "maybe"}}));
  expect_error(ErrorKind::usage, {"--precision", "'fp23'; did you mean 'fp32'?"}, from({{"precision", "fp23"}}));
  expect_error(ErrorKind::usage, {"may not be negative", "--batch -1", "--lr -1"}, from({{"batch", "-1"}, {"lr", "-1"}}));
  expect_error(ErrorKind::usage, {"KEY=VALUE"}, [] { split_setting("lr"); });
  EXPECT_EQ(split_setting("prompt=a=b"), OptionSetting("prompt", "a=b"));
  const auto read = [](const char* text) { return [=] { settings_from_json(json::parse(text), "my.json"); }; };
  expect_error(ErrorKind::io, {"my.json", "'widht'; did you mean 'width'?"}, read(R"({"widht": 3})"));
  expect_error(ErrorKind::io, {"my.json", "width must be"}, read(R"({"width": null})"));
  expect_error(ErrorKind::io, {"my.json", "--width must be a whole number", "[3]"}, read(R"({"width": "[3]"})"));
  expect_error(ErrorKind::io, {"my.json", "not an object"}, read("[]"));
}

TEST(TrainOptionsTable, ResumingKeepsWhatTheModelIs) {
  const TrainOptions saved = options_from({{"width", "64"}});
  EXPECT_EQ(resumed_options(saved, {{"steps", "9"}, {"width", "64"}}).steps, 9);
  expect_error(ErrorKind::usage, {"--width cannot change", "the run has 64, given is 65"}, [&] {
    resumed_options(saved, {{"width", "65"}});
  });
}

// ---- metrics ----------------------------------------------------------------------------------------------------------------

TEST(MetricsLog, GoesOnBehindAStep) {
  const TempFolder run;
  {
    MetricsLog log(run.path(), 0);
    for (int step = 1; step <= 5; ++step) log.add({{"step", step}, {"loss", 1.0 / step}});
    log.add({{"step", 5}, {"validation_loss", std::nan("")}});
  }
  std::ofstream(run / "metrics.jsonl", std::ios::app) << "{\"step\": 6, \"lo";  // a write that was cut
  const std::string events = read_text(run / "events.out.tfevents.weft");
  EXPECT_EQ(read_metrics(run.path()).damaged, 1);
  EXPECT_EQ(read_metrics(run.path()).lines.size(), 6u);
  { const MetricsLog log(run.path(), 5); }
  EXPECT_EQ(read_metrics(run.path()).damaged, 0);
  EXPECT_EQ(read_metrics(run.path()).lines.size(), 6u);
  EXPECT_EQ(read_text(run / "events.out.tfevents.weft").substr(40),
            events.substr(40));  // behind the first record, which has the time
  { const MetricsLog log(run.path(), 3); }
  EXPECT_EQ(read_metrics(run.path()).lines.back()["step"], 3);
  { const MetricsLog log(run.path(), 0); }
  EXPECT_TRUE(read_metrics(run.path()).lines.empty());
  expect_error(ErrorKind::io, {"metrics.jsonl"}, [&] { read_metrics(run / "none"); });
  for (const char* step : {"9223372036854775808", "18446744073709551616", "1e300"}) {
    std::ofstream(run / "metrics.jsonl") << "{\"step\": 1, \"time\": 1}\n{\"step\": " << step << ", \"time\": 2}\n";
    expect_error(ErrorKind::io, {"metrics.jsonl: a step is beyond 64 bits", "line 2"}, [&] { MetricsLog(run.path(), 1); });
  }
}

// A protobuf message as its fields: numbers and texts by field number.
struct Fields {
  std::map<int, std::vector<std::uint64_t>> numbers;
  std::map<int, std::vector<std::string>> texts;
};

std::uint64_t take_varint(std::string_view& rest) {
  std::uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = static_cast<unsigned char>(rest.at(0));
    rest.remove_prefix(1);
    value |= std::uint64_t(byte & 127) << shift;
    if (byte < 128) return value;
  }
}

template <class T>
T take(std::string_view& rest) {
  T value;
  std::memcpy(&value, rest.substr(0, sizeof value).data(), sizeof value);
  rest.remove_prefix(sizeof value);
  return value;
}

Fields parse_message(std::string_view rest) {
  Fields fields;
  while (!rest.empty()) {
    const std::uint64_t key = take_varint(rest);
    const int field = int(key >> 3);
    if ((key & 7) == 0)
      fields.numbers[field].push_back(take_varint(rest));
    else if ((key & 7) == 1)
      fields.numbers[field].push_back(take<std::uint64_t>(rest));
    else if ((key & 7) == 5)
      fields.numbers[field].push_back(take<std::uint32_t>(rest));
    else {
      const std::uint64_t size = take_varint(rest);
      fields.texts[field].emplace_back(rest.substr(0, size));
      rest.remove_prefix(size);
    }
  }
  return fields;
}

std::uint32_t masked(std::string_view text) {
  const std::uint32_t crc = crc32c(text);
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

TEST(Events, AreWhatTensorBoardReads) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);  // the check value of CRC-32C
  const std::string file = first_event(3.5) + scalar_event(4.5, 300, {{"loss", 0.25f}, {"lr", 1e-3f}});
  std::string_view rest = file;
  std::vector<Fields> events;
  while (!rest.empty()) {
    const std::string_view length = rest.substr(0, 8);
    const auto size = take<std::uint64_t>(rest);
    EXPECT_EQ(take<std::uint32_t>(rest), masked(length));
    const std::string_view message = rest.substr(0, size);
    rest.remove_prefix(size);
    EXPECT_EQ(take<std::uint32_t>(rest), masked(message));
    events.push_back(parse_message(message));
  }
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].texts[3].at(0), "brain.Event:2");
  EXPECT_EQ(std::bit_cast<double>(events[0].numbers[1].at(0)), 3.5);
  EXPECT_EQ(std::bit_cast<double>(events[1].numbers[1].at(0)), 4.5);
  EXPECT_EQ(events[1].numbers[2].at(0), 300u);
  const Fields summary = parse_message(events[1].texts[5].at(0));
  ASSERT_EQ(summary.texts.at(1).size(), 2u);
  Fields value = parse_message(summary.texts.at(1)[0]);
  EXPECT_EQ(value.texts[1].at(0), "loss");
  EXPECT_EQ(std::bit_cast<float>(std::uint32_t(value.numbers[2].at(0))), 0.25f);
}

// ---- curves -----------------------------------------------------------------------------------------------------------------

TEST(Plot, DrawsOneRunOrSeveral) {
  const TempFolder temp;
  fs::create_directories(temp / "it's a"), fs::create_directories(temp / "b");
  for (const char* name : {"it's a", "b"}) {
    MetricsLog log(temp / name, 0);
    for (int step = 1; step <= 50; ++step) log.add({{"step", step}, {"loss", 5.0 / step}});
    log.add({{"step", 50}, {"validation_loss", 0.3}});
  }
  const bool drawn = plot_runs({temp / "it's a"}, temp / "it's a/loss");
  for (const char* kind : {".gp", ".dat"}) EXPECT_TRUE(fs::exists(temp / (std::string("it's a/loss") + kind)));
  plot_runs({temp / "it's a", temp / "b"}, temp / "both");
  EXPECT_NE(read_text(temp / "both.gp").find("b, validation"), std::string::npos);
  fs::create_directories(temp / "empty");
  put(temp / "empty/metrics.jsonl", "");
  expect_error(ErrorKind::io, {"no losses yet"}, [&] { plot_runs({temp / "empty"}, temp / "loss"); });
  if (!drawn) GTEST_SKIP() << "gnuplot is not installed";
  for (const char* name : {"it's a/loss", "both"}) {
    EXPECT_TRUE(read_text(temp / (std::string(name) + ".png")).starts_with("\x89PNG"));
    EXPECT_NE(read_text(temp / (std::string(name) + ".svg")).find("<svg"), std::string::npos);
  }
}

}  // namespace
}  // namespace weft
