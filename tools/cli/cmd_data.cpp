#include <fmt/format.h>

#include <optional>

#include "jit/print.h"
#include "tools/cli/commands.h"
#include "tools/data/shards.h"

namespace weft {
namespace {

void print_shards(const std::string& folder, const ShardFolder& shards) {
  const Tokenizer& t = shards.tokenizer();
  print("{}: {}; tokens: {} ({}); {} to train on, {} to validate with, in {} shards\n", folder, shards.source(), t.name(),
        t.vocabulary(), shards.training().size(), shards.validation().size(), shards.shards());
}

}  // namespace

int cmd_data_make(const DataCommand& c) {
  const Corpus corpus = load_corpus(c.data.empty() ? std::nullopt : std::optional<std::filesystem::path>(c.data));
  const Tokenizer tokenizer = make_tokenizer(c.tokenizer, corpus);
  print_shards(c.out, ShardFolder::make(c.out, corpus, tokenizer, c.shard_tokens));
  return 0;
}

int cmd_data_check(const DataCommand& c) {
  const ShardFolder shards(c.folder);
  shards.verify();
  print_shards(c.folder, shards);
  print("every token is as it was written\n");
  return 0;
}

}  // namespace weft
