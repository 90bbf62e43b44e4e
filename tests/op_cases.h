// The table of ops: what drives value, gradient, determinism, odd shapes. An op without a row fails the suite.
#pragma once

#include <string>
#include <vector>

#include "autograd/check.h"

namespace weft {

struct OpRow {
  std::string name;
  OpFunction fn;
  Reference reference;  // null: only gradients and determinism
  std::vector<OpCase> cases;
  CheckOptions options = {};
};

const std::vector<OpRow>& op_rows();

}  // namespace weft
