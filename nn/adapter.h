// LoRA (arXiv:2106.09685) and IA3 (arXiv:2205.05638): a few numbers that are trained beside the frozen weight of a layer. The
// layer itself asks for them (WeightedModule, nn/layers.h), wherever it is used.
#pragma once

#include <cstdint>
#include <string>

#include "nn/module.h"
#include "ops/ops.h"

namespace weft {

enum class AdapterKind { lora, ia3 };
std::string_view name_of(AdapterKind kind);  // "LoRA", "IA3"

struct AdapterOptions {
  AdapterKind kind = AdapterKind::lora;
  // Of LoRA:
  std::int64_t rank = 8;
  double alpha = 16;             // B A is multiplied with alpha / rank,
  bool rank_stabilised = false;  // or with alpha / sqrt(rank) (arXiv:2312.03732)
  double dropout = 0;            // of what A is multiplied with, in training; not of an embedding
  // Of IA3: it scales what goes into the layer, not what comes out of it.
  bool on_input = false;
};

// How a layer uses its weight: (out, in), y = x W^T; (d, w), of each channel its own filter; (vocab, width), rows of a table.
enum class WeightUse { product, filter, table };

// One adapter of one layer. With in and out those of its weight (of a table vocab and width; of filters both d):
//   LoRA: A (rank, in) and B (out, rank); W + scale B A in the place of W. B, of a table A, starts at 0, so it changes nothing.
//   IA3: l (out), or (in) of one on the input, starts at 1; diag(l) W and diag(l) b, or W diag(l).
// Names and shapes in state dicts are those of PEFT.
class Adapter : public Module {
 public:
  static constexpr bool is_part = true;
  // Errors (ErrorKind::usage): a rank below 1, a dropout outside of [0, 1), LoRA of filters, IA3 on the input of a table.
  Adapter(WeightUse use, std::int64_t in, std::int64_t out, DType dtype, const AdapterOptions& options,
          Site where = Site::current());
  const AdapterOptions& options() const { return options_; }
  double scale() const;
  bool is_lora() const { return options_.kind == AdapterKind::lora; }
  bool active() const { return *active_; }
  void activate(bool on) { *active_ = on; }  // for all copies; one that is not active changes nothing

  // Whether it still is what it was at the start, and changes nothing. Between steps.
  bool is_identity() const;

  // LoRA: scale B A, in the shape of the weight.
  Tensor dense() const;
  // LoRA of a product: x (..., in) -> (..., out), scale B A dropout(x); `kept`: the mask of the weight, absent if it has none.
  Tensor low_rank(const Tensor& x, const Tensor& kept) const;
  // LoRA of a table: ids (...) -> (..., width), and x (..., width) -> (..., vocab).
  Tensor rows(const Tensor& ids, const Tensor& kept) const;
  Tensor logits(const Tensor& x, const Tensor& kept) const;
  // IA3: x (..., n) times l (n), in x's type.
  Tensor scaled(const Tensor& x) const;

 private:
  Tensor read(const Param& p) const { return initialise(), p.read(); }
  Tensor scaled_B() const;  // it is smaller than what it is multiplied with, and of all layers at once
  Tensor masked(const Tensor& kept) const { return kept ? dense() * kept : dense(); }

  AdapterOptions options_;
  WeightUse use_;
  Param A_, B_, l_;
  std::shared_ptr<bool> active_ = std::make_shared<bool>(true);
};

}  // namespace weft
