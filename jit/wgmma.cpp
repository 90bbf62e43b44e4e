#include "jit/wgmma.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <set>

#include "jit/error.h"

namespace weft {
namespace {

// "%from, %from+1, ..."
std::string operands(int from, int count) {
  std::string out;
  for (int k = 0; k < count; ++k) out += fmt::format("{}%{}", k ? ", " : "", from + k);
  return out;
}
// "+f"(x[0][0]), ... of all accumulators of a lane.
std::string accumulators(int width, const char* constraint) {
  std::string out;
  for (int k = 0; k < width / 2; ++k) out += fmt::format("{}\"{}\"(x[{}][{}])", k ? ", " : "", constraint, k / 4, k % 4);
  return out;
}

struct Form {
  const char *name, *left, *inputs;  // parameters and operands of the left matrix
  bool adds, weighs;
};
constexpr Form kForms[] = {{"multiply", "u64 a", "\"l\"(a)", false, false},
                           {"multiply_add", "u64 a", "\"l\"(a)", true, false},
                           {"weigh", "const u32 (&w)[4]", "\"r\"(w[0]), \"r\"(w[1]), \"r\"(w[2]), \"r\"(w[3])", true, true}};

std::string method(int width, const Form& form) {
  const int sums = width / 2, left = form.weighs ? 4 : 1;
  // x, a, b, whether x counts, signs of a and b, which of a (if it is in shared memory) and b are transposed.
  const std::string arguments = fmt::format("{{{}}}, {}, %{}, p, 1, 1{}", operands(0, sums),
                                            form.weighs ? "{" + operands(sums, left) + "}" : operands(sums, left), sums + left,
                                            form.weighs ? ", 1" : ", 0, 0");
  return fmt::format(
      "  DEVICE static void {}(real (&x)[{}][4], {}, u64 b) {{\n"
      "    asm volatile(\"{{\\n.reg .pred p;\\nsetp.ne.b32 p, {}, 0;\\n\"\n"
      "                 \"wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16 {};\\n}}\"\n"
      "                 : {}\n                 : {}, \"l\"(b));\n  }}\n",
      form.name, width / 8, form.left, int(form.adds), width, arguments, accumulators(width, form.adds ? "+f" : "=f"),
      form.inputs);
}

}  // namespace

std::string wgmma_text(std::span<const int> widths) {
  std::string out = "template <int N>\nstruct Wgmma;\n";
  for (const int width : std::set<int>(widths.begin(), widths.end())) {
    if (width < 8 || width > 256 || width % 8 != 0) fail(ErrorKind::usage, fmt::format("wgmma has no width {}", width));
    out += fmt::format("template <>\nstruct Wgmma<{}> {{\n", width);
    for (const Form& form : kForms) out += method(width, form);
    out += "};\n";
  }
  return out;
}

}  // namespace weft
