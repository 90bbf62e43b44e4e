#include "jit/gemm_cuda.h"

#include <fmt/format.h>

#include <algorithm>
#include <compare>
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#include "jit/driver.h"
#include "jit/gemm.h"
#include "jit/memory.h"

namespace weft {

std::string to_string(const GemmCall& call) {
  const std::string batch = call.batch > 1 ? fmt::format("{} x ", call.batch) : std::string();
  return fmt::format("{}({}, {}){} {} * ({}, {}){} {} -> {}{}", batch, call.m, call.k, call.a.col_stride == 1 ? "" : "^T",
                     name_of(call.a.dtype), call.k, call.n, call.b.col_stride == 1 ? "" : "^T", name_of(call.b.dtype),
                     name_of(call.c.dtype), call.bias ? " + bias" : "");
}

namespace {

// A matrix as cuBLASLt knows it: in columns, `ld` elements between them.
struct Layout {
  DType dtype;
  std::int64_t rows, columns, ld, batch_stride;
  bool transposed;  // what is multiplied is its transpose
  std::uint32_t alignment;  // bytes, of its first element
  auto operator<=>(const Layout&) const = default;
};

// All that the choice of an algorithm depends on. In column order a row-major matrix is its transpose, so what is asked for
// is C^T (n, m) = B^T (n, k) A^T (k, m).
struct Problem {
  Layout left, right, result;  // B^T, A^T, C^T
  std::int64_t batch;
  bool bias, tf32;
  std::size_t workspace;
  auto operator<=>(const Problem&) const = default;
};

std::uint32_t alignment(const GemmOperand& o) {
  const std::uint64_t bytes = std::uint64_t(o.offset) * size_of(o.dtype) | kAlignment;
  return std::uint32_t(bytes & (0 - bytes));  // the lowest bit
}

// The transpose of a row-major (rows, columns), to be multiplied.
Layout transpose_of(const GemmOperand& o, std::int64_t rows, std::int64_t columns) {
  const bool by_rows = o.col_stride == 1;
  return {o.dtype,         by_rows ? columns : rows, by_rows ? rows : columns, by_rows ? o.row_stride : o.col_stride,
          o.batch_stride, !by_rows,                 alignment(o)};
}

Problem problem_of(const GemmCall& call, std::size_t workspace, bool tf32) {
  Problem p{transpose_of(call.b, call.k, call.n),
            transpose_of(call.a, call.m, call.k),
            transpose_of(call.c, call.m, call.n),
            call.batch,
            bool(call.bias),
            tf32 && call.a.dtype == DType::f32,
            workspace};
  if (call.bias) p.result.alignment = std::min(p.result.alignment, alignment(call.bias));
  return p;
}

void check(cu::cublasStatus_t status, std::string_view what, const GemmCall& call) {
  if (status == cu::CUBLAS_STATUS_SUCCESS) return;
  fail(ErrorKind::device, fmt::format("gemm: {}: {}", what, cublas_lt().cublasLtGetStatusString(status)),
       fmt::format("{}, cuBLASLt {}", to_string(call), cublas_lt().cublasLtGetVersion()));
}

cu::cudaDataType_t cuda_dtype(DType dtype) {
  return dtype == DType::f64 ? cu::CUDA_R_64F : dtype == DType::bf16 ? cu::CUDA_R_16BF : cu::CUDA_R_32F;
}

// Handles of the library that go away with their owner.
template <class T>
using Owned = std::unique_ptr<std::remove_pointer_t<T>, cu::cublasStatus_t (*)(T)>;

template <class T, class... Args>
Owned<T> create(cu::cublasStatus_t (*make)(T*, Args...), cu::cublasStatus_t (*destroy)(T), const GemmCall& call,
                std::type_identity_t<Args>... args) {
  T handle = nullptr;
  check(make(&handle, args...), "cannot describe the product", call);
  return {handle, destroy};
}

template <class T, class Attribute, class Value>
void set(cu::cublasStatus_t (*setter)(T, Attribute, const void*, std::size_t), const Owned<T>& handle, Attribute attribute,
         Value value, const GemmCall& call) {
  check(setter(handle.get(), attribute, &value, sizeof value), "cannot describe the product", call);
}

Owned<cu::cublasLtMatrixLayout_t> create_layout(const Layout& layout, std::int64_t batch, const GemmCall& call) {
  const CublasLt& lt = cublas_lt();
  auto out = create(lt.cublasLtMatrixLayoutCreate, lt.cublasLtMatrixLayoutDestroy, call, cuda_dtype(layout.dtype),
                    std::uint64_t(layout.rows), std::uint64_t(layout.columns), layout.ld);
  if (batch > 1) {
    const auto setter = lt.cublasLtMatrixLayoutSetAttribute;
    set(setter, out, cu::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, std::int32_t(batch), call);
    set(setter, out, cu::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, layout.batch_stride, call);
  }
  return out;
}

Owned<cu::cublasLtMatmulDesc_t> create_product(const Problem& p, const GemmCall& call) {
  const CublasLt& lt = cublas_lt();
  const bool in_double = p.left.dtype == DType::f64;
  auto out = create(lt.cublasLtMatmulDescCreate, lt.cublasLtMatmulDescDestroy, call,
                    in_double ? cu::CUBLAS_COMPUTE_64F : p.tf32 ? cu::CUBLAS_COMPUTE_32F_FAST_TF32 : cu::CUBLAS_COMPUTE_32F,
                    in_double ? cu::CUDA_R_64F : cu::CUDA_R_32F);
  const auto setter = lt.cublasLtMatmulDescSetAttribute;
  set(setter, out, cu::CUBLASLT_MATMUL_DESC_TRANSA, p.left.transposed ? cu::CUBLAS_OP_T : cu::CUBLAS_OP_N, call);
  set(setter, out, cu::CUBLASLT_MATMUL_DESC_TRANSB, p.right.transposed ? cu::CUBLAS_OP_T : cu::CUBLAS_OP_N, call);
  if (p.bias) {
    set(setter, out, cu::CUBLASLT_MATMUL_DESC_EPILOGUE, cu::CUBLASLT_EPILOGUE_BIAS, call);
    set(setter, out, cu::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, cuda_dtype(p.result.dtype), call);
    // The library judges algorithms by the pointer's alignment; the address itself comes with the launch.
    const auto some_address = reinterpret_cast<const void*>((std::uintptr_t(1) << 20) + p.result.alignment);
    set(setter, out, cu::CUBLASLT_MATMUL_DESC_BIAS_POINTER, some_address, call);
  }
  return out;
}

struct Prepared {
  Owned<cu::cublasLtMatmulDesc_t> product;
  Owned<cu::cublasLtMatrixLayout_t> left, right, result;
  cu::cublasLtMatmulAlgo_t algorithm;
};

// Every product that was prepared. Lives as long as the process: the library may be gone before our destructors run.
class Gemms {
 public:
  static Gemms& instance() {
    static Gemms& only = *new Gemms;
    return only;
  }

