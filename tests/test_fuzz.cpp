// Files from outside, mutated 10,000 times each (SlowFuzz; the first 500 in Fuzz): every one is read or refused with an error
// of kind io or usage, without a crash, a hang or a huge allocation. Mutation i depends on kSeed + i alone, and a failure
// names i.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <array>
#include <chrono>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "jit/file.h"
#include "jit/json.h"
#include "tests/temp_folder.h"
#include "tools/train/metrics.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t kSeed = 2024;
constexpr double kSecondsEach = 5;
#ifdef WEFT_SANITIZED
constexpr long kMegabytes = 1024;  // the sanitizer keeps freed memory for a while
#else
constexpr long kMegabytes = 256;
#endif

// ---- mutations --------------------------------------------------------------------------------------------------------------

class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : random_(seed) {}

  std::size_t below(std::size_t n) { return n ? random_() % n : 0; }

  // One to three edits.
  std::string operator()(std::string text) {
    for (std::size_t edits = 1 + below(3); edits; --edits) edit(text);
    return text;
  }

  // A safetensors file: its bytes, or its header with the length that fits or not, or the data behind it.
  std::string safetensors(const std::string& file) {
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), 8);
    std::string header = file.substr(8, length), data = file.substr(8 + length);
    switch (below(4)) {
      case 0:
        return (*this)(file);
      case 1:
        edit(data);
        break;
      case 2:
        length = kNumbers64[below(kNumbers64.size())];
        break;
      default:
        header = (*this)(header), length = header.size();
    }
    return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
  }

 private:
  static constexpr std::array<const char*, 16> kNumbers = {"0",
                                                           "-1",
                                                           "1",
                                                           "2",
                                                           "255",
                                                           "65536",
                                                           "2147483648",
                                                           "1000000000",
                                                           "9223372036854775807",
                                                           "18446744073709551615",
                                                           "18446744073709551616",
                                                           "-9223372036854775808",
                                                           "1e308",
                                                           "1e999",
                                                           "0.5",
                                                           "NaN"};
  static constexpr std::array<std::uint64_t, 6> kNumbers64 = {0, 1, 7, 100'000'001, 1ull << 40, ~0ull};
  static constexpr std::array<const char*, 12> kWords = {"null",    "true",     "\"\"",     "[]",          "{}",       "[[",
                                                         "\"F64\"", "\"../x\"", "Infinity", "\"\\ud800\"", "\xff\xfe", ","};

  void edit(std::string& text) {
    const std::size_t at = below(text.size()), n = 1 + below(8);
    switch (below(9)) {
      case 0:
        text.resize(at);
        break;
      case 1:
        text.insert(at, n, char(random_()));
        break;
      case 2:
        text.erase(at, n);
        break;
      case 3:
        text.insert(at, text.substr(below(text.size()), 1 + below(64)));
        break;
      case 4:
        text.insert(at, kWords[below(kWords.size())]);
        break;
      case 5:
        if (!text.empty()) text[at] = char(random_());
        break;
      case 6:
        if (!text.empty()) text[at] = char(text[at] ^ (1 << below(8)));
        break;
      default:
        replace_number(text, at);
    }
  }

  // The first number from `at` on.
  void replace_number(std::string& text, std::size_t at) {
    const std::size_t begin = text.find_first_of("-0123456789", at);
    if (begin == text.npos) return;
    const std::size_t end = text.find_first_not_of("-+.eE0123456789", begin);
    text.replace(begin, (end == text.npos ? text.size() : end) - begin, kNumbers[below(kNumbers.size())]);
  }

  std::mt19937_64 random_;
};

long peak_megabytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

using Read = std::function<void(Mutator&)>;  // mutates something and reads it

