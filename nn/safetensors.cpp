#include "nn/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "jit/convert.h"
#include "jit/error.h"
#include "jit/file.h"
#include "jit/json.h"

namespace weft {

static_assert(std::endian::native == std::endian::little, "the format is little-endian and is read as it lies");

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// The format's dtypes. Those without a weft dtype are checked as the others are and refused when read.
struct Format {
  std::string_view name;
  int bits;
  std::optional<DType> dtype;
};
constexpr std::array<Format, 21> kFormats{{
    {"F64", 64, DType::f64},          {"F32", 32, DType::f32},      {"BF16", 16, DType::bf16},    {"I64", 64, DType::i64},
    {"I32", 32, DType::i32},          {"BOOL", 8, DType::boolean},  {"F16", 16, DType::f32},      {"I16", 16, std::nullopt},
    {"I8", 8, std::nullopt},          {"U64", 64, std::nullopt},    {"U32", 32, std::nullopt},    {"U16", 16, std::nullopt},
    {"U8", 8, std::nullopt},          {"C64", 64, std::nullopt},    {"F8_E4M3", 8, std::nullopt}, {"F8_E5M2", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},     {"F6_E2M3", 6, std::nullopt}, {"F6_E3M2", 6, std::nullopt}, {"F4", 4, std::nullopt},
    {"F8_E4M3FNUZ", 8, std::nullopt},
}};

std::string_view format_name(DType dtype) {
  for (const Format& format : kFormats)
    if (format.dtype == dtype) return format.name;
  return "?";
}

float widen_f16(std::uint16_t h) {
  std::uint32_t sign = std::uint32_t(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 0x3ffu;
  if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(float(fraction) * 0x1p-24f));
  std::uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

// One tensor of a header. begin and end count from the end of the header.
struct Entry {
  std::string name;
  const Format* format;
  std::vector<std::int64_t> shape;
  std::uint64_t begin, end;
};

// A file with its header read and checked.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const fs::path& file) : name_(file.string()), file_(file) {
    refuse_others();
    std::uint64_t length = 0;
    if (file_.size() < sizeof length) refuse("too short for a header", fmt::format("{} bytes", file_.size()));
    fill(std::as_writable_bytes(std::span(&length, 1)));
    if (length > kMaxJsonBytes) refuse("header too large", fmt::format("{} bytes, limit {}", length, kMaxJsonBytes));
    data_ = sizeof length + length;
    if (data_ > file_.size())
      refuse("truncated inside the header", fmt::format("header of {} bytes, file of {}", length, file_.size()));
    std::string header(length, ' ');
    fill(std::as_writable_bytes(std::span(header)));
    if (header.empty() || header.front() != '{') refuse("the header does not begin with {");
    parse(parse_json(header, name_ + " (header)"));
    check_offsets();
  }

  const std::vector<Entry>& entries() const { return entries_; }  // in the order of their data
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  HostTensor describe(const Entry& entry) const {  // without its bytes
    if (!entry.format->dtype)
      refuse("dtype not supported", fmt::format("tensor {} is {}", entry.name, entry.format->name),
             "convert the file to F32 or BF16");
    return {*entry.format->dtype, entry.shape, {}};
  }

  HostTensor read(const Entry& entry) {
    HostTensor tensor = describe(entry);
    tensor.bytes.resize(entry.end - entry.begin);
    file_.seek(data_ + entry.begin);
    fill(tensor.bytes);
    if (entry.format->name == "F16") {
      std::vector<std::byte> halves(tensor.bytes.size() * 2);
      halves.swap(tensor.bytes);
      for (std::size_t i = 0; i < halves.size() / 2; ++i) {
        std::uint16_t half;
        std::memcpy(&half, halves.data() + 2 * i, 2);
        float value = widen_f16(half);
        std::memcpy(tensor.bytes.data() + 4 * i, &value, 4);
      }
    }
    if (tensor.dtype == DType::boolean) normalise_booleans(tensor.bytes);
    return tensor;
  }

  [[noreturn]] void refuse(std::string_view rule, std::string numbers = {}, std::string hint = {}) const {
    fail(ErrorKind::io, fmt::format("{}: {}", name_, rule), std::move(numbers), std::move(hint));
  }

