#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "jit/error.h"
#include "jit/file.h"
#include "tools/cli/commands.h"
#include "tools/cli/progress.h"
#include "tools/evaluate/generate.h"

namespace weft {

int cmd_generate(const GenerateCommand& c) {
  TextModel lm = open_model(c.model);
  const std::string prompt = c.prompt == "-" ? read_text("/dev/stdin") : c.prompt;
  const bool terminal = isatty(STDOUT_FILENO);
  const GeneratedText made = generate_text(*lm.model, lm.tokenizer, prompt, c.options, [&](std::string_view text) {
    const std::string shown = terminal ? printable(std::string(text)) : std::string(text);
    std::fwrite(shown.data(), 1, shown.size(), stdout);
    std::fflush(stdout);
  });
  std::fputs("\n", stdout);
  if (std::fflush(stdout) != 0 || std::ferror(stdout)) fail(ErrorKind::io, "generate: the text cannot be written");
  fmt::print(stderr, "prompt: {} tokens, {:.2f} s; then {} tokens", made.prompt_tokens, made.prompt_seconds, made.tokens);
  if (made.token_seconds > 0) fmt::print(stderr, ", {:.0f} tokens/s", 1 / made.token_seconds);
  fmt::print(stderr, "{}\n", made.ended ? "; the model ended the text" : "");
  return 0;
}

}  // namespace weft
