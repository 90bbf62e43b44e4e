#include "nn/npy.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <bit>
#include <charconv>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "jit/error.h"
#include "jit/file.h"

namespace weft {

static_assert(std::endian::native == std::endian::little, "files are little-endian and are read as they lie");

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kNpyMagic = "\x93NUMPY";
constexpr std::size_t kMostNpyHeader = 1 << 16;  // of an array that is no table of fields
constexpr std::array<std::pair<std::string_view, DType>, 5> kNpyTypes{
    {{"<f4", DType::f32}, {"<f8", DType::f64}, {"<i4", DType::i32}, {"<i8", DType::i64}, {"|b1", DType::boolean}}};

[[noreturn]] void refuse_npy(const fs::path& file, const std::string& what, const std::string& numbers = {}) {
  fail(ErrorKind::io, fmt::format("{}: {}", file.string(), what), numbers);
}

// The header, a dictionary in Python's words: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
class NpyHeader {
 public:
  NpyHeader(const fs::path& file, std::string_view text) : file_(file), text_(text) {
    const std::string_view type = after("descr");
    if (type.empty() || type.front() != '\'') refuse("the type of its elements is no simple one");
    const std::string_view name = type.substr(1, type.find('\'', 1) - 1);
    for (const auto& [known, dtype] : kNpyTypes)
      if (known == name) result.dtype = dtype, found_ = true;
    if (!found_)
      refuse_npy(file_, "a type that weft does not read", fmt::format("'{}'; it reads <f4, <f8, <i4, <i8, |b1", name));
    read_shape(after("shape"));
    if (after("fortran_order").starts_with("True") && result.shape.size() > 1)
      refuse_npy(file_, "the array lies in the order of Fortran", dims_text(result.shape));
  }
  HostTensor result;

 private:
  [[noreturn]] void refuse(const std::string& what) const { refuse_npy(file_, "not an .npy file: " + what); }

  std::string_view after(std::string_view key) const {
    const std::size_t at = text_.find(fmt::format("'{}':", key));
    if (at == text_.npos) refuse(fmt::format("its header has no '{}'", key));
    const std::string_view rest = text_.substr(at + key.size() + 3);
    return rest.substr(std::min(rest.find_first_not_of(' '), rest.size()));
  }

  void read_shape(std::string_view text) {
    const std::size_t end = text.find(')');
    if (text.empty() || text.front() != '(' || end == text.npos) refuse("its shape is no tuple");
    text = text.substr(1, end - 1);
    while (!(text = text.substr(std::min(text.find_first_not_of(" ,"), text.size()))).empty()) {
      std::int64_t size = 0;
      const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), size);
      if (error != std::errc() || size < 0) refuse(fmt::format("its shape has '{}'", text));
      result.shape.push_back(size);
      text.remove_prefix(std::size_t(rest - text.data()));
    }
  }

  fs::path file_;
  std::string_view text_;
  bool found_ = false;
};

}  // namespace

HostTensor read_npy(const fs::path& file) {
  FileReader reader(file);
  const auto fill = [&](std::span<std::byte> bytes) {
    if (reader.read(bytes) < bytes.size())
      refuse_npy(file, "truncated inside its header", fmt::format("{} bytes", reader.size()));
  };
  std::array<unsigned char, 8> begin{};
  const std::size_t got = reader.read(std::as_writable_bytes(std::span(begin)));
  if (got < begin.size() || std::memcmp(begin.data(), kNpyMagic.data(), kNpyMagic.size()) != 0) {
    refuse_foreign(file.string(), std::string_view(reinterpret_cast<const char*>(begin.data()), got), "an .npy file");
    refuse_npy(file, "not an .npy file", fmt::format("{} bytes, which do not begin with \\x93NUMPY", reader.size()));
  }
  const int version = begin[6];
  if (version < 1 || version > 3)
    refuse_npy(file, "a version of .npy that is unknown", fmt::format("{}.{}", begin[6], begin[7]));
  std::array<unsigned char, 4> length{};
  fill(std::as_writable_bytes(std::span(length)).first(version == 1 ? 2 : 4));
  const std::size_t size =
      length[0] | std::size_t(length[1]) << 8 | std::size_t(length[2]) << 16 | std::size_t(length[3]) << 24;
  if (size > kMostNpyHeader)
    refuse_npy(file, "its header is too large", fmt::format("{} bytes, limit {}", size, kMostNpyHeader));
  std::string text(size, ' ');
  fill(std::as_writable_bytes(std::span(text)));
  HostTensor tensor = std::move(NpyHeader(file, text).result);
  const std::size_t there = reader.size() - (begin.size() + (version == 1 ? 2 : 4) + size);
  std::int64_t elements = 0;
  try {
    elements = tensor.numel();
  } catch (const Error&) {
    refuse_npy(file, "its shape is beyond any memory", dims_text(tensor.shape));
  }
  if (elements > std::int64_t(there / size_of(tensor.dtype)) || std::size_t(elements) * size_of(tensor.dtype) != there)
    refuse_npy(file, std::size_t(elements) > there / size_of(tensor.dtype) ? "truncated" : "bytes follow the array",
               fmt::format("{} of {} need {} bytes, there are {}", name_of(tensor.dtype), dims_text(tensor.shape),
                           std::size_t(elements) * size_of(tensor.dtype), there));
  tensor.bytes.resize(there);
  fill(tensor.bytes);
  return tensor;
}

void write_npy(const fs::path& file, const HostTensor& tensor) {
  std::string_view type;
  for (const auto& [name, dtype] : kNpyTypes)
    if (dtype == tensor.dtype) type = name;
  if (type.empty()) fail(ErrorKind::usage, "npy: NumPy has no such type", std::string(name_of(tensor.dtype)), "cast it to f32");
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", type,
                                   fmt::join(tensor.shape, ", "), tensor.shape.size() == 1 ? "," : "");
  constexpr std::size_t kBefore = 10, kAlign = 64;  // magic, version and length of the header; where the data begin
  header.append(kAlign - (kBefore + header.size() + 1) % kAlign, ' ');
  header += '\n';
  std::string bytes(kNpyMagic);
  for (const std::size_t byte : {std::size_t(1), std::size_t(0), header.size() & 255, header.size() >> 8}) bytes += char(byte);
  bytes += header;
  bytes.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
  write_file(file, std::as_bytes(std::span(bytes)));
}

}  // namespace weft
