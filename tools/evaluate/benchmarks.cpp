#include "tools/evaluate/benchmarks.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/json.h"
#include "models/scan_patch.h"
#include "tools/data/strided.h"
#include "tools/evaluate/eval.h"
#include "tools/evaluate/scores.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// ---- files ------------------------------------------------------------------------------------------------------------------

// What is wrong in a file of tasks, gathered to be said at once.
class TaskProblems {
 public:
  explicit TaskProblems(const fs::path& file) : file_(file.string()) {}
  void add(const std::string& where, const std::string& what) {
    if (++count_ <= kShownProblems) list_ += fmt::format("\n  {}: {}", where, what);
  }
  void check() const {
    if (count_ == 0) return;
    const std::string more = count_ > kShownProblems ? fmt::format("\n  ... and {} more", count_ - kShownProblems) : "";
    fail(ErrorKind::io, file_ + ": not the tasks that are wanted", fmt::format("{} problems{}{}", count_, list_, more));
  }

 private:
  static constexpr std::size_t kShownProblems = 50;
  std::string file_, list_;
  std::size_t count_ = 0;
};

class TaskReader {
 public:
  explicit TaskReader(const fs::path& file) : file_(file), problems_(file) {}

  // f(object, its place) for each line, or for each item if the file is one array.
  template <class F>
  void each(F&& f) {
    const std::string text = read_text(file_);
    if (const auto foreign = foreign_format(text); foreign && !foreign->text)
      refuse_foreign(file_.string(), text, "a file of tasks");
    std::size_t tasks = 0;
    const std::size_t begin = text.find_first_not_of(" \t\r\n");
    if (begin != text.npos && text[begin] == '[') {
      const nlohmann::json array = parse_json(text, file_.string());
      for (std::size_t i = 0; i < array.size(); ++i, ++tasks) take(array[i], fmt::format("item {}", i), f);
    } else {
      std::size_t line = 0;
      for (const std::string_view one : lines_of(text)) {
        ++line;
        if (one.find_first_not_of(" \t\r") == one.npos) continue;
        ++tasks;
        const std::string where = fmt::format("line {}", line);
        try {
          take(parse_json(one, file_.string(), line), where, f);
        } catch (const Error&) {
          problems_.add(where, "not JSON");
        }
      }
    }
    problems_.check();
    if (tasks == 0) fail(ErrorKind::io, file_.string() + ": there are no tasks");
  }

  std::string text_at(const nlohmann::json& object, const char* key, const std::string& where) {
    const auto found = object.find(key);
    if (found == object.end())
      problems_.add(where, fmt::format("'{}' is missing", key));
    else if (!found->is_string())
      problems_.add(where, fmt::format("'{}' is no text", key));
    else
      return found->get<std::string>();
    return {};
  }
  TaskProblems& problems() { return problems_; }

 private:
  template <class F>
  void take(const nlohmann::json& object, const std::string& where, F& f) {
    if (object.is_object())
      f(object, where);
    else
      problems_.add(where, "no object");
  }

  fs::path file_;
  TaskProblems problems_;
};

