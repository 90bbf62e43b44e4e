// Open MPI, opened at run time through weft's own declarations: messages between processes on CPUs. Names and behaviour are
// those of the MPI standard; that handles are addresses of the library's objects is Open MPI's own.
#pragma once

#include <cstddef>
#include <string>

namespace weft {

// One communicator of all ranks. Only the thread that opened it may use it. Calls wait without taking the processor from
// others; when all is to end (Ranks::check) they throw.
class Mpi {
 public:
  Mpi(int rank, int size);                              // errors (ErrorKind::device, usage): see open_mpi
  std::string version() const { return version_; }      // "Open MPI 4.1.4"
  std::string broadcast_text(const std::string& text);  // of rank 0
  void broadcast(void* data, std::size_t bytes, int root);
  void all_gather(const void* from, void* to, std::size_t bytes);  // of each rank
  void all_to_all(const void* from, void* to, std::size_t bytes);  // to each rank
  void finalize();

 private:
  void wait(int started, void* request, const char* what);
  std::string version_;
};

// Opened at the first call. Errors: libmpi.so.40 is missing, is another MPI than Open MPI, or counts the processes otherwise.
Mpi& open_mpi(int rank, int size);
void close_mpi();  // if it is open

}  // namespace weft
