#include "models/scan_patch.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>
#include <utility>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/json.h"
#include "jit/print.h"
#include "nn/npy.h"

namespace weft {

struct ScanPatches {
  static void set(LanguageModel& model, std::shared_ptr<const ScanPatch> patch) { *model.scan_patch_ = std::move(patch); }
};

namespace {

using Permutation = std::vector<std::int64_t>;

StreamLayout layout_of(const LanguageModel& model) {
  StreamLayout layout = model.stream_layout();
  if (layout.mixers.empty())
    fail(ErrorKind::usage, "scan order: this family has no mixers that take one", model.description(),
         "take a Mamba or Mamba-2");
  return layout;
}

// out[.., j, ..] = in[.., order[j], ..]
std::vector<std::byte> permuted(std::span<const std::byte> in, std::span<const std::int64_t> shape, int axis,
                                const Permutation& order) {
  std::size_t rows = 1, block = in.size();
  for (int a = 0; a < axis; ++a) rows *= std::size_t(shape[std::size_t(a)]);
  block /= rows * order.size();
  std::vector<std::byte> out(in.size());
  std::byte* to = out.data();
  for (std::size_t r = 0; r < rows; ++r)
    for (const std::int64_t from : order) {
      std::memcpy(to, in.data() + (r * order.size() + std::size_t(from)) * block, block);
      to += block;
    }
  return out;
}

// The order of what `axis` holds when `patch` is applied to it, or taken back; null: it stays.
const Permutation* order_for(const ScanPatch& patch, const StreamLayout::Axis& axis, ScanDirection direction) {
  const bool forth = direction == ScanDirection::forth;
  if (patch.mode == ScanMode::channels) return forth ? &patch.order : &patch.inverse;
  // A feature that is read at place j of the order meets the weight of j, so the weight goes where the feature is.
  if (patch.mode == ScanMode::channels_keep && axis.mixers) return forth ? &patch.inverse : &patch.order;
  return nullptr;
}

void check_gradients(const StreamLayout& layout) {
  for (const StreamLayout::Axis& axis : layout.axes)
    if (axis.param.has_gradient())
      fail(ErrorKind::usage, "scan order: gradients are pending, which would stay in the old order", axis.param.name(),
           "opt.step() or zero_grad() first");
}

void permute_parameters(const StreamLayout& layout, const ScanPatch& patch, ScanDirection direction) {
  for (const StreamLayout::Axis& axis : layout.axes)
    if (const Permutation* order = order_for(patch, axis, direction)) {
      State state = axis.param;
      state.set_bytes(permuted(state.bytes(), state.shape().dims(), axis.axis, *order).data());
    }
}

void check_length(const LanguageModel& model, const StreamLayout& layout, std::size_t length, ScanMode mode) {
  if (mode != ScanMode::tokens && std::int64_t(length) != layout.width)
    fail(ErrorKind::io, "scan order: the order has another length than the model has channels",
         fmt::format("{} entries, the width is {} ({})", length, layout.width, model.description()),
         "compute it from hidden states of this model; an order of tokens takes mode tokens");
}

const ScanPatch& patch_of(const LanguageModel& model) {
  if (!model.scan_patch()) fail(ErrorKind::usage, "scan order: the model is not patched", model.description());
  return *model.scan_patch();
}

}  // namespace

const std::vector<std::string>& scan_mode_names() {
  static const std::vector<std::string> names = {"channels", "channels-keep", "tokens"};
  return names;
}

std::string_view name_of(ScanMode mode) { return scan_mode_names()[std::size_t(mode)]; }

ScanMode scan_mode(std::string_view name) {
  const std::vector<std::string>& names = scan_mode_names();
  const auto found = std::ranges::find(names, name);
  if (found != names.end()) return ScanMode(found - names.begin());
  fail_unknown("scan order: there is no mode", name, names);
}

void check_permutation(const Permutation& order, std::string_view name) {
  if (order.empty()) fail(ErrorKind::io, fmt::format("{} is empty", name));
  const std::int64_t n = std::int64_t(order.size());
  std::vector<std::int64_t> place(order.size(), -1);
  std::string wrong;
  int count = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t entry = order[std::size_t(i)];
    std::string one;
    if (entry < 0 || entry >= n)
      one = fmt::format("entry {} is {}", i, entry);
    else if (std::int64_t& at = place[std::size_t(entry)]; at >= 0)
      one = fmt::format("{} stands at {} and at {}", entry, at, i);
    else
      at = i;
    if (!one.empty() && ++count <= 2) wrong += (wrong.empty() ? "" : ", ") + one;
  }
  if (count > 0)
    fail(ErrorKind::io, fmt::format("{} is no permutation of 0 to {}", name, n - 1),
         fmt::format("{}{}", wrong, count > 2 ? fmt::format(", and {} more", count - 2) : ""));
}

Permutation inverse_of(const Permutation& order) {
  Permutation inverse(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) inverse[std::size_t(order[i])] = std::int64_t(i);
  return inverse;
}

