#include "tools/evaluate/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "jit/error.h"
#include "models/adapters.h"
#include "tools/train/checkpoint.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

TextModel load_from(const fs::path& folder, DType dtype) {
  const fs::path file = folder / "tokenizer.model";
  if (!fs::exists(folder / "config.json") && !fs::exists(folder / "adapter_config.json"))
    fail(ErrorKind::io, folder.string() + ": there is no model", "no config.json",
         "give a folder that `weft train --out` wrote, or one with a config.json and a model.safetensors");
  std::unique_ptr<LanguageModel> model = LanguageModel::load(folder, dtype);
  const std::int64_t vocab = model->vocab();
  if (!fs::exists(file)) {
    if (vocab == 256) return {std::move(model), Tokenizer::bytes()};
    fail(ErrorKind::io, folder.string() + ": there is no tokenizer", fmt::format("the model knows {} tokens", vocab),
         "put the SentencePiece model that it was trained with into the folder, as tokenizer.model");
  }
  Tokenizer tokenizer = Tokenizer::load(file);
  if (tokenizer.vocabulary() > vocab)
    fail(ErrorKind::io, folder.string() + ": the tokenizer is not the model's",
         fmt::format("{} tokens, the model knows {}", tokenizer.vocabulary(), vocab));
  return {std::move(model), std::move(tokenizer)};
}

}  // namespace

TextModel load_text_model(const fs::path& path, DType dtype, const std::vector<std::string>& adapters) {
  TextModel lm = read_model_folder(path, [&](const fs::path& folder) { return load_from(folder, dtype); });
  add_adapters_from(*lm.model, adapters);
  return lm;
}

void add_adapters_from(LanguageModel& model, const std::vector<std::string>& folders) {
  for (std::size_t i = 0; i < folders.size(); ++i)
    read_model_folder(folders[i], [&](const fs::path& folder) {
      const std::optional<fs::path> found = adapter_in(folder);
      if (!found)
        fail(ErrorKind::io, folder.string() + ": there is no adapter", "no adapter_config.json",
             "give a folder that PEFT, `weft train --adapter` or `weft adapter extract` wrote");
      load_adapter(model, *found, fmt::format("given{}", i));
    });
}

std::vector<GeneratedText> generate_texts(LanguageModel& model, const Tokenizer& tokenizer,
                                          const std::vector<std::string>& prompts, GenerateOptions options,
                                          const std::function<void(std::size_t, std::string_view)>& write) {
  std::vector<GeneratedText> results(prompts.size());
  std::vector<StreamDecoder> decoders(prompts.size(), StreamDecoder(tokenizer));
  std::vector<std::vector<std::int64_t>> texts;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    texts.push_back(tokenizer.encode(prompts[i].empty() ? "\n" : prompts[i]));
    results[i].prompt_tokens = std::int64_t(texts[i].size());
    check_prompt(model, texts[i]);
  }
  for (std::size_t i = 0; i < prompts.size(); ++i)
    for (std::int64_t id : texts[i]) write(i, decoders[i].put(id));
  const Clock::time_point start = Clock::now();
  Clock::time_point first, last;
  std::int64_t steps = 0;
  options.vocab = tokenizer.vocabulary();
  const auto made = generate_all(model, texts, options, [&](std::size_t i, std::int64_t id) {
    last = Clock::now();
    if (steps == 0) first = last;
    steps = std::max(steps, ++results[i].tokens);
    results[i].ended = id == tokenizer.end_of_text() || model.special_tokens().ends(id);
    write(i, decoders[i].put(id));
    return !results[i].ended;
  });
  const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    write(i, decoders[i].finish());
    if (steps > 0) results[i].prompt_seconds = seconds(first - start);
    if (steps > 1) results[i].token_seconds = seconds(last - first) / double(steps - 1);
    results[i].full = model.context() && std::int64_t(made[i].size()) >= *model.context();
  }
  return results;
}

GeneratedText generate_text(LanguageModel& model, const Tokenizer& tokenizer, const std::string& prompt,
                            GenerateOptions options, const std::function<void(std::string_view)>& write) {
  const auto each = [&](std::size_t, std::string_view text) { write(text); };
  return generate_texts(model, tokenizer, {prompt}, options, each)[0];
}

}  // namespace weft
