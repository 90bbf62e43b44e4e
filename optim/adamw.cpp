#include "optim/adamw.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <unordered_set>
#include <utility>

#include "autograd/backward.h"
#include "autograd/op.h"
#include "autograd/run.h"
#include "jit/parallel.h"
#include "jit/print.h"
#include "jit/ranks/ranks.h"
#include "ops/collective.h"
#include "ops/ops.h"
#include "optim/adamw_op.h"
#include "optim/chunks.h"
#include "optim/clip.h"
#include "optim/cuda.h"
#include "optim/sharded.h"

namespace weft {

// ---- the op -----------------------------------------------------------------------------------------------------------------

adamw::Operands adamw::operands(Lowering& l) {
  Operands o{l.dense(0), l.state(l.integer(0)), l.state(l.integer(2)), {}, {}};
  Operand m = l.state(l.integer(1)), v = m;
  const std::int64_t all = m.dims[1];
  for (int i = 1, at = int(kStates); i < l.inputs(); ++i, at += int(kRowInts)) {
    m.offset = l.integer(at + 1);
    v.offset = all + m.offset;
    o.segments.push_back(
        {l.dense(i), l.state(l.integer(at)), m, v, l.twin(l.integer(at)), {}, l.integer(at + 2) != 0, l.integer(at + 3)});
    o.sizes.push_back(o.segments.back().param.numel());
  }
  return o;
}

adamw::Operands adamw::sharded_operands(Lowering& l) {
  Operands o{l.dense(0), l.state(l.integer(0)), l.state(l.integer(2)), {}, {}};
  const Operand m = l.state(l.integer(1)), part = l.output();
  for (int i = int(kStates); i < l.integers(); i += int(kShardInts)) {
    Segment s{l.dense(int(l.integer(i + 3))), l.state(l.integer(i)), m, m, {}, part, l.integer(i + 1) != 0, l.integer(i + 2)};
    const Shard own = shard_of(l.integer(i + 4), s.param.numel(), s.gradient.numel(), Ranks::joined()->rank());
    s.gradient.offset += own.at, s.param.offset += own.begin;
    for (Operand* const kept : {&s.m, &s.v, &s.part}) kept->offset += l.integer(i + 5) + own.at;
    s.v.offset += m.dims[1];
    o.segments.push_back(s);
    o.sizes.push_back(own.end - own.begin);
  }
  return o;
}

namespace {

using namespace adamw;

// This file is compiled without contraction to FMA, and the GPU's kernels say so of each operation: on all devices it is the
// same operations, each rounded.
template <class T>
struct Factors {
  T keep, beta1, rest1, beta2, rest2, rate, scale, eps, clip;

