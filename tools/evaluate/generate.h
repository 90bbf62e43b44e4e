// A language model with the tokenizer of its texts: continuing them.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "models/generate.h"
#include "tools/data/tokenizer.h"

namespace weft {

struct TextModel {
  std::unique_ptr<LanguageModel> model;
  Tokenizer tokenizer;
};

// A checkpoint or a run's latest one, or a folder as Hugging Face has it. The tokenizer is the folder's tokenizer.model; a
// model of 256 tokens without one reads bytes. `dtype` as in LanguageModel::load. Errors (ErrorKind::io): what is missing, a
// tokenizer of more tokens than the model knows.
TextModel load_text_model(const std::filesystem::path& folder, DType dtype = DType::f32);

struct GeneratedText {
  std::int64_t prompt_tokens = 0, tokens = 0;
  double prompt_seconds = 0;  // until the first new token, compiling included
  double token_seconds = 0;   // for each of the others; 0 if there is none
  bool ended = false;         // by the model: </s>, or what its configuration calls eos
};

// Continues `prompt` ("": a new line) until options.tokens are made or the model ends the text. `write` is given the text,
// beginning with the prompt, in whole characters as it comes.
GeneratedText generate_text(LanguageModel& model, const Tokenizer& tokenizer, const std::string& prompt,
                            GenerateOptions options, const std::function<void(std::string_view)>& write);

}  // namespace weft
