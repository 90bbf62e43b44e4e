#include "jit/gemm_cuda.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <compare>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <type_traits>
#include <vector>

#include "jit/driver.h"
#include "jit/error.h"
#include "jit/file.h"
#include "jit/gemm.h"
#include "jit/memory.h"
#include "jit/ranks/ranks.h"

namespace weft {

std::string to_string(const GemmCall& call) {
  const std::string batch = call.batch > 1 ? fmt::format("{} x ", call.batch) : std::string();
  std::string text = fmt::format("{}({}, {}){} {} * ({}, {}){} {} -> {}", batch, call.m, call.k,
                                 call.a.col_stride == 1 ? "" : "^T", name_of(call.a.dtype), call.k, call.n,
                                 call.b.col_stride == 1 ? "" : "^T", name_of(call.b.dtype), name_of(call.c.dtype));
  if (call.addend) text += " + addend";
  if (call.bias) text += " + bias";
  if (call.activation != Activation::none) text += fmt::format(", {}", name_of(call.activation));
  return text;
}

namespace {

// A matrix as cuBLASLt knows it: in columns, `ld` elements between them.
struct Layout {
  DType dtype;
  std::int64_t rows, columns, ld, batch_stride;
  bool transposed;          // what is multiplied is its transpose
  std::uint32_t alignment;  // bytes, of its first element
  auto operator<=>(const Layout&) const = default;
};

// All that the choice of an algorithm depends on. In column order a row-major matrix is its transpose, so what is asked for
// is C^T (n, m) = B^T (n, k) A^T (k, m).
struct Problem {
  Layout left, right, result;    // B^T, A^T, C^T
  std::optional<Layout> addend;  // D^T
  std::int64_t batch;
  bool bias, tf32;
  Activation activation;
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
  return {o.dtype,
          by_rows ? columns : rows,
          by_rows ? rows : columns,
          by_rows ? o.row_stride : o.col_stride,
          o.batch_stride,
          !by_rows,
          alignment(o)};
}

Problem problem_of(const GemmCall& call, std::size_t workspace, bool tf32) {
  Problem p{transpose_of(call.b, call.k, call.n),
            transpose_of(call.a, call.m, call.k),
            transpose_of(call.c, call.m, call.n),
            {},
            call.batch,
            bool(call.bias),
            tf32 && call.a.dtype == DType::f32,
            call.activation,
            workspace};
  if (call.addend) p.addend = transpose_of(call.addend, call.m, call.n);
  if (call.bias) p.result.alignment = std::min(p.result.alignment, alignment(call.bias));
  return p;
}

void check(cu::cublasStatus_t status, std::string_view what, const GemmCall& call) {
  if (status == cu::CUBLAS_STATUS_SUCCESS) return;
  fail(ErrorKind::device, fmt::format("gemm: {}: {}", what, cublas_lt().cublasLtGetStatusString(status)),
       fmt::format("{}, cuBLASLt {}", to_string(call), cublas_lt().cublasLtGetVersion()));
}

std::string to_string(const Layout& l) {
  return fmt::format("{}{} {}x{} ld {} batch {} align {}", name_of(l.dtype), l.transposed ? "^T" : "", l.rows, l.columns, l.ld,
                     l.batch_stride, l.alignment);
}

std::string to_string(const Problem& p) {
  std::string text =
      fmt::format("{} x ({}) * ({}) -> ({})", p.batch, to_string(p.left), to_string(p.right), to_string(p.result));
  if (p.addend) text += fmt::format(" + ({})", to_string(*p.addend));
  if (p.bias) text += " + bias";
  if (p.activation != Activation::none) text += fmt::format(", {}", name_of(p.activation));
  return text + fmt::format("{}, {} MiB", p.tf32 ? ", tf32" : "", p.workspace >> 20);
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

cu::cublasLtEpilogue_t epilogue_of(const Problem& p) {
  switch (p.activation) {
    case Activation::relu:
      return p.bias ? cu::CUBLASLT_EPILOGUE_RELU_BIAS : cu::CUBLASLT_EPILOGUE_RELU;
    case Activation::gelu_tanh:
      return p.bias ? cu::CUBLASLT_EPILOGUE_GELU_BIAS : cu::CUBLASLT_EPILOGUE_GELU;
    case Activation::none:
      break;
  }
  return p.bias ? cu::CUBLASLT_EPILOGUE_BIAS : cu::CUBLASLT_EPILOGUE_DEFAULT;
}

Owned<cu::cublasLtMatmulDesc_t> create_product(const Problem& p, const GemmCall& call) {
  const CublasLt& lt = cublas_lt();
  const bool in_double = p.left.dtype == DType::f64;
  auto out = create(lt.cublasLtMatmulDescCreate, lt.cublasLtMatmulDescDestroy, call,
                    in_double ? cu::CUBLAS_COMPUTE_64F
                    : p.tf32  ? cu::CUBLAS_COMPUTE_32F_FAST_TF32
                              : cu::CUBLAS_COMPUTE_32F,
                    in_double ? cu::CUDA_R_64F : cu::CUDA_R_32F);
  const auto setter = lt.cublasLtMatmulDescSetAttribute;
  set(setter, out, cu::CUBLASLT_MATMUL_DESC_TRANSA, p.left.transposed ? cu::CUBLAS_OP_T : cu::CUBLAS_OP_N, call);
  set(setter, out, cu::CUBLASLT_MATMUL_DESC_TRANSB, p.right.transposed ? cu::CUBLAS_OP_T : cu::CUBLAS_OP_N, call);
  if (const auto epilogue = epilogue_of(p); epilogue != cu::CUBLASLT_EPILOGUE_DEFAULT)
    set(setter, out, cu::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue, call);
  if (p.bias) {
    set(setter, out, cu::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, cuda_dtype(p.result.dtype), call);
    // The library judges algorithms by the pointer's alignment; the address itself comes with the launch.
    const auto some_address = reinterpret_cast<const void*>((std::uintptr_t(1) << 20) + p.result.alignment);
    set(setter, out, cu::CUBLASLT_MATMUL_DESC_BIAS_POINTER, some_address, call);
  }
  return out;
}

struct Prepared {
  Owned<cu::cublasLtMatmulDesc_t> product;
  Owned<cu::cublasLtMatrixLayout_t> left, right, result, addend;  // the last is the result's if there is none
  cu::cublasLtMatmulAlgo_t algorithm;
};

// Of the matrices of a launch, and what the addend is multiplied by.
struct Addresses {
  const void *left, *right, *addend;
  void* result;
  double beta;
};

// cuBLASLt's verdict.
cu::cublasStatus_t enqueue(cu::cublasLtHandle_t handle, const Problem& p, const Prepared& prepared,
                           const cu::cublasLtMatmulAlgo_t& algorithm, const Addresses& at, cu::CUstream stream,
                           const GemmWorkspace& workspace) {
  const float one = 1, beta = float(at.beta);
  const double one_double = 1;
  const bool in_double = p.left.dtype == DType::f64;
  return cublas_lt().cublasLtMatmul(
      handle, prepared.product.get(), in_double ? static_cast<const void*>(&one_double) : &one, at.left, prepared.left.get(),
      at.right, prepared.right.get(), in_double ? static_cast<const void*>(&at.beta) : &beta, at.addend, prepared.addend.get(),
      at.result, prepared.result.get(), &algorithm, reinterpret_cast<void*>(workspace.address), workspace.bytes, stream);
}

// ---- timing the library's proposals -----------------------------------------------------------------------------------------

// Memory of a matrix, of a batch all, filled with numbers in [-1, 1): products of zeros draw less power and run faster. Empty
// if there is no memory.
class Scratch {
 public:
  explicit Scratch(const Layout& l, std::int64_t batch) : driver_(cuda_driver()) {
    const std::int64_t elements = (batch - 1) * l.batch_stride + (l.columns - 1) * l.ld + l.rows;
    const std::size_t bytes = std::size_t(elements) * size_of(l.dtype);
    if (driver_.cuMemAlloc(&address_, bytes) != cu::CUDA_SUCCESS) return;
    const std::vector<std::byte> numbers = some_numbers(l.dtype);
    for (std::size_t at = 0; at < bytes; at += numbers.size())
      cuda_check(driver_, driver_.cuMemcpyHtoD(address_ + at, numbers.data(), std::min(numbers.size(), bytes - at)),
                 "cuMemcpyHtoD");
  }
  ~Scratch() {
    if (address_) driver_.cuMemFree(address_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* get() const { return reinterpret_cast<void*>(address_); }

 private:
  static std::vector<std::byte> some_numbers(DType dtype) {
    constexpr std::size_t kCount = std::size_t(1) << 20;
    std::vector<std::byte> bytes(kCount * size_of(dtype));
    std::mt19937 random(1);
    visit_dtype(dtype, [&]<class T>(T) {
      for (std::size_t i = 0; i < kCount; ++i) {
        const T x = T(float(random()) * 0x1p-31f - 1);
        std::memcpy(bytes.data() + i * sizeof x, &x, sizeof x);
      }
    });
    return bytes;
  }
  const cu::Driver& driver_;
  cu::CUdeviceptr address_ = 0;
};

// Milliseconds that f's work takes on a stream.
class Stopwatch {
 public:
  explicit Stopwatch(cu::CUstream stream) : driver_(cuda_driver()), stream_(stream) {
    for (cu::CUevent& e : events_) cuda_check(driver_, driver_.cuEventCreate(&e, 0), "cuEventCreate");
  }
  ~Stopwatch() {
    for (cu::CUevent e : events_) driver_.cuEventDestroy(e);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  template <class F>
  float time(F&& f) {
    cuda_check(driver_, driver_.cuEventRecord(events_[0], stream_), "cuEventRecord");
    f();
    cuda_check(driver_, driver_.cuEventRecord(events_[1], stream_), "cuEventRecord");
    cuda_check(driver_, driver_.cuEventSynchronize(events_[1]), "a product that is timed");
    float milliseconds = 0;
    cuda_check(driver_, driver_.cuEventElapsedTime(&milliseconds, events_[0], events_[1]), "cuEventElapsedTime");
    return milliseconds;
  }

 private:
  const cu::Driver& driver_;
  cu::CUstream stream_;
  cu::CUevent events_[2] = {};
};

// The position of the fastest. Each is timed several times in turn, and its best time counts, so that what else happens on the
// machine falls on none; one is preferred to those before it only where that is no accident.
std::size_t fastest(std::size_t count, const std::function<float(std::size_t)>& time) {
  constexpr int kRounds = 5;
  constexpr float kMargin = 0.98f;
  std::vector<float> best(count, std::numeric_limits<float>::infinity());
  for (int round = 0; round < kRounds; ++round)
    for (std::size_t i = 0; i < count; ++i) best[i] = std::min(best[i], time(i));
  std::size_t chosen = 0;
  for (std::size_t i = 1; i < count; ++i)
    if (best[i] < kMargin * best[chosen]) chosen = i;
  return chosen;
}

// Every product that was prepared. Lives as long as the process: the library may be gone before our destructors run.
class Gemms {
 public:
  static Gemms& instance() {
    static Gemms& only = *new Gemms;
    return only;
  }

  // Calls f(handle, problem, prepared) alone.
  template <class F>
  void with(const GemmCall& call, cu::CUstream stream, const GemmWorkspace& workspace, bool tf32, F&& f) {
    const std::lock_guard lock(mutex_);
    if (!handle_) check(cublas_lt().cublasLtCreate(&handle_), "cuBLASLt does not start", call);
    const Problem problem = problem_of(call, workspace.bytes, tf32);
    auto found = prepared_.find(problem);
    if (found == prepared_.end()) found = prepared_.emplace(problem, prepare(problem, call, stream, workspace)).first;
    f(handle_, problem, found->second);
  }

  GemmChoices choices() const {
    const std::lock_guard lock(mutex_);
    return choices_;
  }
  void use(const GemmChoices& choices) {
    const std::lock_guard lock(mutex_);
    for (const auto& [problem, algorithm] : choices) choices_.insert_or_assign(problem, algorithm);
    // What was prepared otherwise is prepared again; graphs that have been captured keep what they hold.
    std::erase_if(prepared_, [&](const auto& p) {
      const auto chosen = choices.find(to_string(p.first));
      return chosen != choices.end() && std::memcmp(chosen->second.data(), p.second.algorithm.data, sizeof chosen->second) != 0;
    });
  }
  void tune(bool on) {
    const std::lock_guard lock(mutex_);
    tune_ = on;
  }
  bool tunes() const {
    const std::lock_guard lock(mutex_);
    return tune_;
  }

 private:
  using Algorithms = std::vector<cu::cublasLtMatmulAlgo_t>;

  Prepared prepare(const Problem& p, const GemmCall& call, cu::CUstream stream, const GemmWorkspace& workspace) {
    Prepared out{create_product(p, call),
                 create_layout(p.left, p.batch, call),
                 create_layout(p.right, p.batch, call),
                 create_layout(p.result, p.batch, call),
                 create_layout(p.addend.value_or(p.result), p.batch, call),
                 {}};
    const std::string name = to_string(p);
    if (const auto kept = choices_.find(name); kept != choices_.end()) {
      std::ranges::copy(kept->second, out.algorithm.data);
      if (judge(p, out, out.algorithm) == cu::CUBLAS_STATUS_SUCCESS) return out;
    }
    const Algorithms algorithms = proposals(p, out, call);
    out.algorithm = algorithms[times() && algorithms.size() > 1 ? time_all(p, out, algorithms, call, stream, workspace) : 0];
    std::ranges::copy(out.algorithm.data, choices_[name].begin());
    return out;
  }

  // Of several ranks rank 0 times for all (autograd/gpu_plan.cpp).
  bool times() const {
    const Ranks* ranks = Ranks::joined();
    return tune_ && (!ranks || ranks->rank() == 0);
  }

  // Whether an algorithm can be launched.
  cu::cublasStatus_t judge(const Problem& p, const Prepared& prepared, const cu::cublasLtMatmulAlgo_t& algorithm) {
    cu::cublasLtMatmulHeuristicResult_t verdict;
    const auto status =
        cublas_lt().cublasLtMatmulAlgoCheck(handle_, prepared.product.get(), prepared.left.get(), prepared.right.get(),
                                            prepared.addend.get(), prepared.result.get(), &algorithm, &verdict);
    return status == cu::CUBLAS_STATUS_SUCCESS && verdict.workspaceSize > p.workspace ? cu::CUBLAS_STATUS_NOT_SUPPORTED
                                                                                      : status;
  }

  // The library's proposals that can be launched, the best in its judgement first.
  Algorithms proposals(const Problem& p, const Prepared& prepared, const GemmCall& call) {
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
    prefer(cu::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p.addend.value_or(p.result).alignment);
    prefer(cu::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p.result.alignment);
    constexpr int kProposals = 8;
    std::array<cu::cublasLtMatmulHeuristicResult_t, kProposals> proposed;
    int count = 0;
    auto status = lt.cublasLtMatmulAlgoGetHeuristic(handle_, prepared.product.get(), prepared.left.get(), prepared.right.get(),
                                                    prepared.addend.get(), prepared.result.get(), preference.get(), kProposals,
                                                    proposed.data(), &count);
    if (status == cu::CUBLAS_STATUS_SUCCESS) status = cu::CUBLAS_STATUS_NOT_SUPPORTED;
    Algorithms accepted;
    for (int i = 0; i < count; ++i) {
      const cu::cublasLtMatmulAlgo_t& algorithm = proposed[std::size_t(i)].algo;
      const auto verdict = judge(p, prepared, algorithm);
      if (verdict == cu::CUBLAS_STATUS_SUCCESS)
        accepted.push_back(algorithm);
      else
        status = verdict;
    }
    if (accepted.empty()) check(status, "no algorithm for this product", call);
    return accepted;
  }

  // The position of the fastest on this device; the first if there is no memory to try.
  std::size_t time_all(const Problem& p, const Prepared& prepared, const Algorithms& algorithms, const GemmCall& call,
                       cu::CUstream stream, const GemmWorkspace& workspace) {
    const Layout column{p.result.dtype, p.result.rows, 1, p.result.rows, 0, false, p.result.alignment};
    const Scratch left(p.left, p.batch), right(p.right, p.batch), result(p.result, p.batch), bias(column, 1),
        addend(p.addend.value_or(column), p.addend ? p.batch : 1);
    if (!left.get() || !right.get() || !result.get() || !bias.get() || !addend.get()) return 0;
    const Addresses at{left.get(), right.get(), p.addend ? addend.get() : result.get(), result.get(), p.addend ? 1.0 : 0.0};
    if (p.bias)
      set(cublas_lt().cublasLtMatmulDescSetAttribute, prepared.product, cu::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
          static_cast<const void*>(bias.get()), call);
    Stopwatch watch(stream);
    const auto run = [&](std::size_t i, int times) {
      bool good = true;  // what the library proposes it may still refuse
      const float milliseconds = watch.time([&] {
        for (int t = 0; t < times; ++t)
          good &= enqueue(handle_, p, prepared, algorithms[i], at, stream, workspace) == cu::CUBLAS_STATUS_SUCCESS;
      });
      return good ? milliseconds : std::numeric_limits<float>::infinity();
    };
    constexpr float kMilliseconds = 1;  // of a measurement, so that its ends do not count
    std::vector<int> times;
    for (std::size_t i = 0; i < algorithms.size(); ++i) {
      run(i, 1);  // loads its code
      times.push_back(std::clamp(int(kMilliseconds / std::max(run(i, 1), 1e-3f)), 1, 100));
    }
    return fastest(algorithms.size(), [&](std::size_t i) { return run(i, times[i]) / float(times[i]); });
  }

  mutable std::mutex mutex_;
  cu::cublasLtHandle_t handle_ = nullptr;
  std::map<Problem, Prepared> prepared_;
  GemmChoices choices_;
  bool tune_ = false;
};

std::byte* address_of(const GemmOperand& o, std::byte* const* slots) {
  return slots[o.slot] + o.offset * std::int64_t(size_of(o.dtype));
}

}  // namespace

GemmChoices gemm_choices() { return Gemms::instance().choices(); }
void use_gemm_choices(const GemmChoices& choices) { Gemms::instance().use(choices); }
void tune_gemms(bool on) { Gemms::instance().tune(on); }
bool tunes_gemms() { return Gemms::instance().tunes(); }

std::string to_text(const GemmChoices& choices) {
  std::string text;
  for (const auto& [problem, algorithm] : choices) {
    for (const std::uint64_t word : algorithm) text += fmt::format("{:016x}", word);
    text += " " + problem + "\n";
  }
  return text;
}

GemmChoices gemm_choices_from(std::string_view text) {
  constexpr std::size_t kDigits = 16;
  GemmChoices choices;
  for (const std::string_view line : lines_of(text)) {
    GemmChoices::mapped_type algorithm{};
    bool good = line.size() > kDigits * algorithm.size() && line[kDigits * algorithm.size()] == ' ';
    for (std::size_t i = 0; good && i < algorithm.size(); ++i) {
      const char* const begin = line.data() + kDigits * i;
      const auto [read, error] = std::from_chars(begin, begin + kDigits, algorithm[i], 16);
      good = error == std::errc() && read == begin + kDigits;
    }
    if (!good) fail(ErrorKind::io, "not a choice of a product's algorithm", fmt::format("'{}'", line));
    choices[std::string(line.substr(kDigits * algorithm.size() + 1))] = algorithm;
  }
  return choices;
}

std::size_t gemm_library_version() { return cublas_lt().cublasLtGetVersion(); }

void prepare_gemm(const GemmCall& call, cu::CUstream stream, const GemmWorkspace& workspace, bool tf32) {
  Gemms::instance().with(call, stream, workspace, tf32, [](auto, const Problem&, const Prepared&) {});
}

void launch_gemm(const GemmCall& call, std::byte* const* slots, cu::CUstream stream, const GemmWorkspace& workspace,
                 bool tf32) {
  Gemms::instance().with(
      call, stream, workspace, tf32, [&](cu::cublasLtHandle_t handle, const Problem& problem, const Prepared& p) {
        if (call.bias) {
          const void* bias = address_of(call.bias, slots);
          set(cublas_lt().cublasLtMatmulDescSetAttribute, p.product, cu::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias, call);
        }
        const bool adds = bool(call.addend);
        const Addresses at{address_of(call.b, slots), address_of(call.a, slots), address_of(adds ? call.addend : call.c, slots),
                           address_of(call.c, slots), adds ? call.beta : 0};
        check(enqueue(handle, problem, p, p.algorithm, at, stream, workspace), "the launch failed", call);
      });
}

void emulate_gemm(const GemmCall& call, std::byte* const* slots) {
  const auto input = [&](const GemmOperand& o) { return GemmInput{address_of(o, slots), o.dtype, o.row_stride, o.col_stride}; };
  std::vector<GemmOffsets> batch;
  for (std::int64_t e = 0; e < call.batch; ++e)
    batch.push_back({e * call.a.batch_stride, e * call.b.batch_stride, e * call.c.batch_stride, e * call.addend.batch_stride});
  GemmOptions options;
  options.activation = call.activation;
  if (call.addend) options.addend = input(call.addend), options.beta = call.beta;
  if (call.bias) options.bias = address_of(call.bias, slots), options.bias_dtype = call.bias.dtype;
  const GemmOutput c{address_of(call.c, slots), call.c.dtype, call.c.row_stride};
  if (call.a.dtype == DType::f64)
    gemm_batched<double>(batch, call.m, call.n, call.k, input(call.a), input(call.b), c, options);
  else
    gemm_batched<float>(batch, call.m, call.n, call.k, input(call.a), input(call.b), c, options);
}

}  // namespace weft
