// Pairs of texts of which one is preferred, to train on with ORPO (models/orpo.h): from a file, or made from a plain text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "autograd/host_tensor.h"
#include "tools/data/data.h"
#include "tools/data/draws.h"

namespace weft {

// What takes the place of a text's true continuation as the rejected one, of the same length:
enum class Reject {
  shuffle,  // its tokens in random order
  corrupt,  // kCorrupted of its tokens replaced by others, drawn as often as they occur in the text
  swap,     // the continuation of another place
  sample,   // what the model writes
};
inline constexpr double kCorrupted = 0.3;
const std::vector<std::string>& reject_words();  // in this order
Reject reject_of(const std::string& word);       // errors (ErrorKind::usage): none of them

struct PairOptions {
  Reject reject = Reject::corrupt;
  std::int64_t response = 0;  // tokens; 0: half of the batch's length. The rest is the prompt
  // Reject::sample: batches between samplings, of at least PairStream::kSampled pairs together; 0: an epoch's.
  std::int64_t refresh = 0;
  bool nll_on_prompt = false;  // prompts have targets, too
};

struct TokenPair {
  std::vector<std::int64_t> prompt, chosen, rejected;  // none is empty
};

// The pairs of a file of lines {"prompt": "...", "chosen": "...", "rejected": "..."}. A response ends with the tokenizer's end
// of text, if it has one; an empty prompt becomes its separator. Of a pair longer than `length` tokens the prompt loses its
// beginning, and then the responses their ends.
class TokenPairs {
 public:
  // Errors (ErrorKind::io): no such file, no pair in it; and all lines that are not JSON or no objects, that lack a key, have a
  // value that is no string, an empty response or two equal ones: together, with their numbers.
  TokenPairs(const std::filesystem::path& file, const Tokenizer& tokenizer, std::int64_t length);

  std::int64_t size() const { return std::int64_t(begins_.size()) / 3; }
  TokenPair operator[](std::int64_t i) const;
  std::int64_t longest(std::int64_t i) const;  // tokens of the prompt and the longer response
  std::int64_t cut() const { return cut_; }    // pairs that were too long
  std::uint64_t hash() const;

 private:
  Tokens tokens_;
  std::vector<std::int64_t> begins_;  // of the prompt, the chosen and the rejected response of each pair, in tokens_; the end
  std::int64_t cut_ = 0;
};

// Batches of pairs. options().batch counts pairs: a training batch has twice as many rows, chosen and rejected in turn, padded
// on the right to one length: options().length, halved as long as the longest row of the whole batch fits and 16 are left.
// Targets are kIgnored on padding and prompts (but for PairOptions::nll_on_prompt). An epoch has every pair once, in an order
// of its own. The last tenth of a file's pairs is held out; of a text it is windows of the validation part.
class PairStream : public BatchSource {
 public:
  // From a file; options.length is the most tokens of a row. validation() has the chosen texts of the pairs held out. Errors:
  // those of TokenPairs; ErrorKind::io: a single pair; ErrorKind::usage: packed or carried rows, a length below 2.
  PairStream(const std::filesystem::path& file, Tokenizer tokenizer, BatchOptions options, PairOptions pairs = {});
  // From a text, whose windows of options().length tokens begin with the prompt. validation() is the text's, so that losses are
  // comparable with those of training on it. Errors: ErrorKind::usage: a response that leaves no prompt, packed or carried
  // rows; ErrorKind::io: a text without a window in each part.
  explicit PairStream(std::shared_ptr<const TokenStream> text, PairOptions pairs = {});

  std::int64_t training_pairs() const;  // an epoch
  std::int64_t held_out_pairs() const;  // of a text at most kHeldOut, from all over its validation part
  static constexpr std::int64_t kHeldOut = 1024;
  std::int64_t held_out_batches() const;
  // Like a training batch. The last one is filled up with rows that have no targets.
  Batch held_out(std::int64_t index) const;
  std::int64_t held_out_pairs(std::int64_t index) const;  // of this process's part of that batch

  // Reject::sample: rejected texts are sampled, where they are missing, for the pairs held out and, by sample(), for the
  // batches up to the next multiple of `refresh`. `write` continues each of the prompts, which have one length, by so many
  // tokens, drawn as the seed says. It is given kSampled prompts or more at a time, if there are as many: a device is fast at
  // few and large steps. All processes give it the same ones, in a number that they can share.
  static constexpr std::int64_t kSampled = 512;
  using Texts = std::vector<std::vector<std::int64_t>>;
  using Write = std::function<Texts(const Texts& prompts, std::int64_t tokens, std::uint64_t seed)>;
  bool must_sample() const;                 // before next(), or if those held out are missing
  std::int64_t sample(const Write& write);  // the number of texts
  std::int64_t sample_held_out(const Write& write);
  // What was sampled, for checkpoints: "held_out" and "training" (pairs, response), "first" (1); empty if nothing was. Errors
  // of setting it (ErrorKind::io): other tensors than these.
  TensorMap sampled() const;
  void set_sampled(const TensorMap& tensors);

  const PairOptions& pair_options() const { return pairs_; }
  const TokenPairs* file() const { return file_.get(); }                // null: of a text
  void set_refresh(std::int64_t batches) { pairs_.refresh = batches; }  // before anything is sampled
  std::int64_t validation_batches() const override;
  Batch validation(std::int64_t index) const override;
  std::int64_t vocabulary() const override { return tokenizer_.vocabulary(); }
  std::string name() const override { return name_; }
  std::uint64_t hash() const override;
  const Tokenizer* tokenizer() const override { return &tokenizer_; }

 protected:
  Batch training(std::int64_t position) const override;

 private:
  struct Windows;  // of a part of the text
  Windows windows(bool held_out) const;
  void check_options() const;
  std::int64_t of_sequence(std::int64_t sequence) const;  // which pair the sequence-th one of training is
  TokenPair pair(std::int64_t sequence) const;
  TokenPair held_out_pair(std::int64_t index) const;
  TokenPair made(const Windows& windows, std::int64_t index, DataDraws& draws, const std::vector<std::int64_t>* sampled) const;
  Batch batch(const std::vector<TokenPair>& own, std::int64_t longest) const;
  Texts prompts(const Windows& windows, std::int64_t count, const std::function<std::int64_t(std::int64_t)>& index) const;
  Texts written(const Write& write, const Texts& prompts, std::uint64_t seed) const;
  std::int64_t first_wanted() const;      // the sequence number that next()'s round of sampling begins with
  std::int64_t pairs_of_a_round() const;  // sampled at a time

  PairOptions pairs_;
  std::string name_;
  Tokenizer tokenizer_;
  std::shared_ptr<const TokenStream> text_;  // null: of a file
  std::shared_ptr<const TokenPairs> file_;   // null: of a text
  Texts sampled_, held_out_sampled_;         // responses; sampled_: of the training pairs from number first_ on
  std::int64_t first_ = -1;                  // -1: nothing was sampled
};

}  // namespace weft
