#include "autograd/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "autograd/backward.h"
#include "autograd/op.h"
#include "autograd/pointwise.h"
#include "autograd/run.h"
#include "autograd/settings.h"
#include "jit/interp.h"
#include "jit/parallel.h"

namespace weft {
namespace {

[[noreturn]] void fail_check(const std::string& what, const std::string& numbers) { fail(ErrorKind::training, what, numbers); }

// The weights of the sum whose gradient is checked.
constexpr double kWeightLow = 0.5, kWeightHigh = 1.5;
constexpr std::uint64_t kWeightStream = 99;

Tensor weighted_sum(const Tensor& y) {
  const Tensor w = Tensor::from(irregular(y.numel(), kWeightLow, kWeightHigh, kWeightStream), y.shape());
  static const Expr product = expr::input(0) * expr::input(1);
  static const std::int64_t name = name_id("mul");
  const Tensor pair[] = {convert(y, DType::f64, Site::current()), w};
  return sum_to(record_body(name, product, pair, {}, y.shape(), DType::f64, Site::current()), Shape{}, Site::current());
}

std::vector<Arg> reals(const std::vector<Tensor>& inputs, std::vector<std::size_t>* which = nullptr) {
  std::vector<Arg> out;
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (is_real(inputs[i].dtype())) {
      out.emplace_back(inputs[i]);
      if (which) which->push_back(i);
    }
  return out;
}

std::vector<Tensor> gradients(const OpFunction& fn, const std::vector<Tensor>& inputs) {
  return run([&] { return grad(weighted_sum(fn(inputs)), reals(inputs)); });
}

// The elements that are perturbed: spread over the input, first and last among them.
std::vector<std::int64_t> chosen(std::int64_t n, int count) {
  std::vector<std::int64_t> out;
  if (n <= count) {
    for (std::int64_t i = 0; i < n; ++i) out.push_back(i);
  } else {
    for (int i = 0; i < count; ++i) out.push_back(i * (n - 1) / (count - 1));
  }
  return out;
}

std::vector<double> input_values(const OpInput& input, std::uint64_t stream) {
  const std::int64_t n = input.shape.numel();
  std::vector<double> v = input.values.empty() ? irregular(n, input.low, input.high, stream) : std::vector<double>(std::size_t(n));
  if (!input.values.empty())
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = input.values[i % input.values.size()];
  if (is_integer(input.integer))
    for (double& x : v) x = std::floor(x);
  return v;
}

// The inputs of a case in a precision; reals of it are rounded, so that every precision sees the same numbers.
Tensor make(const OpInput& input, const std::vector<double>& values, DType dtype) {
  if (input.integer == DType::i32) return Tensor::from(std::vector<std::int32_t>(values.begin(), values.end()), input.shape);
  if (input.integer == DType::i64) return Tensor::from(std::vector<std::int64_t>(values.begin(), values.end()), input.shape);
  if (dtype == DType::f64) return Tensor::from(values, input.shape);
  const std::vector<float> f(values.begin(), values.end());
  if (dtype == DType::f32) return Tensor::from(f, input.shape);
  std::vector<bf16> b;
  for (const float x : f) b.emplace_back(x);
  return Tensor::from_bytes(b.data(), DType::bf16, input.shape);
}

struct CaseCheck {
  const OpFunction& fn;
  const Reference& reference;
  const OpCase& c;
  const CheckOptions& options;
  std::vector<std::vector<double>> values;
  std::vector<Shape> shapes;

  std::vector<Tensor> inputs(DType dtype, std::vector<std::vector<double>>* rounded = nullptr) const {
    std::vector<Tensor> out;
    for (std::size_t i = 0; i < c.inputs.size(); ++i) {
      out.push_back(make(c.inputs[i], values[i], dtype));
      if (rounded) rounded->push_back(out.back().to_host<double>());
    }
    return out;
  }

  void value(DType dtype, double tolerance) const {
    std::vector<std::vector<double>> rounded;
    const std::vector<Tensor> in = inputs(dtype, &rounded);
    const std::vector<double> got = run([&] { return fn(in); }).to_host<double>();
    const std::vector<double> want = reference(rounded, shapes);
    if (got.size() != want.size())
      fail_check(fmt::format("check_op: {}: the result has {} values, the reference {}", c.name, got.size(), want.size()), {});
    double scale = 1;
    for (const double w : want)
      if (std::isfinite(w)) scale = std::max(scale, std::abs(w));
    const double largest = dtype == DType::f64 ? 1e300 : 1e38;
    for (std::size_t i = 0; i < got.size(); ++i) {
      const bool beyond = std::abs(want[i]) > largest;
      const bool same = (std::isnan(want[i]) && std::isnan(got[i])) || got[i] == want[i] || (beyond && std::isinf(got[i])) ||
                        std::abs(got[i] - want[i]) <= tolerance * std::max(std::min(scale, 1e30), std::abs(want[i]));
      if (!same)
        fail_check(fmt::format("check_op: {}: wrong value in {}", c.name, name_of(dtype)),
                   fmt::format("element {}: {} where the reference gives {}", i, got[i], want[i]));
    }
  }

