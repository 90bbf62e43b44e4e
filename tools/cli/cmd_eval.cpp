#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>

#include "jit/print.h"
#include "jit/ranks/ranks.h"
#include "tools/cli/commands.h"
#include "tools/evaluate/eval.h"

namespace weft {

int cmd_eval(const EvalCommand& c) {
  Ranks* const ranks = Ranks::join();  // who evaluate together: each has a part of every batch
  if (ranks && ranks->rank() > 0) mute(true);
  TextModel lm = open_model(c.model);
  BatchOptions options = c.options;
  constexpr std::int64_t kWindow = 1024;
  if (options.length == 0) options.length = std::min(kWindow, lm.model->context().value_or(kWindow));
  if (ranks) options.part = ranks->rank(), options.parts = ranks->size();
  const TokenStream text = open_to_evaluate(c.data, c.part, lm.tokenizer, options);
  const Evaluation e = evaluate(*lm.model, text);
  const bool counted = e.characters > 0;  // the tokenizer gives the text back
  const std::string size = counted ? fmt::format(", {} characters, {} bytes", e.characters, e.bytes) : "";
  const std::string bits =
      counted ? fmt::format(", {:.4f} bits per character, {:.4f} bits per byte", e.bits_per_character(), e.bits_per_byte())
              : "";
  print("{}: {} tokens ({}){}, in windows of {} tokens\n", text.name(), e.tokens, lm.tokenizer.name(), size,
        text.options().length);
  if (!e.causal)
    print("loss {:.4f} a token, not causal: the mixers read tokens in another order, so this is no perplexity\n", e.loss());
  else
    print("loss {:.4f} a token, perplexity {:.4f}{}\n", e.loss(), e.perplexity(), bits);
  if (ranks) ranks->leave();
  return 0;
}

}  // namespace weft
