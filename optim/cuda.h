// The CUDA kernels of the optimizer's ops (see ops/cuda.h).
#pragma once

#include "autograd/lowering.h"

namespace weft {

void cuda_adamw(Lowering& l);        // optim/adamw_cuda.cpp
void cuda_global_norm(Lowering& l);  // optim/clip_cuda.cpp

}  // namespace weft
