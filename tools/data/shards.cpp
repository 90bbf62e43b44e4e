#include "tools/data/shards.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <system_error>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/json.h"
#include "tools/data/data.h"
#include "tools/system/folder.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kDescription = "data.json";
constexpr const char* kTokenizer = "tokenizer.model";
constexpr std::int64_t kMaxShards = 100'000;  // as many as the names have digits for

fs::path shard_file(const fs::path& folder, const std::string& part, std::int64_t n) {
  return folder / fmt::format("{}-{:05}.tokens", part, n);
}

// Writes the tokens of what comes next, up to byte `end` of the text; {"shards": n, "tokens": n}.
json write_part(const fs::path& folder, const std::string& part, TextReader& text, std::size_t end, const Tokenizer& tokenizer,
                std::int64_t shard_tokens) {
  std::optional<ShardWriter> shard;
  std::int64_t shards = 0, tokens = 0;
  const auto finish = [&] {
    shard->finish();
    shard.reset();
  };
  for_each_block(text, end, tokenizer, [&](std::span<const std::int64_t> ids) {
    while (!ids.empty()) {
      if (shards == kMaxShards && !shard)
        fail(ErrorKind::usage, "data: too many shards", fmt::format("at most {}", kMaxShards), "give a larger --shard-tokens");
      if (!shard) shard.emplace(shard_file(folder, part, shards++), tokenizer);
      const std::size_t n = std::min(ids.size(), std::size_t(shard_tokens - shard->size()));
      shard->append(ids.first(n));
      tokens += std::int64_t(n);
      ids = ids.subspan(n);
      if (shard->size() == shard_tokens) finish();
    }
  });
  if (shard) finish();
  return {{"shards", shards}, {"tokens", tokens}};
}

Tokens open_part(const fs::path& folder, const std::string& part, const json& about, const Tokenizer& tokenizer,
                 std::int64_t& shards) {
  const std::string description = (folder / kDescription).string();
  const auto n = integer_at<std::int64_t>(about.at(part), "shards", description);
  const auto tokens = integer_at<std::int64_t>(about.at(part), "tokens", description);
  if (n < 0 || n > kMaxShards) fail(ErrorKind::io, description + ": damaged", fmt::format("{} shards", n));
  std::vector<fs::path> files;
  for (std::int64_t i = 0; i < n; ++i) files.push_back(shard_file(folder, part, i));
  Tokens all = Tokens::open(files, tokenizer);
  if (all.size() != tokens)
    fail(ErrorKind::io, folder.string() + ": the shards are not those that belong together",
         fmt::format("{}: {} tokens, {} says {}", part, all.size(), kDescription, tokens),
         "make them again with `weft data make`");
  shards += n;
  return all;
}

}  // namespace

ShardFolder ShardFolder::make(const fs::path& folder, const Corpus& corpus, const Tokenizer& tokenizer,
                              std::int64_t shard_tokens) {
  if (shard_tokens < 1)
    fail(ErrorKind::usage, "data: a shard has at least one token", fmt::format("--shard-tokens {}", shard_tokens));
  std::error_code error;
  if (fs::exists(folder, error) && !fs::is_empty(folder, error))
    fail(ErrorKind::io, "data: the folder is not empty", folder.string(), "give another --out");
  write_folder(folder, [&](const fs::path& to) {
    if (!tokenizer.is_bytes()) tokenizer.save(to / kTokenizer);
    json about = {
        {"format", 1}, {"source", corpus.name()}, {"tokenizer", tokenizer.name()}, {"vocabulary", tokenizer.vocabulary()}};
    TextReader text(corpus);
    about["training"] = write_part(to, "training", text, corpus.split(), tokenizer, shard_tokens);
    about["validation"] = write_part(to, "validation", text, corpus.size(), tokenizer, shard_tokens);
    const std::string description = text_of(about, 2) + "\n";
    write_file(to / kDescription, std::as_bytes(std::span(description)));
  });
  return ShardFolder(folder);
}

ShardFolder::ShardFolder(fs::path folder) : tokenizer_(Tokenizer::bytes()) {
  const fs::path description = folder / kDescription;
  if (!fs::exists(description))
    fail(ErrorKind::io, folder.string() + ": not a folder of tokens", fmt::format("there is no {}", kDescription),
         "give a text file, or a folder that `weft data make` finished");
  const json about = read_json(description);
  try {
    if (about.at("format") != 1)
      fail(ErrorKind::io, description.string() + ": of another version of weft", about.at("format").dump());
    about.at("source").get_to(source_);
    if (about.at("tokenizer") != "bytes") tokenizer_ = Tokenizer::load(folder / kTokenizer);
    training_ = open_part(folder, "training", about, tokenizer_, shards_);
    validation_ = open_part(folder, "validation", about, tokenizer_, shards_);
  } catch (const json::exception& e) {
    fail(ErrorKind::io, description.string() + ": damaged", reason_of(e));
  }
}

void ShardFolder::verify() const {
  training_.verify();
  validation_.verify();
}

}  // namespace weft