  Factors(const double* c, double norm, bool decay, const double* powers)
      : keep(T(decay ? 1 - c[kLr] * c[kDecay] : 1)),
        beta1(T(c[kBeta1])),
        rest1(T(1 - c[kBeta1])),
        beta2(T(c[kBeta2])),
        rest2(T(1 - c[kBeta2])),
        rate(T(c[kLr] / (1 - powers[0]))),
        scale(T(1 / std::sqrt(1 - powers[1]))),
        eps(T(c[kEps])),
        clip(T(c[kClip] > 0 ? std::min(1.0, c[kClip] / (norm + 1e-6)) : 1)) {}
};

template <class T>
void update(const Factors<T> f, const T* __restrict g, T* __restrict p, T* __restrict m, T* __restrict v, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const T gi = g[i] * f.clip;
    m[i] = f.beta1 * m[i] + f.rest1 * gi;
    v[i] = f.beta2 * v[i] + f.rest2 * gi * gi;
    p[i] = p[i] * f.keep - f.rate * m[i] / (std::sqrt(v[i]) * f.scale + f.eps);
  }
}

template <class T>
void update_chunk(const Launch& launch, const Operands& o, const Chunk& chunk, const double* constants, double norm) {
  const Segment& s = o.segments[std::size_t(chunk.segment)];
  const std::int64_t at = chunk.begin;
  T* p = launch.pointer<T>(s.param);
  if (s.part) {
    T* const to = launch.pointer<T>(s.part);
    std::copy(p + at, p + chunk.end, to + at);
    p = to;
  }
  const double* const powers = launch.pointer<double>(o.powers) + 2 * s.powers;
  T wide[kChunk];
  const T* gradient = wide;
  if (s.gradient.dtype == DType::bf16)
    std::transform(launch.pointer<bf16>(s.gradient) + at, launch.pointer<bf16>(s.gradient) + chunk.end, wide,
                   [](bf16 g) { return T(float(g)); });
  else
    gradient = launch.pointer<T>(s.gradient) + at;
  update<T>({constants, norm, s.decay, powers}, gradient, p + at, launch.pointer<T>(s.m) + at, launch.pointer<T>(s.v) + at,
            chunk.end - at);
  if (!s.twin) return;
  bf16* const twin = launch.pointer<bf16>(s.twin);
  for (std::int64_t i = at; i < chunk.end; ++i) twin[i] = bf16(float(p[i]));
}

void emit_adamw(Lowering& l, const Operands& o) {
  const std::vector<Chunk> chunks = cut_into_chunks(o.sizes);
  const int first = l.constant(0);
  l.emit("adamw", [=](const Launch& launch) {
    const double* constants = launch.constants + first;
    const double n = o.norm.dtype == DType::f64 ? *launch.pointer<double>(o.norm) : *launch.pointer<float>(o.norm);
    std::int64_t& bad = *launch.pointer<std::int64_t>(o.flag);
    if (bad == 0 && !std::isfinite(n)) bad = std::int64_t(constants[kStep]);
    if (bad != 0) return;
    for (const Segment& s : o.segments)
      for (const int k : {0, 1}) launch.pointer<double>(o.powers)[2 * s.powers + k] *= constants[k == 0 ? kBeta1 : kBeta2];
    parallel(std::int64_t(chunks.size()), [&](std::int64_t c) {
      if (o.segments[0].param.dtype == DType::f64) {
        update_chunk<double>(launch, o, chunks[c], constants, n);
      } else {
        update_chunk<float>(launch, o, chunks[c], constants, n);
      }
    });
  });
}

void lower_adamw(Lowering& l) { emit_adamw(l, operands(l)); }

void lower_adamw_sharded(Lowering& l) {
  const Operands o = sharded_operands(l);
  l.emit("zeros", [part = l.output()](const Launch& launch) {  // what travels with the others and belongs to nobody
    std::memset(launch.view(part).data, 0, std::size_t(part.bytes()));
  });
  emit_adamw(l, o);
}

void adamw_writes(const Tape& tape, NodeId id, std::vector<std::int32_t>& positions) {
  const auto ints = tape.ints_of(id);
  for (std::size_t k = 0; k < kStates; ++k) positions.push_back(std::int32_t(ints[k]));
  for (std::size_t at = kStates; at < ints.size(); at += kRowInts) positions.push_back(std::int32_t(ints[at]));
}

// Params are written by place_weights, once all ranks have the new values.
void adamw_sharded_writes(const Tape& tape, NodeId id, std::vector<std::int32_t>& positions) {
  for (std::size_t k = 0; k < kStates; ++k) positions.push_back(std::int32_t(tape.ints_of(id)[k]));
}

const Op& adamw_op = register_op({.name = "adamw", .lower = lower_adamw, .cuda = cuda_adamw, .writes = adamw_writes});
const Op& adamw_sharded_op = register_op({.name = "adamw_sharded",
                                          .lower = lower_adamw_sharded,
                                          .cuda = cuda_adamw_sharded,
                                          .writes = adamw_sharded_writes,
                                          .dense_outputs = true});

// Kernels compute with these numbers in fp32.
bool is_size(double x) { return x >= 0 && x <= double(std::numeric_limits<float>::max()); }

void check_rate(double lr, Site where) {
  if (!is_size(lr))
    fail_at(where, "AdamW: the learning rate must be a finite number that is not negative", fmt::format("{}", lr),
            "check the schedule that it comes from");
}

void check_options(const AdamWOptions& o, Site where) {
  check_rate(o.lr, where);
  for (double beta : o.betas)
    if (!(beta >= 0 && beta < 1)) fail_at(where, "AdamW: betas must lie in [0, 1)", fmt::format("{}", beta));
  if (!is_size(o.eps) || !is_size(o.weight_decay) || !(o.clip_norm >= 0))
    fail_at(where, "AdamW: eps and weight_decay must be finite numbers that, as clip_norm, are not negative",
            fmt::format("{}, {}, {}", o.eps, o.weight_decay, o.clip_norm));
}

}  // namespace

