// What the libraries of a process read from its environment when they are loaded.
#pragma once

namespace weft {

// The variables whose places were taken meanwhile (jit/start.cpp) are there again. Called by a constructor that comes before
// others of the program; who calls it too is linked with that.
void put_back_environment();

}  // namespace weft
