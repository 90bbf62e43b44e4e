// The safetensors format (github.com/huggingface/safetensors): reader, sharded reader and writer. Every rule of the format is
// checked; a file that breaks one is refused with an error that names the file, the tensor and the rule.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/host_tensor.h"

namespace weft {

using TensorFilter = std::function<bool(std::string_view name)>;  // which tensors to read; empty: all

// Reads one file. F16 tensors are widened to f32 (exactly); other dtypes that weft lacks (U8, F8_E4M3, ...) are refused
// unless `wanted` leaves the tensor out. Memory use: the tensors once. Errors (ErrorKind::io): missing, truncated,
// header too large or not JSON, duplicate names, unknown dtype, offsets out of range, overlapping or with gaps, size
// not shape x dtype.
TensorMap read_safetensors(const std::filesystem::path& file, std::map<std::string, std::string>* metadata = nullptr,
                           const TensorFilter& wanted = {});

// Reads FOLDER/model.safetensors, or all that is in the shards listed in FOLDER/model.safetensors.index.json. As in
// transformers the index only names the shards: it may list a tied tensor that was not saved, and a shard may hold more than it
// lists. (A model that lacks a tensor, or has no use for one, says so when it loads them.) Errors (ErrorKind::io): no such
// files, with what lies there instead, a shard that is missing, a tensor in two shards.
TensorMap read_safetensors_folder(const std::filesystem::path& folder, const TensorFilter& wanted = {});

// What it would read, as its headers say: tensors without bytes.
TensorMap describe_safetensors_folder(const std::filesystem::path& folder);

// Writes `file` atomically (a temporary name in the same folder, synced, renamed). The header has the names in sorted
// order; the data start 8-aligned and lie by falling element size, so each tensor is aligned for its dtype. On any
// error (a full disk) the previous file is untouched and the temporary one removed; only when the folder cannot be synced, at
// the end, has it been replaced.
void write_safetensors(const std::filesystem::path& file, const TensorMap& tensors,
                       const std::map<std::string, std::string>& metadata = {});

// Writes FOLDER/model.safetensors or, where the tensors have more than `shard_bytes`, shards of at most that size (a larger
// tensor is alone in one) and then their index. What the folder had in the other form is removed at the end.
inline constexpr std::size_t kShardBytes = 5'000'000'000;
void write_safetensors_folder(const std::filesystem::path& folder, const TensorMap& tensors,
                              const std::map<std::string, std::string>& metadata = {}, std::size_t shard_bytes = kShardBytes);

}  // namespace weft