// [[title, [sentence, ...]], ...], as HotpotQA has it, or {"title": [...], "sentences": [[...], ...]}, or a text.
std::optional<std::string> paragraphs_of(const nlohmann::json& context) {
  std::string text;
  const auto add = [&](const nlohmann::json& title, const nlohmann::json& sentences) {
    text += title.get<std::string>() + ":";
    for (const nlohmann::json& sentence : sentences) {
      const std::string words = sentence.get<std::string>();
      text += (words.starts_with(' ') ? "" : " ") + words;
    }
    text += '\n';
  };
  try {
    if (context.is_string()) return context.get<std::string>();
    if (context.is_object()) {
      const nlohmann::json &titles = context.at("title"), &sentences = context.at("sentences");
      for (std::size_t i = 0; i < titles.size(); ++i) add(titles.at(i), sentences.at(i));
      return text;
    }
    if (!context.is_array()) return std::nullopt;
    for (const nlohmann::json& paragraph : context) add(paragraph.at(0), paragraph.at(1));
    return text;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

}  // namespace

const std::vector<std::string>& benchmark_names() {
  static const std::vector<std::string> names = {"wikitext", "cnn_dm", "hotpotqa", "humaneval"};
  return names;
}

std::string_view name_of(Benchmark what) { return benchmark_names()[std::size_t(what)]; }

Benchmark benchmark(std::string_view name) {
  const std::vector<std::string>& names = benchmark_names();
  const auto found = std::ranges::find(names, name);
  if (found != names.end()) return Benchmark(found - names.begin());
  fail_unknown("there is no task", name, names);
}

std::vector<SummaryTask> read_summaries(const fs::path& file) {
  std::vector<SummaryTask> tasks;
  TaskReader reader(file);
  reader.each([&](const nlohmann::json& object, const std::string& where) {
    std::string article = reader.text_at(object, "article", where);
    tasks.push_back({std::move(article), reader.text_at(object, "highlights", where)});
  });
  return tasks;
}

std::vector<QuestionTask> read_questions(const fs::path& file) {
  std::vector<QuestionTask> tasks;
  TaskReader reader(file);
  reader.each([&](const nlohmann::json& object, const std::string& where) {
    QuestionTask task{{}, reader.text_at(object, "question", where), reader.text_at(object, "answer", where)};
    const auto context = object.find("context");
    if (context == object.end())
      reader.problems().add(where, "'context' is missing");
    else if (auto text = paragraphs_of(*context))
      task.context = std::move(*text);
    else
      reader.problems().add(where, "'context' is no list of titles and sentences");
    tasks.push_back(std::move(task));
  });
  return tasks;
}

std::vector<ProgramTask> read_programs(const fs::path& file) {
  std::vector<ProgramTask> tasks;
  TaskReader reader(file);
  reader.each([&](const nlohmann::json& object, const std::string& where) {
    ProgramTask task;
    task.id = reader.text_at(object, "task_id", where), task.prompt = reader.text_at(object, "prompt", where);
    task.test = reader.text_at(object, "test", where), task.entry_point = reader.text_at(object, "entry_point", where);
    tasks.push_back(std::move(task));
  });
  return tasks;
}

std::optional<fs::path> benchmark_file(const fs::path& folder, Benchmark what) {
  static const std::map<Benchmark, std::vector<const char*>> kNames = {
      {Benchmark::wikitext, {"wiki.test.tokens", "wiki.test.raw", "wikitext.txt", "wikitext.jsonl"}},
      {Benchmark::cnn_dm, {"cnn_dm.jsonl", "cnn_dailymail.jsonl"}},
      {Benchmark::hotpotqa,
       {"hotpot_dev_distractor_v1.json", "hotpot_dev_fullwiki_v1.json", "hotpotqa.json", "hotpotqa.jsonl"}},
      {Benchmark::humaneval, {"HumanEval.jsonl", "humaneval.jsonl"}}};
  for (const char* name : kNames.at(what))
    if (fs::exists(folder / name)) return folder / name;
  return std::nullopt;
}

// ---- making texts -----------------------------------------------------------------------------------------------------------

namespace {

std::int64_t length_for(const LanguageModel& model, const BenchmarkOptions& o) {
  constexpr std::int64_t kLength = 1024;
  const std::int64_t wanted = o.length > 0 ? o.length : kLength;
  return std::min(wanted, model.context().value_or(wanted));
}

// `head` may be cut at its end, `tail` is kept: a text of at most `room` tokens.
std::vector<std::int64_t> prompt_of(const Tokenizer& tokenizer, std::string_view head, std::string_view tail,
                                    std::int64_t room) {
  std::vector<std::int64_t> ids = head.empty() ? std::vector<std::int64_t>() : tokenizer.encode(head);
  const std::vector<std::int64_t> end = tail.empty() ? std::vector<std::int64_t>() : tokenizer.encode(tail);
  if (std::int64_t(end.size()) > room || room < 1)
    fail(ErrorKind::usage, "eval: there is no room for a prompt",
         fmt::format("{} tokens of it must be kept, {} are free", end.size(), std::max<std::int64_t>(room, 0)),
         "a larger --length, or fewer --tokens");
  ids.resize(std::min(ids.size(), std::size_t(room) - end.size()));
  ids.insert(ids.end(), end.begin(), end.end());
  if (ids.empty()) ids = tokenizer.encode("\n");
  return ids;
}

using Stops = std::vector<std::string_view>;

std::size_t first_stop(std::string_view text, const Stops& stops) {
  std::size_t at = text.npos;
  for (const std::string_view stop : stops) at = std::min(at, text.find(stop));
  return at;
}

// What the model makes of each prompt, up to the first of the stops.
std::vector<std::string> continued(TextModel& lm, const std::vector<std::vector<std::int64_t>>& prompts, GenerateOptions o,
                                   std::int64_t batch, const Stops& stops) {
  std::vector<std::string> all;
  o.vocab = lm.tokenizer.vocabulary();
  for (std::size_t begin = 0; begin < prompts.size(); begin += std::size_t(batch)) {
    const std::size_t end = std::min(prompts.size(), begin + std::size_t(batch));
    std::vector<std::string> texts(end - begin);
    std::vector<StreamDecoder> decoders(end - begin, StreamDecoder(lm.tokenizer));
    generate_all(*lm.model, {prompts.begin() + std::ptrdiff_t(begin), prompts.begin() + std::ptrdiff_t(end)}, o,
                 [&](std::size_t i, std::int64_t id) {
                   if (id == lm.tokenizer.end_of_text() || lm.model->special_tokens().ends(id)) return false;
                   texts[i] += decoders[i].put(id);
                   return first_stop(texts[i], stops) == texts[i].npos;
                 });
    for (std::size_t i = 0; i < texts.size(); ++i) {
      texts[i] += decoders[i].finish();
      all.push_back(texts[i].substr(0, first_stop(texts[i], stops)));
    }
  }
  return all;
}

std::size_t counted_examples(std::size_t there, const BenchmarkOptions& o) {
  return o.examples > 0 ? std::min(there, std::size_t(o.examples)) : there;
}

// ---- the tasks --------------------------------------------------------------------------------------------------------------

void run_text(TextModel& lm, const std::optional<fs::path>& file, const BenchmarkOptions& o, BenchmarkResult& result) {
  BatchOptions batches{.batch = o.batch, .length = length_for(*lm.model, o)};
  const auto open = [&] {
    if (file) return open_to_evaluate(*file, "all", lm.tokenizer, batches);
    PackedTokens packed(lm.tokenizer.vocabulary());
    const std::vector<std::int64_t> ids = lm.tokenizer.encode(bundled_text());
    packed.append(ids);
    const std::int64_t targets = std::int64_t(ids.size()) - 1;
    batches.length = std::min(batches.length, targets);
    batches.batch = std::min(batches.batch, (targets + batches.length - 1) / batches.length);
    return TokenStream("bundled", {}, Tokens(std::move(packed)), lm.tokenizer, batches);
  };
  const TokenStream text = open();
  const std::int64_t stride = std::min(o.stride > 0 ? o.stride : text.options().length, text.options().length);
  const Evaluation e = evaluate(*lm.model, StridedWindows(text, stride), o.examples, true);
  result.examples = e.tokens;
  if (!e.causal) {
    result.scores = {{"loss, not causal", e.loss()}};
    result.notes.emplace_back("the model reads tokens in another order: this is no perplexity");
    return;
  }
  result.scores = {{"perplexity", e.perplexity()}, {"accuracy", e.accuracy()}};
  if (e.characters > 0) result.scores.emplace_back("bits per character", e.bits_per_character());
  result.notes.push_back(
      fmt::format("perplexity is that of a token of this model's tokenizer, {}; windows of {} tokens, stride {}",
                  lm.tokenizer.name(), text.options().length, stride));
  if (e.perplexity() > double(lm.model->vocab()))
    result.notes.push_back(fmt::format(
        "a perplexity above the vocabulary, {}, is worse than guessing: something is wrong with the model", lm.model->vocab()));
}

void run_summaries(TextModel& lm, const std::vector<SummaryTask>& tasks, const BenchmarkOptions& o, BenchmarkResult& result) {
  const std::int64_t made = o.tokens > 0 ? o.tokens : 64;
  std::vector<std::vector<std::int64_t>> prompts;
  result.examples = std::int64_t(counted_examples(tasks.size(), o));
  for (std::size_t i = 0; i < std::size_t(result.examples); ++i)
    prompts.push_back(prompt_of(lm.tokenizer, tasks[i].article, "\nTL;DR:", length_for(*lm.model, o) - made));
  const std::vector<std::string> texts = continued(lm, prompts, {.tokens = made, .temperature = 0}, o.batch, {});
  double one = 0, two = 0, longest = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    one += rouge_n(texts[i], tasks[i].highlights, 1).f1, two += rouge_n(texts[i], tasks[i].highlights, 2).f1;
    longest += rouge_l(texts[i], tasks[i].highlights).f1;
  }
  const double n = double(result.examples);
  result.scores = {{"rouge-1 f1", one / n}, {"rouge-2 f1", two / n}, {"rouge-l f1", longest / n}};
  result.notes.emplace_back("ROUGE of the first texts after \"TL;DR:\", no stemming");
}

void run_questions(TextModel& lm, const std::vector<QuestionTask>& tasks, const BenchmarkOptions& o, BenchmarkResult& result) {
  const std::int64_t made = o.tokens > 0 ? o.tokens : 16;
  std::vector<std::vector<std::int64_t>> prompts;
  result.examples = std::int64_t(counted_examples(tasks.size(), o));
  for (std::size_t i = 0; i < std::size_t(result.examples); ++i)
    prompts.push_back(prompt_of(lm.tokenizer, tasks[i].context, fmt::format("\nQuestion: {}\nAnswer:", tasks[i].question),
                                length_for(*lm.model, o) - made));
  const std::vector<std::string> texts = continued(lm, prompts, {.tokens = made, .temperature = 0}, o.batch, {"\n"});
  double exact = 0, f1 = 0;
  for (std::size_t i = 0; i < texts.size(); ++i)
    exact += exact_match(texts[i], tasks[i].answer), f1 += hotpot_overlap(texts[i], tasks[i].answer).f1;
  result.scores = {{"exact match", exact / double(result.examples)}, {"f1", f1 / double(result.examples)}};
}

void run_programs(TextModel& lm, const std::vector<ProgramTask>& tasks, const BenchmarkOptions& o, BenchmarkResult& result) {
  for (const std::int64_t k : o.k)
    if (k < 1 || k > o.samples)
      fail(ErrorKind::usage, "eval: pass@k needs at least k samples of each problem",
           fmt::format("k {}, {} samples", k, o.samples), "a larger --samples");
  const std::int64_t made = o.tokens > 0 ? o.tokens : 160;
  result.examples = std::int64_t(counted_examples(tasks.size(), o));
  std::vector<std::vector<std::int64_t>> prompts;
  for (std::size_t i = 0; i < std::size_t(result.examples); ++i)
    prompts.push_back(prompt_of(lm.tokenizer, {}, tasks[i].prompt, length_for(*lm.model, o) - made));
  std::vector<std::int64_t> passed(std::size_t(result.examples), 0);
  std::map<std::string, std::int64_t> complaints;
  for (std::int64_t s = 0; s < o.samples; ++s) {
    const GenerateOptions how{.tokens = made, .temperature = o.temperature, .seed = o.seed + std::uint64_t(s)};
    const std::vector<std::string> texts =
        continued(lm, prompts, how, o.batch, {"\nclass ", "\ndef ", "\n#", "\nif ", "\nprint"});
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const ProgramTask& task = tasks[i];
      const std::string program =
          fmt::format("{}{}\n\n{}\n\ncheck({})\n", task.prompt, function_body(texts[i]), task.test, task.entry_point);
      const SandboxResult ran = run_python(program, o.sandbox);
      passed[i] += ran.end == SandboxResult::passed;
      if (ran.end != SandboxResult::passed) ++complaints[ran.complaint.substr(0, ran.complaint.find(':'))];
    }
  }
  for (const std::int64_t k : o.k) {
    double sum = 0;
    for (const std::int64_t c : passed) sum += pass_at_k(o.samples, c, k);
    result.scores.emplace_back(fmt::format("pass@{}", k), sum / double(result.examples));
  }
  result.notes.push_back(o.sandbox.without_isolation ? "programs ran without protection" : "programs ran isolated, by Python");
  for (const auto& [what, count] : complaints) result.notes.push_back(fmt::format("{} failed: {}", count, what));
}

}  // namespace

