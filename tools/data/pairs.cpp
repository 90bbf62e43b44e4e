#include "tools/data/pairs.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/json.h"
#include "jit/parallel.h"
#include "jit/philox.h"
#include "jit/sizes.h"

namespace weft {
namespace {

using Ids = std::vector<std::int64_t>;

// Whose draws: keys of the training pairs' order and rejected texts, and of those held out.
enum PairSite : std::uint64_t { kOrder = 1ull << 40, kRejected = 2ull << 40, kHeldOutRejected = 3ull << 40 };
constexpr std::uint64_t kHeldOutSeed = 0;  // the same pairs are held out from every run
constexpr std::int64_t kShortest = 16;     // tokens of a batch's rows

std::size_t at(std::int64_t i) { return std::size_t(i); }

// What lines of the file have in common that is wrong, in the order in which it was found.
class Problems {
 public:
  void add(const std::string& what, std::size_t line) {
    if (!lines_.contains(what)) order_.push_back(what);
    lines_[what].push_back(line);
  }
  bool empty() const { return order_.empty(); }
  std::string text() const {
    std::string all;
    for (const std::string& what : order_) {
      const std::vector<std::size_t>& lines = lines_.at(what);
      all +=
          fmt::format("{}line{} {}: {}", all.empty() ? "" : "\n  ", lines.size() > 1 ? "s" : "", fmt::join(lines, ", "), what);
    }
    return all;
  }

