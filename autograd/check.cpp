#include "autograd/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "autograd/backward.h"
#include "autograd/pointwise.h"
#include "autograd/run.h"
#include "autograd/settings.h"
#include "jit/interp.h"
#include "jit/parallel.h"

namespace weft {
namespace {

[[noreturn]] void fail_check(const std::string& what, const std::string& numbers) { fail(ErrorKind::training, what, numbers); }

// The weights of the sum whose gradient is checked: the gradient that comes from above.
constexpr double kWeightLow = 0.5, kWeightHigh = 1.5;
constexpr std::uint64_t kWeightStream = 99;

std::vector<Arg> reals(const std::vector<Tensor>& inputs, std::vector<std::size_t>* which = nullptr) {
  std::vector<Arg> out;
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (is_real(inputs[i].dtype())) {
      out.emplace_back(inputs[i]);
      if (which) which->push_back(i);
    }
  return out;
}

// Of the weighted sum of y; none if y is not real.
std::vector<Tensor> gradients_of(const Tensor& y, const std::vector<Tensor>& inputs) {
  const std::vector<Arg> wrt = reals(inputs);
  if (!is_real(y.dtype()) || wrt.empty()) return {};
  const Tensor w = Tensor::from(irregular(y.numel(), kWeightLow, kWeightHigh, kWeightStream), y.shape());
  return grad(y, convert(w, y.dtype(), Site::current()), wrt, Unused::zeros);
}

// Runs what its life covers on a device.
class OnDevice {
 public:
  explicit OnDevice(Device d) : before_(device()) { use_device(name_of(d)); }
  ~OnDevice() { use_device(name_of(before_)); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  Device before_;
};

// Whether got[i] is want[i] for all i, within a tolerance of the largest magnitude; what is beyond the type's range may be inf.
void expect_close(const std::string& what, DType dtype, std::span<const double> got, std::span<const double> want,
                  double tolerance, std::string_view reference) {
  if (got.size() != want.size())
    fail_check(fmt::format("check_op: {} has {} elements, {} {}", what, got.size(), reference, want.size()), {});
  double scale = 1;
  for (const double w : want)
    if (std::isfinite(w)) scale = std::max(scale, std::abs(w));
  const double largest = dtype == DType::f64 ? 1e300 : 1e38;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const bool beyond = std::abs(want[i]) > largest;
    const bool same = (std::isnan(want[i]) && std::isnan(got[i])) || got[i] == want[i] || (beyond && std::isinf(got[i])) ||
                      std::abs(got[i] - want[i]) <= tolerance * std::max(std::min(scale, 1e30), std::abs(want[i]));
    if (!same)
      fail_check(fmt::format("check_op: {} in {}", what, name_of(dtype)),
                 fmt::format("element {}: {} where {} gives {}", i, got[i], reference, want[i]));
  }
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
  std::vector<double> v =
      input.values.empty() ? irregular(n, input.low, input.high, stream) : std::vector<double>(std::size_t(n));
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
    expect_close(c.name + ": wrong value", dtype, got, want, tolerance, "the reference");
  }

  // The value, then the gradients.
  std::vector<Tensor> results(DType dtype) const {
    const std::vector<Tensor> in = inputs(dtype);
    return run([&] {
      const Tensor y = fn(in);
      std::vector<Tensor> out = gradients_of(y, in);
      out.insert(out.begin(), y);
      return out;
    });
  }

  // Where all values are finite, or, for an op that works element by element, for each element whose value is.
  void finite_gradients(DType dtype) const {
    const std::vector<Tensor> all = results(dtype);
    const std::vector<double> y = all[0].to_host<double>();
    const bool finite = std::all_of(y.begin(), y.end(), [](double v) { return std::isfinite(v); });
    std::vector<std::size_t> which;
    reals(inputs(dtype), &which);
    for (std::size_t k = 0; k + 1 < all.size(); ++k) {
      if (!c.inputs[which[k]].differentiable) continue;
      const std::vector<double> found = all[k + 1].to_host<double>();
      if (!finite && found.size() != y.size()) continue;
      for (std::size_t i = 0; i < found.size(); ++i)
        if (!std::isfinite(found[i]) && (finite || std::isfinite(y[i])))
          fail_check(fmt::format("check_op: {}: a finite value with a gradient of {}", c.name, found[i]),
                     fmt::format("input {}, element {} in {}", which[k], i, name_of(dtype)));
    }
  }

