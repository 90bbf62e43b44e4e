// How a plan runs on a GPU: what its kernels are launched with, the block of constants, inputs and results, and the graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "autograd/plan.h"
#include "jit/gpu.h"

namespace weft {

// A step's constants, inputs and results stand in one region of device memory, at addresses that depend on the plan alone:
//   [constants | inputs | small results | large results]
// so that a graph can be launched again. Constants and inputs from the host come by one copy; results are copied out.
class GpuPlan {
 public:
  GpuPlan(Plan& plan, const Tape& tape, Device device);

  // One execution; returns the values of the results.
  std::vector<Tensor> run(Plan& plan, const Tape& tape, Arena& arena, Arena& io);
  bool graph() const { return bool(graph_); }
  // See time_last_plan.
  std::vector<double> time(const Plan& plan, const std::vector<int>& cuts, int repeats);

 private:
  struct Prepared {
    const LoadedKernel* loaded = nullptr;  // null: a GEMM
    PackedArgs args;
    std::vector<std::unique_ptr<Memory>> tables;
  };
  void bind(Plan& plan, const Tape& tape, Arena& arena, Arena& io);
  void send(const Tape& tape, Arena& io);
  void fill_args(const Plan& plan, std::size_t kernel, Arena& io);
  void launch(const Plan& plan, std::size_t kernel);
  void launch_each(Plan& plan, Arena& io);
  void launch_all(const Plan& plan);
  std::vector<Tensor> results(const Plan& plan, const Arena& io) const;

  Device device_;
  Gpu& gpu_;
  std::vector<Prepared> prepared_;
  std::vector<std::size_t> input_at_, result_at_;  // in the region, by index
  std::size_t constants_bytes_ = 0, sent_bytes_ = 0, small_begin_ = 0, small_end_ = 0, io_bytes_ = 0;
  bool bound_ = false;
  int runs_ = 0;
  Graph graph_;
};

}  // namespace weft
