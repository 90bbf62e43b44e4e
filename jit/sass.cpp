#include "jit/sass.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
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

// ---- instructions -----------------------------------------------------------------------------------------------------------

struct Mnemonic {
  int opcode;  // low 9 bits of the first word; bits 9 to 11 tell where the operands are
  const char* name;
};
constexpr Mnemonic kMnemonics[] = {
    // as nvdisasm prints them for sm_80, sm_90a, sm_100 and sm_120
    {0x002, "MOV"},           {0x003, "P2R"},      {0x004, "R2P"},   {0x005, "CS2R"},   {0x007, "SEL"},    {0x008, "FSEL"},
    {0x009, "FMNMX"},         {0x00b, "FSETP"},    {0x00c, "ISETP"}, {0x010, "IADD3"},  {0x011, "LEA"},    {0x012, "LOP3"},
    {0x013, "IABS"},          {0x016, "PRMT"},     {0x017, "IMNMX"}, {0x019, "SHF"},    {0x01c, "PLOP3"},  {0x020, "FMUL"},
    {0x021, "FADD"},          {0x023, "FFMA"},     {0x024, "IMAD"},  {0x025, "IMAD"},   {0x027, "IMAD"},   {0x028, "DMUL"},
    {0x029, "DADD"},          {0x02a, "DSETP"},    {0x02b, "DFMA"},  {0x030, "HADD2"},  {0x031, "HFMA2"},  {0x032, "HMUL2"},
    {0x035, "IADD"},          {0x036, "VIADD"},    {0x03b, "LDSM"},  {0x03c, "HMMA"},   {0x03e, "F2FP"},   {0x045, "I2FP"},
    {0x046, "VIADDMNMX"},     {0x048, "VIMNMX"},   {0x049, "FFMA2"}, {0x05a, "UI2F"},   {0x05c, "UF2I"},   {0x082, "UMOV"},
    {0x085, "UIMNMX"},        {0x086, "VOTEU"},    {0x087, "USEL"},  {0x08c, "UISETP"}, {0x090, "UIADD3"}, {0x091, "ULEA"},
    {0x092, "ULOP3"},         {0x097, "UIADD3"},   {0x099, "USHF"},  {0x09c, "UPLOP3"}, {0x0a4, "UIMAD"},  {0x0a5, "UIMAD"},
    {0x0a6, "UIMAD"},         {0x0b9, "ULDC"},     {0x0ca, "R2UR"},  {0x102, "FCHK"},   {0x105, "F2I"},    {0x106, "I2F"},
    {0x108, "MUFU"},          {0x109, "POPC"},     {0x110, "F2F"},   {0x111, "F2I"},    {0x118, "NOP"},    {0x119, "S2R"},
    {0x11b, "ENDCOLLECTIVE"}, {0x11d, "BAR"},      {0x141, "BSYNC"}, {0x144, "CALL"},   {0x145, "BSSY"},   {0x146, "YIELD"},
    {0x147, "BRA"},           {0x148, "WARPSYNC"}, {0x14d, "EXIT"},  {0x150, "RET"},    {0x180, "LD"},     {0x181, "LDG"},
    {0x182, "LDC"},           {0x183, "LDL"},      {0x184, "LDS"},   {0x185, "ST"},     {0x186, "STG"},    {0x187, "STL"},
    {0x188, "STS"},           {0x189, "SHFL"},     {0x18c, "ATOMS"}, {0x1a1, "MATCH"},  {0x1a6, "RED"},    {0x1a9, "ATOMG"},
    {0x1ac, "LDCU"},          {0x1ae, "LDGSTS"},   {0x1c2, "R2UR"},  {0x1c3, "S2UR"},   {0x1f0, "HGMMA"},
};

constexpr int kOpcodeBits = 0x1ff, kNop = 0x118, kBranch = 0x147;
constexpr std::int64_t kInstruction = 16;  // bytes

