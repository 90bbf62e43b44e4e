#include "jit/ranks/nccl.h"

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>

#include "jit/error.h"
#include "jit/gpu.h"
#include "jit/ranks/ranks.h"

namespace weft {

using namespace cu;

namespace {

void nccl_check(const Nccl& nccl, ncclComm_t comm, ncclResult_t result, const std::string& what) {
  if (result == ncclSuccess) return;
  if (Ranks* ranks = Ranks::joined()) ranks->check();
  const char* last = nccl.ncclGetLastError(comm);
  fail(ErrorKind::device, fmt::format("NCCL: {} failed", what),
       fmt::format("{}{}{}", nccl.ncclGetErrorString(result), last && *last ? ": " : "", last ? last : ""),
       "NCCL_DEBUG=WARN says more");
}

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return ncclFloat32;
    case DType::f64:
      return ncclFloat64;
    case DType::bf16:
      return ncclBfloat16;
    case DType::i32:
      return ncclInt32;
    case DType::i64:
      return ncclInt64;
    default:
      return ncclUint8;
  }
}

std::string hex(const ncclUniqueId& id) {
  std::string text;
  for (const char c : id.internal) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

ncclUniqueId id_from(const std::string& text) {
  ncclUniqueId id;
  for (std::size_t k = 0; k < sizeof id.internal && 2 * k + 1 < text.size(); ++k)
    id.internal[k] = char(std::strtoul(text.substr(2 * k, 2).c_str(), nullptr, 16));
  return id;
}

// Its communicator lives as long as the process: to be destroyed it would wait for graphs that hold it.
class NcclCollectives : public Collectives {
 public:
  NcclCollectives(Ranks& ranks, const Nccl& nccl) : nccl_(nccl) {
    ncclUniqueId id;
    if (ranks.rank() == 0) nccl_check(nccl_, nullptr, nccl_.ncclGetUniqueId(&id), "ncclGetUniqueId");
    id = id_from(ranks.share("NCCL's id", hex(id)));
    const RankActivity starting(RankBeat::busy, "NCCL starts");
    nccl_check(nccl_, nullptr, nccl_.ncclCommInitRank(&comm_, ranks.size(), id, ranks.rank()), "ncclCommInitRank");
  }

  std::string name() const override { return "NCCL " + nccl_version(); }

  void run(const CollectiveCall& call, const std::byte* from, std::byte* to, CUstream stream) override {
    nccl_check(nccl_, comm_, enqueue(call, from, to, stream), to_string(call));
  }

  double expected_seconds(const CollectiveCall& call) override {
    ncclSimInfo_t info;
    int version = 0;
    nccl_.ncclGetVersion(&version);
    info.version = unsigned(version);
    if (!nccl_.ncclGroupSimulateEnd || nccl_.ncclGroupStart() != ncclSuccess) return 0;
    // Addresses that nothing is read from.
    auto* const somewhere = reinterpret_cast<std::byte*>(std::uintptr_t(1) << 20);
    const ncclResult_t result = enqueue(call, somewhere, somewhere, nullptr);
    const ncclResult_t end = nccl_.ncclGroupSimulateEnd(&info);
    return result == ncclSuccess && end == ncclSuccess && info.estimatedTime > 0 ? double(info.estimatedTime) * 1e-6 : 0;
  }

 private:
  ncclResult_t enqueue(const CollectiveCall& call, const std::byte* from, std::byte* to, CUstream stream) {
    const auto n = std::size_t(call.count);
    const ncclDataType_t type = nccl_type(call.dtype);
    switch (call.kind) {
      case CollectiveKind::all_reduce:
        return nccl_.ncclAllReduce(from, to, n, type, ncclSum, comm_, stream);
      case CollectiveKind::broadcast:
        return nccl_.ncclBroadcast(from, to, n, type, call.root, comm_, stream);
      case CollectiveKind::all_gather:
        return nccl_.ncclAllGather(from, to, n, type, comm_, stream);
      case CollectiveKind::reduce_scatter:
        return nccl_.ncclReduceScatter(from, to, n, type, ncclSum, comm_, stream);
    }
    return ncclSuccess;
  }

  const Nccl& nccl_;
  ncclComm_t comm_ = nullptr;
};

}  // namespace

std::unique_ptr<Collectives> make_nccl(Ranks& ranks) {
  // Buffers of a graph are not registered with the network or other processes: the memory of weft's plans is not exportable.
  setenv("NCCL_GRAPH_REGISTER", "0", 0);
  const Nccl& library = nccl();
  ranks.agree("the version of NCCL", nccl_version());
  const auto gpus = ranks.gather("the GPU", Gpu::of(Device::cuda).uuid());
  for (std::size_t r = 1; r < gpus.size(); ++r)
    for (std::size_t other = 0; other < r; ++other)
      if (gpus[r] == gpus[other])
        fail(ErrorKind::device, fmt::format("ranks {} and {} have the same GPU", other, r), gpus[r],
             "a rank needs a GPU of its own: start fewer, or look at CUDA_VISIBLE_DEVICES and LOCAL_RANK");
  return std::make_unique<NcclCollectives>(ranks, library);
}

}  // namespace weft
