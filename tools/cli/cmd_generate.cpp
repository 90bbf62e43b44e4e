#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <sstream>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/print.h"
#include "models/sample.h"
#include "tools/cli/commands.h"
#include "tools/data/corpus.h"
#include "tools/evaluate/generate.h"

namespace weft {
namespace {

constexpr std::size_t kMaxPrompt = 64 << 20;  // bytes: standard input may have no end

// What is compressed, or no text by its first bytes, would be continued as it lies.
std::string read_prompt(const std::string& file) {
  std::string text = read_text(file, kMaxPrompt);
  if (const auto foreign = foreign_format(text); foreign && !foreign->text) refuse_foreign(file, text, "a text");
  return text;
}

// One in each line, or the documents of a file of them.
std::vector<std::string> read_prompts(const std::string& file) {
  std::vector<std::string> prompts;
  if (holds_documents(file)) {
    const Corpus corpus = load_corpus(file);
    if (corpus.size() > kMaxPrompt)
      fail(ErrorKind::io, file + ": too large", fmt::format("{} bytes of text, limit {}", corpus.size(), kMaxPrompt));
    TextReader reader(corpus);
    while (const auto document = reader.next(corpus.size(), Cut::documents)) prompts.emplace_back(document->text);
    return prompts;
  }
  std::istringstream lines(read_prompt(file));
  for (std::string line; std::getline(lines, line);)
    if (!line.empty()) prompts.push_back(line);
  if (prompts.empty()) fail(ErrorKind::io, file + ": there is no prompt", "no line has a text");
  return prompts;
}

std::vector<std::string> prompts_of(const GenerateCommand& c) {
  std::vector<std::string> prompts = c.prompts;
  if (std::count(prompts.begin(), prompts.end(), "-") > 1)
    fail(ErrorKind::usage, "generate: standard input is one prompt", {}, "give --prompt - once");
  for (std::string& prompt : prompts)
    if (prompt == "-") prompt = read_prompt("/dev/stdin");
  if (!c.prompt_file.empty()) {
    std::vector<std::string> more = read_prompts(c.prompt_file);
    prompts.insert(prompts.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
  }
  return prompts.empty() ? std::vector<std::string>{"\n"} : prompts;
}

class Output {
 public:
  void write(std::string_view text) const {
    const std::string shown = terminal_ ? printable(text) : std::string(text);
    std::fwrite(shown.data(), 1, shown.size(), stdout);
    std::fflush(stdout);
  }
  void check() const {
    if (std::fflush(stdout) != 0 || std::ferror(stdout)) fail(ErrorKind::io, "generate: the text cannot be written");
  }

 private:
  bool terminal_ = isatty(STDOUT_FILENO);
};

// One text comes as it is made; several, each of which would stop the others, when they are complete.
std::vector<GeneratedText> continue_texts(const TextModel& lm, const std::vector<std::string>& prompts,
                                          const GenerateOptions& options, const Output& out) {
  if (prompts.size() == 1)
    return {generate_text(*lm.model, lm.tokenizer, prompts[0], options, [&](std::string_view text) { out.write(text); })};
  std::vector<std::string> texts(prompts.size());
  const auto made = generate_texts(*lm.model, lm.tokenizer, prompts, options,
                                   [&](std::size_t i, std::string_view text) { texts[i] += text; });
  for (std::size_t i = 0; i < texts.size(); ++i) out.write((i > 0 ? "\n---\n" : "") + texts[i]);
  return made;
}

void report(const LanguageModel& model, const std::vector<GeneratedText>& made) {
  std::int64_t prompt = 0, tokens = 0, longest = 0, ended = 0, full = 0;
  for (const GeneratedText& text : made) {
    prompt += text.prompt_tokens, tokens += text.tokens, ended += text.ended, full += text.full;
    longest = std::max(longest, text.prompt_tokens + text.tokens);
  }
  const GeneratedText& first = made.front();
  print_error("prompt: {} tokens, {:.2f} s; then {} tokens", prompt, first.prompt_seconds, tokens);
  if (first.token_seconds > 0) {
    print_error(", {:.0f} tokens/s", 1 / first.token_seconds);
    if (made.size() > 1) print_error(" of each of {} texts", made.size());
  }
  if (ended > 0) print_error("; the model ended {}", made.size() == 1 ? "the text" : fmt::format("{} texts", ended));
  if (full > 0) print_error("; its context of {} tokens is full", *model.context());
  print_error("\n{}\n", to_text(model.cache_bytes(longest), longest));
}

}  // namespace

int cmd_generate(const GenerateCommand& c) {
  check_sampling(c.options.temperature, c.options.top_k, c.options.top_p);  // before anything is written
  const std::vector<std::string> prompts = prompts_of(c);
  const TextModel lm = open_model(c.model);
  const Output out;
  for (std::size_t begin = 0; begin < prompts.size(); begin += std::size_t(c.batch)) {
    const std::size_t end = std::min(prompts.size(), begin + std::size_t(c.batch));
    if (begin > 0) out.write("\n---\n");
    const std::vector<GeneratedText> made =
        continue_texts(lm, {prompts.begin() + std::ptrdiff_t(begin), prompts.begin() + std::ptrdiff_t(end)}, c.options, out);
    if (end == prompts.size()) out.write("\n");
    out.check();
    report(*lm.model, made);
  }
  return 0;
}

}  // namespace weft
