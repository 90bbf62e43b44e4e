#include <cmath>
#include <functional>
#include <utility>

#include "ops/ops.h"
#include "tests/op_cases/families.h"
#include "tests/op_cases/reference.h"

namespace weft {
namespace {

OpRow view(std::string name, OpFunction fn, Reference reference, std::vector<std::vector<Shape>> shapes) {
  OpRow row{std::move(name), std::move(fn), std::move(reference), {}, {.copies = true}};
  for (const auto& list : shapes) {
    OpCase c;
    for (const Shape& s : list) c.name += to_string(s), c.inputs.push_back({s});
    row.cases.push_back(c);
  }
  return row;
}

// The value of a view, element by element: index of the source for each element of the result.
Values pick(const Values& x, const Shape& out, const std::function<std::int64_t(const std::vector<std::int64_t>&)>& from) {
  Values result;
  std::vector<std::int64_t> at(std::size_t(out.rank()));
  for (std::int64_t i = 0; i < out.numel(); ++i) {
    std::int64_t rest = i;
    for (int d = out.rank(); d-- > 0;) at[std::size_t(d)] = rest % out[d], rest /= out[d];
    const std::int64_t f = from(at);
    result.push_back(f < 0 ? 0 : x[std::size_t(f)]);
  }
  return result;
}

}  // namespace

void add_views(std::vector<OpRow>& rows) {
  const std::vector<std::vector<Shape>> cubes = {{{3, 4, 6}}, {{1, 4, 2}}, {{5, 4, 2}}, {{0, 4, 2}}};
  rows.push_back(view(
      "reshape",
      [](auto& in) {
        return reshape(in[0], {-1, 2});
      },
      [](const Inputs& in, const Shapes&) { return in[0]; }, {{{3, 4, 6}}, {{1, 4, 2}}, {{5, 4, 2}}}));
  rows.push_back(view(
      "reshape_of_permute",
      [](auto& in) {
        return reshape(permute(in[0], {2, 0, 1}), Shape{in[0].dim(2), in[0].dim(0) * in[0].dim(1)});
      },
      [](const Inputs& in, const Shapes& s) {
        return pick(in[0], Shape{s[0][2], s[0][0] * s[0][1]}, [&](auto& i) { return i[1] * s[0][2] + i[0]; });
      },
      cubes));
  rows.push_back(view(
      "permute",
      [](auto& in) {
        return permute(in[0], {2, 0, 1});
      },
      [](const Inputs& in, const Shapes& s) {
        return pick(in[0], Shape{s[0][2], s[0][0], s[0][1]}, [&](auto& i) { return (i[1] * s[0][1] + i[2]) * s[0][2] + i[0]; });
      },
      cubes));
  rows.push_back(view(
      "transpose", [](auto& in) { return transpose(in[0]) * 2; },
      [](const Inputs& in, const Shapes& s) {
        Values v =
            pick(in[0], Shape{s[0][0], s[0][2], s[0][1]}, [&](auto& i) { return (i[0] * s[0][1] + i[2]) * s[0][2] + i[1]; });
        for (double& x : v) x *= 2;
        return v;
      },
      cubes));
  rows.push_back(view(
      "slice", [](auto& in) { return slice(in[0], 1, 1, 3); },
      [](const Inputs& in, const Shapes& s) {
        return pick(in[0], Shape{s[0][0], 2, s[0][2]}, [&](auto& i) { return (i[0] * s[0][1] + i[1] + 1) * s[0][2] + i[2]; });
      },
      cubes));
  rows.push_back(view(
      "overlapping_slices", [](auto& in) { return slice(in[0], 1, 0, 3) * slice(in[0], 1, 1, 4); },
      [](const Inputs& in, const Shapes& s) {
        const Shape out{s[0][0], 3, s[0][2]};
        Values a = pick(in[0], out, [&](auto& i) { return (i[0] * s[0][1] + i[1]) * s[0][2] + i[2]; });
        const Values b = pick(in[0], out, [&](auto& i) { return (i[0] * s[0][1] + i[1] + 1) * s[0][2] + i[2]; });
        for (std::size_t i = 0; i < a.size(); ++i) a[i] *= b[i];
        return a;
      },
      cubes));
  rows.push_back(view(
      "split",
      [](auto& in) {
        const auto parts = split(in[0], {1, 3}, 1);
        return parts[1] * parts[0];
      },
      [](const Inputs& in, const Shapes& s) {
        const Shape out{s[0][0], 3, s[0][2]};
        Values a = pick(in[0], out, [&](auto& i) { return (i[0] * s[0][1] + i[1] + 1) * s[0][2] + i[2]; });
        const Values b = pick(in[0], out, [&](auto& i) { return i[0] * s[0][1] * s[0][2] + i[2]; });
        for (std::size_t i = 0; i < a.size(); ++i) a[i] *= b[i];
        return a;
      },
      cubes));
  rows.push_back(view(
      "expand",
      [](auto& in) {
        return expand(in[0], {5, 3, 4});
      },
      [](const Inputs& in, const Shapes& s) {
        return pick(in[0], Shape{5, 3, 4}, [&](auto& i) { return s[0].rank() == 2 ? i[1] : i[2]; });
      },
      {{{3, 1}}, {{4}}}));
  rows.push_back(view(
      "concat",
      [](auto& in) {
        return concat({in[0], in[1] * 2, in[0]}, 1);
      },
      [](const Inputs& in, const Shapes& s) {
        Values out;
        for (std::int64_t r = 0; r < s[0][0]; ++r)
          for (const int k : {0, 1, 0})
            for (std::int64_t c = 0; c < s[std::size_t(k)][1]; ++c)
              out.push_back(in[std::size_t(k)][std::size_t(r * s[std::size_t(k)][1] + c)] * (k ? 2 : 1));
        return out;
      },
      {{{3, 4}, {3, 5}}, {{1, 1}, {1, 7}}, {{3, 0}, {3, 2}}, {{0, 2}, {0, 2}}}));
  rows.push_back(view(
      "concat_last_placed",
      [](auto& in) {
        return concat({exp(in[0]), in[1] * 2}, -1);
      },
      [](const Inputs& in, const Shapes& s) {
        Values out;
        for (std::int64_t r = 0; r < s[0][0]; ++r) {
          for (std::int64_t c = 0; c < s[0][1]; ++c) out.push_back(std::exp(in[0][std::size_t(r * s[0][1] + c)]));
          for (std::int64_t c = 0; c < s[1][1]; ++c) out.push_back(2 * in[1][std::size_t(r * s[1][1] + c)]);
        }
        return out;
      },
      {{{3, 4}, {3, 5}}, {{300, 3}, {300, 2}}}));
  rows.back().options.copies = false;  // exp
  rows.push_back(view(
      "pad", [](auto& in) { return pad(in[0], 1, 2, 1); },
      [](const Inputs& in, const Shapes& s) {
        return pick(in[0], Shape{s[0][0], s[0][1] + 3},
                    [&](auto& i) { return i[1] < 2 || i[1] >= s[0][1] + 2 ? -1 : i[0] * s[0][1] + i[1] - 2; });
      },
      {{{3, 4}}, {{1, 1}}, {{2, 0}}}));
  rows.push_back(view(
      "pad_value", [](auto& in) { return pad(in[0], 0, 1, 0, 7.5); },
      [](const Inputs& in, const Shapes& s) {
        Values out(std::size_t(s[0][1]), 7.5);
        out.insert(out.end(), in[0].begin(), in[0].end());
        return out;
      },
      {{{3, 4}}, {{0, 4}}}));
}

}  // namespace weft
