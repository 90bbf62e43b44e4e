// The ops of optim/sharded.h, as their kernels on all devices see them.
#pragma once

#include <cstdint>
#include <vector>

#include "autograd/lowering.h"

namespace weft::sharded {

struct PlaceOperands {
  struct Row {
    Operand from, param;  // dense memory of the same number of elements, and of one type
    Operand twin;         // the parameter in bf16, or absent
  };
  Operand flag;  // of a bad step: nothing is placed
  std::vector<Row> rows;
  std::vector<std::int64_t> sizes;  // elements of each row
};
PlaceOperands place_operands(Lowering& l);

struct NormOperands {
  struct Row {
    Operand part;             // at its element 0, which may be another rank's
    std::int64_t begin, end;  // elements that are there
  };
  std::vector<Row> rows;
  std::vector<std::int64_t> sizes;  // elements of each row, on all ranks
};
NormOperands norm_operands(Lowering& l);

}  // namespace weft::sharded
