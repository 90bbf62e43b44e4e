// The tasks that seed studies compare models by, each read from a file in its own format or, without one, from a few examples
// that are part of weft: these only show that everything works.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tools/evaluate/generate.h"
#include "tools/system/sandbox.h"

namespace weft {

enum class Benchmark {
  wikitext,   // perplexity of a text: wiki.test.tokens, or any text
  cnn_dm,     // summaries by ROUGE: .jsonl, {"article", "highlights"}
  hotpotqa,   // answers by exact match and F1: hotpot_dev_distractor_v1.json, or .jsonl; {"question", "answer", "context"}
  humaneval,  // programs by pass@k: HumanEval.jsonl, {"task_id", "prompt", "test", "entry_point"}
};
const std::vector<std::string>& benchmark_names();
std::string_view name_of(Benchmark what);
Benchmark benchmark(std::string_view name);  // errors (ErrorKind::usage): there is none of that name

struct SummaryTask {
  std::string article, highlights;
};
struct QuestionTask {
  std::string context, question, answer;
};
struct ProgramTask {
  std::string id, prompt, test, entry_point;  // test defines check(candidate)
};

// Errors (ErrorKind::io): no tasks; all lines that are no JSON, lack a key or have another type under it, at once.
std::vector<SummaryTask> read_summaries(const std::filesystem::path& file);
std::vector<QuestionTask> read_questions(const std::filesystem::path& file);
std::vector<ProgramTask> read_programs(const std::filesystem::path& file);

// Stand-ins, written for weft.
std::string_view bundled_text();
std::vector<SummaryTask> bundled_summaries();
std::vector<QuestionTask> bundled_questions();
std::vector<ProgramTask> bundled_programs();

// The first of the names that a file of this benchmark has in `folder`; nothing: there is none.
std::optional<std::filesystem::path> benchmark_file(const std::filesystem::path& folder, Benchmark what);

struct BenchmarkOptions {
  std::int64_t examples = 0;          // the first ones; 0: all
  std::int64_t tokens = 0;            // to make for each; 0: 64 for a summary, 16 for an answer, 160 for a program
  std::int64_t length = 0;            // tokens of prompt and answer, or of a window of text; 0: 1024, or the context
  std::int64_t stride = 0;            // of windows of text; 0: the length
  std::int64_t batch = 8;             // texts at a time
  std::int64_t samples = 1;           // programs for each problem
  std::vector<std::int64_t> k = {1};  // of pass@k
  double temperature = 0;             // of programs; 0: the most probable one
  std::uint64_t seed = 0;
  SandboxOptions sandbox = {};
};

struct BenchmarkResult {
  Benchmark what = Benchmark::wikitext;
  std::string source;  // the file, or "bundled"
  bool bundled = false;
  std::int64_t examples = 0;
  std::vector<std::pair<std::string, double>> scores;  // "rouge-1 f1"
  std::vector<std::string> notes;                      // what the numbers are not; of programs why those that failed did
};

// `file`: none: the stand-in. Errors: as the readers and run_python; ErrorKind::usage for a k above the samples, no room for a
// prompt.
BenchmarkResult run_benchmark(TextModel& lm, Benchmark what, const std::optional<std::filesystem::path>& file,
                              const BenchmarkOptions& options = {});
std::string to_text(const BenchmarkResult& result);  // for people, several lines
nlohmann::json to_json(const BenchmarkResult& result);

// The part of a program that belongs to the function which `prompt` begins: up to the next line that is not indented.
std::string function_body(std::string_view made);

}  // namespace weft
