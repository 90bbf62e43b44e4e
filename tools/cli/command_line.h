// The weft program: reads the command line and calls a subcommand.
#pragma once

namespace weft {

// Exit codes: 0 ok, 1 training (or verification) failed, 2 usage, 3 device, 4 input or output, 130 and 143 stopped by SIGINT
// and SIGTERM. What went wrong is on stderr.
int run_program(int argc, char** argv);

}  // namespace weft
