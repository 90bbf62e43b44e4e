#include "tools/train/choices.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <span>

#include "autograd/run.h"
#include "jit/error.h"
#include "jit/file.h"
#include "jit/gpu.h"
#include "jit/json.h"
#include "jit/print.h"

namespace weft {
namespace {

using Algorithm = GemmChoices::mapped_type;

std::string to_text(const Algorithm& algorithm) {
  std::string text;
  for (const std::uint64_t word : algorithm) text += fmt::format("{:016x}", word);
  return text;
}

bool from_text(std::string_view text, Algorithm& algorithm) {
  constexpr std::size_t kDigits = 16;
  if (text.size() != kDigits * algorithm.size()) return false;
  for (std::size_t i = 0; i < algorithm.size(); ++i) {
    const char* const begin = text.data() + kDigits * i;
    const auto [end, error] = std::from_chars(begin, begin + kDigits, algorithm[i], 16);
    if (error != std::errc() || end != begin + kDigits) return false;
  }
  return true;
}

bool has_gpu() { return device() == Device::cuda; }  // the emulated one has no library

}  // namespace

void write_choices(const Choices& choices, const std::filesystem::path& file) {
  nlohmann::json products = nlohmann::json::object();
  for (const auto& [product, algorithm] : choices.gemms) products[product] = to_text(algorithm);
  const std::string text =
      nlohmann::json{{"device", choices.device}, {"cublas_lt", choices.cublas_lt}, {"products", std::move(products)}}.dump(1) +
      "\n";
  AtomicFile out(file);
  out.write(std::as_bytes(std::span(text)));
  out.commit();
}

Choices read_choices(const std::filesystem::path& file) {
  Choices choices;
  try {
    const nlohmann::json parsed = read_json(file);
    parsed.at("device").get_to(choices.device);
    parsed.at("cublas_lt").get_to(choices.cublas_lt);
    for (const auto& [product, text] : parsed.at("products").items())
      if (!from_text(text.get<std::string>(), choices.gemms[product]))
        fail(ErrorKind::io, "choices: no algorithm", product, "delete " + file.string());
  } catch (const nlohmann::json::exception& e) {
    fail(ErrorKind::io, "choices: not a file of choices: " + file.string(), reason_of(e),
         "delete it: products are then chosen anew");
  }
  return choices;
}

void save_choices(const std::filesystem::path& file) {
  if (has_gpu()) write_choices({Gpu::of(Device::cuda).name(), gemm_library_version(), gemm_choices()}, file);
}

void load_choices(const std::filesystem::path& file) {
  if (!has_gpu() || !std::filesystem::exists(file)) return;
  const Choices kept = read_choices(file);
  const std::string& here = Gpu::of(Device::cuda).name();
  const std::size_t version = gemm_library_version();
  if (kept.device == here && kept.cublas_lt == version) return use_gemm_choices(kept.gemms);
  print_error("weft: {} was made on {} with cuBLASLt {}, this is {} with {}: products are chosen anew, so bits may differ\n",
              file.string(), kept.device, kept.cublas_lt, here, version);
}

}  // namespace weft
