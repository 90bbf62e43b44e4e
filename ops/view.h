// What the kernels of concat have in common on all devices.
#pragma once

#include <vector>

#include "autograd/lowering.h"

namespace weft {

// A part that its producer has not written in place.
struct ConcatPart {
  Operand from;  // absent: zeros
  Operand to;    // its slice of the output
};
std::vector<ConcatPart> parts_to_write(Lowering& l);

}  // namespace weft