std::string function_body(std::string_view made) {
  std::size_t end = 0;
  while (end < made.size()) {
    const std::size_t next = std::min(made.find('\n', end), made.size());
    const bool first = end == 0, blank = made.substr(end, next - end).find_first_not_of(" \t\r") == made.npos;
    if (!first && !blank && made[end] != ' ' && made[end] != '\t') break;
    end = std::min(next + 1, made.size());
  }
  return std::string(made.substr(0, end));
}

BenchmarkResult run_benchmark(TextModel& lm, Benchmark what, const std::optional<fs::path>& file, const BenchmarkOptions& o) {
  BenchmarkResult result{
      .what = what, .source = file ? file->string() : "bundled", .bundled = !file, .scores = {}, .notes = {}};
  switch (what) {
    case Benchmark::wikitext:
      run_text(lm, file, o, result);
      break;
    case Benchmark::cnn_dm:
      run_summaries(lm, file ? read_summaries(*file) : bundled_summaries(), o, result);
      break;
    case Benchmark::hotpotqa:
      run_questions(lm, file ? read_questions(*file) : bundled_questions(), o, result);
      break;
    case Benchmark::humaneval:
      run_programs(lm, file ? read_programs(*file) : bundled_programs(), o, result);
      break;
  }
  return result;
}

std::string to_text(const BenchmarkResult& r) {
  std::string text =
      fmt::format("{}: {} {}, {}\n", name_of(r.what), r.examples, r.what == Benchmark::wikitext ? "tokens" : "examples",
                  r.bundled ? "a stand-in that is part of weft, not the benchmark" : r.source);
  for (const auto& [name, value] : r.scores) text += fmt::format("  {:<18} {:.4f}\n", name, value);
  for (const std::string& note : r.notes) text += fmt::format("  ({})\n", note);
  return text;
}

nlohmann::json to_json(const BenchmarkResult& r) {
  nlohmann::json scores = nlohmann::json::object();
  for (const auto& [name, value] : r.scores) scores[name] = value;
  return {{"task", name_of(r.what)}, {"source", r.source}, {"bundled", r.bundled},
          {"examples", r.examples},  {"scores", scores},   {"notes", r.notes}};
}

}  // namespace weft
