#include "tools/data/data.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "jit/error.h"
#include "jit/philox.h"
#include "jit/sizes.h"
#include "tools/data/shards.h"

namespace weft {

Tokenizer make_tokenizer(const TokenizerChoice& choice, const Corpus& corpus) {
  if (choice.name == "bytes") return Tokenizer::bytes();
  if (choice.name == "unigram") return Tokenizer::train(corpus, corpus.split(), choice.vocabulary);
  if (std::filesystem::exists(choice.name)) return Tokenizer::load(choice.name);
  fail(ErrorKind::io, fmt::format("no tokenizer '{}'{}", choice.name, suggestion(choice.name, {"bytes", "unigram"})),
       "there is no such file", "give bytes, unigram or the file of a SentencePiece model");
}

void for_each_block(TextReader& text, std::size_t end, const Tokenizer& tokenizer,
                    const std::function<void(std::span<const std::int64_t>)>& f) {
  const std::vector<std::int64_t> separator = tokenizer.separator();
  while (const auto part = text.next(end, tokenizer.cut())) {
    f(tokenizer.encode(part->text, text.corpus().name(), part->place));
    if (part->ends_document) f(separator);
  }
}

BatchSource::BatchSource(BatchOptions options) : options_(options) {
  if (options_.batch < 1 || options_.length < 1)
    fail(ErrorKind::usage, "batch and length must be at least 1",
         fmt::format("batch {}, length {}", options_.batch, options_.length));
  if (options_.parts < 1 || options_.part < 0 || options_.part >= options_.parts || options_.batch % options_.parts)
    fail(ErrorKind::usage, "the batch cannot be cut into a part of equal size for each rank",
         fmt::format("batch {}, {} ranks", options_.batch, options_.parts), "give a --batch that the number of ranks divides");
  if (options_.carry && options_.parts > 1)
    fail(ErrorKind::usage, "rows that go on from batch to batch are of one process", fmt::format("{} ranks", options_.parts),
         "leave out --carry-state, or train with one process");
  // Inputs and targets, as lists and as tensors: what a batch takes before there is a model.
  const std::int64_t bytes = checked_product("a batch, in bytes", {options_.rows(), options_.length, 4 * sizeof(std::int64_t)});
  check_memory(std::size_t(bytes), fmt::format("a batch of {} x {} tokens", options_.rows(), options_.length));
}

namespace {

void check_segments(const Batch& batch, const std::string& name) {
  if (!batch.segments) return;
  const std::vector<std::int64_t> ids = batch.segments.to_host<std::int64_t>();
  const auto length = std::size_t(batch.segments.dim(1));
  for (std::size_t i = 1; i < ids.size(); ++i)
    if (i % length != 0 && ids[i] < ids[i - 1])
      fail(ErrorKind::io, name + ": the segments of a batch fall",
           fmt::format("{} after {} in row {}, at {}", ids[i], ids[i - 1], i / length, i % length),
           "documents that are packed one after the other have ids that rise");
}

}  // namespace

Batch BatchSource::next() {
  Batch batch = training(position_);
  check_segments(batch, name());
  ++position_;
  return batch;
}

void BatchSource::seek(std::int64_t position) {
  if (position < 0) fail(ErrorKind::usage, "a position is at least 0", fmt::format("{}", position));
  position_ = position;
}

namespace {

Tokens tokens_of(TextReader& text, std::size_t end, const Tokenizer& tokenizer) {
  PackedTokens tokens(tokenizer.vocabulary());
  for_each_block(text, end, tokenizer, [&](std::span<const std::int64_t> ids) { tokens.append(ids); });
  return Tokens(std::move(tokens));
}

}  // namespace

TokenStream::TokenStream(const Corpus& corpus, Tokenizer tokenizer, BatchOptions options)
    : BatchSource(options), name_(corpus.name()), tokenizer_(std::move(tokenizer)) {
  TextReader text(corpus);
  training_ = tokens_of(text, corpus.split(), tokenizer_);
  validation_ = tokens_of(text, corpus.size(), tokenizer_);
  check_length();
}

TokenStream::TokenStream(const std::filesystem::path& file, Tokenizer tokenizer, BatchOptions options)
    : TokenStream(load_corpus(file), std::move(tokenizer), options) {}

TokenStream::TokenStream(std::string name, Tokens training, Tokens validation, Tokenizer tokenizer, BatchOptions options)
    : BatchSource(options),
      name_(std::move(name)),
      tokenizer_(std::move(tokenizer)),
      training_(std::move(training)),
      validation_(std::move(validation)) {
  check_length();
}

void TokenStream::check_length() const {
  if (options().packed && tokenizer_.end_of_text() < 0)
    fail(ErrorKind::usage, name_ + ": where documents end is not in the tokens",
         fmt::format("the tokenizer, {}, has no end of text", tokenizer_.name()), "take --tokenizer unigram");
  if (options().carry && training_.size() > 0 && (training_.size() - 1) / options().batch < options().length)
    fail(ErrorKind::io, name_ + ": text too short",
         fmt::format("{} tokens to train on; a stretch of {} for each of {} rows needs {}", training_.size(), options().length,
                     options().batch, options().batch * options().length + 1),
         "give a longer text, or a smaller --batch or --length");
  if (training_.size() == 0 && validation_.size() < 2)
    fail(ErrorKind::io, name_ + ": text too short",
         fmt::format("tokens: {}; one is needed to predict another", validation_.size()));
  if (training_.size() > 0 && (training_.size() < options().length + 1 || validation_.size() < 2))
    fail(ErrorKind::io, name_ + ": text too short",
         fmt::format("{} tokens to train on and {} to validate with; a length of {} needs {} and 2", training_.size(),
                     validation_.size(), options().length, options().length + 1),
         "give a longer text or a smaller --length");
}

void count_targets(Batch& batch, const Tokenizer& tokenizer, std::int64_t before, std::span<const std::int64_t> ids) {
  batch.counted += std::int64_t(ids.size());
  if (!tokenizer.loses().empty()) return;
  for (const std::int64_t id : ids) {
    // Of the first piece of a text the space that encoding put there is no part.
    const std::string_view piece = tokenizer.piece(id);
    const bool space = tokenizer.strips_space() && before == tokenizer.end_of_text() && piece.starts_with(' ');
    batch.characters += tokenizer.characters(id) - space;
    batch.bytes += std::int64_t(piece.size()) - space;
    before = id;
  }
}

// A row for each place; what lacks at the end of the text, and the rows that have no place, are padding.
Batch TokenStream::windows(const Tokens& tokens, const std::vector<std::int64_t>& places) const {
  const BatchOptions& o = options();
  const std::size_t n = std::size_t(o.rows() * o.length);
  std::vector<std::int64_t> inputs(n, 0), targets(n, kIgnored), segments(o.packed ? n : 0), window;
  Batch batch;
  for (std::size_t row = 0; row < places.size(); ++row) {
    window.resize(std::size_t(std::min(o.length + 1, tokens.size() - places[row])));
    tokens.copy(places[row], window);
    std::copy(window.begin(), window.end() - 1, inputs.begin() + std::ptrdiff_t(row) * o.length);
    std::copy(window.begin() + 1, window.end(), targets.begin() + std::ptrdiff_t(row) * o.length);
    count_targets(batch, tokenizer_, window[0], std::span(window).subspan(1));
    for (std::size_t i = std::size_t(row) * std::size_t(o.length) + 1; o.packed && i < (row + 1) * std::size_t(o.length); ++i)
      segments[i] = segments[i - 1] + (inputs[i] == tokenizer_.end_of_text());
  }
  batch.inputs = Tensor::from(inputs, {o.rows(), o.length});
  batch.targets = Tensor::from(targets, {o.rows(), o.length});
  if (o.packed) batch.segments = Tensor::from(segments, {o.rows(), o.length});
  return batch;
}

// Row r has tokens [r n, (r + 1) n) of the text; after its last whole window it begins anew.
Batch TokenStream::along(std::int64_t position) const {
  const BatchOptions& o = options();
  const std::int64_t n = (training_.size() - 1) / o.batch, window = position % (n / o.length);
  std::vector<std::int64_t> places, continues;
  for (std::int64_t k = 0; k < o.rows(); ++k) {
    places.push_back((o.first_row() + k) * n + window * o.length);
    std::int64_t first = 0;
    training_.copy(places.back(), std::span(&first, 1));
    continues.push_back(window > 0 && !(o.packed && first == tokenizer_.end_of_text()));
  }
  Batch batch = windows(training_, places);
  batch.continues = Tensor::from(continues, {o.rows()});
  return batch;
}

Batch TokenStream::training(std::int64_t position) const {
  if (training_.size() == 0) fail(ErrorKind::usage, name_ + ": there is nothing to train on");
  if (options().carry) return along(position);
  const std::uint64_t count = std::uint64_t(training_.size() - options().length);
  std::vector<std::int64_t> places;
  for (std::int64_t k = 0; k < options().rows(); ++k) {
    const std::int64_t row = options().first_row() + k;
    const auto words = philox_group(options().seed, std::uint64_t(position), std::uint64_t(row));
    __extension__ using Wide = unsigned __int128;  // 64 random bits times count / 2^64: uniform without a visible bias
    places.push_back(std::int64_t((Wide(words[0] | std::uint64_t(words[1]) << 32) * count) >> 64));
  }
  return windows(training_, places);
}

std::int64_t TokenStream::validation_batches() const {
  const std::int64_t batch = options().batch * options().length;
  return (validation_.size() - 1 + batch - 1) / batch;
}

Batch TokenStream::validation(std::int64_t index) const {
  if (index < 0 || index >= validation_batches())
    fail(ErrorKind::usage, "no such validation batch", fmt::format("{} of {}", index, validation_batches()));
  std::vector<std::int64_t> places;
  for (std::int64_t k = 0; k < options().rows(); ++k) {
    const std::int64_t place = (index * options().batch + options().first_row() + k) * options().length;
    if (place + 1 < validation_.size()) places.push_back(place);
  }
  return windows(validation_, places);
}

std::uint64_t TokenStream::hash() const {
  const std::uint64_t parts[] = {training_.hash(), validation_.hash(), tokenizer_.hash()};
  return XXH3_64bits(parts, sizeof parts);
}

TokenStream open_data(const std::optional<std::filesystem::path>& data, const TokenizerChoice& choice, BatchOptions options) {
  if (data && std::filesystem::is_directory(*data)) {
    const ShardFolder shards(*data);
    return TokenStream(data->string(), shards.training(), shards.validation(), shards.tokenizer(), options);
  }
  const Corpus corpus = load_corpus(data);
  return TokenStream(corpus, make_tokenizer(choice, corpus), options);
}

TokenStream open_to_evaluate(const std::filesystem::path& data, const std::string& part, const Tokenizer& tokenizer,
                             BatchOptions options) {
  const bool training = part != "validation", validation = part != "training";
  Tokens tokens;
  if (std::filesystem::is_directory(data)) {
    const ShardFolder shards(data);
    if (shards.tokenizer().hash() != tokenizer.hash())
      fail(ErrorKind::io, data.string() + ": the tokens are not the model's",
           fmt::format("made with {} ({}), the model has {} ({})", shards.tokenizer().name(), shards.tokenizer().vocabulary(),
                       tokenizer.name(), tokenizer.vocabulary()),
           "give the text itself");
    if (training) tokens.append(shards.training());
    if (validation) tokens.append(shards.validation());
  } else {
    const Corpus corpus = load_corpus(data);
    TextReader text(corpus);
    if (!training) text.skip(corpus.split());
    tokens = tokens_of(text, validation ? corpus.size() : corpus.split(), tokenizer);
  }
  const std::int64_t targets = std::max<std::int64_t>(tokens.size() - 1, 1);  // a short text needs no large batches
  options.length = std::min(options.length, targets);
  if (options.length > 0) options.batch = std::min(options.batch, (targets + options.length - 1) / options.length);
  if (options.parts > 1) options.batch = (options.batch + options.parts - 1) / options.parts * options.parts;
  return TokenStream(data.string(), {}, std::move(tokens), tokenizer, options);
}

}  // namespace weft