  // The bits of value and gradients.
  std::vector<std::byte> bits() const {
    std::vector<std::byte> out;
    for (const Tensor& t : results(DType::f32))
      out.insert(out.end(), t.bytes(), t.bytes() + t.numel() * std::int64_t(size_of(t.dtype())));
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

  struct Precision {
    DType dtype;
    double tolerance;
  };
  std::vector<Precision> precisions() const {
    std::vector<Precision> out = {{DType::f64, options.f64}, {DType::f32, options.f32}};
    if (options.check_bf16) out.push_back({DType::bf16, options.bf16});
    return out;
  }

  // Results of this device and another; gradients only need to be finite where there is a kink.
  void agree(const std::vector<Tensor>& got, const std::vector<Tensor>& want, const Precision& p, Device other) const {
    for (std::size_t k = 0; k < got.size(); ++k) {
      const std::vector<double> a = got[k].to_host<double>(), b = want[k].to_host<double>();
      const std::string what = k == 0 ? "the value" : fmt::format("gradient {}", k - 1);
      const bool equal = k == 0 && (options.copies || !is_real(got[k].dtype()));
      if (k == 0 || c.gradient)
        expect_close(fmt::format("{}: {} is not that of {}", c.name, what, name_of(other)), p.dtype, a, b,
                     equal ? 0 : p.tolerance, name_of(other));
      for (std::size_t i = 0; i < a.size(); ++i)
        if (std::isfinite(b[i]) && !std::isfinite(a[i]))
          fail_check(fmt::format("check_op: {}: {} of {} where {} has {}", c.name, what, a[i], name_of(other), b[i]),
                     fmt::format("element {} in {}", i, name_of(p.dtype)));
    }
  }

  // On a GPU the CPU's results, which finite differences have checked, are the reference: a few runs instead of hundreds, and
  // gradients in every precision. False if the CPU cannot run it: an op without a CPU function, States of the GPU.
  bool as_on_the_cpu() const {
    std::vector<std::vector<Tensor>> want;
    try {
      const OnDevice use(Device::cpu);
      for (const Precision& p : precisions()) want.push_back(results(p.dtype));
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::usage) throw;
      return false;
    }
    for (std::size_t i = 0; i < want.size(); ++i) agree(results(precisions()[i].dtype), want[i], precisions()[i], Device::cpu);
    if (bits() != bits()) fail_check(fmt::format("check_op: {}: a second run gives other bits", c.name), {});
    // Where there is a kink an op by itself may have a gradient that is not finite.
    if (c.gradient) unfused([&] { agree(results(DType::f32), want[1], precisions()[1], Device::cpu); });
    return true;
  }

  void on_devices(Device first, Device second) const {
    for (const Precision& p : precisions()) {
      const auto on = [&](Device d) {
        const OnDevice use(d);
        return results(p.dtype);
      };
      agree(on(first), on(second), p, second);
    }
  }

  template <class F>
  void unfused(F f) const {
    struct Restore {
      bool fuse = settings().fuse;
      ~Restore() { settings().fuse = fuse; }
    } restore;
    settings().fuse = false;
    f();
  }

  void all() const {
    if (is_gpu(device()) && as_on_the_cpu()) {
      if (reference) value(DType::f32, options.f32);  // without the gradient, kernels are others
      return;
    }
    if (reference)
      for (const Precision& p : precisions()) value(p.dtype, p.tolerance);
    finite_gradients(DType::f64);
    determinism();
    if (!c.gradient) return;
    const std::vector<Tensor> in = inputs(DType::f64);
    gradcheck(fn, in, options.gradcheck);
    unfused([&] { gradcheck(fn, in, options.gradcheck); });
  }
};

// f(check) for every case; errors name it.
template <class F>
void each_case(const OpFunction& fn, const Reference& reference, const std::vector<OpCase>& cases, const CheckOptions& options,
               F f) {
  for (const OpCase& c : cases) {
    CaseCheck check{fn, reference, c, options, {}, {}};
    for (std::size_t i = 0; i < c.inputs.size(); ++i) {
      check.values.push_back(input_values(c.inputs[i], i + 1));
      check.shapes.push_back(c.inputs[i].shape);
    }
    try {
      f(check);
    } catch (const Error& e) {
      if (e.parts().what.rfind("check_op", 0) == 0) throw;
      ErrorParts parts = e.parts();
      parts.what = fmt::format("check_op: {}: {}", c.name, parts.what);
      throw Error(e.kind(), parts);
    }
  }
}

}  // namespace

std::vector<double> irregular(std::int64_t n, double low, double high, std::uint64_t stream) {
  std::vector<double> out(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = low + (high - low) * (philox(7, stream, 0, i) + 0.5) / 4294967296.0;
  return out;
}

void gradcheck(const OpFunction& fn, const std::vector<Tensor>& inputs, GradcheckOptions options) {
  std::vector<std::size_t> which;
  reals(inputs, &which);
  const std::vector<Tensor> analytic = run([&] { return gradients_of(fn(inputs), inputs); });
  if (analytic.empty()) return;
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
        fail_check(
            "gradcheck: the gradient differs from finite differences",
            fmt::format("input {}, element {} (value {}): {} against {}", input, e, values[std::size_t(e)], found, numeric));
    }
  }
}

void check_op(const OpFunction& fn, const Reference& reference, const std::vector<OpCase>& cases, CheckOptions options) {
  each_case(fn, reference, cases, options, [](const CaseCheck& check) { check.all(); });
}

void check_devices(const OpFunction& fn, const std::vector<OpCase>& cases, const CheckOptions& options, Device a, Device b) {
  each_case(fn, nullptr, cases, options, [&](const CaseCheck& check) { check.on_devices(a, b); });
}

}  // namespace weft
