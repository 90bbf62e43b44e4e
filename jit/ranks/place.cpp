#include "jit/ranks/place.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "jit/error.h"

namespace weft {
namespace {

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value && *value ? value : nullptr;
}

std::optional<int> number(const char* name) {
  const char* text = variable(name);
  if (!text) return std::nullopt;
  int value = 0;
  const char* end = text + std::strlen(text);
  if (const auto read = std::from_chars(text, end, value); read.ec != std::errc() || read.ptr != end || value < 0)
    fail(ErrorKind::usage, fmt::format("{} is no number from 0", name), fmt::format("'{}'", text),
         "it comes from what started the processes");
  return value;
}

// Of processes that are numbered by these variables; nothing if the first two are not set.
std::optional<RankPlace> numbered(Starter starter, const char* rank, const char* size, const char* local_rank,
                                  const char* local_size) {
  const auto r = number(rank), n = number(size);
  if (!r && !n) return std::nullopt;
  if (!r || !n)
    fail(ErrorKind::usage, fmt::format("{} is set and {} is not", r ? rank : size, r ? size : rank), {},
         "set both, on every process, or neither");
  if (*n < 1 || *r >= *n)
    fail(ErrorKind::usage, "the rank is not below the number of processes", fmt::format("{} {}, {} {}", rank, *r, size, *n),
         "ranks count from 0");
  RankPlace place;
  place.starter = starter;
  place.rank = *r, place.size = *n;
  place.local_size = number(local_size).value_or(0);
  place.local_rank = number(local_rank).value_or(*r);
  return place;
}

bool loopback(const std::string& address) { return address == "localhost" || address.starts_with("127.") || address == "::1"; }

void find_meeting_place(RankPlace& place) {
  if (const char* address = variable("MASTER_ADDR")) place.address = address;
  if (const char* token = variable("WEFT_TOKEN")) place.token = token;
  if (place.rank == 0) place.listener = number("WEFT_RANK_LISTENER").value_or(-1);
  if (place.starter == Starter::mpirun) return;
  const auto port = number("MASTER_PORT");
  if (port) place.port = *port;
  const char* agent = variable("TORCHELASTIC_USE_AGENT_STORE");
  if (agent && std::strcmp(agent, "True") == 0) ++place.port;
  if (place.starter == Starter::slurm) {
    constexpr int kFirst = 20000, kPorts = 20000;
    if (!port) place.port = kFirst + (31 * number("SLURM_JOB_ID").value_or(0) + number("SLURM_STEP_ID").value_or(0)) % kPorts;
    if (!variable("MASTER_ADDR") && number("SLURM_NNODES").value_or(1) > 1)
      fail(ErrorKind::usage, "the ranks are on several hosts, and MASTER_ADDR is not set",
           fmt::format("SLURM_NNODES {}", *number("SLURM_NNODES")),
           "export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)");
  }
  if (place.size > 1 && (place.port < 1 || place.port > 65535))
    fail(ErrorKind::usage, "there are several ranks, and no port at which they can meet",
         fmt::format("WORLD_SIZE {}, MASTER_PORT {}", place.size, port ? std::to_string(*port) : "not set"),
         "set MASTER_PORT to a free port, the same on every rank");
  if (place.size > 1 && place.token.empty() && !loopback(place.address))
    fail(ErrorKind::usage, "the ranks meet on a network, and there is no token that keeps others out",
         fmt::format("MASTER_ADDR {}", place.address),
         "set WEFT_TOKEN to the same random word on every rank: export WEFT_TOKEN=$(openssl rand -hex 16)");
}

}  // namespace

std::optional<RankPlace> rank_place() {
  const auto mpi = numbered(Starter::mpirun, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
                            "OMPI_COMM_WORLD_LOCAL_SIZE");
  auto place = numbered(Starter::variables, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE");
  if (mpi && place && (mpi->rank != place->rank || mpi->size != place->size))
    fail(ErrorKind::usage, "mpirun and RANK, WORLD_SIZE say different things",
         fmt::format("{} of {} against {} of {}", mpi->rank, mpi->size, place->rank, place->size), "unset RANK and WORLD_SIZE");
  if (mpi) place = mpi;
  // A shell in an allocation is one task, and no rank.
  if (!place && number("SLURM_STEP_NUM_TASKS").value_or(1) > 1)
    place = numbered(Starter::slurm, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE");
  if (place) find_meeting_place(*place);
  return place;
}

}  // namespace weft