Permutation token_order(const Permutation& order, std::int64_t length) {
  Permutation places;
  for (const std::int64_t place : order)
    if (place < length) places.push_back(place);
  for (std::int64_t place = std::int64_t(order.size()); place < length; ++place) places.push_back(place);
  return places;
}

void apply_scan_patch(LanguageModel& model, const Permutation& order, ScanMode mode) {
  const StreamLayout layout = layout_of(model);
  if (is_scan_patched(model))
    fail(ErrorKind::usage, "scan order: the model is patched already", to_text(get_permutation_info(model)),
         "remove_scan_patch(model) first (weft scan-order remove)");
  check_length(model, layout, order.size(), mode);
  check_permutation(order);
  auto patch = std::make_shared<const ScanPatch>(ScanPatch{mode, order, inverse_of(order)});
  if (mode == ScanMode::tokens) {
    print_error(
        "warning: in an order of tokens a place may read what stands after it: the model is no causal language model any "
        "more, and its perplexity says nothing about predicting text\n");
  } else {
    check_gradients(layout);
    permute_parameters(layout, *patch, ScanDirection::forth);
  }
  ScanPatches::set(model, std::move(patch));
}

void remove_scan_patch(LanguageModel& model) {
  const ScanPatch& patch = patch_of(model);
  if (patch.mode != ScanMode::tokens) {
    const StreamLayout layout = layout_of(model);
    check_gradients(layout);
    permute_parameters(layout, patch, ScanDirection::back);
  }
  ScanPatches::set(model, nullptr);
}

bool is_scan_patched(const LanguageModel& model) { return model.scan_patch() != nullptr; }

PermutationInfo get_permutation_info(const LanguageModel& model) {
  const ScanPatch& patch = patch_of(model);
  const auto shown = std::ptrdiff_t(std::min<std::size_t>(patch.order.size(), 10));
  return {patch.mode,
          std::int64_t(patch.order.size()),
          {patch.order.begin(), patch.order.begin() + shown},
          std::int64_t(layout_of(model).mixers.size())};
}

std::string to_text(const PermutationInfo& info) {
  return fmt::format("order of {} {} in {} mixers: {}{}{}", info.length, info.mode == ScanMode::tokens ? "tokens" : "channels",
                     info.mixers, fmt::join(info.first, " "), std::int64_t(info.first.size()) < info.length ? " ..." : "",
                     info.mode == ScanMode::channels_keep ? "; the weights stay, which changes the model" : "");
}

void permute_moments(const LanguageModel& model, TensorMap& state, ScanDirection direction) {
  const ScanPatch& patch = patch_of(model);
  for (const StreamLayout::Axis& axis : layout_of(model).axes)
    if (const Permutation* order = order_for(patch, axis, direction))
      for (const char* moment : {"m.", "v."})
        if (const auto found = state.find(moment + axis.param.name()); found != state.end())
          found->second.bytes = permuted(found->second.bytes, axis.param.shape().dims(), axis.axis, *order);
}

// ---- files ------------------------------------------------------------------------------------------------------------------

void save_scan_patch(const LanguageModel& model, const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / kScanPatchFile;
  if (!model.scan_patch()) {
    std::filesystem::remove(file);
    return;
  }
  const nlohmann::json content = {{"mode", name_of(model.scan_patch()->mode)}, {"order", model.scan_patch()->order}};
  const std::string text = content.dump() + "\n";
  write_file(file, std::as_bytes(std::span(text)));
}

void load_scan_patch(LanguageModel& model, const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / kScanPatchFile;
  if (!std::filesystem::exists(file)) return;
  const nlohmann::json content = read_json(file);
  auto patch = std::make_shared<ScanPatch>();
  try {
    patch->mode = scan_mode(content.at("mode").get<std::string>());
    patch->order = content.at("order").get<Permutation>();
  } catch (const nlohmann::json::exception& e) {
    fail(ErrorKind::io, file.string() + ": not an order", reason_of(e));
  } catch (const Error& e) {
    fail(ErrorKind::io, file.string() + ": not an order", e.parts().what);
  }
  check_permutation(patch->order, file.string());
  check_length(model, layout_of(model), patch->order.size(), patch->mode);
  patch->inverse = inverse_of(patch->order);
  ScanPatches::set(model, std::move(patch));
}

Permutation read_scan_order(const std::filesystem::path& file) {
  const HostTensor tensor = read_npy(file);
  if (!is_integer(tensor.dtype) || tensor.shape.size() != 1)
    fail(ErrorKind::io, file.string() + ": not an order, which is a row of integers",
         fmt::format("{} {}", name_of(tensor.dtype), dims_text(tensor.shape)));
  Permutation order = tensor.values<std::int64_t>();
  check_permutation(order, file.string());
  return order;
}

void write_scan_order(const std::filesystem::path& file, const Permutation& order) {
  write_npy(file, HostTensor::from<std::int64_t>(DType::i64, {std::int64_t(order.size())}, order));
}

}  // namespace weft