// Some mutations must be refused and some accepted, or nothing was tested.
void fuzz(const Read& read, int mutations) {
  const long before = peak_megabytes();
  int refused = 0;
  for (int i = 0; i < mutations; ++i) {
    Mutator mutator(kSeed + std::uint64_t(i));
    const auto begin = std::chrono::steady_clock::now();
    try {
      read(mutator);
    } catch (const Error& e) {
      ++refused;
      if (e.kind() != ErrorKind::io && e.kind() != ErrorKind::usage)
        FAIL() << "mutation " << i << " of seed " << kSeed << ": " << e.what();
    } catch (const std::exception& e) {
      FAIL() << "mutation " << i << " of seed " << kSeed << ": another exception: " << e.what();
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    ASSERT_LT(took.count(), kSecondsEach) << "mutation " << i << " of seed " << kSeed;
    ASSERT_LT(peak_megabytes() - before, kMegabytes) << "mutation " << i << " of seed " << kSeed;
  }
  EXPECT_GT(refused, mutations / 10);
  EXPECT_LT(refused, mutations);
}

// ---- files ------------------------------------------------------------------------------------------------------------------

TensorMap some_tensors() {
  const auto make = [](DType dtype, std::vector<std::int64_t> shape, std::vector<double> values) {
    return HostTensor::from<double>(dtype, std::move(shape), values);
  };
  return {{"a.weight", make(DType::f32, {2, 3}, {1, 2, 3, 4, 5, 6})},
          {"b", make(DType::bf16, {4}, {1, 2, 3, 4})},
          {"ids", make(DType::i64, {2}, {-1, 7})},
          {"mask", make(DType::boolean, {3}, {0, 1, 1})},
          {"none", make(DType::f64, {0, 5}, {})}};
}

MambaConfig tiny() { return {.vocab = 8, .width = 8, .layers = 1, .state = 2, .eos = {1}}; }

// Each writes good files into the folder and returns what mutates and reads them.

Read safetensors(const TempFolder& folder) {
  write_safetensors(folder / "good", some_tensors(), {{"format", "pt"}});
  return [&folder, bytes = read_text(folder / "good")](Mutator& m) {
    read_safetensors(folder.write("bad", m.safetensors(bytes)));
  };
}

Read safetensors_index(const TempFolder& folder) {
  write_safetensors_folder(folder.path(), some_tensors(), {}, 20);
  return [&folder, index = read_text(folder / "model.safetensors.index.json")](Mutator& m) {
    folder.write("model.safetensors.index.json", m(index));
    read_safetensors_folder(folder.path());
  };
}

Read configurations(const TempFolder&) {
  using Parse = void (*)(const json&);
  const Parse mamba = [](const json&j) { mamba_config_from_json(j, "config.json"); },
              transformer = [](const json&j) { transformer_config_from_json(j, "config.json"); },
              hymba = [](const json&j) { hymba_config_from_json(j, "config.json"); },
              study = [](const json&j) { hymba_study_config_from_json(j, "config.json"); };
  TransformerConfig windowed{.vocab = 8, .width = 8, .layers = 2, .heads = 2};
  windowed.window = 4, windowed.rope = {.scaling = RopeScaling::llama3, .factor = 8, .trained = 64};
  const std::vector<std::pair<std::string, Parse>> forms = {
      {to_hugging_face(tiny()).dump(1), mamba},
      {to_original(tiny()).dump(1), mamba},
      {transformer_config_to_json(windowed).dump(1), transformer},
      {hymba_config_to_json(HymbaConfig{.width = 64, .layers = 3}).dump(1), hymba},
      {hymba_study_config_to_json(HymbaStudyConfig{}).dump(1), study}};
  return [forms](Mutator& m) {
    const auto& [text, parse] = forms[m.below(forms.size())];
    parse(parse_json(m(text), "config.json"));
  };
}

// Mutates one of the files of a folder at a time.
Read any_of(const TempFolder& folder, const std::vector<std::string>& names, std::function<void()> read) {
  std::vector<std::string> files;
  for (const std::string& name : names) files.push_back(read_text(folder / name));
  return [&folder, names, files, read](Mutator& m) {
    const std::size_t f = m.below(names.size());
    folder.write(names[f], names[f].ends_with(".json") ? m(files[f]) : m.safetensors(files[f]));
    try {
      read();
    } catch (...) {
      folder.write(names[f], files[f]);
      throw;
    }
    folder.write(names[f], files[f]);
  };
}

Read model_folders(const TempFolder& folder) {
  Mamba(tiny()).save(folder.path());
  folder.write("generation_config.json", R"({"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": null})");
  return any_of(folder, {"config.json", "model.safetensors", "generation_config.json"},
                [&folder] { Mamba::load(folder.path()); });
}

Read checkpoints(const TempFolder& folder) {
  std::string text;
  for (int i = 0; i < 40; ++i) text += "the king went forth ";
  const Corpus corpus("words", text);
  const auto data = [corpus] {
    return std::make_shared<TokenStream>(corpus, Tokenizer::bytes(), BatchOptions{.batch = 1, .length = 8});
  };
  TrainOptions o;
  o.steps = 3, o.batch = 1, o.length = 8, o.model_options = {{"width", 4}, {"layers", 1}, {"state", 2}}, o.warmup = 1;
  Trainer trainer(data(), o);
  trainer.step();
  trainer.save(folder.path());
  return any_of(folder, {"state.json", "config.json", "model.safetensors", "optimizer.safetensors"},
                [&folder, data] { Trainer::resume(folder.path(), data()); });
}

Read metrics(const TempFolder& folder) {
  std::string text;
  for (int i = 1; i < 5; ++i)
    text += R"({"step": )" + std::to_string(i) + R"(, "time": 1.5e9, "loss": 2.5, "grad_norm": null, "lr": 1e-3})" + "\n";
  return [&folder, text](Mutator& m) {
    folder.write("metrics.jsonl", m(text));
    if (read_metrics(folder.path()).damaged) fail(ErrorKind::io, "refused");  // lines are left out, one by one
    MetricsLog(folder.path(), 2);
  };
}

struct Target {
  const char* name;
  Read (*make)(const TempFolder& folder);
};
std::ostream& operator<<(std::ostream& out, const Target& target) { return out << target.name; }

const Target kTargets[] = {{"Safetensors", safetensors},       {"SafetensorsIndex", safetensors_index},
                           {"Configurations", configurations}, {"ModelFolders", model_folders},
                           {"Checkpoints", checkpoints},       {"Metrics", metrics}};

class Fuzz : public testing::TestWithParam<Target> {
 protected:
  void run(int mutations) {
    const fs::path memory = "/dev/shm";  // several times faster than a disk
    const TempFolder folder(fs::is_directory(memory) ? memory : fs::temp_directory_path());
    fuzz(GetParam().make(folder), mutations);
  }
};
class SlowFuzz : public Fuzz {};

TEST_P(Fuzz, IsReadOrRefused) { run(500); }
TEST_P(SlowFuzz, IsReadOrRefused) { run(10'000); }

const auto name_of_target = [](const auto& info) { return std::string(info.param.name); };
INSTANTIATE_TEST_SUITE_P(Files, Fuzz, testing::ValuesIn(kTargets), name_of_target);
INSTANTIATE_TEST_SUITE_P(Files, SlowFuzz, testing::ValuesIn(kTargets), name_of_target);

}  // namespace
}  // namespace weft
