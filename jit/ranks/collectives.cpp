#include "jit/ranks/collectives.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <vector>

#include "jit/emulator/device.h"
#include "jit/error.h"
#include "jit/ranks/mpi.h"
#include "jit/ranks/nccl.h"
#include "jit/ranks/ranks.h"

namespace weft {
namespace {

// to[i] = the sum of parts[r][i] over r, from rank 0 on; real numbers are added in fp64 and rounded once.
template <class T>
void add_parts(const T* parts, std::int64_t stride, int ranks, T* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_integral_v<T>) {
      T sum = 0;
      for (int r = 0; r < ranks; ++r) sum = T(std::uint64_t(sum) + std::uint64_t(parts[r * stride + i]));
      to[i] = sum;
    } else {
      double sum = 0;
      for (int r = 0; r < ranks; ++r) sum += double(parts[r * stride + i]);
      if constexpr (std::is_same_v<T, double>)
        to[i] = sum;
      else
        to[i] = T(float(sum));
    }
  }
}

void add_parts(DType dtype, const std::byte* parts, std::int64_t stride, int ranks, std::byte* to, std::int64_t n) {
  visit_dtype(dtype,
              [&]<class T>(T) { add_parts(reinterpret_cast<const T*>(parts), stride, ranks, reinterpret_cast<T*>(to), n); });
}

// On memory of the host. A sum goes part by part: each rank adds one, and all gather them. What is small is gathered whole.
class HostCollectives : public Collectives {
 public:
  HostCollectives(Mpi* mpi, int rank, int size) : mpi_(mpi), rank_(rank), size_(size) {}
  std::string name() const override { return mpi_ ? mpi_->version() : "one process"; }

  void run(const CollectiveCall& call, const std::byte* from, std::byte* to, cu::CUstream) override {
    const RankActivity waiting(RankBeat::waiting, name_of(call.kind).data());
    if (call.count == 0) return;
    if (size_ == 1) {
      if (from != to) std::memcpy(to, from, call.to_bytes());
      return;
    }
    switch (call.kind) {
      case CollectiveKind::all_reduce:
        return all_reduce(call, from, to);
      case CollectiveKind::broadcast:
        if (from != to && rank_ == call.root) std::memcpy(to, from, call.to_bytes());
        return mpi_->broadcast(to, call.to_bytes(), call.root);
      case CollectiveKind::all_gather:
        return all_gather(call, from, to);
      case CollectiveKind::reduce_scatter:
        return reduce_scatter(call, from, to);
    }
  }

 private:
  static constexpr std::size_t kSmall = 16 << 10;  // bytes that are gathered whole
  static constexpr std::size_t kPiece = 32 << 20;  // bytes of one message, at most

  std::byte* buffer(int which, std::size_t bytes) {
    auto& b = buffers_[std::size_t(which)];
    if (b.size() < bytes) b.resize(bytes);
    return b.data();
  }

  void all_reduce(const CollectiveCall& call, const std::byte* from, std::byte* to) {
    const auto width = std::int64_t(size_of(call.dtype));
    if (call.to_bytes() <= kSmall) {
      std::byte* all = buffer(0, call.to_bytes() * std::size_t(size_));
      mpi_->all_gather(from, all, call.to_bytes());
      return add_parts(call.dtype, all, call.count, size_, to, call.count);
    }
    const std::int64_t piece = std::int64_t(kPiece) / width;
    for (std::int64_t first = 0; first < call.count; first += piece * size_) {
      const std::int64_t n = std::min(call.count - first, piece * size_), part = (n + size_ - 1) / size_;
      const auto bytes = std::size_t(part * width);
      std::byte *sent = buffer(0, bytes * std::size_t(size_)), *got = buffer(1, bytes * std::size_t(size_));
      std::memcpy(sent, from + first * width, std::size_t(n * width));
      std::memset(sent + n * width, 0, std::size_t((part * size_ - n) * width));
      mpi_->all_to_all(sent, got, bytes);
      std::byte* sum = buffer(2, bytes);
      add_parts(call.dtype, got, part, size_, sum, part);
      mpi_->all_gather(sum, got, bytes);
      std::memcpy(to + first * width, got, std::size_t(n * width));
    }
  }

