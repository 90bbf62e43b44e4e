#include <cmath>

#include "ops/ops.h"
#include "tests/op_cases/families.h"
#include "tests/op_cases/reference.h"

namespace weft {

void add_norms(std::vector<OpRow>& rows) {
  rows.push_back({"rms_norm",
                  [](auto& in) { return rms_norm(in[0], in[1]); },
                  [](const Inputs& in, const Shapes& s) {
                    return grouped(
                        in[0], s[0], {-1},
                        [&](const Values& v) {
                          double q = 0;
                          for (const double x : v) q += x * x / double(v.size());
                          Values y;
                          for (std::size_t i = 0; i < v.size(); ++i) y.push_back(v[i] / std::sqrt(q + 1e-5) * in[1][i]);
                          return y;
                        },
                        true);
                  },
                  {{"normal", {{{4, 64}}, {{64}}}},
                   {"odd", {{{3, 5, 7}}, {{7}}}},
                   {"one", {{{1, 1}}, {{1}}}},
                   {"wide", {{{2, 300}}, {{300}}}},
                   {"empty", {{{0, 8}}, {{8}}}},
                   {"zeros", {{{2, 4}, 0, 0, {0}}, {{4}}}, false}}});
  rows.push_back(
      {"rms_norm_prologue", [](auto& in) { return rms_norm(in[0] + in[1], Tensor{}); }, nullptr, {{"odd", {{{3, 7}}, {{7}}}}}});
  rows.push_back(
      {"layer_norm",
       [](auto& in) { return layer_norm(in[0], in[1], in[2]); },
       [](const Inputs& in, const Shapes& s) {
         return grouped(
             in[0], s[0], {-1},
             [&](const Values& v) {
               double m = 0, q = 0;
               for (const double x : v) m += x / double(v.size());
               for (const double x : v) q += (x - m) * (x - m) / double(v.size());
               Values y;
               for (std::size_t i = 0; i < v.size(); ++i) y.push_back((v[i] - m) / std::sqrt(q + 1e-5) * in[1][i] + in[2][i]);
               return y;
             },
             true);
       },
       {{"normal", {{{4, 64}}, {{64}}, {{64}}}}, {"odd", {{{3, 5, 7}}, {{7}}, {{7}}}}, {"empty", {{{0, 8}}, {{8}}, {{8}}}}}});
  rows.push_back({"rms_norm_gated",
                  [](auto& in) { return rms_norm(in[0], in[1], 1e-5, {}, gate(in[2])); },
                  nullptr,
                  {{"normal", {{{4, 64}}, {{64}}, {{4, 64}}}},
                   {"odd", {{{3, 5, 7}}, {{7}}, {{5, 7}}}},
                   {"wide", {{{2, 301}}, {{301}}, {{2, 1}}}},
                   {"empty", {{{0, 8}}, {{8}}, {{0, 8}}}}}});
  rows.push_back({"rms_norm_gated_before",
                  [](auto& in) { return rms_norm(in[0], in[1], 1e-5, {}, {}, gate(in[2])); },
                  nullptr,
                  {{"normal", {{{4, 64}}, {{64}}, {{4, 64}}}},
                   {"odd", {{{3, 5, 7}}, {{7}}, {{5, 7}}}},
                   {"wide", {{{2, 301}}, {{301}}, {{2, 1}}}},
                   {"empty", {{{0, 8}}, {{8}}, {{0, 8}}}}}});
  rows.push_back({"rms_norm_holes",  // both, and an input that is computed on the way
                  [](auto& in) {
                    const Hole out = hole({in[2], in[3]}, [](Expr v, Expr z, Expr s) { return tanh(v + z) * s; });
                    const Hole before = hole({in[3], in[4]}, [](Expr v, Expr s, Expr t) { return v * s + tanh(t); });
                    return rms_norm(in[0] * in[0], in[1], 1e-5, {}, out, before);
                  },
                  nullptr,
                  {{"odd", {{{3, 5, 7}}, {{7}}, {{3, 5, 7}}, {{5, 1}}, {{7}}}}}});
  rows.push_back({"layer_norm_out",
                  [](auto& in) {
                    const Hole out = hole({in[3], in[4]}, [](Expr v, Expr z, Expr s) { return tanh(v + z) * s; });
                    return layer_norm(in[0] * in[0], in[1], in[2], 1e-5, {}, out);
                  },
                  nullptr,
                  {{"odd", {{{3, 5, 7}}, {{7}}, {{7}}, {{3, 5, 7}}, {{3, 1, 1}}}}}});
}

}  // namespace weft