 private:
  // The length of a header is never eight characters of a text.
  void refuse_others() {
    std::string begin(kForeignBytes, '\0');
    begin.resize(file_.read(std::as_writable_bytes(std::span(begin))));
    if (file_.size() > 0) file_.seek(0);              // what is no regular file is too short
    if (begin.size() > 8 && begin[8] == '{') return;  // whatever the length before it looks like
    refuse_foreign(name_, begin, "a safetensors file");
    const auto printable = std::find_if(begin.begin(), begin.end(), [](char c) { return c < ' ' || c > '~'; });
    if (printable - begin.begin() >= 8)
      refuse("not a safetensors file",
             fmt::format("it is a text: \"{}\"", begin.substr(0, 60).substr(0, std::size_t(printable - begin.begin()))));
  }

  void fill(std::span<std::byte> bytes) {
    if (file_.read(bytes) != bytes.size()) refuse("truncated while it was read");
  }

  void parse(const json& header) {
    for (const auto& [name, value] : header.items()) {
      if (name != "__metadata__") {
        entries_.push_back(parse_entry(name, value));
        continue;
      }
      if (value.is_null()) continue;  // as if there were none, to the format's own reader too
      if (!value.is_object()) refuse("__metadata__ is not an object");
      for (const auto& [key, text] : value.items()) {
        if (!text.is_string()) refuse("__metadata__ holds a value that is not a string", key);
        metadata_[key] = text.get<std::string>();
      }
    }
  }

  Entry parse_entry(const std::string& name, const json& value) const {
    auto wrong = [&](std::string_view rule) { refuse(rule, "tensor " + name); };
    auto list = [&](const char* key) {
      if (!value.is_object() || !value.contains(key) || !value[key].is_array()) wrong(fmt::format("no list {}", key));
      std::vector<std::uint64_t> numbers;
      for (const json& number : value[key]) {
        if (!number.is_number_unsigned()) wrong(fmt::format("{} holds what is not an unsigned 64-bit integer", key));
        numbers.push_back(number.get<std::uint64_t>());
      }
      return numbers;
    };
    auto shape = list("shape"), offsets = list("data_offsets");
    if (!value.contains("dtype") || !value["dtype"].is_string()) wrong("no dtype");
    auto dtype = value["dtype"].get<std::string>();
    auto format = std::find_if(kFormats.begin(), kFormats.end(), [&](const Format& f) { return f.name == dtype; });
    if (format == kFormats.end()) refuse("unknown dtype", fmt::format("tensor {} has dtype {}", name, dtype));
    if (offsets.size() != 2) wrong("data_offsets is not a pair");
    Entry entry{name, format, {}, offsets[0], offsets[1]};
    std::uint64_t bits = std::uint64_t(format->bits);
    for (std::uint64_t dim : shape) {
      if (dim > std::uint64_t(std::numeric_limits<std::int64_t>::max()) || __builtin_mul_overflow(bits, dim, &bits))
        wrong("shape too large");
      entry.shape.push_back(std::int64_t(dim));
    }
    if (bits % 8) wrong("its values do not fill whole bytes");
    if (entry.begin > entry.end || entry.end > file_.size() - data_)
      refuse("data_offsets out of range",
             fmt::format("tensor {}: [{}, {}] of {} bytes", name, entry.begin, entry.end, file_.size() - data_),
             "the file may be truncated");
    if (entry.end - entry.begin != bits / 8)
      refuse("size is not shape x dtype",
             fmt::format("tensor {}: {} bytes for {} {}", name, entry.end - entry.begin, dtype, dims_text(entry.shape)));
    return entry;
  }

  // The data of all tensors follow one another from the header to the end of the file.
  void check_offsets() {
    std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
      return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
    });
    std::uint64_t at = 0;
    for (const Entry& entry : entries_) {
      if (entry.begin != at)
        refuse(entry.begin < at ? "tensors overlap" : "gap between tensors",
               fmt::format("tensor {} begins at {}, the data before it end at {}", entry.name, entry.begin, at));
      at = entry.end;
    }
    if (at != file_.size() - data_)
      refuse("bytes after the last tensor", fmt::format("tensors end at {} of {}", at, file_.size() - data_));
  }

  std::string name_;
  FileReader file_;
  std::uint64_t data_ = 0;
  std::vector<Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