// ---- the optimizer ----------------------------------------------------------------------------------------------------------

AdamW::AdamW(std::vector<Param> params, AdamWOptions options, Site where)
    : options_(options),
      progress_(std::make_shared<Progress>(Progress{options.on_bad_step, State(Shape{}, DType::i64, "AdamW bad_step")})),
      look_(std::make_shared<const Look>([progress = progress_] { progress->look(); })) {
  check_options(options_, where);
  std::unordered_set<const StateImpl*> seen;
  for (Param& p : params) {
    if (p.dtype(where) != DType::f32 && p.dtype() != DType::f64)
      fail_at(where, "AdamW: parameters must be f32 or f64", fmt::format("'{}' is {}", p.name(), name_of(p.dtype())));
    if (!seen.insert(p.impl().get()).second) continue;  // tied
    if (!rows_.empty() && p.dtype() != rows_[0].param.dtype())
      fail_at(where, "AdamW: the parameters must have one type",
              fmt::format("'{}' is {}, '{}' is {}", rows_[0].param.name(), name_of(rows_[0].param.dtype()), p.name(),
                          name_of(p.dtype())),
              "use an optimizer for each type");
    p.impl()->listed = true;
    rows_.push_back({p, size_});
    size_ += (p.shape().numel() + 3) / 4 * 4;  // moments begin at multiples of 16 bytes, which a GPU moves at once
  }
  const DType dtype = rows_.empty() ? DType::f32 : rows_[0].param.dtype();
  if (const Ranks* ranks = options_.sharded ? Ranks::joined() : nullptr) {
    std::vector<std::int64_t> sizes;
    for (const Row& row : rows_) sizes.push_back(row.param.shape().numel());
    // About as backward makes the gradients; what gets none travels in buckets of its own, or never.
    std::vector<int> order(rows_.size());
    for (std::size_t k = 0; k < order.size(); ++k) order[k] = int(order.size() - 1 - k);
    std::stable_partition(order.begin(), order.end(), [&](int k) { return rows_[std::size_t(k)].param.trainable(); });
    shards_ = std::make_shared<const Shards>(
        cut_into_shards(sizes, order, ranks->size(), std::int64_t(options_.sums.bucket_bytes / size_of(dtype))));
  }
  moments_ = State({2, shards_ ? shards_->size : size_}, dtype, "AdamW moments");
  powers_ = State({std::int64_t(rows_.size()), 2}, DType::f64, "AdamW powers");
  powers_.impl()->memory.write(std::vector<double>(2 * rows_.size(), 1).data());
}

void AdamW::set_lr(double lr, Site where) {
  check_rate(lr, where);
  options_.lr = lr;
}

void AdamW::step(Site where) {
  if (tape().use(*progress_->bad_step.impl()).assigned)
    fail_at(where, "AdamW: the second step() of this optimizer in one run", {},
            "call run for each update; to accumulate gradients call backward more than once before step()");
  look_at_watched();
  std::vector<Tensor> gradients;
  gradients.reserve(rows_.size());
  std::vector<int> updated;  // rows
  updated.reserve(rows_.size());
  for (const Row& row : rows_) {
    Tensor gradient = take_gradient(row.param);
    if (!gradient) continue;
    gradients.push_back(std::move(gradient));
    updated.push_back(int(&row - rows_.data()));
  }
  if (gradients.empty())
    fail_at(where, "AdamW: no parameter has a gradient", fmt::format("{} parameters", rows_.size()),
            "call backward(loss) before step(), on a loss that depends on trainable parameters");

  // Of one type: the parameters', or bf16 (SumOptions).
  const DType type = gradients[0].dtype();
  if (std::ranges::any_of(gradients, [&](const Tensor& g) { return g.dtype() != type; }))
    for (Tensor& g : gradients) g = cast(Arg(g, where), moments_.dtype());

  double constants[kConstants];
  constants[kLr] = options_.lr;
  constants[kBeta1] = options_.betas[0];
  constants[kBeta2] = options_.betas[1];
  constants[kEps] = options_.eps;
  constants[kDecay] = options_.weight_decay;
  constants[kClip] = options_.clip_norm;
  constants[kStep] = double(progress_->steps + 1);
  if (shards_)
    record_sharded(gradients, updated, constants, where);
  else
    record_update(gradients, updated, constants, where);
  for (const State* state : {&progress_->bad_step, &moments_, &powers_}) mark_assigned(*state, where);
  for (const int k : updated) mark_assigned(rows_[std::size_t(k)].param, where);
  on_commit([progress = progress_] { ++progress->steps; });
  progress_->where = where;
  if (options_.on_bad_step != OnBadStep::poll) watch(look_);
  if (recording()) return;
  flush();
  look_at_watched();
}

