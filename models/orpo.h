// ORPO (Hong, Lee, Thorne: arXiv:2403.07691): learning to prefer one text to another while learning to write it, without a
// reference model.
//
// A pair is a prompt x, a chosen response y_w and a rejected one y_l. With the mean log-probability of a response's tokens,
// l(y) = 1/|y| sum_t log p(y_t | x, y_<t), and the log-odds, log_odds(l) = l - log(1 - e^l), the loss is the mean over pairs of
//
//   nll_w + lambda softplus(-z),   z = log_odds(l(y_w)) - log_odds(l(y_l)),   nll_w = -l(y_w)
//
// The form "seed" is one that goes about under the same name: nll_w - lambda l(y_w), which is (1 + lambda) nll_w and prefers
// nothing.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/ops.h"

namespace weft {

// l - log(1 - e^l) of mean log-probabilities l < 0, any shape; those above -1e-6 count as -1e-6, and have no gradient there. As
// exact as its type near 0, where 1 - e^l vanishes, and far from it, where it becomes 1. The derivative is 1 / (1 - e^l).
Tensor log_odds(Arg l);

enum class OrpoForm { paper, seed };

struct OrpoOptions {
  double lambda = 0.1;  // TRL calls it beta; 0: nll_w alone. It may change every step.
  OrpoForm form = OrpoForm::paper;
  // (2 n, t) integers: where they are not 0 a label is a response's. Absent: every label is. With it, labels of the prompt
  // count in nll_w, as in TRL, and nowhere else.
  Tensor response = {};
};

// The values of a batch, f32 (f64 for logits in f64). All but the loss are for people to look at: no gradient is taken of them.
struct OrpoBatch {
  Tensor loss;                            // scalar
  Tensor nll;                             // (n): nll_w
  Tensor chosen, rejected;                // (n): l(y_w), l(y_l)
  Tensor odds_ratio;                      // (n): z
  Tensor chosen_logits, rejected_logits;  // (n): the mean of all logits of the row
};

// logits (2 n, t, v), labels (2 n, t): rows 2 k and 2 k + 1 are the chosen and the rejected text of pair k, so that pairs, like
// rows, are cut along the first axis. labels are the tokens that follow, and -100 on padding and, unless they are to count in
// nll_w, on prompts. A row without any label of a response has l = 0. Errors (ErrorKind::usage): an odd number of rows, shapes
// that do not fit.
OrpoBatch orpo(Arg logits, Arg labels, const OrpoOptions& options = {});

// Means over pairs, under the names of TRL's trainer.
struct OrpoMetrics {
  double nll_loss = 0;
  double logps_chosen = 0, logps_rejected = 0;  // l(y_w), l(y_l)
  double logits_chosen = 0, logits_rejected = 0;
  double accuracy = 0;         // the share of pairs with l(y_w) > l(y_l)
  double log_odds_ratio = 0;   // log sigmoid(z), which is negative
  double log_odds_chosen = 0;  // z

  static constexpr std::size_t kValues = 8;
  using Values = std::array<double, kValues>;
  static OrpoMetrics from(const Values& values);  // in the order of the members
  Values values() const;

  double margin(double lambda) const { return lambda * (logps_chosen - logps_rejected); }
  // "nll_loss", "rewards/chosen" = lambda l(y_w), "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
  // "logps/rejected", "logits/chosen", "logits/rejected", "log_odds_ratio", "log_odds_chosen", each behind `prefix`.
  std::vector<std::pair<std::string, double>> named(double lambda, std::string_view prefix = "") const;
};

// The metrics of each pair, (OrpoMetrics::kValues, n), and their means over the pairs, (kValues): of parts of equal size these
// are averaged again.
Tensor orpo_pairs(const OrpoBatch& batch);
Tensor orpo_means(const OrpoBatch& batch);

}  // namespace weft
