// Values are pinned by tests of their own; here gradients, odd shapes, determinism.
#include "ops/ops.h"
#include "tests/op_cases/families.h"
#include "tests/op_cases/reference.h"

namespace weft {

void add_scans(std::vector<OpRow>& rows) {
  // Cases with the same sizes of channels and states share their kernels' texts, which take long to compile; test_scan has more
  // sizes.
  rows.push_back({"scan",
                  [](auto& in) { return scan(in[0], in[1], -exp(in[2]), in[3], in[4]); },
                  nullptr,
                  {{"normal", {{{2, 9, 6}}, {{2, 9, 6}, 0.01, 1}, {{6, 16}, -1, 1}, {{2, 9, 16}}, {{2, 9, 16}}}},
                   {"odd_state", {{{1, 33, 3}}, {{1, 33, 3}, 0.01, 1}, {{3, 5}, -1, 1}, {{1, 33, 5}}, {{1, 33, 5}}}},
                   {"groups", {{{2, 5, 6}}, {{2, 5, 6}, 0.01, 1}, {{6, 5}, -1, 1}, {{2, 5, 2, 5}}, {{2, 5, 2, 5}}}},
                   {"one_state", {{{1, 4, 2}}, {{1, 4, 2}, 0.01, 1}, {{2, 1}, -1, 1}, {{1, 4, 1}}, {{1, 4, 1}}}},
                   {"one_step", {{{2, 1, 3}}, {{2, 1, 3}, 0.01, 1}, {{3, 5}, -1, 1}, {{2, 1, 5}}, {{2, 1, 5}}}},
                   {"long", {{{1, 150, 3}}, {{1, 150, 3}, 0.01, 0.5}, {{3, 5}, -1, 1}, {{1, 150, 5}}, {{1, 150, 5}}}},
                   {"no_time", {{{2, 0, 3}}, {{2, 0, 3}}, {{3, 5}}, {{2, 0, 5}}, {{2, 0, 5}}}}}});
  rows.push_back(
      {"scan_everything",
       [](auto& in) {
         Tensor last;
         const Tensor o =
             scan(in[0], in[1], -exp(in[2]), in[3], in[4],
                  {.D = in[5], .delta = softplus_bias(in[6]), .out = gate(in[7]), .initial = in[8], .last = &last});
         return concat({reshape(cast(o, last.dtype()), {-1}), reshape(last, {-1})}, 0);
       },
       nullptr,
       {{"normal",
         {{{2, 9, 6}}, {{2, 9, 6}}, {{6, 16}, -1, 1}, {{2, 9, 16}}, {{2, 9, 16}}, {{6}}, {{6}}, {{2, 9, 6}}, {{2, 6, 16}}}},
        {"odd",
         {{{1, 37, 3}}, {{1, 37, 3}}, {{3, 5}, -1, 1}, {{1, 37, 5}}, {{1, 37, 5}}, {{3}}, {{3}}, {{1, 37, 3}}, {{1, 3, 5}}}}}});
  rows.push_back(
      {"scan_packed",
       [](auto& in) {
         Tensor last;
         const Tensor o = scan(in[0], in[1], -exp(in[2]), in[3], in[4],
                               {.D = in[5],
                                .delta = softplus_bias(in[6]),
                                .out = gate(in[7]),
                                .initial = in[8],
                                .last = &last,
                                .segments = in[9]});
         return concat({reshape(cast(o, last.dtype()), {-1}), reshape(last, {-1})}, 0);
       },
       nullptr,
       {{"normal",
         {{{2, 9, 6}},
          {{2, 9, 6}},
          {{6, 16}, -1, 1},
          {{2, 9, 16}},
          {{2, 9, 16}},
          {{6}},
          {{6}},
          {{2, 9, 6}},
          {{2, 6, 16}},
          {.shape = {2, 9}, .values = {0, 0, 0, 4, 5, 5, 5, 5, 9}, .integer = DType::i64, .differentiable = false}}}}});
  rows.push_back({"scan_user_holes",
                  [](auto& in) {
                    return scan(in[0], in[1], -exp(in[2]), in[3], in[4],
                                {.delta = hole({in[5]}, [](Expr v, Expr s) { return exp(v * s) * 0.1f; }),
                                 .out = hole({in[6], in[0]}, [](Expr v, Expr a, Expr b) { return tanh(v) * a + b; })});
                  },
                  nullptr,
                  {{"odd", {{{2, 7, 5}}, {{2, 7, 5}}, {{5, 4}, -1, 1}, {{2, 7, 4}}, {{2, 7, 4}}, {{7, 1}}, {{5}}}}}});
  // Sums of gradients in the kernel, over the space, and by element.
  rows.push_back({"scan_indexed_holes",
                  [](auto& in) {
                    const Tensor &gain = in[5], &bias = in[6], &table = in[7];
                    return scan(
                        in[0], in[1], -exp(in[2]), in[3], in[4],
                        {.delta = [&](Expr v, Index b, Index t, Index i) { return exp(v * bias(i) + table(b, t / 2)) * 0.1f; },
                         .out = [&](Expr s, Index, Index t, Index i) { return tanh(s) * gain(t - i + 4) + bias(4 - i); }});
                  },
                  nullptr,
                  {{"odd", {{{2, 7, 5}}, {{2, 7, 5}}, {{5, 4}, -1, 1}, {{2, 7, 4}}, {{2, 7, 4}}, {{11}}, {{5}}, {{2, 4}}}}}});
}

}  // namespace weft