void AdamW::record_update(std::span<const Tensor> gradients, std::span<const int> updated, std::span<const double> constants,
                          Site where) {
  grad_norm_ = global_norm(gradients, where);
  std::vector<Tensor> inputs = {grad_norm_};
  inputs.insert(inputs.end(), gradients.begin(), gradients.end());
  std::vector<std::int64_t> ints = {state_position(progress_->bad_step), state_position(moments_), state_position(powers_)};
  ints.reserve(kStates + kRowInts * updated.size());
  for (const int k : updated) {
    const Row& row = rows_[std::size_t(k)];
    for (const std::int64_t i :
         {std::int64_t(state_position(row.param)), row.offset, std::int64_t(row.param.decay()), std::int64_t(k)})
      ints.push_back(i);
  }
  const Out none{Shape{0}, DType::f32};  // an effect has no value
  record(adamw_op, inputs, std::span(&none, 1), ints, constants, where);
}

// Of each bucket in which something has a gradient: the ranks sum the gradients, each its part; norm and update of that part;
// the ranks gather what is new.
void AdamW::record_sharded(std::span<const Tensor> gradients, std::span<const int> updated, std::span<const double> constants,
                           Site where) {
  const NoGrad off;
  const Shards& shards = *shards_;
  std::vector<std::vector<std::size_t>> members(shards.buckets.size());  // places in `updated`
  for (std::size_t k = 0; k < updated.size(); ++k)
    members[std::size_t(shards.places[std::size_t(updated[k])].bucket)].push_back(k);
  std::vector<Tensor> inputs(1);
  std::vector<int> input_of(shards.buckets.size());  // of a bucket
  std::vector<NormRow> norm_rows(updated.size());
  for (std::size_t b = 0; b < shards.buckets.size(); ++b) {
    if (members[b].empty()) continue;
    std::vector<PlacedTensor> placed;
    for (const std::size_t k : members[b]) {
      const std::int64_t at = shards.places[std::size_t(updated[k])].at;
      placed.push_back({gradients[k], at});
      norm_rows[k] = {int(inputs.size()) - 1, at, gradients[k].numel()};
    }
    input_of[b] = int(inputs.size());
    Tensor bucket = laid_out(placed, shards.buckets[b].part * shards.ranks, where);
    if (options_.sums.bf16 && bucket.dtype() == DType::f32) bucket = cast(Arg(bucket, where), DType::bf16);
    inputs.push_back(reduce_scatter(Arg(bucket, where)));
  }
  inputs[0] = grad_norm_ = sharded_norm(std::span(inputs).subspan(1), norm_rows, where);

  const std::int64_t flag = state_position(progress_->bad_step);
  std::vector<std::int64_t> ints = {flag, state_position(moments_), state_position(powers_)};
  for (const int k : updated) {
    const Row& row = rows_[std::size_t(k)];
    const Shards::Place& place = shards.places[std::size_t(k)];
    for (const std::int64_t i :
         {std::int64_t(state_position(row.param)), std::int64_t(row.param.decay()), std::int64_t(k),
          std::int64_t(input_of[std::size_t(place.bucket)]), place.at, shards.buckets[std::size_t(place.bucket)].first})
      ints.push_back(i);
  }
  const Out parts{Shape{shards.size}, moments_.dtype()};
  const Tensor updated_parts = record(adamw_sharded_op, inputs, std::span(&parts, 1), ints, constants, where);
  std::vector<std::pair<std::size_t, Tensor>> wholes;
  for (std::size_t b = 0; b < shards.buckets.size(); ++b) {
    const Shards::Bucket& bucket = shards.buckets[b];
    if (!members[b].empty())
      wholes.emplace_back(
          b, all_gather(Arg(slice(Arg(updated_parts, where), 0, bucket.first, bucket.first + bucket.part), where)));
  }
  for (const auto& [b, whole] : wholes) {
    std::vector<PlacedParam> placed;
    for (const std::size_t k : members[b])
      placed.push_back({rows_[std::size_t(updated[k])].param, shards.places[std::size_t(updated[k])].at});
    place_weights(progress_->bad_step, whole, placed, where);
  }
}

