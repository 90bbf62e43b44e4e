#include "autograd/run.h"
#include "jit/parallel.h"
#include "tools/cli/commands.h"

namespace weft {

TextModel open_model(const ModelCommand& c) {
  use_device(c.device);
  if (c.threads > 0) set_threads(c.threads);
  const bool bf16 = c.precision == "bf16" || (c.precision == "auto" && device() == Device::cuda);
  return load_text_model(c.from, bf16 ? DType::bf16 : DType::f32, c.adapters);
}

}  // namespace weft