 private:
  std::vector<std::string> order_;
  std::map<std::string, std::vector<std::size_t>> lines_;
};

struct TextPair {
  std::string prompt, chosen, rejected;
};

// Nothing: the line is no pair, which is among the problems.
std::optional<TextPair> read_pair(std::string_view line, std::size_t number, Problems& problems) {
  nlohmann::json object;
  try {
    object = parse_json(line, "");
  } catch (const Error&) {
    return problems.add("not JSON", number), std::nullopt;
  }
  if (!object.is_object()) return problems.add("not an object", number), std::nullopt;
  TextPair pair;
  bool whole = true;
  const auto read = [&](const char* key, std::string& text, bool may_be_empty) {
    const auto found = object.find(key);
    std::string problem;
    if (found == object.end())
      problem = fmt::format("there is no \"{}\"", key);
    else if (!found->is_string())
      problem = fmt::format("\"{}\" is no string", key);
    else if (text = found->get<std::string>(); text.empty() && !may_be_empty)
      problem = fmt::format("\"{}\" is empty", key);
    if (!problem.empty()) problems.add(problem, number), whole = false;
  };
  read("prompt", pair.prompt, true), read("chosen", pair.chosen, false), read("rejected", pair.rejected, false);
  if (whole && pair.chosen == pair.rejected)
    return problems.add("\"chosen\" and \"rejected\" are the same", number), std::nullopt;
  return whole ? std::optional(pair) : std::nullopt;
}

// The prompt is what all have in common with it alone: a tokenizer may join its end with what follows.
TokenPair encoded(const TextPair& text, const Tokenizer& tokenizer) {
  Ids prompt = tokenizer.encode(text.prompt), chosen = tokenizer.encode(text.prompt + text.chosen),
      rejected = tokenizer.encode(text.prompt + text.rejected);
  std::size_t common = 0;
  while (common < prompt.size() && common + 1 < std::min(chosen.size(), rejected.size()) && prompt[common] == chosen[common] &&
         prompt[common] == rejected[common])
    ++common;
  prompt.resize(common);
  const auto rest = [&](Ids& ids) {
    ids.erase(ids.begin(), ids.begin() + std::ptrdiff_t(std::min(common, ids.size())));
    if (!ids.empty() && tokenizer.end_of_text() >= 0) ids.push_back(tokenizer.end_of_text());
  };
  rest(chosen), rest(rejected);
  if (prompt.empty()) prompt = tokenizer.separator();
  return {std::move(prompt), std::move(chosen), std::move(rejected)};
}

// True if it was too long.
bool shorten(TokenPair& pair, std::int64_t length) {
  const std::size_t longer = std::max(pair.chosen.size(), pair.rejected.size()), all = at(length);
  if (pair.prompt.size() + longer <= all) return false;
  const std::size_t kept = std::min(pair.prompt.size(), longer < all ? all - longer : 1);
  pair.prompt.erase(pair.prompt.begin(), pair.prompt.end() - std::ptrdiff_t(kept));
  for (Ids* response : {&pair.chosen, &pair.rejected}) response->resize(std::min(response->size(), all - kept));
  return true;
}

}  // namespace

const std::vector<std::string>& reject_words() {
  static const std::vector<std::string> words = {"shuffle", "corrupt", "swap", "sample"};
  return words;
}

Reject reject_of(const std::string& word) {
  const auto found = std::ranges::find(reject_words(), word);
  if (found == reject_words().end()) fail_unknown("no way to make rejected texts is called", word, reject_words());
  return Reject(found - reject_words().begin());
}

// ---- of a file --------------------------------------------------------------------------------------------------------------

TokenPairs::TokenPairs(const std::filesystem::path& file, const Tokenizer& tokenizer, std::int64_t length) {
  const std::string all = read_text(file), name = file.string();
  refuse_foreign(name, std::string_view(all).substr(0, kForeignBytes), "lines of pairs");
  PackedTokens tokens(tokenizer.vocabulary());
  Problems problems;
  std::size_t number = 0;
  for (const std::string_view line : lines_of(all)) {
    ++number;
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    const std::optional<TextPair> text = read_pair(line, number, problems);
    if (!text) continue;
    TokenPair pair = encoded(*text, tokenizer);
    const bool shorter = shorten(pair, length);
    if (pair.chosen.empty() || pair.rejected.empty()) {
      problems.add("a response is empty: the tokenizer knows nothing of it", number);
    } else if (pair.chosen == pair.rejected) {
      problems.add(shorter ? fmt::format("\"chosen\" and \"rejected\" are the same in the first {} tokens", pair.chosen.size())
                           : "\"chosen\" and \"rejected\" are the same to the tokenizer",
                   number);
    }
    cut_ += shorter;
    for (const Ids* ids : {&pair.prompt, &pair.chosen, &pair.rejected}) begins_.push_back(tokens.size()), tokens.append(*ids);
  }
  if (!problems.empty())
    fail(ErrorKind::io, name + ": not all lines are pairs", problems.text(),
         R"(each line is an object with three strings: {"prompt": "...", "chosen": "...", "rejected": "..."})");
  if (begins_.empty())
    fail(ErrorKind::io, name + ": there are no pairs", {},
         R"(each line is an object with three strings: {"prompt": "...", "chosen": "...", "rejected": "..."})");
  begins_.push_back(tokens.size());
  tokens_ = Tokens(std::move(tokens));
}

TokenPair TokenPairs::operator[](std::int64_t i) const {
  const auto part = [&](std::int64_t k) {
    const std::int64_t begin = begins_[at(3 * i + k)];
    Ids ids(at(begins_[at(3 * i + k + 1)] - begin));
    tokens_.copy(begin, ids);
    return ids;
  };
  return {part(0), part(1), part(2)};
}

std::int64_t TokenPairs::longest(std::int64_t i) const {
  const std::int64_t* begin = &begins_[at(3 * i)];
  return begin[1] - begin[0] + std::max(begin[2] - begin[1], begin[3] - begin[2]);
}

std::uint64_t TokenPairs::hash() const {
  return XXH3_64bits_withSeed(begins_.data(), begins_.size() * sizeof begins_[0], tokens_.hash());
}

// ---- of a text --------------------------------------------------------------------------------------------------------------

// Window i has the `length` tokens from place(i) on.
struct PairStream::Windows {
  const Tokens& tokens;
  std::int64_t length, all, count;  // whole ones, and as many of them as are used
  Ids operator[](std::int64_t i) const {
    Ids ids(at(length));
    tokens.copy(i * all / count * length, ids);
    return ids;
  }
};

PairStream::Windows PairStream::windows(bool held_out) const {
  const Tokens& tokens = held_out ? text_->validation_tokens() : text_->training_tokens();
  const std::int64_t all = tokens.size() / options().length;
  return {tokens, options().length, all, held_out ? std::min(all, kHeldOut) : all};
}

PairStream::PairStream(const std::filesystem::path& file, Tokenizer tokenizer, BatchOptions options, PairOptions pairs)
    : BatchSource(options), pairs_(pairs), name_(file.string()), tokenizer_(std::move(tokenizer)) {
  check_options();
  file_ = std::make_shared<TokenPairs>(file, tokenizer_, options.length);
  if (file_->size() < 2) fail(ErrorKind::io, name_ + ": a single pair", {}, "one is needed to train with and one to hold out");
}

PairStream::PairStream(std::shared_ptr<const TokenStream> text, PairOptions pairs)
    : BatchSource(text->options()),
      pairs_(pairs),
      name_(fmt::format("{} ({})", text->name(), reject_words()[std::size_t(pairs.reject)])),
      tokenizer_(*text->tokenizer()),
      text_(std::move(text)) {
  check_options();
  const std::int64_t length = options().length;
  if (pairs_.response == 0) pairs_.response = length / 2;
  if (pairs_.response >= length)
    fail(ErrorKind::usage, "pairs: the response leaves no prompt",
         fmt::format("response {}, length {}", pairs_.response, length), "give a smaller --response, or a larger --length");
  if (windows(false).count < 1 || windows(true).count < 1)
    fail(ErrorKind::io, name_ + ": text too short",
         fmt::format("{} tokens to train on and {} to validate with; a pair is made of {}", text_->training_tokens().size(),
                     text_->validation_tokens().size(), length),
         "give a longer text or a smaller --length");
}

void PairStream::check_options() const {
  const BatchOptions& o = options();
  if (o.packed || o.carry)
    fail(ErrorKind::usage,
         "pairs: each text stands alone, so there are no documents behind one another and no text to go on in",
         fmt::format("{}{}", o.packed ? "--packed" : "", o.carry ? " --carry-state" : ""), "leave them out");
  if (o.length < 2) fail(ErrorKind::usage, "pairs: a row has a prompt and a response", fmt::format("length {}", o.length));
  if (pairs_.response < 0 || pairs_.refresh < 0)
    fail(ErrorKind::usage, "pairs: a negative number", fmt::format("response {}, refresh {}", pairs_.response, pairs_.refresh));
  checked_product("a batch of pairs, in bytes", {o.rows(), o.length, 8 * std::int64_t(sizeof(std::int64_t))});
}

// `sampled`: what the model wrote, if that is what is to be rejected. No pair has two equal texts.
TokenPair PairStream::made(const Windows& w, std::int64_t index, DataDraws& draws, const Ids* sampled) const {
  Ids prompt = w[index], chosen(prompt.end() - std::ptrdiff_t(pairs_.response), prompt.end());
  prompt.resize(prompt.size() - chosen.size());
  Ids ids = sampled ? *sampled : chosen;
  const auto n = std::int64_t(ids.size());
  // As often as in the text, but not the one that stands there.
  const auto replace = [&](std::int64_t i) {
    const Tokens& all = text_->training_tokens();
    std::int64_t other = ids[at(i)];
    for (int tries = 0; other == ids[at(i)] && tries < 64; ++tries)
      all.copy(draws.below(std::min<std::int64_t>(all.size(), 0xffffffff)), std::span(&other, 1));
    ids[at(i)] = other != ids[at(i)] ? other : (other + 1) % vocabulary();
  };
  if (pairs_.reject == Reject::shuffle) {
    for (std::int64_t i = n - 1; i > 0; --i) std::swap(ids[at(i)], ids[at(draws.below(i + 1))]);
  } else if (pairs_.reject == Reject::corrupt) {
    std::int64_t left = std::llround(kCorrupted * double(n));
    for (std::int64_t i = 0; i < n; ++i)  // each choice of places is as likely as any other
      if (draws.below(n - i) < left) --left, replace(i);
  } else if (pairs_.reject == Reject::swap && w.count > 1) {
    const Ids other = w[(index + 1 + draws.below(w.count - 1)) % w.count];
    std::copy(other.end() - std::ptrdiff_t(n), other.end(), ids.begin());
  }
  if (ids == chosen) replace(draws.below(n));
  return {std::move(prompt), std::move(chosen), std::move(ids)};
}

// ---- both -------------------------------------------------------------------------------------------------------------------

std::int64_t PairStream::training_pairs() const { return file_ ? file_->size() - held_out_pairs() : windows(false).count; }

std::int64_t PairStream::held_out_pairs() const {
  return file_ ? std::max<std::int64_t>(1, file_->size() / 10) : windows(true).count;
}

std::int64_t PairStream::held_out_batches() const { return ceil_div(held_out_pairs(), options().batch); }

std::int64_t PairStream::held_out_pairs(std::int64_t index) const {
  return std::clamp<std::int64_t>(held_out_pairs() - index * options().batch - options().first_row(), 0, options().rows());
}

// Each epoch has an order of its own: a permutation of n numbers, by a Feistel network over at least as many, in which those
// beyond n are walked through (Black, Rogaway: "Ciphers with arbitrary finite domains", CT-RSA 2002).
std::int64_t PairStream::of_sequence(std::int64_t sequence) const {
  const auto n = std::uint64_t(training_pairs()), epoch = std::uint64_t(sequence) / n;
  std::uint64_t i = std::uint64_t(sequence) % n;
  int half = 1;  // bits
  while (n > std::uint64_t(1) << 2 * half) ++half;
  const std::uint64_t mask = (std::uint64_t(1) << half) - 1, key = philox_key(options().seed, kOrder);
  do {
    for (std::uint64_t round = 0; round < 4; ++round) {
      const std::uint64_t left = i >> half, right = i & mask;
      i = right << half | (left ^ (philox_group(key, epoch << 2 | round, right)[0] & mask));
    }
  } while (i >= n);
  return std::int64_t(i);
}

TokenPair PairStream::pair(std::int64_t sequence) const {
  const std::int64_t index = of_sequence(sequence);
  if (file_) return (*file_)[index];
  DataDraws draws(philox_key(options().seed, kRejected), sequence);
  return made(windows(false), index, draws, pairs_.reject == Reject::sample ? &sampled_.at(at(sequence - first_)) : nullptr);
}

TokenPair PairStream::held_out_pair(std::int64_t index) const {
  if (file_) return (*file_)[training_pairs() + index];
  DataDraws draws(philox_key(kHeldOutSeed, kHeldOutRejected), index);
  return made(windows(true), index, draws, pairs_.reject == Reject::sample ? &held_out_sampled_.at(at(index)) : nullptr);
}

// Rows of this process; there may be fewer pairs than it has room for.
Batch PairStream::batch(const std::vector<TokenPair>& own, std::int64_t longest) const {
  std::int64_t length = options().length;
  while (length % 2 == 0 && length / 2 >= std::max(longest, kShortest)) length /= 2;
  const std::int64_t count = 2 * options().rows();
  Ids inputs(at(count * length), 0), targets(inputs.size(), kIgnored), response(pairs_.nll_on_prompt ? inputs.size() : 0, 0);
  Batch made;
  for (std::int64_t row = 0; row < 2 * std::int64_t(own.size()); ++row) {
    const TokenPair& pair = own[at(row / 2)];
    Ids ids = pair.prompt;
    const Ids& answer = row % 2 == 0 ? pair.chosen : pair.rejected;
    ids.insert(ids.end(), answer.begin(), answer.end());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::size_t place = at(row * length) + i;
      inputs[place] = ids[i];
      if (i == 0) continue;
      const bool answers = i >= pair.prompt.size();
      if (answers || pairs_.nll_on_prompt) targets[place - 1] = ids[i];
      if (pairs_.nll_on_prompt) response[place - 1] = answers;
    }
    count_targets(made, tokenizer_, pair.prompt.back(), answer);
  }
  made.inputs = Tensor::from(inputs, {count, length});
  made.targets = Tensor::from(targets, {count, length});
  if (pairs_.nll_on_prompt) made.response = Tensor::from(response, {count, length});
  return made;
}