  // Calls f(handle, prepared) alone.
  template <class F>
  void with(const GemmCall& call, std::size_t workspace, bool tf32, F&& f) {
    const std::lock_guard lock(mutex_);
    if (!handle_) check(cublas_lt().cublasLtCreate(&handle_), "cuBLASLt does not start", call);
    const Problem problem = problem_of(call, workspace, tf32);
    auto found = prepared_.find(problem);
    if (found == prepared_.end()) found = prepared_.emplace(problem, prepare(problem, call)).first;
    f(handle_, found->second);
  }

 private:
  Prepared prepare(const Problem& p, const GemmCall& call) {
    Prepared out{create_product(p, call), create_layout(p.left, p.batch, call), create_layout(p.right, p.batch, call),
                 create_layout(p.result, p.batch, call), {}};
    out.algorithm = choose(p, out, call);
    return out;
  }

  // The library's first proposal that it accepts. Choices that were measured (DESIGN 2.11) go before it, by problem: an algorithm is plain
  // data that holds for one library version and device.
  cu::cublasLtMatmulAlgo_t choose(const Problem& p, const Prepared& prepared, const GemmCall& call) {
    const CublasLt& lt = cublas_lt();
    const auto preference = create(lt.cublasLtMatmulPreferenceCreate, lt.cublasLtMatmulPreferenceDestroy, call);
    const auto prefer = [&](cu::cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      set(lt.cublasLtMatmulPreferenceSetAttribute, preference, attribute, value, call);
    };
    prefer(cu::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t(p.workspace));
    // Parts of a sum over k are added in the compute type by a step of its own: in a fixed order, rounded once.
    prefer(cu::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t(cu::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    prefer(cu::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, p.left.alignment);
    prefer(cu::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, p.right.alignment);
    prefer(cu::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p.result.alignment);
    prefer(cu::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p.result.alignment);
    constexpr int kProposals = 8;
    std::array<cu::cublasLtMatmulHeuristicResult_t, kProposals> proposals;
    int count = 0;
    auto status = lt.cublasLtMatmulAlgoGetHeuristic(handle_, prepared.product.get(), prepared.left.get(), prepared.right.get(),
                                                    prepared.result.get(), prepared.result.get(), preference.get(), kProposals,
                                                    proposals.data(), &count);
    if (status == cu::CUBLAS_STATUS_SUCCESS) status = cu::CUBLAS_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < count; ++i) {  // not each of them can be launched
      cu::cublasLtMatmulHeuristicResult_t verdict;
      status = lt.cublasLtMatmulAlgoCheck(handle_, prepared.product.get(), prepared.left.get(), prepared.right.get(),
                                          prepared.result.get(), prepared.result.get(), &proposals[std::size_t(i)].algo, &verdict);
      if (status == cu::CUBLAS_STATUS_SUCCESS && verdict.workspaceSize <= p.workspace) return proposals[std::size_t(i)].algo;
    }
    check(status, "no algorithm for this product", call);
    fail(ErrorKind::device, "gemm: every algorithm wants more workspace", to_string(call));
  }

  std::mutex mutex_;
  cu::cublasLtHandle_t handle_ = nullptr;
  std::map<Problem, Prepared> prepared_;
};

std::byte* address_of(const GemmOperand& o, std::byte* const* slots) {
  return slots[o.slot] + o.offset * std::int64_t(size_of(o.dtype));
}

}  // namespace

void prepare_gemm(const GemmCall& call, std::size_t workspace_bytes, bool tf32) {
  Gemms::instance().with(call, workspace_bytes, tf32, [](auto, const Prepared&) {});
}

void launch_gemm(const GemmCall& call, std::byte* const* slots, cu::CUstream stream, const GemmWorkspace& workspace, bool tf32) {
  const CublasLt& lt = cublas_lt();
  Gemms::instance().with(call, workspace.bytes, tf32, [&](cu::cublasLtHandle_t handle, const Prepared& p) {
    if (call.bias) {
      const void* bias = address_of(call.bias, slots);
      set(lt.cublasLtMatmulDescSetAttribute, p.product, cu::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias, call);
    }
    const float one = 1, zero = 0;
    const double one_double = 1, zero_double = 0;
    const bool in_double = call.a.dtype == DType::f64;
    std::byte* const c = address_of(call.c, slots);
    check(lt.cublasLtMatmul(handle, p.product.get(), in_double ? static_cast<const void*>(&one_double) : &one,
                            address_of(call.b, slots), p.left.get(), address_of(call.a, slots), p.right.get(),
                            in_double ? static_cast<const void*>(&zero_double) : &zero, c, p.result.get(), c, p.result.get(),
                            &p.algorithm, reinterpret_cast<void*>(workspace.address), workspace.bytes, stream),
          "the launch failed", call);
  });
}

void emulate_gemm(const GemmCall& call, std::byte* const* slots) {
  const auto input = [&](const GemmOperand& o) {
    return GemmInput{address_of(o, slots), o.dtype, o.row_stride, o.col_stride};
  };
  std::vector<GemmOffsets> batch;
  for (std::int64_t e = 0; e < call.batch; ++e)
    batch.push_back({e * call.a.batch_stride, e * call.b.batch_stride, e * call.c.batch_stride});
  GemmOptions options;
  if (call.bias) options.bias = address_of(call.bias, slots), options.bias_dtype = call.bias.dtype;
  const GemmOutput c{address_of(call.c, slots), call.c.dtype, call.c.row_stride};
  if (call.a.dtype == DType::f64)
    gemm_batched<double>(batch, call.m, call.n, call.k, input(call.a), input(call.b), c, options);
  else
    gemm_batched<float>(batch, call.m, call.n, call.k, input(call.a), input(call.b), c, options);
}

}  // namespace weft