  // Where all values are finite, or, for an op that works element by element, for each element whose value is.
  void finite_gradients(DType dtype) const {
    const std::vector<Tensor> in = inputs(dtype);
    const std::vector<double> y = run([&] { return fn(in); }).to_host<double>();
    const bool all = std::all_of(y.begin(), y.end(), [](double v) { return std::isfinite(v); });
    std::vector<std::size_t> which;
    reals(in, &which);
    if (which.empty()) return;
    const std::vector<Tensor> g = gradients(fn, in);
    for (std::size_t k = 0; k < g.size(); ++k) {
      if (!c.inputs[which[k]].differentiable) continue;
      const std::vector<double> found = g[k].to_host<double>();
      if (!all && found.size() != y.size()) continue;
      for (std::size_t i = 0; i < found.size(); ++i)
        if (!std::isfinite(found[i]) && (all || std::isfinite(y[i])))
          fail_check(fmt::format("check_op: {}: a finite value with a gradient of {}", c.name, found[i]),
                     fmt::format("input {}, element {} in {}", which[k], i, name_of(dtype)));
    }
  }

  // The bits of value and gradients.
  std::vector<std::byte> bits() const {
    const std::vector<Tensor> in = inputs(DType::f32);
    std::vector<Tensor> all = run([&] {
      const Tensor y = fn(in);
      std::vector<Tensor> out = c.gradient ? grad(weighted_sum(y), reals(in)) : std::vector<Tensor>{};
      out.push_back(y);
      return out;
    });
    std::vector<std::byte> out;
    for (const Tensor& t : all) out.insert(out.end(), t.bytes(), t.bytes() + t.numel() * std::int64_t(size_of(t.dtype())));
    return out;
  }

  void determinism() const {
    const int before = threads();
    const std::vector<std::byte> first = bits();
    if (bits() != first) fail_check(fmt::format("check_op: {}: a second run gives other bits", c.name), {});
    for (const int n : {1, 3}) {
      set_threads(n);
      const bool same = bits() == first;
      set_threads(before);
      if (!same) fail_check(fmt::format("check_op: {}: {} threads give other bits than {}", c.name, n, before), {});
    }
  }

  void all() const {
    if (reference) {
      value(DType::f64, options.f64);
      value(DType::f32, options.f32);
      if (options.check_bf16) value(DType::bf16, options.bf16);
    }
    finite_gradients(DType::f64);
    determinism();
    if (!c.gradient) return;
    const std::vector<Tensor> in = inputs(DType::f64);
    gradcheck(fn, in, options.gradcheck);
    settings().fuse = false;
    try {
      gradcheck(fn, in, options.gradcheck);
    } catch (...) {
      settings().fuse = true;
      throw;
    }
    settings().fuse = true;
  }
};

}  // namespace

std::vector<double> irregular(std::int64_t n, double low, double high, std::uint64_t stream) {
  std::vector<double> out(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = low + (high - low) * (philox(7, stream, 0, i) + 0.5) / 4294967296.0;
  return out;
}

void gradcheck(const OpFunction& fn, const std::vector<Tensor>& inputs, GradcheckOptions options) {
  std::vector<std::size_t> which;
  reals(inputs, &which);
  const std::vector<Tensor> analytic = gradients(fn, inputs);
  auto value = [&](const std::vector<Tensor>& in) { return run([&] { return fn(in); }).to_host<double>(); };
  for (std::size_t k = 0; k < which.size(); ++k) {
    const std::size_t input = which[k];
    const std::vector<double> values = inputs[input].to_host<double>();
    const std::vector<double> g = analytic[k].to_host<double>();
    for (const std::int64_t e : chosen(std::int64_t(values.size()), options.elements)) {
      std::vector<double> side[2];
      for (const int s : {0, 1}) {
        std::vector<double> moved = values;
        moved[std::size_t(e)] += (s ? -1 : 1) * options.step;
        std::vector<Tensor> in = inputs;
        in[input] = Tensor::from(moved, inputs[input].shape());
        side[s] = value(in);
      }
      // The weighted sum of the differences, not the difference of the sums, which would cancel.
      double numeric = 0;
      const std::vector<double> w = irregular(std::int64_t(side[0].size()), kWeightLow, kWeightHigh, kWeightStream);
      for (std::size_t i = 0; i < w.size(); ++i) numeric += w[i] * (side[0][i] - side[1][i]) / (2 * options.step);
      const double found = g[std::size_t(e)];
      if (!(std::abs(numeric - found) <= options.absolute + options.relative * std::max(std::abs(numeric), std::abs(found))))
        fail_check("gradcheck: the gradient differs from finite differences",
                   fmt::format("input {}, element {} (value {}): {} against {}", input, e, values[std::size_t(e)], found, numeric));
    }
  }
}

void check_op(const OpFunction& fn, const Reference& reference, const std::vector<OpCase>& cases, CheckOptions options) {
  for (const OpCase& c : cases) {
    CaseCheck check{fn, reference, c, options, {}, {}};
    for (std::size_t i = 0; i < c.inputs.size(); ++i) {
      check.values.push_back(input_values(c.inputs[i], i + 1));
      check.shapes.push_back(c.inputs[i].shape);
    }
    try {
      check.all();
    } catch (const Error& e) {
      if (e.parts().what.rfind("check_op", 0) == 0) throw;
      ErrorParts parts = e.parts();
      parts.what = fmt::format("check_op: {}: {}", c.name, parts.what);
      throw Error(e.kind(), parts);
    }
  }
}

}  // namespace weft
