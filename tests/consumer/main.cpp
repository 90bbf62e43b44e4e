#include "jit/error.h"
#include "nn/layers.h"

#if __has_include(<weft/weft.h>)
#include <weft/weft.h>
#endif
#include <weft/jit/expr.h>
#include <weft/nn/safetensors.h>

#include <cstdio>

int round_trip(const char* file);  // other.cpp

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    weft::read_safetensors("absent.safetensors");
    return 1;
  } catch (const weft::Error& error) {
    if (weft::exit_code(error.kind()) != 4) return 1;
  }
  if (round_trip(argv[1]) != 0) return 1;
  if (OwnLayer().width + own_error() != 8) return 1;
  std::puts("consumer works");
  return 0;
}
