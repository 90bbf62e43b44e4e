#include "tools/evaluate/eval.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "autograd/backward.h"
#include "autograd/run.h"
#include "models/scan_patch.h"
#include "ops/collective.h"
#include "ops/ops.h"

namespace weft {
namespace {

// Counts below 2^53 are exact in fp64.
std::vector<double> summed_over_ranks(const std::vector<double>& own) {
  const Tensor mine = Tensor::from(own, {std::int64_t(own.size())});
  return run([&] { return all_reduce(mine); }).to_host<double>();
}

void add_ranks(Evaluation& e) {
  const std::vector<double> all =
      summed_over_ranks({e.nats, double(e.tokens), double(e.characters), double(e.bytes), double(e.right)});
  e.nats = all[0];
  e.tokens = std::int64_t(all[1]), e.characters = std::int64_t(all[2]), e.bytes = std::int64_t(all[3]);
  e.right = std::int64_t(all[4]);
}

}  // namespace

double Evaluation::perplexity() const { return std::exp(loss()); }
double Evaluation::bits_per_character() const { return nats / (std::numbers::ln2 * double(characters)); }
double Evaluation::bits_per_byte() const { return nats / (std::numbers::ln2 * double(bytes)); }

Tensor logits_of(LanguageModel& model, const Batch& batch, const ModelCache* carried) {
  if (!batch.segments && !carried) return model(batch.inputs);
  return model.flow(
      batch.inputs,
      {.segments = Documents(batch.segments), .carried = carried, .continues = carried ? batch.continues : Tensor()});
}

// NaN is beaten by all, and beats all.
Tensor right_answers(const Tensor& logits, const Tensor& targets) {
  const std::int64_t b = logits.dim(0), t = logits.dim(1);
  const Tensor all = cast(logits, DType::f32), wanted = reshape(targets, {b, t, 1});
  const Tensor own =
      sum(pointwise("own", {all, wanted}, [](Expr x, Expr id) { return where(equal(expr::index(2), id), x, Expr(0.0)); }), {-1},
          true);
  const Tensor before = sum(pointwise("before", {all, own, wanted},
                                      [](Expr x, Expr mine, Expr id) {
                                        const Expr less = where(expr::index(2) < id, where(x < mine, Expr(0.0), Expr(1.0)),
                                                                where(x <= mine, Expr(0.0), Expr(1.0)));
                                        return where(equal(expr::index(2), id), Expr(0.0), less);
                                      }),
                            {-1});
  return sum(pointwise("right", {before, targets}, [](Expr count, Expr id) {
    return where(equal(count, Expr(0.0)), where(id >= Expr(0), Expr(1.0), Expr(0.0)), Expr(0.0));
  }));
}

Evaluation evaluate(LanguageModel& model, const BatchSource& source, std::int64_t batches, bool accuracy) {
  const Evaluating scope(model);
  const std::int64_t all = source.validation_batches(), n = batches > 0 ? std::min(batches, all) : all;
  accuracy = accuracy || source.has_accuracy();
  const auto record = [&](const Batch& batch) {
    return no_grad([&] {
      Tensor logits = logits_of(model, batch);
      Tensor loss = cross_entropy(logits, batch.targets, {.reduction = Reduction::sum});
      return accuracy ? std::vector{loss, right_answers(logits, batch.targets)} : std::vector{loss};
    });
  };
  Evaluation result;
  for (std::int64_t i = 0; i < n; ++i) {
    const Batch batch = source.validation(i);
    const std::vector<Tensor> out = run(record, batch);
    result.nats += out[0].item();
    result.tokens += batch.counted, result.characters += batch.characters, result.bytes += batch.bytes;
    if (accuracy) result.right += std::int64_t(out[1].item());
  }
  result.causal = !model.scan_patch() || model.scan_patch()->mode != ScanMode::tokens;
  if (source.options().parts > 1) add_ranks(result);
  return result;
}

OrpoMetrics evaluate_pairs(LanguageModel& model, const PairStream& source, std::int64_t batches) {
  const Evaluating scope(model);
  const std::int64_t all = source.held_out_batches(), n = batches > 0 ? std::min(batches, all) : all;
  const auto record = [&](const Batch& batch) {
    return no_grad([&] { return orpo_pairs(orpo(logits_of(model, batch), batch.targets, {.response = batch.response})); });
  };
  std::vector<double> sums(OrpoMetrics::kValues + 1);  // and the number of pairs
  for (std::int64_t i = 0; i < n; ++i) {
    const std::vector<double> values = run(record, source.held_out(i)).to_host<double>();
    const std::size_t pairs = std::size_t(source.held_out_pairs(i)), room = values.size() / OrpoMetrics::kValues;
    for (std::size_t k = 0; k < OrpoMetrics::kValues; ++k)
      for (std::size_t p = 0; p < pairs; ++p) sums[k] += values[k * room + p];
    sums.back() += double(pairs);
  }
  if (source.options().parts > 1) sums = summed_over_ranks(sums);
  OrpoMetrics::Values means;
  for (std::size_t k = 0; k < means.size(); ++k) means[k] = sums[k] / sums.back();
  return OrpoMetrics::from(means);
}

}  // namespace weft