  void all_gather(const CollectiveCall& call, const std::byte* from, std::byte* to) {
    const std::size_t bytes = call.from_bytes();
    if (bytes <= kPiece) {
      std::byte* sent = buffer(0, bytes);  // `from` may be a part of `to`
      std::memcpy(sent, from, bytes);
      return mpi_->all_gather(sent, to, bytes);
    }
    for (std::size_t first = 0; first < bytes; first += kPiece) {
      const std::size_t n = std::min(kPiece, bytes - first);
      std::byte* got = buffer(1, n * std::size_t(size_));
      mpi_->all_gather(from + first, got, n);
      for (int r = 0; r < size_; ++r) std::memcpy(to + std::size_t(r) * bytes + first, got + std::size_t(r) * n, n);
    }
  }

  void reduce_scatter(const CollectiveCall& call, const std::byte* from, std::byte* to) {
    const auto width = std::int64_t(size_of(call.dtype));
    const std::int64_t piece = std::int64_t(kPiece) / width;
    for (std::int64_t first = 0; first < call.count; first += piece) {
      const std::int64_t n = std::min(piece, call.count - first);
      const auto bytes = std::size_t(n * width);
      std::byte *sent = buffer(0, bytes * std::size_t(size_)), *got = buffer(1, bytes * std::size_t(size_));
      for (int r = 0; r < size_; ++r)
        std::memcpy(sent + std::size_t(r) * bytes, from + (r * call.count + first) * width, bytes);
      mpi_->all_to_all(sent, got, bytes);
      add_parts(call.dtype, got, n, size_, to + first * width, n);
    }
  }

  Mpi* mpi_;
  int rank_, size_;
  std::array<std::vector<std::byte>, 3> buffers_;
};

// The same on the emulated device's memory, in the order of its stream, what it reads and writes checked.
class EmulatedCollectives : public Collectives {
 public:
  explicit EmulatedCollectives(std::unique_ptr<Collectives> host) : host_(std::move(host)) {}
  std::string name() const override { return host_->name(); }
  void run(const CollectiveCall& call, const std::byte* from, std::byte* to, cu::CUstream stream) override {
    emulated_work(stream, [this, call, from, to] {
      emulated_read(from, call.from_bytes(), to_string(call));
      emulated_write(to, call.to_bytes());
      host_->run(call, from, to, nullptr);
    });
  }

 private:
  std::unique_ptr<Collectives> host_;
};

}  // namespace

std::string_view name_of(CollectiveKind kind) {
  switch (kind) {
    case CollectiveKind::all_reduce:
      return "all_reduce";
    case CollectiveKind::broadcast:
      return "broadcast";
    case CollectiveKind::all_gather:
      return "all_gather";
    case CollectiveKind::reduce_scatter:
      return "reduce_scatter";
  }
  return "";
}

std::size_t CollectiveCall::from_bytes() const {
  return std::size_t(count * (kind == CollectiveKind::reduce_scatter ? ranks : 1)) * size_of(dtype);
}
std::size_t CollectiveCall::to_bytes() const {
  return std::size_t(count * (kind == CollectiveKind::all_gather ? ranks : 1)) * size_of(dtype);
}
double CollectiveCall::bus_bytes() const {
  const double whole = double(std::max(from_bytes(), to_bytes())), others = double(ranks - 1) / ranks;
  if (kind == CollectiveKind::all_reduce) return 2 * others * whole;
  return kind == CollectiveKind::broadcast ? whole : others * whole;
}

std::string to_string(const CollectiveCall& call) {
  return fmt::format("{} of {} {} over {} rank{}", name_of(call.kind), call.count, name_of(call.dtype), call.ranks,
                     call.ranks == 1 ? "" : "s");
}

std::unique_ptr<Collectives> make_collectives(Ranks& ranks, Device device) {
  if (device == Device::cuda) return make_nccl(ranks);
  if (ranks.size() > 1 && ranks.starter() != Starter::mpirun)
    fail(ErrorKind::usage, "ranks on CPUs are joined by MPI", fmt::format("{} ranks, not started by mpirun", ranks.size()),
         fmt::format("mpirun -n {} weft train ...", ranks.size()));
  Mpi* mpi = ranks.size() > 1 ? &open_mpi(ranks.rank(), ranks.size()) : nullptr;
  auto host = std::make_unique<HostCollectives>(mpi, ranks.rank(), ranks.size());
  if (device == Device::cpu) return host;
  return std::make_unique<EmulatedCollectives>(std::move(host));
}

}  // namespace weft
