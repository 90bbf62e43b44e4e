// The order in which the mixers of a model read what they are given ("variable-aware scan"). Permuting features together with
// the weights changes no function: in a diagonal state-space model features meet in the projections alone. So such an order
// cannot make a model better or worse; it can only change where its numbers lie.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "models/language_model.h"

namespace weft {

enum class ScanMode {
  channels,       // of the width features of the residual stream, h' = h[order]; the weights go with them: the same function
  channels_keep,  // likewise, but before each mixer, and back after it, with weights that stay: another function
  tokens,         // of positions: before each mixer, and back after it. Not causal: what stands early may read what stands late
};
std::string_view name_of(ScanMode mode);    // "channels", "channels-keep", "tokens"
ScanMode scan_mode(std::string_view name);  // errors (ErrorKind::usage): there is none of that name
const std::vector<std::string>& scan_mode_names();

struct ScanPatch {
  ScanMode mode = ScanMode::channels;
  std::vector<std::int64_t> order, inverse;  // inverse[order[i]] = i
};

// Errors (ErrorKind::io), of `name`: entries that are no permutation of [0, n), with the first two that are wrong; none at all.
void check_permutation(const std::vector<std::int64_t>& order, std::string_view name = "the order");
std::vector<std::int64_t> inverse_of(const std::vector<std::int64_t>& order);

// The order of the first `length` places that an order of n tokens gives: with fewer the entries below `length` as they follow
// one another, with more those after the n-th as they are.
std::vector<std::int64_t> token_order(const std::vector<std::int64_t>& order, std::int64_t length);

// All mixers of the model, from now on, for all its copies. Channels: `order` has the width of the model. It permutes the
// parameters, between steps; masks and adapters too. Tokens: any length; a line on stderr says what it does to perplexity; a
// model so patched takes no caches, no packed documents and no carried states. Errors: ErrorKind::usage for a family without
// such mixers, a model that is patched already, gradients that no optimizer has consumed; ErrorKind::io for another length or
// no permutation. On an error nothing has changed.
void apply_scan_patch(LanguageModel& model, const std::vector<std::int64_t>& order, ScanMode mode = ScanMode::channels);
// As it was before, to the bit. Errors (ErrorKind::usage): it is not patched; pending gradients.
void remove_scan_patch(LanguageModel& model);
bool is_scan_patched(const LanguageModel& model);

struct PermutationInfo {
  ScanMode mode = ScanMode::channels;
  std::int64_t length = 0;
  std::vector<std::int64_t> first;  // at most ten entries
  std::int64_t mixers = 0;          // patched: all that the model has
};
PermutationInfo get_permutation_info(const LanguageModel& model);  // errors (ErrorKind::usage): it is not patched
std::string to_text(const PermutationInfo& info);                  // "order of 256 channels in 4 mixers: 0 17 3 ..."

// ---- with what belongs to the parameters ------------------------------------------------------------------------------------

// The moments of an optimizer's state dict ("m.NAME", "v.NAME") permuted as the patch of the model has permuted its parameters,
// or back.
enum class ScanDirection { forth, back };
void permute_moments(const LanguageModel& model, TensorMap& state, ScanDirection direction);

// With the moments, so that training goes on as it would without.
template <class Optimizer>
void apply_scan_patch(LanguageModel& model, const std::vector<std::int64_t>& order, ScanMode mode, Optimizer& optimizer) {
  TensorMap state = optimizer.state_dict();
  apply_scan_patch(model, order, mode);
  permute_moments(model, state, ScanDirection::forth);
  optimizer.load_state_dict(state);
}
template <class Optimizer>
void remove_scan_patch(LanguageModel& model, Optimizer& optimizer) {
  TensorMap state = optimizer.state_dict();
  if (is_scan_patched(model)) permute_moments(model, state, ScanDirection::back);
  remove_scan_patch(model);
  optimizer.load_state_dict(state);
}

// ---- files ------------------------------------------------------------------------------------------------------------------

// A model's folder says in scan_patch.json how it is patched; its weights are saved as they lie. LanguageModel::save and load,
// and checkpoints, write and read it.
inline constexpr const char* kScanPatchFile = "scan_patch.json";
void save_scan_patch(const LanguageModel& model, const std::filesystem::path& folder);  // of one without a patch: removes it
// Of a model whose weights are those of the folder. Errors (ErrorKind::io): a damaged file, an order that is not the model's.
void load_scan_patch(LanguageModel& model, const std::filesystem::path& folder);

// An order of an .npy file, of integers (n). Errors (ErrorKind::io): as read_npy and check_permutation.
std::vector<std::int64_t> read_scan_order(const std::filesystem::path& file);
void write_scan_order(const std::filesystem::path& file, const std::vector<std::int64_t>& order);

}  // namespace weft
