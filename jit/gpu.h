// A GPU in use: memory, compiled kernels, launches and graphs, on one stream. The emulated GPU is the same code over another
// table of driver functions.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "jit/compiler.h"
#include "jit/cuda_text.h"
#include "jit/driver.h"
#include "jit/gemm_cuda.h"
#include "jit/memory.h"
#include "jit/ranks/collectives.h"

namespace weft {

// A kernel that is loaded.
struct LoadedKernel {
  cu::CUfunction function = nullptr;
  unsigned shared = 0;  // dynamic shared memory that launches may ask for
  Compiled compiled;    // resources and texts; the cubin itself is released
};

// The struct `Args` of a launch: words, and tensor maps at multiples of 64 bytes; as a struct with one, it ends at such a
// multiple.
class PackedArgs {
 public:
  void add(std::uint64_t word);
  void add(const cu::CUtensorMap& map);
  std::span<const std::uint64_t> words() const { return words_; }

 private:
  void align();
  std::vector<std::uint64_t> words_;  // as many as the alignment wants
  std::size_t used_ = 0;
};

// A tensor map for memory that begins here.
cu::CUtensorMap encode(const Driver& driver, const TmaMap& map, const std::byte* slot);

// A recorded sequence of launches.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  explicit operator bool() const { return exec_ != nullptr; }
  std::size_t nodes() const { return nodes_; }

 private:
  friend class Gpu;
  const Driver* driver_ = nullptr;
  cu::CUgraphExec exec_ = nullptr;
  std::size_t nodes_ = 0;
};

class Gpu {
 public:
  // The GPU of a device, opened at first use: errors (ErrorKind::device) say what is missing. Of several the first one, or, in
  // a process that has joined ranks (jit/ranks/ranks.h), the one whose number is its local rank, unless it is shown only one.
  static Gpu& of(Device device);
  static Gpu* opened(Device device);  // null if it was not used yet

  Gpu(const Driver& driver, bool emulated);
  ~Gpu();

  bool emulated() const { return emulated_; }
  const std::string& name() const { return name_; }                  // "NVIDIA H200"
  std::string uuid() const;                                          // no two GPUs of the world have one
  const std::string& architecture() const { return architecture_; }  // what kernels are compiled for: "sm_90a"
  const Target& target() const { return target_; }                   // what plans are made for
  int multiprocessors() const { return multiprocessors_; }
  std::size_t total_memory() const { return total_memory_; }
  std::size_t memory_in_use() const;  // of the whole device, by all processes, as the driver says
  // Bytes held by this object: States, values of steps, workspaces, and blocks kept for the next request.
  std::size_t held_memory() const;
  std::size_t peak_memory() const;  // the largest held_memory() so far
  std::size_t used_memory() const;  // of held_memory() what is given out, but not the values of steps
  std::string bus_id() const;       // "0000:1B:00.0", by which NVML knows it; "" if it is emulated

  // Memory. Blocks that are freed are kept for the next request of their size; WEFT_ARENA=split gives each its own allocation.
  std::byte* allocate(std::size_t bytes, const std::string& what);
  void free(std::byte* memory);
  std::byte* reserve(std::size_t bytes);  // a range of addresses without memory
  void extend(std::byte* base, std::size_t from, std::size_t to, const std::string& what);  // memory for [from, to) of it
  std::size_t granularity() const { return granularity_; }                                  // of extend

  // In the order of the stream. `write` from pageable memory and `read` are complete on return.
  void write(std::byte* to, const void* from, std::size_t bytes);
  // Pinned memory of a ring, to be filled and then sent.
  std::byte* stage(std::size_t bytes);
  void send_staged(std::byte* to, std::size_t bytes);
  void read(void* to, const std::byte* from, std::size_t bytes);
  void copy(std::byte* to, const std::byte* from, std::size_t bytes);
  void fill(std::byte* to, unsigned char value, std::size_t bytes);
  void synchronize();  // throws what kernels raised

  // Compiles and loads what is not yet loaded, cold kernels in parallel; `progress` prints a line while it takes long.
  void prepare(std::span<const CudaKernel* const> kernels);
  const LoadedKernel& loaded(const CudaKernel& kernel) const;
  void launch(const CudaKernel& kernel, const LoadedKernel& loaded, const PackedArgs& args);
  cu::CUtensorMap encode(const TmaMap& map, const std::byte* slot) const { return weft::encode(driver_, map, slot); }
  void gemm(const GemmCall& call, std::byte* const* slots);
  void prepare_gemm(const GemmCall& call);
  void collective(const CollectiveCall& call, std::byte* const* slots, Collectives& by);
  // The same on a second stream, from where the first one is now; wait_for(what it returns) lets the first one wait for it.
  // While a graph is captured, that is how its nodes depend on each other. (The emulated device has one stream.)
  int collective_beside(const CollectiveCall& call, std::byte* const* slots, Collectives& by);
  void wait_for(int collective);
  void allow_tf32(bool on) { tf32_ = on; }  // for products of f32; off: IEEE fp32

  // What f launches, as a graph. With `overlap`, blocks of a kernel of ours that comes directly behind another take the
  // multiprocessors that the other's last blocks leave free, and wait there until its results are in memory (programmatic
  // dependent launch; sm_90 and later, driver 12.4 and later): it saves about a microsecond a kernel.
  void capture(Graph& graph, bool overlap, const std::function<void()>& f);
  void launch(const Graph& graph);

  std::uint64_t* status() const { return status_; }  // of the first error a kernel raised: jit/device_errors.h
  std::uint64_t notices() const;                     // how often kernels have called `notify`, as far as it has come home
  // Time of what was launched between two marks, in seconds.
  double timed(const std::function<void()>& f);

 private:
  struct Impl;
  [[noreturn]] void fail_memory(const std::string& what, std::size_t bytes) const;
  void load_new(std::span<const CudaKernel* const> kernels);
  void load(const CudaKernel& kernel, Compiled compiled);

  const Driver& driver_;
  bool emulated_;
  bool tf32_ = false;
  std::string name_, architecture_;
  Target target_;
  int multiprocessors_ = 0;
  std::size_t total_memory_ = 0, granularity_ = 0;
  std::uint64_t* status_ = nullptr;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft
