// Values are pinned by tests of their own; here gradients, odd shapes, determinism.
#include "ops/ops.h"
#include "tests/op_cases/families.h"
#include "tests/op_cases/reference.h"

namespace weft {

void add_ssds(std::vector<OpRow>& rows) {
  rows.push_back({"ssd",
                  [](auto& in) { return ssd(in[0], in[1], -exp(in[2]), in[3], in[4], {.chunk = 4}); },
                  nullptr,
                  {{"normal", {{{2, 9, 4, 3}}, {{2, 9, 4}, 0.01, 1}, {{4}, -1, 1}, {{2, 9, 2, 5}}, {{2, 9, 2, 5}}}},
                   {"one_step", {{{2, 1, 2, 3}}, {{2, 1, 2}, 0.01, 1}, {{2}, -1, 1}, {{2, 1, 1, 2}}, {{2, 1, 1, 2}}}},
                   {"no_time", {{{2, 0, 2, 3}}, {{2, 0, 2}}, {{2}}, {{2, 0, 1, 2}}, {{2, 0, 1, 2}}}}}});
  rows.push_back(
      {"ssd_everything",
       [](auto& in) {
         Tensor last;
         const Tensor y =
             ssd(in[0], in[1], -exp(in[2]), in[3], in[4],
                 {.D = in[5], .dt = softplus_bias(in[6]), .out = gate(in[7]), .initial = in[8], .last = &last, .chunk = 4});
         return concat({reshape(cast(y, last.dtype()), {-1}), reshape(last, {-1})}, 0);
       },
       nullptr,
       {{"normal",
         {{{2, 9, 4, 3}},
          {{2, 9, 4}},
          {{4}, -1, 1},
          {{2, 9, 2, 5}},
          {{2, 9, 2, 5}},
          {{4}},
          {{4}},
          {{2, 9, 4, 3}},
          {{2, 4, 3, 5}}}},
        {"skip_of_channels",
         {{{1, 6, 2, 3}},
          {{1, 6, 2}},
          {{2}, -1, 1},
          {{1, 6, 1, 2}},
          {{1, 6, 1, 2}},
          {{2, 3}},
          {{2}},
          {{1, 6, 2, 3}},
          {{1, 2, 3, 2}}}}}});
  rows.push_back(
      {"ssd_packed",
       [](auto& in) {
         Tensor last;
         const Tensor y = ssd(in[0], in[1], -exp(in[2]), in[3], in[4],
                              {.dt = softplus_hole(), .initial = in[5], .last = &last, .segments = in[6], .chunk = 4});
         return concat({reshape(cast(y, last.dtype()), {-1}), reshape(last, {-1})}, 0);
       },
       nullptr,
       {{"normal",
         {{{2, 9, 4, 3}},
          {{2, 9, 4}},
          {{4}, -1, 1},
          {{2, 9, 2, 5}},
          {{2, 9, 2, 5}},
          {{2, 4, 3, 5}},
          {.shape = {2, 9}, .values = {0, 0, 0, 4, 5, 5, 5, 5, 9}, .integer = DType::i64, .differentiable = false}}}}});
  rows.push_back({"ssd_user_holes",
                  [](auto& in) {
                    const Tensor &bias = in[5], &ends = in[6], &gain = in[7], &table = in[8];
                    return ssd(in[0], in[1], -exp(in[2]), in[3], in[4],
                               {.dt = [&](Expr raw, Index b, Index t,
                                          Index h) { return where(t < ends(b), min(softplus(raw + bias(h)), 0.9), Expr(0)); },
                                .out = [&](Expr s, Index b, Index t, Index h,
                                           Index p) { return tanh(s) * gain(t - p + 2) + table(b, h, t / 2); },
                                .chunk = 4});
                  },
                  nullptr,
                  {{"odd",
                    {{{2, 7, 2, 3}},
                     {{2, 7, 2}},
                     {{2}, -1, 1},
                     {{2, 7, 1, 4}},
                     {{2, 7, 1, 4}},
                     {{2}},
                     {.shape = {2}, .values = {7, 4}, .integer = DType::i64, .differentiable = false},
                     {{9}},
                     {{2, 2, 4}}}}}});
}

}  // namespace weft