Batch PairStream::training(std::int64_t position) const {
  const BatchOptions& o = options();
  if (must_sample())
    fail(ErrorKind::usage, name_ + ": the rejected texts have not been sampled", {}, "call sample() before next()");
  std::int64_t longest = file_ ? 0 : o.length;
  for (std::int64_t k = 0; file_ && k < o.batch; ++k)
    longest = std::max(longest, file_->longest(of_sequence(position * o.batch + k)));
  std::vector<TokenPair> own;
  for (std::int64_t k = 0; k < o.rows(); ++k) own.push_back(pair(position * o.batch + o.first_row() + k));
  return batch(own, longest);
}

Batch PairStream::held_out(std::int64_t index) const {
  if (index < 0 || index >= held_out_batches())
    fail(ErrorKind::usage, "no such batch of pairs held out", fmt::format("{} of {}", index, held_out_batches()));
  if (pairs_.reject == Reject::sample && text_ && held_out_sampled_.empty())
    fail(ErrorKind::usage, name_ + ": the rejected texts have not been sampled", {}, "call sample() before");
  const std::int64_t begin = index * options().batch, first = begin + options().first_row();
  std::int64_t longest = file_ ? 0 : options().length;
  for (std::int64_t k = begin; file_ && k < std::min(begin + options().batch, held_out_pairs()); ++k)
    longest = std::max(longest, file_->longest(training_pairs() + k));
  std::vector<TokenPair> own;
  for (std::int64_t k = 0; k < held_out_pairs(index); ++k) own.push_back(held_out_pair(first + k));
  return batch(own, longest);
}

