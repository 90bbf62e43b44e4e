// Starting the processes of several ranks on this machine.
#pragma once

#include <string>
#include <vector>

namespace weft {

// Runs the program `count` times with these words (the first is its name), each with RANK, WORLD_SIZE, LOCAL_RANK, a token and
// a place to meet, and waits for all. SIGINT, SIGTERM and SIGHUP are passed on to them. When one fails the others, which hear
// of it themselves, are killed if they have not ended soon. Returns 0, or the exit code of the first that failed; 3 if a signal
// ended it.
int launch_ranks(int count, const std::vector<std::string>& words);

// The same, each with a GPU. Errors (ErrorKind::device): there is none, or there are fewer.
int launch_on_gpus(int count, const std::vector<std::string>& words);

}  // namespace weft
