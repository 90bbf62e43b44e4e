// choices.json: what was chosen by timing, kept in a run's folder so that the run goes on with it.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

#include "jit/gemm_cuda.h"

namespace weft {

struct Choices {
  std::string device;         // "NVIDIA H200"
  std::size_t cublas_lt = 0;  // version: 120804 is 12.8.4
  GemmChoices gemms;
};

// Errors (ErrorKind::io): the file cannot be written, or is not one of these.
void write_choices(const Choices& choices, const std::filesystem::path& file);
Choices read_choices(const std::filesystem::path& file);

// Writes the choices of this process; without a GPU in use, nothing.
void save_choices(const std::filesystem::path& file);
// To be called before the first plan of a resumed run. Does nothing without the file or without a GPU in use; choices for
// another kind of device or version of cuBLASLt are ignored, with a line on stderr.
void load_choices(const std::filesystem::path& file);

}  // namespace weft