int opcode_of(std::uint64_t word) { return int(word & kOpcodeBits); }

// Bytes from the next instruction to the target. sm_80 keeps bytes in bits 32 and up; from sm_90 on there are words of 4 bytes,
// the low 8 bits at bit 16, the rest from bit 34 on.
std::int64_t branch_offset(std::uint64_t word, int architecture) {
  const auto high = std::int64_t(word);
  return architecture < 90 ? high >> 32 : 4 * (((high >> 34) * 256) + std::int64_t(word >> 16 & 0xff));
}

bool is_any(const std::string& name, std::initializer_list<std::string_view> of) {
  return std::find(of.begin(), of.end(), name) != of.end();
}

void count(SassCounts& c, std::uint64_t word) {
  if (opcode_of(word) == kNop) return;
  const std::string name = sass_mnemonic(word);
  ++c.instructions, ++c.histogram[name];
  c.mufu += name == "MUFU";
  c.fma += is_any(name, {"FFMA", "DFMA", "FFMA2"});
  c.tensor += is_any(name, {"HMMA", "HGMMA"});
  c.loads += is_any(name, {"LDG", "LD", "LDGSTS"});
  c.stores += is_any(name, {"STG", "ST", "RED", "ATOMG"});
  c.shared += is_any(name, {"LDS", "STS", "LDSM", "ATOMS"});
  c.local += is_any(name, {"LDL", "STL"});
}

void find_loops(SassKernel& kernel, const std::vector<std::uint64_t>& words) {
  const auto size = std::int64_t(words.size()) * kInstruction;
  for (std::int64_t at = 0; at < size; at += kInstruction) {
    const std::uint64_t word = words[std::size_t(at / kInstruction)];
    if (opcode_of(word) != kBranch) continue;
    const std::int64_t target = at + kInstruction + branch_offset(word, kernel.architecture);
    // A branch to itself ends every kernel.
    if (target < 0 || target >= at || target % kInstruction != 0) continue;
    SassLoop loop{.begin = target, .end = at + kInstruction};
    for (std::int64_t i = target; i < loop.end; i += kInstruction) count(loop.counts, words[std::size_t(i / kInstruction)]);
    kernel.loops.push_back(std::move(loop));
  }
  // Two branches to the same begin (a continue) are one loop.
  std::sort(kernel.loops.begin(), kernel.loops.end(),
            [](const SassLoop& a, const SassLoop& b) { return std::pair(a.begin, -a.end) < std::pair(b.begin, -b.end); });
  const auto same = [](const SassLoop& a, const SassLoop& b) { return a.begin == b.begin; };
  kernel.loops.erase(std::unique(kernel.loops.begin(), kernel.loops.end(), same), kernel.loops.end());
  for (SassLoop& inner : kernel.loops)
    for (const SassLoop& outer : kernel.loops)
      if (&outer != &inner && outer.begin < inner.begin && inner.end <= outer.end) ++inner.depth;
}

