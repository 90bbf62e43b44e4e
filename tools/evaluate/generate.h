// A language model with the tokenizer of its texts: loading both from a folder, and continuing texts.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "models/generate.h"
#include "tools/data/tokenizer.h"

namespace weft {

struct TextModel {
  std::unique_ptr<LanguageModel> model;
  Tokenizer tokenizer;
};

// A checkpoint, a run's latest one, or a folder as Hugging Face has it. The tokenizer is the folder's tokenizer.model; a model
// of 256 tokens without one reads bytes. `dtype` as in LanguageModel::load. `adapters`: folders with more of them, or runs that
// train one. Errors (ErrorKind::io): a file is missing, the tokenizer has more tokens than the model.
TextModel load_text_model(const std::filesystem::path& folder, DType dtype = DType::f32,
                          const std::vector<std::string>& adapters = {});
// Adapters of the model, beside that which it may have: each from a folder of PEFT, or from a run that trains one.
void add_adapters_from(LanguageModel& model, const std::vector<std::string>& folders);

struct GeneratedText {
  std::int64_t prompt_tokens = 0, tokens = 0;
  bool ended = false;  // the model ended the text: </s>, or what its configuration calls eos
  bool full = false;   // it has reached the model's context
  // Of all texts that were made together:
  double prompt_seconds = 0;  // until the first new tokens, compilation included
  double token_seconds = 0;   // for each step after it; 0 if there is none
};

// Continues `prompt` ("": a new line) until there are options.tokens new ones, the model ends the text, or the text has reached
// the model's context. `write` is given the text, beginning with the prompt, as it comes, in whole characters.
GeneratedText generate_text(LanguageModel& model, const Tokenizer& tokenizer, const std::string& prompt,
                            GenerateOptions options, const std::function<void(std::string_view)>& write);

// Several at once: each is what it is alone. `write` is told the number of the text too.
std::vector<GeneratedText> generate_texts(LanguageModel& model, const Tokenizer& tokenizer,
                                          const std::vector<std::string>& prompts, GenerateOptions options,
                                          const std::function<void(std::size_t, std::string_view)>& write);

}  // namespace weft
