#include <algorithm>
#include <utility>
#include <vector>

#include "ops/cuda.h"
#include "optim/adamw_op.h"
#include "optim/chunks_cuda.h"
#include "optim/cuda.h"

namespace weft {

using namespace adamw;

namespace {

// What the first kernel leaves for the second, in fp64: what all segments have in common, then of each its rate and scale.
enum Factor { kActive, kKeep, kFirst, kFirstRest, kSecond, kSecondRest, kEpsilon, kClipFactor, kCommon };
constexpr std::int64_t kOwn = 2;

CudaText& define_factors(CudaText& text) {
  return text.define("ACTIVE", kActive)
      .define("KEEP", kKeep)
      .define("FIRST", kFirst)
      .define("FIRST_REST", kFirstRest)
      .define("SECOND", kSecond)
      .define("SECOND_REST", kSecondRest)
      .define("EPSILON", kEpsilon)
      .define("CLIP_FACTOR", kClipFactor)
      .define("COMMON", kCommon);
}

CudaKernel factors_kernel(Lowering& l, const Operands& o, const Operand& factors) {
  CudaText text("adamw_factors", true);
  define_factors(text)
      .define("T", kChunkThreads)
      .define("LR", kLr)
      .define("BETA1", kBeta1)
      .define("BETA2", kBeta2)
      .define("EPS", kEps)
      .define("DECAY", kDecay)
      .define("CLIP", kClip)
      .define("STEP", kStep);
  std::vector<CudaArg> rows;
  for (const Segment& segment : o.segments) rows.push_back(integer_word(segment.powers));
  text.pointer("norm", o.norm).pointer("bad_step", o.flag).pointer("factors", factors).pointer("powers", o.powers);
  text.integer("first", l.constant(0)).integer("segments", std::int64_t(rows.size())).table("rows", std::move(rows));
  return text.launch("optim/adamw_factors.cuh", {1, 1, 1}, {kChunkThreads, 1, 1});
}

CudaKernel update_kernel(const Operands& o, const Operand& factors) {
  const DType param = o.segments[0].param.dtype;
  const DType gradient = o.segments[0].gradient.dtype;
  const bool sharded = bool(o.segments[0].part);
  std::vector<CudaArg> segments;
  double bytes = 0;
  for (std::size_t s = 0; s < o.segments.size(); ++s) {
    const Segment& segment = o.segments[s];
    for (const Operand* memory : {&segment.gradient, &segment.param, &segment.m, &segment.v})
      segments.push_back(address_word(*memory));
    const Operand& copy = sharded ? segment.part : segment.twin;
    segments.push_back(copy ? address_word(copy) : integer_word(0));
    for (const std::int64_t value : {o.sizes[s], std::int64_t(segment.decay)}) segments.push_back(integer_word(value));
    bytes += double(o.sizes[s]) * double(size_of(gradient) + 6 * size_of(param) + (segment.twin ? 2 : 0));
  }
  std::vector<CudaArg> blocks = block_words(o.sizes);
  const auto grid = unsigned(blocks.size());
  CudaText text("adamw", param == DType::f64);
  define_factors(define_chunks(text))
      .type("Param", param)
      .type("Gradient", gradient)
      .type("Copy", sharded ? param : DType::bf16);
  text.define("IN_PLACE", !sharded).pointer("factors", factors);
  text.table("segments", std::move(segments))
      .table("blocks", std::move(blocks))
      .traffic(bytes)
      .budget(param == DType::f64 ? 80 : 48);
  return text.launch("optim/adamw.cuh", {grid, 1, 1}, {kChunkThreads, 1, 1});
}

}  // namespace

namespace {

void emit_adamw_cuda(Lowering& l, const Operands& o) {
  const std::int64_t count = kCommon + kOwn * std::int64_t(o.segments.size());
  const Operand factors = l.scratch(DType::f64, std::span(&count, 1));
  l.emit(factors_kernel(l, o, factors));
  if (std::any_of(o.sizes.begin(), o.sizes.end(), [](std::int64_t n) { return n > 0; })) l.emit(update_kernel(o, factors));
}

}  // namespace

void cuda_adamw(Lowering& l) { emit_adamw_cuda(l, operands(l)); }

void cuda_adamw_sharded(Lowering& l) {
  const Operands o = sharded_operands(l);
  l.emit_pointwise("zeros", zeros(l.output().dtype), l.output());  // what travels with the others and belongs to nobody
  emit_adamw_cuda(l, o);
}

}  // namespace weft
