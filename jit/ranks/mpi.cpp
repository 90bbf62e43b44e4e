#include "jit/ranks/mpi.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <thread>

#include "jit/error.h"
#include "jit/ranks/ranks.h"

namespace weft {
namespace {

namespace mpi {
using Comm = struct CommHandle*;
using Datatype = struct DatatypeHandle*;
using Errhandler = struct ErrhandlerHandle*;
using Request = struct RequestHandle*;
using Status = struct StatusStruct;
constexpr int kSuccess = 0, kThreadFunneled = 1, kMaxVersion = 256, kMaxError = 256;
}  // namespace mpi

// result is int for all of them; name, parameters.
#define WEFT_MPI(X)                                                                                                           \
  X(MPI_Get_library_version, char* text, int* length)                                                                         \
  X(MPI_Init_thread, int* argc, char*** argv, int required, int* provided)                                                    \
  X(MPI_Comm_rank, mpi::Comm comm, int* rank)                                                                                 \
  X(MPI_Comm_size, mpi::Comm comm, int* size)                                                                                 \
  X(MPI_Comm_set_errhandler, mpi::Comm comm, mpi::Errhandler handler)                                                         \
  X(MPI_Error_string, int error, char* text, int* length)                                                                     \
  X(MPI_Ibcast, void* data, int count, mpi::Datatype type, int root, mpi::Comm comm, mpi::Request* request)                   \
  X(MPI_Iallgather, const void* from, int from_count, mpi::Datatype from_type, void* to, int to_count, mpi::Datatype to_type, \
    mpi::Comm comm, mpi::Request* request)                                                                                    \
  X(MPI_Ialltoall, const void* from, int from_count, mpi::Datatype from_type, void* to, int to_count, mpi::Datatype to_type,  \
    mpi::Comm comm, mpi::Request* request)                                                                                    \
  X(MPI_Test, mpi::Request* request, int* done, mpi::Status* status)                                                          \
  X(MPI_Finalize, void)

struct MpiTable {
#define WEFT_MEMBER(name, ...) int (*name)(__VA_ARGS__) = nullptr;
  WEFT_MPI(WEFT_MEMBER)
#undef WEFT_MEMBER
  mpi::Comm world = nullptr;
  mpi::Datatype byte = nullptr;
  mpi::Errhandler errors_return = nullptr;
};

constexpr const char* kMpiLibrary = "libmpi.so.40";

MpiTable load_mpi() {
  // Its plug-ins look for its own symbols in the global scope.
  void* handle = dlopen(kMpiLibrary, RTLD_NOW | RTLD_GLOBAL);
  if (!handle)
    fail(ErrorKind::device, "Open MPI is missing", fmt::format("no {} on the loader's path", kMpiLibrary),
         "apt-get install openmpi-bin libopenmpi3");
  MpiTable t;
  std::string absent;
  const auto find = [&](const char* name) {
    void* symbol = dlsym(handle, name);
    if (!symbol) absent += fmt::format(" {}", name);
    return symbol;
  };
#define WEFT_FILL(name, ...) t.name = reinterpret_cast<decltype(t.name)>(find(#name));
  WEFT_MPI(WEFT_FILL)
#undef WEFT_FILL
  char text[mpi::kMaxVersion] = "";
  int length = 0;
  if (t.MPI_Get_library_version) t.MPI_Get_library_version(text, &length);
  const std::string version = text;
  if (!version.starts_with("Open MPI"))
    fail(ErrorKind::device, fmt::format("{} is not Open MPI", kMpiLibrary), version.substr(0, version.find('\n')),
         "weft knows the handles of Open MPI alone: apt-get install openmpi-bin libopenmpi3");
  t.world = static_cast<mpi::Comm>(find("ompi_mpi_comm_world"));
  t.byte = static_cast<mpi::Datatype>(find("ompi_mpi_byte"));
  t.errors_return = static_cast<mpi::Errhandler>(find("ompi_mpi_errors_return"));
  if (!absent.empty()) fail(ErrorKind::device, "Open MPI is of another kind", fmt::format("{} has no{}", kMpiLibrary, absent));
  return t;
}

MpiTable& table() {
  static MpiTable loaded = load_mpi();
  return loaded;
}

void mpi_check(int error, const char* what) {
  if (error == mpi::kSuccess) return;
  char text[mpi::kMaxError] = "";
  int length = 0;
  table().MPI_Error_string(error, text, &length);
  // Another rank may have ended, or run another step: that is the reason, and is heard of soon.
  for (int k = 0; k < 50; ++k) {
    if (Ranks* ranks = Ranks::joined()) ranks->check();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  fail(ErrorKind::device, fmt::format("{} failed", what), text);
}

std::unique_ptr<Mpi>& the_mpi() {
  static auto& only = *new std::unique_ptr<Mpi>;
  return only;
}

}  // namespace

Mpi::Mpi(int rank, int size) {
  MpiTable& t = table();
  // Its own waiting, at the start and the end, would keep a processor from ranks that compute.
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
  int provided = 0, own_rank = 0, own_size = 0;
  mpi_check(t.MPI_Init_thread(nullptr, nullptr, mpi::kThreadFunneled, &provided), "MPI_Init_thread");
  mpi_check(t.MPI_Comm_set_errhandler(t.world, t.errors_return), "MPI_Comm_set_errhandler");
  mpi_check(t.MPI_Comm_rank(t.world, &own_rank), "MPI_Comm_rank");
  mpi_check(t.MPI_Comm_size(t.world, &own_size), "MPI_Comm_size");
  char text[mpi::kMaxVersion] = "";
  int length = 0;
  t.MPI_Get_library_version(text, &length);
  version_ = text;
  version_ = version_.substr(0, version_.find_first_of(",\n"));
  if (version_.starts_with("Open MPI v")) version_.erase(9, 1);
  if (own_rank != rank || own_size != size)
    fail(ErrorKind::usage, "MPI numbers the processes otherwise than their environment",
         fmt::format("{} of {} against {} of {}", own_rank, own_size, rank, size), "start them with Open MPI's own mpirun");
}

void Mpi::wait(int started, void* request, const char* what) {
  mpi_check(started, what);
  int done = 0;
  for (int tries = 0;; ++tries) {
    mpi_check(table().MPI_Test(static_cast<mpi::Request*>(request), &done, nullptr), what);
    if (done) return;
    constexpr int kEager = 200;  // tries before it sleeps
    if (tries < kEager) {
      std::this_thread::yield();
      continue;
    }
    if (Ranks* ranks = Ranks::joined()) ranks->check();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

void Mpi::broadcast(void* data, std::size_t bytes, int root) {
  constexpr std::size_t kMost = std::size_t(1) << 30;
  for (std::size_t first = 0; first < bytes; first += kMost) {
    mpi::Request request = nullptr;
    const auto n = int(std::min(kMost, bytes - first));
    wait(table().MPI_Ibcast(static_cast<char*>(data) + first, n, table().byte, root, table().world, &request), &request,
         "MPI_Ibcast");
  }
}

void Mpi::all_gather(const void* from, void* to, std::size_t bytes) {
  mpi::Request request = nullptr;
  const MpiTable& t = table();
  wait(t.MPI_Iallgather(from, int(bytes), t.byte, to, int(bytes), t.byte, t.world, &request), &request, "MPI_Iallgather");
}

void Mpi::all_to_all(const void* from, void* to, std::size_t bytes) {
  mpi::Request request = nullptr;
  const MpiTable& t = table();
  wait(t.MPI_Ialltoall(from, int(bytes), t.byte, to, int(bytes), t.byte, t.world, &request), &request, "MPI_Ialltoall");
}

std::string Mpi::broadcast_text(const std::string& text) {
  std::uint64_t length = text.size();
  broadcast(&length, sizeof length, 0);
  std::string all = text;
  all.resize(length);
  broadcast(all.data(), length, 0);
  return all;
}

void Mpi::finalize() { table().MPI_Finalize(); }

Mpi& open_mpi(int rank, int size) {
  if (!the_mpi()) the_mpi() = std::make_unique<Mpi>(rank, size);
  return *the_mpi();
}

void close_mpi() {
  if (the_mpi()) the_mpi()->finalize();
  the_mpi().reset();
}

}  // namespace weft
