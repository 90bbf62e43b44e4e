#include "tools/evaluate/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "jit/error.h"
#include "tools/train/checkpoint.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

}  // namespace

TextModel load_text_model(const fs::path& path, DType dtype) {
  const fs::path folder = model_folder(path), file = folder / "tokenizer.model";
  if (!fs::exists(folder / "config.json"))
    fail(ErrorKind::io, path.string() + ": there is no model", "no config.json",
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

GeneratedText generate_text(LanguageModel& model, const Tokenizer& tokenizer, const std::string& prompt,
                            GenerateOptions options, const std::function<void(std::string_view)>& write) {
  GeneratedText result;
  StreamDecoder decoder(tokenizer);
  const std::vector<std::int64_t> ids = tokenizer.encode(prompt.empty() ? "\n" : prompt);
  result.prompt_tokens = std::int64_t(ids.size());
  for (std::int64_t id : ids) write(decoder.put(id));
  const Clock::time_point start = Clock::now();
  Clock::time_point first, last;
  options.vocab = tokenizer.vocabulary();
  generate(model, ids, options, [&](std::int64_t id) {
    last = Clock::now();
    if (result.tokens++ == 0) first = last;
    result.ended = id == tokenizer.end_of_text() || id == model.special_tokens().eos;
    write(decoder.put(id));
    return !result.ended;
  });
  write(decoder.finish());
  const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
  if (result.tokens > 0) result.prompt_seconds = seconds(first - start);
  if (result.tokens > 1) result.token_seconds = seconds(last - first) / double(result.tokens - 1);
  return result;
}

}  // namespace weft