// Section .nv.info: entries (format, attribute, 16-bit value or length of what follows).
void read_info(const Elf& elf, std::string_view info, std::string_view symbols, const SectionHeader& names,
               std::map<std::string, SassKernel>& kernels) {
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

// ---- programs of the toolkit ------------------------------------------------------------------------------------------------

std::string shell_quoted(const std::filesystem::path& p) {
  std::string out = "'";
  for (const char c : p.string()) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::optional<std::filesystem::path> find_program(std::string_view name) {
  std::vector<std::filesystem::path> folders;
  const char* path = std::getenv("PATH");
  for (std::string_view rest = path ? path : ""; !rest.empty();) {
    const auto end = std::min(rest.find(':'), rest.size());
    if (end > 0) folders.emplace_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  if (const char* home = std::getenv("CUDA_HOME")) folders.push_back(std::filesystem::path(home) / "bin");
  folders.emplace_back("/usr/local/cuda/bin");
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/usr/local", error))
    if (entry.path().filename().string().starts_with("cuda-")) folders.push_back(entry.path() / "bin");
  for (const auto& folder : folders)
    if (access((folder / name).c_str(), X_OK) == 0) return folder / name;
  return {};
}

std::string output_of(const std::string& command) {
  struct Close {
    void operator()(FILE* f) const { pclose(f); }
  };
  const std::unique_ptr<FILE, Close> pipe(popen(command.c_str(), "r"));
  std::string out;
  std::array<char, 4096> buffer;
  if (pipe)
    while (const std::size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe.get())) out.append(buffer.data(), n);
  return out;
}

}  // namespace

std::string sass_mnemonic(std::uint64_t word) {
  constexpr std::uint64_t kFormBits = 0xfff, kHalfFma = 0x435;  // before sm_100, whose integer addition has this opcode
  if ((word & kFormBits) == kHalfFma) return "HFMA2";
  for (const Mnemonic& m : kMnemonics)
    if (m.opcode == opcode_of(word)) return m.name;
  return fmt::format("{:#05x}", opcode_of(word));
}

const SassLoop* SassKernel::hottest() const {
  const auto weight = [](const SassLoop& l) { return std::int64_t(l.counts.instructions) << std::min(2 * l.depth, 40); };
  const auto best =
      std::max_element(loops.begin(), loops.end(), [&](const SassLoop& a, const SassLoop& b) { return weight(a) < weight(b); });
  return best == loops.end() ? nullptr : &*best;
}

std::uint64_t largest_section(std::string_view cubin, std::string_view prefix) {
  const Elf elf(cubin);
  std::uint64_t largest = 0;
  for (const SectionHeader& s : elf.sections())
    if (elf.name(s).starts_with(prefix)) largest = std::max(largest, s.size);
  return largest;
}

std::vector<SassKernel> read_cubin(std::string_view cubin) {
  const Elf elf(cubin);
  constexpr std::string_view kText = ".text.", kShared = ".nv.shared.";
  std::map<std::string, SassKernel> kernels;
  for (const SectionHeader& s : elf.sections()) {
    if (!elf.name(s).starts_with(kText)) continue;
    SassKernel kernel{.name = std::string(elf.name(s).substr(kText.size())), .architecture = elf.architecture()};
    std::vector<std::uint64_t> words;
    for (std::uint64_t at = 0; at + kInstruction <= s.size; at += kInstruction)
      words.push_back(elf.read<std::uint64_t>(s.offset + at));
    for (const std::uint64_t word : words) count(kernel.counts, word);
    find_loops(kernel, words);
    kernels.emplace(kernel.name, std::move(kernel));
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
  std::vector<SassKernel> out;
  for (auto& [name, kernel] : kernels) out.push_back(std::move(kernel));
  return out;
}

std::optional<std::string> disassemble(std::string_view cubin) {
  const auto nvdisasm = find_program("nvdisasm"), cuobjdump = nvdisasm ? std::nullopt : find_program("cuobjdump");
  if (!nvdisasm && !cuobjdump) return {};
  std::string name = (std::filesystem::temp_directory_path() / "weft_XXXXXX").string();
  const int file = mkstemp(name.data());
  if (file < 0) fail(ErrorKind::io, "no temporary file can be made", name, "check TMPDIR");
  close(file);
  std::ofstream(name, std::ios::binary) << cubin;
  std::string text = output_of(nvdisasm ? fmt::format("{} -c {}", shell_quoted(*nvdisasm), shell_quoted(name))
                                        : fmt::format("{} -sass {}", shell_quoted(*cuobjdump), shell_quoted(name)));
  std::filesystem::remove(name);
  if (text.empty()) return {};
  return text;
}

std::string_view disassembler_hint() {
  return "for the whole listing: pip install nvidia-cuda-nvdisasm, and put its nvdisasm on PATH; or CUDA's package "
         "cuda-nvdisasm";
}

}  // namespace weft