// Tells of a bad step, once.
void AdamW::Progress::look() {
  std::int64_t bad = 0;
  if (!told) bad_step.impl()->memory.read(&bad);
  if (bad == 0) return;
  told = true;
  const ErrorParts parts{
      fmt::format("AdamW: the gradient norm of step {} is not finite, so this step and all later ones change nothing", bad),
      fmt::format("the parameters are those after step {}; {} steps have been run", bad - 1, steps), tape().where(where, -1),
      "WEFT_CHECK=nan names the op that makes the first such value; clear_bad_step() leaves the step out and goes on, "
      "OnBadStep::poll lets the program decide"};
  if (on_bad_step == OnBadStep::fail) throw Error(ErrorKind::training, parts);
  print_error("weft: {}\n", Error(ErrorKind::training, parts).what());
}

void AdamW::zero_grad() {
  for (Row& row : rows_) row.param.zero_grad();
}

std::int64_t AdamW::bad_step() const {
  const std::int64_t bad = progress_->bad_step.to_host<std::int64_t>()[0];
  progress_->told = bad != 0;
  return bad;
}
void AdamW::clear_bad_step() {
  progress_->bad_step.set<std::int64_t>({0});
  progress_->told = false;
}

// ---- checkpoints ------------------------------------------------------------------------------------------------------------

namespace {

constexpr const char* kPowers = "powers.";

HostTensor host_integer(std::int64_t value) { return HostTensor::from<std::int64_t>(DType::i64, {}, std::span(&value, 1)); }

// Of a state that was saved without powers: as if every step had updated every parameter.
std::array<double, 2> powers_after(std::int64_t steps, const std::array<double, 2>& betas) {
  std::array<double, 2> powers = {1, 1};
  for (const int k : {0, 1})
    for (std::int64_t s = 0; s < steps && powers[k] > 0; ++s) powers[k] *= betas[k];
  return powers;
}

}  // namespace

// The moments as one process has them: (2, size_).
std::vector<std::byte> AdamW::whole_moments() const {
  if (!shards_) return moments_.bytes();
  const Ranks& ranks = *Ranks::joined();
  const std::size_t width = size_of(moments_.dtype());
  std::vector<std::byte> whole(ranks.rank() == 0 ? std::size_t(2 * size_) * width : 0);
  for (std::size_t b = 0; b < shards_->buckets.size(); ++b) {  // one at a time: little memory
    const auto [part, first] = shards_->buckets[b];
    const Tensor all = run([&, part = part, first = first] {
      const NoGrad off;
      return all_gather(reshape(slice(moments_.read(), 1, first, first + part), {1, 2, part}));
    });
    if (ranks.rank() != 0) continue;
    const std::byte* const from = all.value()->memory->host() + all.value()->offset;  // (ranks, 2, part)
    for (std::size_t k = 0; k < rows_.size(); ++k) {
      if (shards_->places[k].bucket != int(b)) continue;
      for (int r = 0; r < shards_->ranks; ++r) {
        const Shard s = shard_of(shards_->places[k].at, rows_[k].param.shape().numel(), part, r);
        for (const std::int64_t which : {0, 1})
          std::memcpy(whole.data() + std::size_t(which * size_ + rows_[k].offset + s.begin) * width,
                      from + std::size_t((2 * r + which) * part + s.at) * width, std::size_t(s.end - s.begin) * width);
      }
    }
  }
  return whole;
}

// Of whole moments what this rank keeps.
std::vector<std::byte> AdamW::own_moments(const std::vector<std::byte>& whole) const {
  if (!shards_) return whole;
  const std::size_t width = size_of(moments_.dtype());
  std::vector<std::byte> own(std::size_t(2 * shards_->size) * width);
  for (std::size_t k = 0; k < rows_.size(); ++k) {
    const auto [bucket, at] = shards_->places[k];
    const auto [part, first] = shards_->buckets[std::size_t(bucket)];
    const Shard s = shard_of(at, rows_[k].param.shape().numel(), part, Ranks::joined()->rank());
    for (const std::int64_t which : {0, 1})
      std::memcpy(own.data() + std::size_t(which * shards_->size + first + s.at) * width,
                  whole.data() + std::size_t(which * size_ + rows_[k].offset + s.begin) * width,
                  std::size_t(s.end - s.begin) * width);
  }
  return own;
}

