// The .npy format of NumPy (numpy.lib.format): one array in a file.
#pragma once

#include <filesystem>

#include "autograd/host_tensor.h"

namespace weft {

// Versions 1 to 3, little-endian, in the order of C: float32, float64, int32, int64, bool. Errors (ErrorKind::io): missing, not
// such a file, another type or order, bytes missing or left over.
HostTensor read_npy(const std::filesystem::path& file);

// Version 1, atomically (write_file). The types are those that read_npy takes.
void write_npy(const std::filesystem::path& file, const HostTensor& tensor);

}  // namespace weft
