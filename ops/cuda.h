// The CUDA kernels of the structured ops: what each op's `lower` is on the CPU, Op::cuda is on a GPU. Each family has its
// kernel text in a .cuh and the setting up of its launches in a .cpp, next to the family's file.
#pragma once

#include "autograd/lowering.h"

namespace weft {

// Sources of Lowering::emit_pointwise: the elements of `from` broadcast to the shape of `to`, and zeros for memory of a dtype.
Fused copy_of(const Operand& from, const Operand& to);
Fused zeros(DType dtype);

// ops/view_cuda.cpp
void cuda_concat(Lowering& l);
// ops/matmul_cuda.cpp
void cuda_linear(Lowering& l);
void cuda_row_product(Lowering& l);
void cuda_matmul(Lowering& l);
// ops/reduce_cuda.cpp
void cuda_reduce(Lowering& l);
void cuda_row_function(Lowering& l);  // softmax, log_softmax, logsumexp
// ops/norm_cuda.cpp
void cuda_norm(Lowering& l);
void cuda_norm_backward(Lowering& l);
// ops/cross_entropy_cuda.cpp
void cuda_cross_entropy(Lowering& l);
void cuda_cross_entropy_backward(Lowering& l);
// ops/embedding_cuda.cpp
void cuda_embedding(Lowering& l);
void cuda_embedding_backward(Lowering& l);
// ops/segments_cuda.cpp
void cuda_segments(Lowering& l);
// ops/conv1d_cuda.cpp
void cuda_conv1d(Lowering& l);
constexpr std::int64_t kConv1dInPlace = 9;  // taps of a kernel whose last inputs may take the place of the initial ones
void cuda_conv1d_backward(Lowering& l);
// ops/scan_cuda.cpp
void cuda_scan(Lowering& l);
void cuda_scan_backward(Lowering& l);
// ops/attention_cuda.cpp
void cuda_attention(Lowering& l);
void cuda_attention_backward(Lowering& l);
// Whether the kernels take heads of so many features of keys and of values: multiples of 8 up to 256.
bool cuda_attention_takes(std::int64_t dk, std::int64_t dv);

}  // namespace weft
