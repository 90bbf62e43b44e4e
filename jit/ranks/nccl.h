// NCCL, opened at run time through weft's own declarations: sums and copies between GPUs. Names, values and layouts are
// NVIDIA's (nccl.h), so its documentation applies.
#pragma once

#include <memory>

#include "jit/ranks/collectives.h"

namespace weft {

// The communicator of all ranks, each with its GPU (Gpu::of(Device::cuda)). Errors (ErrorKind::device): NCCL is missing or does
// not start; two ranks have one GPU.
std::unique_ptr<Collectives> make_nccl(Ranks& ranks);

}  // namespace weft