// ---- texts to predict -------------------------------------------------------------------------------------------------------

std::int64_t PairStream::validation_batches() const { return text_ ? text_->validation_batches() : held_out_batches(); }

Batch PairStream::validation(std::int64_t index) const {
  if (text_) return text_->validation(index);
  const BatchOptions& o = options();
  Ids inputs(at(o.rows() * o.length), 0), targets(inputs.size(), kIgnored);
  Batch made;
  for (std::int64_t row = 0; row < held_out_pairs(index); ++row) {
    const TokenPair pair = held_out_pair(index * o.batch + o.first_row() + row);
    Ids ids = pair.prompt;
    ids.insert(ids.end(), pair.chosen.begin(), pair.chosen.end());
    const std::size_t begin = at(row * o.length);
    for (std::size_t i = 0; i < ids.size(); ++i) inputs[begin + i] = ids[i];
    for (std::size_t i = pair.prompt.size(); i < ids.size(); ++i) targets[begin + i - 1] = ids[i];
    count_targets(made, tokenizer_, pair.prompt.back(), pair.chosen);
  }
  made.inputs = Tensor::from(inputs, {o.rows(), o.length});
  made.targets = Tensor::from(targets, {o.rows(), o.length});
  return made;
}

std::uint64_t PairStream::hash() const {
  const std::uint64_t parts[] = {file_ ? file_->hash() : text_->hash(), tokenizer_.hash(), std::uint64_t(pairs_.reject),
                                 std::uint64_t(pairs_.response)};
  return XXH3_64bits(parts, sizeof parts);
}

