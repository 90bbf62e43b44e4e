#include <fmt/format.h>

#include <algorithm>

#include "autograd/run.h"
#include "jit/print.h"
#include "tools/cli/commands.h"
#include "tools/evaluate/verify.h"

namespace weft {

int cmd_verify(const VerifyCommand& c) {
  use_device(c.device);
  const DType dtype = c.dtype == "f64" ? DType::f64 : c.dtype == "bf16" ? DType::bf16 : DType::f32;
  const std::vector<VerifyRow> rows = verify_model(c.folder, dtype);
  std::size_t width = 0;
  for (const VerifyRow& row : rows) width = std::max(width, row.what.size());
  print("{} on {} in {}\n", c.folder, name_of(device()), name_of(dtype));
  print("{:<{}}  {:>9}  {:>9}  {:<6}\n", "check", width, "error", "allowed", "");
  std::size_t failed = 0;
  for (const VerifyRow& row : rows) {
    failed += !row.passed();
    print("{:<{}}  {:>9.2e}  {:>9.0e}  {:<6}  {}\n", row.what, width, row.error, row.tolerance, row.passed() ? "ok" : "FAILED",
          row.unit);
  }
  if (failed) {
    print("{} of {} checks failed\n", failed, rows.size());
    return 1;
  }
  print("all {} checks passed\n", rows.size());
  return 0;
}

}  // namespace weft
