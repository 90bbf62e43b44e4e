#include "jit/cubin.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <map>
#include <utility>

#include "jit/error.h"

namespace weft {
namespace {

[[noreturn]] void not_a_cubin(std::string_view why) {
  fail(ErrorKind::io, "this is not a cubin", std::string(why), "compile the kernel again");
}

// ---- ELF64, little endian (the structs of elf.h, which not every system has) ------------------------------------------------

struct FileHeader {
  std::array<std::uint8_t, 16> ident;
  std::uint16_t type, machine;
  std::uint32_t version;
  std::uint64_t entry, program_headers, section_headers;
  std::uint32_t flags;
  std::uint16_t size, program_size, programs, section_size, sections, names;
};
struct SectionHeader {
  std::uint32_t name, type;
  std::uint64_t flags, address, offset, size;
  std::uint32_t link, info;
  std::uint64_t alignment, entry_size;
};
struct Symbol {
  std::uint32_t name;
  std::uint8_t info, other;
  std::uint16_t section;
  std::uint64_t value, size;
};
static_assert(sizeof(FileHeader) == 64 && sizeof(SectionHeader) == 64 && sizeof(Symbol) == 24);

constexpr std::uint32_t kSymbols = 2, kNoBits = 8;  // section types
constexpr std::uint16_t kMachineCuda = 190;

class Elf {
 public:
  explicit Elf(std::string_view bytes) : bytes_(bytes) {
    header_ = read<FileHeader>(0);
    const std::array<std::uint8_t, 6> magic{0x7f, 'E', 'L', 'F', 2, 1};  // 64 bits, little endian
    if (!std::equal(magic.begin(), magic.end(), header_.ident.begin())) not_a_cubin("no ELF header");
    if (header_.machine != kMachineCuda) not_a_cubin("an ELF file, but not of CUDA");
    for (std::uint16_t i = 0; i < header_.sections; ++i)
      sections_.push_back(read<SectionHeader>(header_.section_headers + i * sizeof(SectionHeader)));
    if (header_.names >= sections_.size()) not_a_cubin("no section names");
  }

  template <class T>
  T read(std::uint64_t offset) const {
    std::array<char, sizeof(T)> raw{};
    bytes(offset, sizeof(T)).copy(raw.data(), sizeof(T));
    return std::bit_cast<T>(raw);
  }
  std::string_view bytes(std::uint64_t offset, std::uint64_t size) const {
    if (offset > bytes_.size() || size > bytes_.size() - offset) not_a_cubin("it ends early");
    return bytes_.substr(offset, size);
  }
  std::string_view text(const SectionHeader& strings, std::uint32_t at) const {
    const std::string_view all = contents(strings);
    if (at >= all.size()) not_a_cubin("a name is missing");
    return all.substr(at, all.find('\0', at) - at);
  }
  std::string_view contents(const SectionHeader& s) const {
    return s.type == kNoBits ? std::string_view() : bytes(s.offset, s.size);
  }
  std::string_view name(const SectionHeader& s) const { return text(sections_[header_.names], s.name); }
  const std::vector<SectionHeader>& sections() const { return sections_; }
  // 80, 90, ...; from CUDA 13 on (version 8 of the format) it stands in the second byte of the flags.
  int architecture() const { return int(header_.ident[8] >= 8 ? header_.flags >> 8 & 0xff : header_.flags & 0xff); }

 private:
  std::string_view bytes_;
  FileHeader header_;
  std::vector<SectionHeader> sections_;
};

// Section .nv.info: entries (format, attribute, 16-bit value or length of what follows).
void read_info(const Elf& elf, std::string_view info, std::string_view symbols, const SectionHeader& names,
               std::map<std::string, CubinKernel>& kernels) {
  constexpr std::uint8_t kSized = 4, kFrameSize = 0x11, kRegisters = 0x2f;
  const auto u32_at = [&](std::size_t at) {
    std::uint32_t value = 0;
    std::memcpy(&value, info.data() + at, sizeof value);
    return value;
  };
  for (std::size_t at = 0; at + 4 <= info.size();) {
    const auto format = std::uint8_t(info[at]), attribute = std::uint8_t(info[at + 1]);
    const std::size_t length = format == kSized ? u32_at(at) >> 16 : 0, begin = at + 4;
    at = begin + length;
    if ((attribute != kRegisters && attribute != kFrameSize) || length < 8 || at > info.size()) continue;
    const std::size_t symbol_at = u32_at(begin) * sizeof(Symbol);  // of (symbol, value)
    if (symbol_at + sizeof(Symbol) > symbols.size()) not_a_cubin("an attribute without its symbol");
    Symbol symbol;
    std::memcpy(&symbol, symbols.data() + symbol_at, sizeof symbol);
    const auto kernel = kernels.find(std::string(elf.text(names, symbol.name)));
    if (kernel == kernels.end()) continue;
    (attribute == kRegisters ? kernel->second.registers : kernel->second.stack_bytes) = int(u32_at(begin + 4));
  }
}

}  // namespace

std::uint64_t largest_section(std::string_view cubin, std::string_view prefix) {
  const Elf elf(cubin);
  std::uint64_t largest = 0;
  for (const SectionHeader& s : elf.sections())
    if (elf.name(s).starts_with(prefix)) largest = std::max(largest, s.size);
  return largest;
}

std::vector<CubinKernel> read_cubin(std::string_view cubin) {
  const Elf elf(cubin);
  constexpr std::string_view kText = ".text.", kShared = ".nv.shared.";
  std::map<std::string, CubinKernel> kernels;
  for (const SectionHeader& s : elf.sections()) {
    if (!elf.name(s).starts_with(kText)) continue;
    const std::string name(elf.name(s).substr(kText.size()));
    kernels.emplace(name, CubinKernel{.name = name, .architecture = elf.architecture(), .code = elf.contents(s)});
  }
  for (const SectionHeader& s : elf.sections()) {
    if (elf.name(s).starts_with(kShared))
      if (const auto k = kernels.find(std::string(elf.name(s).substr(kShared.size()))); k != kernels.end())
        k->second.shared_bytes = int(s.size);
    if (elf.name(s) != ".nv.info") continue;
    for (const SectionHeader& symbols : elf.sections())
      if (symbols.type == kSymbols && symbols.link < elf.sections().size())
        read_info(elf, elf.contents(s), elf.contents(symbols), elf.sections()[symbols.link], kernels);
  }
  std::vector<CubinKernel> out;
  for (auto& [name, kernel] : kernels) out.push_back(std::move(kernel));
  return out;
}

}  // namespace weft
