#include "nn/adapter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "autograd/pointwise.h"

namespace weft {
namespace {

void check_adapter(WeightUse use, const AdapterOptions& o, Site where) {
  if (o.kind == AdapterKind::ia3) {
    if (use == WeightUse::table && o.on_input)
      fail_at(where, "adapter: the inputs of an embedding are no features that could be scaled", {},
              "let IA3 scale its outputs");
    return;
  }
  if (use == WeightUse::filter)
    fail_at(where, "adapter: LoRA does not act on a depthwise convolution, whose channels do not mix", {}, "take IA3 for it");
  if (o.rank < 1) fail_at(where, "adapter: the rank of LoRA must be at least 1", fmt::format("rank {}", o.rank));
  if (!(o.dropout >= 0 && o.dropout < 1))
    fail_at(where, "adapter: the dropout must lie in [0, 1)", fmt::format("dropout {}", o.dropout));
  if (!std::isfinite(o.alpha)) fail_at(where, "adapter: alpha must be a finite number", fmt::format("alpha {}", o.alpha));
}

}  // namespace

std::string_view name_of(AdapterKind kind) { return kind == AdapterKind::lora ? "LoRA" : "IA3"; }

Adapter::Adapter(WeightUse use, std::int64_t in, std::int64_t out, DType dtype, const AdapterOptions& options, Site where)
    : options_(options), use_(use) {
  check_adapter(use, options, where);
  const bool table = use == WeightUse::table;
  if (is_lora()) {
    A_ = Param({options.rank, in}, dtype, "lora_A", where);
    B_ = Param({out, options.rank}, dtype, "lora_B", where);
    add(table ? "lora_embedding_A" : "lora_A.weight", A_, table ? init::constant(0) : init::kaiming_uniform(in));
    add(table ? "lora_embedding_B" : "lora_B.weight", B_, table ? init::normal(1) : init::constant(0));
    return;
  }
  const std::int64_t n = options.on_input ? in : out;
  l_ = Param({n}, dtype, "ia3_l", where);
  l_.set_decay(false);  // towards 0, which is not where it starts
  const Shape file = use == WeightUse::filter ? Shape{1, n, 1} : options.on_input ? Shape{1, n} : Shape{n, 1};
  add("ia3_l", l_, init::constant(1), file);
}

double Adapter::scale() const {
  const double r = double(options_.rank);
  return options_.alpha / (options_.rank_stabilised ? std::sqrt(r) : r);
}

bool Adapter::is_identity() const {
  initialise();
  const std::vector<double> values = (!is_lora() ? l_ : use_ == WeightUse::table ? A_ : B_).to_host<double>();
  return std::ranges::all_of(values, [start = is_lora() ? 0.0 : 1.0](double v) { return v == start; });
}

Tensor Adapter::scaled_B() const { return read(B_) * scale(); }

Tensor Adapter::dense() const {
  const Tensor a = read(A_), b = scaled_B();
  return use_ == WeightUse::table ? matmul(transpose(a), transpose(b)) : matmul(b, a);
}

Tensor Adapter::low_rank(const Tensor& x, const Tensor& kept) const {
  const Tensor in = dropout(x, options_.dropout, training());
  if (kept) return linear(in, masked(kept));
  const Tensor few = linear(in, read(A_));
  return linear(few, scaled_B());
}

Tensor Adapter::rows(const Tensor& ids, const Tensor& kept) const {
  if (kept) return embedding(masked(kept), ids);
  const Tensor few = embedding(transpose(read(A_)), ids);
  return linear(few, scaled_B());
}

Tensor Adapter::logits(const Tensor& x, const Tensor& kept) const {
  if (kept) return linear(x, masked(kept));
  const Tensor few = linear(x, transpose(scaled_B()));
  return linear(few, transpose(read(A_)));
}

Tensor Adapter::scaled(const Tensor& x) const { return convert(x * read(l_), x.dtype(), Site::current()); }

}  // namespace weft