constexpr const char *kSingle = "model.safetensors", *kIndex = "model.safetensors.index.json";

// Files that a folder has instead of what is read, and what is to be done about each.
struct OtherFile {
  std::string_view ending, hint;
};
constexpr OtherFile kOthers[] = {
    {"adapter_model.safetensors",
     "holds an adapter, which changes a model that lies elsewhere; merge_and_unload() of peft, then save_pretrained"},
    {"adapter_model.bin",
     "holds an adapter, which changes a model that lies elsewhere; merge_and_unload() of peft, then save_pretrained"},
    {".bin", "is a pickle, which weft does not run; save the model with save_pretrained of transformers"},
    {".bin.index.json", "lists pickles, which weft does not run; save the model with save_pretrained of transformers"},
    {".pt", "is a pickle, which weft does not run; save the model with save_pretrained of transformers"},
    {".pth", "is a pickle, which weft does not run; save the model with save_pretrained of transformers"},
    {".gguf", "is a file of llama.cpp; give the folder that it was converted from"},
    {".h5", "is a file of TensorFlow; save the model with save_pretrained of transformers"},
    {".msgpack", "is a file of Flax; save the model with save_pretrained of transformers"},
    {".safetensors", "has another name than the model's file; rename it if it holds the whole model"},
};

[[noreturn]] void fail_no_model(const fs::path& folder) {
  std::error_code error;
  std::set<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) names.insert(entry.path().filename().string());
  std::string hint;
  for (const OtherFile& other : kOthers)
    for (const std::string& name : names)
      if (hint.empty() && name.ends_with(other.ending)) hint = fmt::format("{} {}", name, other.hint);
  fail(ErrorKind::io, "no model in " + folder.string(),
       fs::is_directory(folder) ? fmt::format("neither {} nor {}", kSingle, kIndex) : "no such folder", hint);
}

// Shard names are names of files in the folder itself.
void check_shard_name(const fs::path& index, const std::string& shard) {
  if (shard.empty() || shard == "." || shard == ".." || shard.find_first_of(std::string_view("/\\\0", 3)) != shard.npos)
    fail(ErrorKind::io, index.string() + ": a shard must be a file name without folders", "\"" + shard + "\"");
}

using ReadEntry = HostTensor (*)(SafetensorsReader&, const Entry&);
HostTensor read_entry(SafetensorsReader& reader, const Entry& entry) { return reader.read(entry); }
HostTensor describe_entry(SafetensorsReader& reader, const Entry& entry) { return reader.describe(entry); }

TensorMap read_file(const fs::path& file, std::map<std::string, std::string>* metadata, const TensorFilter& wanted,
                    ReadEntry read) {
  SafetensorsReader reader(file);
  if (metadata) *metadata = reader.metadata();
  TensorMap tensors;
  for (const Entry& entry : reader.entries())
    if (!wanted || wanted(entry.name)) tensors.emplace(entry.name, read(reader, entry));
  return tensors;
}

TensorMap read_folder(const fs::path& folder, const TensorFilter& wanted, ReadEntry read) {
  const fs::path single = folder / kSingle, index = folder / kIndex;
  if (fs::exists(single)) return read_file(single, nullptr, wanted, read);
  if (!fs::exists(index)) fail_no_model(folder);

  json root = read_json(index);
  if (!root.is_object() || !root.contains("weight_map") || !root["weight_map"].is_object())
    fail(ErrorKind::io, index.string() + ": no object weight_map");
  std::map<std::string, std::set<std::string>> shards;
  for (const auto& [name, shard] : root["weight_map"].items()) {
    if (!shard.is_string()) fail(ErrorKind::io, index.string() + ": a shard name is not a string", "tensor " + name);
    check_shard_name(index, shard.get<std::string>());
    shards[shard.get<std::string>()].insert(name);
  }

  for (const auto& [shard, names] : shards)  // before gigabytes are read
    if (!fs::exists(folder / shard))
      fail(ErrorKind::io, "missing shard " + (folder / shard).string(),
           fmt::format("{} lists it for {} tensors, such as {}", index.filename().string(), names.size(), *names.begin()));
  TensorMap tensors;
  std::map<std::string, std::string> read_from;  // the shard of each
  for (const auto& [shard, names] : shards) {
    SafetensorsReader reader(folder / shard);
    for (const Entry& entry : reader.entries()) {
      if (wanted && !wanted(entry.name)) continue;
      const auto [first, fresh] = read_from.emplace(entry.name, shard);
      const bool listed = names.contains(entry.name);
      if (!fresh && listed == shards.at(first->second).contains(entry.name))
        reader.refuse("a tensor is in two shards", fmt::format("{}, also in {}", entry.name, first->second));
      if (!fresh && !listed) continue;
      tensors.insert_or_assign(entry.name, read(reader, entry)), first->second = shard;
    }
  }
  return tensors;
}

}  // namespace

