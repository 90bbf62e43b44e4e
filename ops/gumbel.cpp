// Random masks: dropout, and masks with a Gumbel-sigmoid distribution (arXiv:1611.00712, 1611.01144). The noise is a pointwise
// node without operands that is drawn again wherever it is needed: backward draws the same numbers, and nothing is stored.
#include <fmt/format.h>

#include "autograd/pointwise.h"
#include "ops/ops.h"

namespace weft {

Tensor dropout(Arg x, double p, bool training) {
  if (!(p >= 0 && p <= 1))
    fail_at(x.where(), "dropout: p is not a probability", fmt::format("{}", p), "give a number in [0, 1]");
  if (!training || p == 0) return x.tensor();
  static const Expr body = where(expr::input(1) < expr::slot(0), expr::literal(0), expr::input(0) * expr::slot(1));
  static const std::int64_t name = name_id("dropout");
  const Tensor inputs[] = {x.tensor(), uniform(x.shape(), x.dtype() == DType::f64 ? DType::f64 : DType::f32, x.where())};
  const double constants[] = {p, p < 1 ? 1 / (1 - p) : 0};
  return record_body(name, body, inputs, constants, x.shape(), x.dtype(), x.where());
}

namespace {

// sigmoid((logit + noise) / tau); inputs logit, U, [tau]; slots: bounds of U, [tau].
Expr soft_mask(MaskNoise noise, bool tau_is_input) {
  const Expr u = min(max(expr::input(1), expr::slot(0)), expr::slot(1));
  const Expr g = noise == MaskNoise::gumbel ? -log(-log(u)) : log(u) - log1p(-u);
  return sigmoid((expr::input(0) + g) / (tau_is_input ? expr::input(2) : expr::slot(2)));
}

}  // namespace

Tensor gumbel_sigmoid(Arg logits, GumbelOptions options) {
  static const std::int64_t mask_name = name_id("mask"), soft_name = name_id("soft_mask"), hard_name = name_id("hard_mask");
  static const Expr decided = where(expr::input(0) > expr::literal(0), expr::literal(1), expr::literal(0));
  static const Expr straight_through =
      where(expr::input(1) > expr::literal(0.5), expr::literal(1), expr::literal(0)) + (expr::input(0) - expr::input(1));
  static const Expr soft_bodies[2][2] = {{soft_mask(MaskNoise::gumbel, false), soft_mask(MaskNoise::gumbel, true)},
                                         {soft_mask(MaskNoise::logistic, false), soft_mask(MaskNoise::logistic, true)}};
  const Shape shape = logits.shape();
  const DType dtype = logits.dtype();
  const Site where = logits.where();
  if (!is_real(dtype)) fail_at(where, "gumbel_sigmoid: the logits are not real", std::string(name_of(dtype)));
  if (!options.training) return record_body(mask_name, decided, {&logits.tensor(), 1}, {}, shape, dtype, where);
  const double tau = options.temperature_scalar ? options.temperature_scalar->value() : options.temperature;
  if (!(tau > 0 && std::isfinite(tau)))
    fail_at(where, "gumbel_sigmoid: the temperature is not positive", fmt::format("{}", tau));
  const Tensor noise = uniform(shape, dtype == DType::f64 ? DType::f64 : DType::f32, where);
  std::vector<Tensor> inputs = {logits.tensor(), noise};
  std::vector<double> constants = {1e-8, 1 - 1e-8};
  if (options.temperature_scalar)
    inputs.push_back(Arg(*options.temperature_scalar, where).tensor());
  else
    constants.push_back(tau);
  const Expr body = soft_bodies[options.noise == MaskNoise::logistic][options.temperature_scalar.has_value()];
  const Tensor soft = record_body(soft_name, body, inputs, constants, shape, dtype, where);
  if (!options.hard) return soft;
  // The value is 1[soft > 1/2] exactly, as soft - detach(soft) is 0; the gradient is that of soft.
  const Tensor pair[] = {soft, detach(Arg(soft, where))};
  return record_body(hard_name, straight_through, pair, {}, shape, dtype, where);
}

}  // namespace weft
