#include "tools/train/checksums.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <system_error>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/json.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kSeal = "checksum";

std::string hexadecimal(XXH128_hash_t hash) { return fmt::format("{:016x}{:016x}", hash.high64, hash.low64); }

struct Sum {
  std::uint64_t bytes = 0;
  std::string hash;
};

Sum sum_of(const fs::path& file) {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(), XXH3_freeState);
  XXH3_128bits_reset(state.get());
  FileReader reader(file);
  std::vector<std::byte> block(1 << 20);
  Sum sum;
  while (const std::size_t n = reader.read(block)) {
    XXH3_128bits_update(state.get(), block.data(), n);
    sum.bytes += n;
  }
  sum.hash = hexadecimal(XXH3_128bits_digest(state.get()));
  return sum;
}

std::string seal_of(json object) {
  object.erase(kSeal);
  const std::string text = object.dump();
  return hexadecimal(XXH3_128bits(text.data(), text.size()));
}

}  // namespace

json checksums_of(const fs::path& folder, const std::string& except) {
  json list = json::object();
  std::error_code error;
  fs::recursive_directory_iterator files(folder, error);
  if (error) fail_errno("cannot read " + folder.string(), error.value());
  for (const fs::directory_entry& entry : files) {
    const std::string name = entry.path().lexically_relative(folder).string();
    if (!entry.is_regular_file() || name == except) continue;
    const Sum sum = sum_of(entry.path());
    list[name] = {{"bytes", sum.bytes}, {"xxh3", sum.hash}};
  }
  return list;
}

std::vector<std::string> differences(const fs::path& folder, const json& checksums) {
  std::vector<std::string> lines;
  const std::string list = (folder / "state.json").string();
  for (const auto& [name, wanted] : checksums.items()) {
    if (!wanted.is_object() || !wanted.contains("bytes") || !wanted.contains("xxh3") || !wanted["xxh3"].is_string())
      fail(ErrorKind::io, list + ": damaged", fmt::format("the checksum of '{}' has another form", name));
    const auto bytes = integer_at<std::uint64_t>(wanted, "bytes", list);
    try {
      const fs::path inside = fs::path(name).lexically_normal();  // whoever wrote the list: not above or beside the folder
      const Sum sum = sum_of(folder / (inside.is_absolute() || *inside.begin() == ".." ? inside.filename() : inside));
      if (sum.bytes != bytes)
        lines.push_back(fmt::format("{}: {} bytes, {} were written", name, sum.bytes, bytes));
      else if (sum.hash != wanted.at("xxh3").get<std::string>())
        lines.push_back(fmt::format("{}: the bytes are not those that were written", name));
    } catch (const Error& e) {
      lines.push_back(fmt::format("{}: {}: {}", name, e.parts().what, e.parts().numbers));
    }
  }
  return lines;
}

void seal(json& object) { object[kSeal] = seal_of(object); }

bool has_seal(const json& object) { return object.is_object() && object.contains(kSeal); }

bool is_sealed(const json& object) { return has_seal(object) && object[kSeal] == seal_of(object); }

}  // namespace weft
