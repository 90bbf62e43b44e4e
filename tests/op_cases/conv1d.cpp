// Values are pinned by tests of their own; here gradients, odd shapes, determinism.
#include "ops/ops.h"
#include "tests/op_cases/families.h"
#include "tests/op_cases/reference.h"

namespace weft {

void add_convolutions(std::vector<OpRow>& rows) {
  // A width is a text of its own, which takes long to compile: the widths with silu alone.
  const std::vector<OpCase> conv_cases = {{"normal", {{{2, 9, 6}}, {{6, 4}}, {{6}}}},
                                          {"wide_kernel", {{{2, 4, 3}}, {{3, 7}}, {{3}}}},
                                          {"one_step", {{{2, 1, 300}}, {{300, 4}}, {{300}}}},
                                          {"no_batch", {{{0, 5, 3}}, {{3, 4}}, {{3}}}}};
  rows.push_back({"conv1d", [](auto& in) { return conv1d(in[0], in[1], in[2]); }, nullptr, conv_cases});
  rows.push_back({"conv1d_silu", [](auto& in) { return conv1d(in[0], in[1], in[2], {.silu = true}); }, nullptr, conv_cases});
  for (const OpCase& c : {OpCase{"width_1", {{{2, 3, 4}}, {{4, 1}}, {{4}}}}, OpCase{"width_2", {{{2, 7, 5}}, {{5, 2}}, {{5}}}},
                          OpCase{"width_3", {{{1, 5, 3}}, {{3, 3}}, {{3}}}}, OpCase{"empty", {{{2, 0, 3}}, {{3, 4}}, {{3}}}}})
    rows.back().cases.push_back(c);
  rows.push_back({"conv1d_states",
                  [](auto& in) {
                    Tensor last;
                    const Tensor y = conv1d(in[0], in[1], Tensor{}, {.silu = true, .initial = in[2], .last = &last});
                    return concat({reshape(y, {-1}), reshape(last, {-1})}, 0);
                  },
                  nullptr,
                  {{"normal", {{{2, 9, 6}}, {{6, 4}}, {{2, 3, 6}}}},
                   {"short", {{{2, 2, 3}}, {{3, 4}}, {{2, 3, 3}}}},
                   {"one_step", {{{1, 1, 5}}, {{5, 3}}, {{1, 2, 5}}}}}});
  rows.push_back({"conv1d_last",  // the last inputs alone are wanted
                  [](auto& in) {
                    Tensor last;
                    conv1d(in[0], in[1], Tensor{}, {.initial = in[2], .last = &last});
                    return last;
                  },
                  nullptr,
                  {{"normal", {{{2, 9, 6}}, {{6, 4}}, {{2, 3, 6}}}}, {"wide_kernel", {{{1, 7, 3}}, {{3, 20}}, {{1, 19, 3}}}}}});
  rows.push_back(
      {"conv1d_packed",
       [](auto& in) {
         Tensor last;
         const Tensor y = conv1d(in[0], in[1], in[2], {.silu = true, .initial = in[3], .last = &last, .segments = in[4]});
         return concat({reshape(y, {-1}), reshape(last, {-1})}, 0);
       },
       nullptr,
       {{"normal",
         {{{2, 9, 6}},
          {{6, 4}},
          {{6}},
          {{2, 3, 6}},
          {.shape = {2, 9}, .values = {0, 0, 0, 4, 5, 5, 5, 5, 9}, .integer = DType::i64, .differentiable = false}}},
        {"wide_kernel",
         {{{2, 9, 3}},
          {{3, 20}},
          {{3}},
          {{2, 19, 3}},
          {.shape = {2, 9}, .values = {0, 0, 0, 4, 5, 5, 5, 5, 9}, .integer = DType::i64, .differentiable = false}}}}});
  rows.push_back({"conv1d_out",
                  [](auto& in) {
                    const auto body = [](Expr v, Expr z, Expr s) { return v * silu(z) + s * tanh(v); };
                    return conv1d(in[0], in[1], in[2], {.out = hole({in[3], in[4]}, body)});
                  },
                  nullptr,
                  {{"normal", {{{2, 9, 6}}, {{6, 4}}, {{6}}, {{2, 9, 6}}, {{6}}}},
                   {"odd", {{{2, 5, 3}}, {{3, 4}}, {{3}}, {{2, 5, 3}}, {{5, 1}}}},
                   {"wide_kernel", {{{1, 11, 3}}, {{3, 20}}, {{3}}, {{1, 11, 3}}, {{1, 1, 3}}}},
                   {"empty", {{{2, 0, 3}}, {{3, 4}}, {{3}}, {{2, 0, 3}}, {{3}}}}}});
  rows.push_back({"conv1d_out_sum",  // the captured tensor has the gradient that goes on into the convolution
                  [](auto& in) {
                    Tensor last;
                    const Hole out = hole({in[2]}, [](Expr v, Expr z) { return square(v + z); });
                    const Tensor y = conv1d(in[0], in[1], Tensor{}, {.out = out, .last = &last});
                    return concat({reshape(y, {-1}), reshape(last, {-1})}, 0);
                  },
                  nullptr,
                  {{"normal", {{{2, 9, 6}}, {{6, 4}}, {{2, 9, 6}}}}, {"odd", {{{1, 2, 3}}, {{3, 4}}, {{1, 2, 3}}}}}});
}

}  // namespace weft
