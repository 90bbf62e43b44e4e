// Values are pinned by tests of their own; here gradients, odd shapes, determinism.
#include "ops/ops.h"
#include "tests/op_cases/families.h"
#include "tests/op_cases/reference.h"

namespace weft {

void add_attentions(std::vector<OpRow>& rows) {
  rows.push_back({"attention",
                  [](auto& in) { return attention(in[0], in[1], in[2], {.causal = true}); },
                  nullptr,
                  {{"normal", {{{2, 9, 4, 8}}, {{2, 9, 2, 8}}, {{2, 9, 2, 16}}}},
                   {"more_keys", {{{1, 3, 2, 8}}, {{1, 37, 2, 8}}, {{1, 37, 2, 8}}}},
                   {"rows_without_keys", {{{1, 7, 1, 8}}, {{1, 5, 1, 8}}, {{1, 5, 1, 8}}}},
                   {"no_time", {{{2, 0, 2, 8}}, {{2, 0, 2, 8}}, {{2, 0, 2, 8}}}}}});
  const auto turned = [](const Tensor& positions) {
    return [&](Expr x, Expr y, Index, Index, Index t, Index p) {
      const Expr angle = to_real(positions(t)) / to_real(1 + p), c = cos(angle), s = sin(angle);
      return Pair{x * c - y * s, x * s + y * c};
    };
  };
  rows.push_back({"attention_with_holes",
                  [turned](auto& in) {
                    const Tensor &bias = in[3], &slopes = in[4], &gain = in[5], &keys = in[6];
                    return attention(
                        in[0], in[1], in[2],
                        {.score = [&](Expr s, Index b, Index h, Index i,
                                      Index j) { return tanh(s * gain(b, i)) * 2 + bias(h, i - j) + slopes(h) * keys(h, j); },
                         .mask = [](Index, Index, Index i, Index j) { return i >= j && (i - j < 4 || j < 2); },
                         .weight = [](Index, Index, Index i, Index j) { return 1 + to_real(i - j) * 0.01f; },
                         .rotate = turned(in[7]),
                         .pairing = Pairing::neighbours});
                  },
                  nullptr,
                  {{"odd",
                    {{{2, 11, 4, 8}},
                     {{2, 11, 2, 8}},
                     {{2, 11, 2, 8}},
                     {{4, 11}},
                     {{4}},
                     {{2, 11}},
                     {{4, 11}},
                     {.shape = {11}, .low = 0, .high = 20, .integer = DType::i64, .differentiable = false}}}}});
  rows.push_back({"attention_map",
                  [turned](auto& in) {
                    return attention_map(
                        in[0], in[1],
                        {.scale = 0.5,
                         .causal = true,
                         .segments = in[2],
                         .score = [](Expr s, Index, Index, Index i, Index j) { return s - to_real(i - j) * 0.1; },
                         .rotate = turned(in[3])});
                  },
                  nullptr,
                  {{"segments",
                    {{{2, 6, 2, 8}},
                     {{2, 6, 1, 8}},
                     {.shape = {2, 6}, .values = {3, 3, 3, 1, 1, 4}, .integer = DType::i32, .differentiable = false},
                     {.shape = {6}, .low = 0, .high = 20, .integer = DType::i64, .differentiable = false}}}}});
}

}  // namespace weft
