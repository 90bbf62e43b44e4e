// Which of several processes this one is, as whoever started them says in the environment.
#pragma once

#include <optional>
#include <string>

namespace weft {

enum class Starter { variables, mpirun, slurm };

struct RankPlace {
  int rank = 0, size = 1;              // of all processes
  int local_rank = 0, local_size = 1;  // of those on this host; local_size 0: not said
  Starter starter = Starter::variables;
  // Where rank 0 listens for the others. Under mpirun it is agreed upon over MPI, and the port here is 0.
  std::string address = "127.0.0.1";
  int port = 0;
  int listener = -1;  // the socket where rank 0 listens, if whoever started it has made it
  std::string token;  // which all ranks have and nobody else
};

// From RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT (torchrun's; under torchrun itself, whose
// own store listens at the port, the port is the next one), Open MPI's OMPI_COMM_WORLD_*, or Slurm's SLURM_PROCID and
// SLURM_STEP_NUM_TASKS; the token from WEFT_TOKEN. Nothing if none of them says that there are ranks: one process. Errors
// (ErrorKind::usage): a variable that is no number, a rank at or above the size, variables that contradict each other, an
// address of a network without a token.
std::optional<RankPlace> rank_place();

}  // namespace weft
