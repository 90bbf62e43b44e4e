// Orders in which neighbours are correlated, for scan patches (models/scan_patch.h): from hidden states, by a shortest path.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "models/generate.h"
#include "models/scan_patch.h"
#include "tools/data/data.h"
#include "tools/evaluate/generate.h"

namespace weft {

// ---- hidden states ----------------------------------------------------------------------------------------------------------

// Texts of at least ten characters: lines of a text, documents of a .jsonl file; the first `count`. Errors (ErrorKind::io):
// fewer.
std::vector<std::string> sample_texts(const Corpus& corpus, std::int64_t count);

// What the last mixer is given, behind its norm, for each token of the texts, of which each has at most the first `length`: (n,
// d) of f32. Errors: ErrorKind::usage for a family without such mixers and a model that is patched.
HostTensor extract_hidden_states(LanguageModel& model, const Tokenizer& tokenizer, const std::vector<std::string>& texts,
                                 std::int64_t length = 256);

// ---- paths ------------------------------------------------------------------------------------------------------------------

struct SquareMatrix {
  std::int64_t n = 0;
  std::vector<double> values;  // (n, n)
  double operator()(std::int64_t i, std::int64_t j) const { return values[std::size_t(i * n + j)]; }
};

// Of the columns of x (rows, n) with each other: sum (x_i - mean_i)(x_j - mean_j) / sqrt(...); 0 with a constant column, 1 on
// the diagonal.
SquareMatrix correlation(const std::vector<float>& x, std::int64_t rows, std::int64_t n);
SquareMatrix scan_cost(const SquareMatrix& correlation);  // 1 - |rho|

double path_cost(const SquareMatrix& cost,
                 const std::vector<std::int64_t>& path);  // of its n - 1 steps; cost need not be symmetric
// From `start` always to the nearest that is left, of equals the first.
std::vector<std::int64_t> nearest_neighbour(const SquareMatrix& cost, std::int64_t start = 0);
// Reverses parts of the path (2-opt) and moves up to three neighbours elsewhere, either way round (Or-opt), while that lowers
// the cost by more than 1e-12. Both ends of the path are free.
std::vector<std::int64_t> improve_path(const SquareMatrix& cost, std::vector<std::int64_t> path);

struct ScanOrder {
  ScanMode mode = ScanMode::channels;
  std::vector<std::int64_t> order = {}, inverse = {};
  double mean = 0, deviation = 0;                   // of the cost between two different items
  double identity = 0, nearest = 0, optimised = 0;  // costs: as things stand, nearest neighbour alone, the order
  double seconds = 0;
  double improvement() const { return identity > 0 ? 100 * (identity - optimised) / identity : 0; }  // in per cent
};
// Never worse than the identity. Errors (ErrorKind::usage): no items, costs that are not finite.
ScanOrder shortest_order(const SquareMatrix& cost, ScanMode mode = ScanMode::channels);
// Of channels: the d columns of hidden states (n, d). Of tokens: `items` of their rows, evenly from all. Errors
// (ErrorKind::io), of `name`: no such matrix, values that are not finite.
ScanOrder compute_scan_order(const HostTensor& states, ScanMode mode, std::int64_t items = 512,
                             std::string_view name = "states");
std::string to_text(const ScanOrder& order);  // for people, several lines

// ---- before and after -------------------------------------------------------------------------------------------------------

struct ScanReportOptions {
  std::vector<std::string> prompts = {"\n", "The ", "In the beginning"};
  std::int64_t tokens = 24;  // of each text
  std::int64_t runs = 5;     // of which the median time is taken, after three that do not count
  std::int64_t batches = 8;  // of data; 0: all
};

struct ScanSide {
  double loss = 0, perplexity = 0, bits = 0;  // a token; a token; a character, 0: unknown
  std::int64_t counted = 0;                   // tokens
  std::vector<std::string> texts = {};        // the most probable ones after each prompt
  double generate_ms = 0, pass_ms = 0;        // medians: all texts; a batch of data
};

struct ScanReport {
  ScanMode mode = ScanMode::channels;
  ScanSide before = {}, after = {};
  double largest_difference = 0;  // between logits before and after, of the first batch
  bool restored = false;          // after removal the logits have the bits that they had
  std::int64_t vocabulary = 0;
  bool comparable() const { return mode != ScanMode::tokens; }  // whether the loss is still that of predicting what comes next
};

// Applies the order, measures and removes it. Errors: as apply_scan_patch.
ScanReport report_scan_order(LanguageModel& model, const Tokenizer& tokenizer, const BatchSource& data,
                             const std::vector<std::int64_t>& order, ScanMode mode, const ScanReportOptions& options = {});
std::string to_markdown(const ScanReport& report, const ScanReportOptions& options, std::string_view model,
                        std::string_view data, const ScanOrder* computed = nullptr);
nlohmann::json to_json(const ScanReport& report, const ScanOrder* computed = nullptr);

// The most probable tokens, by a pass over the whole text for each: what generate makes, also of a model whose mixers read
// tokens in another order.
std::vector<std::int64_t> generate_by_passes(LanguageModel& model, std::vector<std::int64_t> ids, std::int64_t tokens);

}  // namespace weft
