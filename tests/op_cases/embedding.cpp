#include "ops/ops.h"
#include "tests/op_cases/families.h"
#include "tests/op_cases/reference.h"

namespace weft {

void add_embeddings(std::vector<OpRow>& rows) {
  rows.push_back({"embedding",
                  [](auto& in) { return embedding(in[0], in[1]); },
                  [](const Inputs& in, const Shapes& s) {
                    Values out;
                    for (const double id : in[1])
                      for (std::int64_t c = 0; c < s[0][1]; ++c)
                        out.push_back(in[0][std::size_t(std::int64_t(id) * s[0][1] + c)]);
                    return out;
                  },
                  {{"normal", {{{11, 6}}, {{4, 9}, 0, 11, {}, DType::i64}}},
                   {"i32", {{{5, 3}}, {{7}, 0, 5, {}, DType::i32}}},
                   {"one", {{{1, 1}}, {{1}, 0, 1, {}, DType::i64}}},
                   {"empty", {{{5, 3}}, {{0}, 0, 1, {}, DType::i64}}},
                   {"ids_of_two_digits", {{{600, 2}}, {{90}, 0, 600, {}, DType::i64}}},  // of the sort by id on a GPU
                   {"an_id_over_four_chunks", {{{3, 2}}, {{250}, 0, 0, {1}, DType::i64}}},
                   {"an_id_over_whole_chunks", {{{3, 2}}, {{192}, 0, 0, {1}, DType::i64}}}},
                  {.copies = true}});
  rows.push_back({"scatter_sum",
                  [](auto& in) { return scatter_sum(in[0], in[1], 5); },
                  [](const Inputs& in, const Shapes&) {
                    Values out(5);
                    for (std::size_t p = 0; p < in[0].size(); ++p)
                      if (in[1][p] >= 0 && in[1][p] < 5) out[std::size_t(in[1][p])] += in[0][p];
                    return out;
                  },
                  {{"normal", {{{9, 33}}, {{9, 33}, -2, 7, {}, DType::i64}}},
                   {"i32", {{{7}}, {{7}, 0, 5, {}, DType::i32}}},
                   {"all_outside", {{{3, 1, 2}}, {{3, 1, 2}, 0, 0, {-1, 5}, DType::i64}}},
                   {"a_scalar", {{{}}, {{}, 0, 0, {3}, DType::i64}}},
                   {"empty", {{{0, 4}}, {{0, 4}, 0, 5, {}, DType::i64}}}}});
}

}  // namespace weft
