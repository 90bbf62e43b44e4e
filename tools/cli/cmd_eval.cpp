#include <fmt/format.h>

#include <cstdio>

#include "tools/cli/commands.h"
#include "tools/evaluate/eval.h"

namespace weft {

int cmd_eval(const EvalCommand& c) {
  TextModel lm = open_model(c.model);
  const TokenStream text = open_to_evaluate(c.data, c.part, lm.tokenizer, c.options);
  const Evaluation e = evaluate(*lm.model, text);
  fmt::print("{}: {} tokens ({}), {} characters, {} bytes, in windows of {} tokens\n", text.name(), e.tokens,
             lm.tokenizer.name(), e.characters, e.bytes, text.options().length);
  fmt::print("loss {:.4f} a token, perplexity {:.4f}, {:.4f} bits per character, {:.4f} bits per byte\n", e.loss(),
             e.perplexity(), e.bits_per_character(), e.bits_per_byte());
  return 0;
}

}  // namespace weft
