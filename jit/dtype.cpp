#include "jit/dtype.h"

namespace weft {

DType widest(DType a, DType b) {
  auto rank = [](DType dtype) {
    switch (dtype) {
      case DType::boolean:
        return 0;
      case DType::i32:
        return 1;
      case DType::i64:
        return 2;
      case DType::bf16:
        return 3;
      case DType::f32:
        return 4;
      case DType::f64:
        return 5;
    }
    return 0;
  };
  return rank(a) < rank(b) ? b : a;
}

}  // namespace weft