std::array<AdamW::Saved, 3> AdamW::saved(const Row& row) const {
  const auto dims = row.param.shape().dims();
  const std::vector<std::int64_t> shape(dims.begin(), dims.end());
  return {{{"m." + row.param.name(), &moments_, row.offset, row.param.shape().numel(), shape},
           {"v." + row.param.name(), &moments_, size_ + row.offset, row.param.shape().numel(), shape},
           {kPowers + row.param.name(), &powers_, 2 * (&row - rows_.data()), 2, {2}}}};
}

TensorMap AdamW::state_dict() const {
  TensorMap tensors;
  const std::vector<std::byte> moments = whole_moments(), powers = powers_.bytes();
  if (shards_ && Ranks::joined()->rank() != 0) return tensors;
  for (const Row& row : rows_)
    for (const Saved& s : saved(row)) {
      const auto width = std::int64_t(size_of(s.state->dtype()));
      const auto begin = (s.state == &moments_ ? moments : powers).begin() + s.first * width;
      HostTensor t{s.state->dtype(), s.shape, {begin, begin + s.count * width}};
      if (!tensors.emplace(s.name, std::move(t)).second)
        fail(ErrorKind::usage, "AdamW: two parameters have one name", "'" + row.param.name() + "'",
             "register them in one module under different names");
    }
  tensors["step"] = host_integer(progress_->steps);
  tensors["bad_step"] = host_integer(progress_->bad_step.to_host<std::int64_t>()[0]);
  return tensors;
}

void AdamW::load_state_dict(const TensorMap& tensors) {
  std::unordered_set<std::string> known = {"step", "bad_step"};
  std::string problems;
  std::vector<std::byte> moments(std::size_t(2 * size_) * size_of(moments_.dtype())), powers = powers_.bytes();
  const auto bad = tensors.find("bad_step");
  if (bad == tensors.end() || bad->second.dtype != DType::i64 || bad->second.numel() != 1) problems += "\n  missing: bad_step";
  const auto step = tensors.find("step");
  if (step == tensors.end() || step->second.numel() != 1) problems += "\n  missing: step";
  const std::int64_t steps = problems.empty() ? step->second.values<std::int64_t>()[0] : 0;
  const bool counted = std::ranges::any_of(tensors, [](const auto& t) { return t.first.starts_with(kPowers); });
  const auto common = powers_after(counted ? 0 : steps, options_.betas);
  for (const Row& row : rows_)
    for (const Saved& s : saved(row)) {
      const auto to = (s.state == &moments_ ? moments : powers).begin() + s.first * std::int64_t(size_of(s.state->dtype()));
      if (s.state == &powers_ && !counted) {
        std::ranges::copy(std::as_bytes(std::span(common)), to);
        continue;
      }
      known.insert(s.name);
      const auto found = tensors.find(s.name);
      if (found == tensors.end())
        problems += "\n  missing: " + s.name;
      else if (found->second.dtype != s.state->dtype() || found->second.shape != s.shape)
        problems += "\n  shape or type of " + s.name;
      else
        std::ranges::copy(found->second.bytes, to);
    }
  for (const auto& [name, tensor] : tensors)
    if (!known.contains(name)) problems += "\n  unexpected: " + name;
  for (std::size_t i = 0; i < powers.size(); i += sizeof(double)) {
    double power;
    std::memcpy(&power, powers.data() + i, sizeof power);
    if (!(power >= 0 && power <= 1)) problems += fmt::format("\n  a power of a beta is not in [0, 1]: {}", power);
  }
  if (steps < 0) problems += fmt::format("\n  step is negative: {}", steps);
  if (!problems.empty())
    fail(ErrorKind::io, "AdamW: the saved state does not fit the parameters", problems, "nothing was loaded");
  moments_.set_bytes(own_moments(moments).data());
  powers_.set_bytes(powers.data());
  progress_->bad_step.set_bytes(bad->second.bytes.data());
  progress_->told = false;
  progress_->steps = steps;
}

}  // namespace weft
