#include "models/orpo.h"

#include <fmt/format.h>

#include "autograd/backward.h"
#include "ops/check.h"

namespace weft {
namespace {

constexpr double kMostLogProbability = -1e-6;  // beyond it 1 - e^l would vanish, and with it the log-odds' denominator
constexpr double kMostCounted = 0x1p62;
constexpr std::int64_t kIgnoredLabel = -100;  // cross_entropy's

void check(const Arg& logits, const Arg& labels, const Tensor& response, Site where) {
  const Tensor &x = logits.tensor(), &y = labels.tensor();
  require_real(where, "orpo", "logits", x);
  require_integer(where, "orpo", "labels", y);
  if (x.shape().rank() != 3 || x.dim(0) % 2 != 0)
    fail_at(where, "orpo: logits must be those of pairs, (2 n, t, v)", describe(x),
            "rows 2 k and 2 k + 1 are the chosen and the rejected text of pair k");
  const Shape rows({x.dim(0), x.dim(1)});
  if (y.shape() != rows)
    fail_at(where, "orpo: labels do not fit logits", fmt::format("labels {}, logits {}", describe(y), describe(x)),
            fmt::format("labels must be {}", to_string(rows)));
  if (!response) return;
  require_integer(where, "orpo", "response", response);
  if (response.shape() != rows)
    fail_at(where, "orpo: response does not fit labels", fmt::format("response {}, labels {}", describe(response), describe(y)),
            "it says of each label whether it is a response's");
}

// (2 n) -> (n): of each pair the chosen (0) or the rejected (1) row's.
Tensor of_pairs(const Tensor& rows, std::int64_t which) {
  const std::int64_t n = rows.dim(0) / 2;
  return reshape(slice(reshape(rows, {n, 2}), 1, which, which + 1), {n});
}

// (2 n): minus the mean of the losses (2 n, t) that count, 0 where none does.
Tensor mean_log_probability(const Tensor& losses, const Tensor& counts) {
  return -(sum(losses * counts, {1}) / clamp(sum(counts, {1}), 1, kMostCounted));
}

}  // namespace

Tensor log_odds(Arg l) {
  return pointwise(
      "log_odds", {l},
      [](Expr v) {
        const Expr below = min(v, kMostLogProbability);
        return below - log(-expm1(below));
      },
      l.where());
}

OrpoBatch orpo(Arg logits, Arg labels, const OrpoOptions& o) {
  check(logits, labels, o.response, logits.where());
  const Tensor losses = cross_entropy(logits, labels, {.ignore_index = kIgnoredLabel, .reduction = Reduction::none});
  const auto counts = [&](const Tensor& which) { return cast(which, losses.dtype()); };
  const Tensor labelled = counts(not_equal(labels, double(kIgnoredLabel)));
  const Tensor responses = o.response ? labelled * counts(not_equal(o.response, 0.0)) : labelled;
  const Tensor l = mean_log_probability(losses, responses);
  OrpoBatch batch;
  batch.chosen = of_pairs(l, 0), batch.rejected = of_pairs(l, 1);
  batch.nll = -(o.response ? of_pairs(mean_log_probability(losses, labelled), 0) : batch.chosen);
  batch.odds_ratio = log_odds(batch.chosen) - log_odds(batch.rejected);
  const Tensor nll = mean(batch.nll);
  if (o.lambda == 0)
    batch.loss = nll;
  else if (o.form == OrpoForm::seed)
    batch.loss = nll * (1 + o.lambda);
  else
    batch.loss = nll + mean(softplus(-batch.odds_ratio)) * o.lambda;
  const Tensor row_logits = cast(mean(logits, {1, 2}), losses.dtype());
  batch.chosen_logits = of_pairs(row_logits, 0), batch.rejected_logits = of_pairs(row_logits, 1);
  return batch;
}

Tensor orpo_pairs(const OrpoBatch& b) {
  return no_grad([&] {
    const std::int64_t n = b.chosen.dim(0);
    const Tensor right = cast(greater(b.chosen, b.rejected), b.chosen.dtype());
    std::vector<Arg> rows;
    for (const Tensor& row :
         {b.nll, b.chosen, b.rejected, b.chosen_logits, b.rejected_logits, right, -softplus(-b.odds_ratio), b.odds_ratio})
      rows.push_back(reshape(row, {1, n}));
    return concat(std::move(rows), 0);
  });
}

Tensor orpo_means(const OrpoBatch& batch) {
  return no_grad([&] { return mean(orpo_pairs(batch), {1}); });
}

OrpoMetrics OrpoMetrics::from(const Values& v) { return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]}; }

OrpoMetrics::Values OrpoMetrics::values() const {
  return {nll_loss, logps_chosen, logps_rejected, logits_chosen, logits_rejected, accuracy, log_odds_ratio, log_odds_chosen};
}

std::vector<std::pair<std::string, double>> OrpoMetrics::named(double lambda, std::string_view prefix) const {
  std::vector<std::pair<std::string, double>> all = {{"nll_loss", nll_loss},
                                                     {"rewards/chosen", lambda * logps_chosen},
                                                     {"rewards/rejected", lambda * logps_rejected},
                                                     {"rewards/accuracies", accuracy},
                                                     {"rewards/margins", margin(lambda)},
                                                     {"logps/chosen", logps_chosen},
                                                     {"logps/rejected", logps_rejected},
                                                     {"logits/chosen", logits_chosen},
                                                     {"logits/rejected", logits_rejected},
                                                     {"log_odds_ratio", log_odds_ratio},
                                                     {"log_odds_chosen", log_odds_chosen}};
  for (auto& [name, value] : all) name.insert(0, prefix);
  return all;
}

}  // namespace weft
