// The CUDA kernels of the optimizer's ops (see ops/cuda.h).
#pragma once

#include "autograd/lowering.h"

namespace weft {

// optim/adamw_cuda.cpp
void cuda_adamw(Lowering& l);
void cuda_adamw_sharded(Lowering& l);
// optim/clip_cuda.cpp
void cuda_global_norm(Lowering& l);
void cuda_sharded_squares(Lowering& l);
void cuda_norm_of_squares(Lowering& l);
// optim/sharded_cuda.cpp
void cuda_place_weights(Lowering& l);

}  // namespace weft