TensorMap read_safetensors(const fs::path& file, std::map<std::string, std::string>* metadata, const TensorFilter& wanted) {
  return read_file(file, metadata, wanted, read_entry);
}

TensorMap read_safetensors_folder(const fs::path& folder, const TensorFilter& wanted) {
  return read_folder(folder, wanted, read_entry);
}

TensorMap describe_safetensors_folder(const fs::path& folder) { return read_folder(folder, {}, describe_entry); }

void write_safetensors(const fs::path& file, const TensorMap& tensors, const std::map<std::string, std::string>& metadata) {
  std::vector<const TensorMap::value_type*> order;
  for (const auto& item : tensors) order.push_back(&item);
  std::stable_sort(order.begin(), order.end(),
                   [](auto* a, auto* b) { return size_of(a->second.dtype) > size_of(b->second.dtype); });

  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::size_t end = 0;
  for (const auto* item : order) {
    const auto& [name, tensor] = *item;
    if (name == "__metadata__") fail(ErrorKind::usage, "a tensor cannot be called __metadata__", file.string());
    if (tensor.bytes.size() != std::size_t(tensor.numel()) * size_of(tensor.dtype))
      fail(ErrorKind::usage, "tensor has not the bytes of its shape",
           fmt::format("{}: {} {}, {} bytes", name, name_of(tensor.dtype), dims_text(tensor.shape), tensor.bytes.size()));
    std::size_t begin = std::exchange(end, end + tensor.bytes.size());
    header[name] = {{"dtype", format_name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const json::exception&) {
    fail(ErrorKind::usage, "a tensor name or metadata is not UTF-8", file.string());
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::uint64_t length = text.size();
  if (length > kMaxJsonBytes) fail(ErrorKind::usage, file.string() + ": header too large", fmt::format("{} bytes", length));

  AtomicFile out(file);
  out.write(std::as_bytes(std::span(&length, 1)));
  out.write(std::as_bytes(std::span(text)));
  for (const auto* item : order) out.write(item->second.bytes);
  out.commit();
}

void write_safetensors_folder(const fs::path& folder, const TensorMap& tensors,
                              const std::map<std::string, std::string>& metadata, std::size_t shard_bytes) {
  std::vector<std::vector<std::string>> shards(1);
  std::size_t total = 0, in_shard = 0;
  for (const auto& [name, tensor] : tensors) {
    const std::size_t bytes = tensor.bytes.size();
    if (in_shard > 0 && in_shard + bytes > shard_bytes) shards.emplace_back(), in_shard = 0;
    shards.back().push_back(name);
    in_shard += bytes, total += bytes;
  }
  if (shards.size() == 1) {
    write_safetensors(folder / kSingle, tensors, metadata);
    fs::remove(folder / kIndex);
    return;
  }
  json map = json::object();
  for (std::size_t s = 0; s < shards.size(); ++s) {
    const std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, shards.size());
    TensorMap part;
    for (const std::string& name : shards[s]) part.emplace(name, tensors.at(name)), map[name] = file;
    write_safetensors(folder / file, part, metadata);
  }
  const std::string index = json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) + "\n";
  write_file(folder / kIndex, std::as_bytes(std::span(index)));
  fs::remove(folder / kSingle);
}

}  // namespace weft