// ---- sampling ---------------------------------------------------------------------------------------------------------------

std::int64_t PairStream::pairs_of_a_round() const {
  const std::int64_t pairs = pairs_.refresh > 0 ? pairs_.refresh * options().batch : training_pairs();
  return ceil_div(std::max(pairs, kSampled), options().batch) * options().batch;
}

std::int64_t PairStream::first_wanted() const { return position() * options().batch / pairs_of_a_round() * pairs_of_a_round(); }

bool PairStream::must_sample() const {
  return text_ && pairs_.reject == Reject::sample && (held_out_sampled_.empty() || first_ != first_wanted());
}

// In calls of one size, so that one plan serves all: the last one is filled up with a prompt again.
PairStream::Texts PairStream::written(const Write& write, const Texts& prompts, std::uint64_t seed) const {
  const auto n = std::int64_t(prompts.size()), calls = std::max<std::int64_t>(1, n / kSampled);
  const std::int64_t size = ceil_div(ceil_div(n, calls), options().parts) * options().parts;
  Texts all;
  for (std::int64_t begin = 0; begin < n; begin += size) {
    const std::int64_t end = std::min(n, begin + size);
    Texts some(prompts.begin() + begin, prompts.begin() + end);
    some.resize(at(size), prompts.back());
    Texts texts = write(some, pairs_.response, philox_key(seed, std::uint64_t(begin)));
    texts.resize(at(end - begin));
    for (Ids& text : texts) {
      if (std::int64_t(text.size()) != pairs_.response)
        fail(ErrorKind::usage, "pairs: a sampled text has another length than the true one",
             fmt::format("{} tokens, not {}", text.size(), pairs_.response),
             "the model's context may be shorter than the pairs: give a smaller --length");
      all.push_back(std::move(text));
    }
  }
  return all;
}

PairStream::Texts PairStream::prompts(const Windows& w, std::int64_t count,
                                      const std::function<std::int64_t(std::int64_t)>& index) const {
  Texts texts;
  for (std::int64_t i = 0; i < count; ++i) {
    texts.push_back(w[index(i)]);
    texts.back().resize(at(options().length - pairs_.response));
  }
  return texts;
}

std::int64_t PairStream::sample_held_out(const Write& write) {
  if (!text_ || pairs_.reject != Reject::sample || !held_out_sampled_.empty()) return 0;
  const Texts of = prompts(windows(true), held_out_pairs(), [](std::int64_t i) { return i; });
  held_out_sampled_ = written(write, of, philox_key(kHeldOutSeed, kHeldOutRejected));
  return std::int64_t(of.size());
}

std::int64_t PairStream::sample(const Write& write) {
  if (!must_sample()) return 0;
  const std::int64_t held_out = sample_held_out(write), first = first_wanted();
  if (first_ == first) return held_out;
  const Texts of = prompts(windows(false), pairs_of_a_round(), [&](std::int64_t i) { return of_sequence(first + i); });
  sampled_ = written(write, of, philox_key(options().seed, kRejected + std::uint64_t(first)));
  first_ = first;
  return held_out + std::int64_t(of.size());
}

TensorMap PairStream::sampled() const {
  if (held_out_sampled_.empty()) return {};
  const auto tensor = [&](const Texts& texts) {
    Ids all;
    for (const Ids& text : texts) all.insert(all.end(), text.begin(), text.end());
    return HostTensor::from<std::int64_t>(DType::i32, {std::int64_t(texts.size()), pairs_.response}, all);
  };
  TensorMap all = {{"held_out", tensor(held_out_sampled_)}};
  if (first_ >= 0) {
    all["training"] = tensor(sampled_);
    all["first"] = HostTensor::from<std::int64_t>(DType::i64, {1}, std::span(&first_, 1));
  }
  return all;
}

void PairStream::set_sampled(const TensorMap& tensors) {
  const auto bad = [&](const std::string& what) {
    fail(ErrorKind::io, name_ + ": the sampled texts are not those of these pairs", what, "use another checkpoint");
  };
  const auto values = [&](const char* key, const std::vector<std::int64_t>& shape) {
    const auto found = tensors.find(key);
    if (found == tensors.end() || found->second.shape != shape) bad(key);
    return found->second.values<std::int64_t>();
  };
  const auto texts = [&](const char* key, std::int64_t n) {
    const Ids all = values(key, {n, pairs_.response});
    Texts cut(at(n));
    for (std::int64_t i = 0; i < n; ++i)
      cut[at(i)].assign(all.begin() + i * pairs_.response, all.begin() + (i + 1) * pairs_.response);
    for (const std::int64_t id : all)
      if (id < 0 || id >= vocabulary()) bad(fmt::format("{}: token {}", key, id));
    return cut;
  };
  if (!text_ || pairs_.reject != Reject::sample) bad("none are sampled");
  Texts held_out = texts("held_out", held_out_pairs());
  if (tensors.contains("training") || tensors.contains("first")) {
    sampled_ = texts("training", pairs_of_a_round());
    first_ = values("first", {1})[0];
  }
  held_out_sampled_ = std::move(held_out);
}

}  // namespace weft
