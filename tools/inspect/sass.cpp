#include "tools/inspect/sass.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "jit/error.h"
#include "tools/system/process.h"

namespace weft {
namespace {

// ---- instructions -----------------------------------------------------------------------------------------------------------

struct Mnemonic {
  int opcode;  // low 9 bits of the first word; bits 9 to 11 tell where the operands are
  const char* name;
};
constexpr Mnemonic kMnemonics[] = {
    // as nvdisasm prints them for sm_80, sm_90a, sm_100 and sm_120
    {0x002, "MOV"},    {0x003, "P2R"},   {0x004, "R2P"},           {0x005, "CS2R"},     {0x007, "SEL"},     {0x008, "FSEL"},
    {0x009, "FMNMX"},  {0x00b, "FSETP"}, {0x00c, "ISETP"},         {0x010, "IADD3"},    {0x011, "LEA"},     {0x012, "LOP3"},
    {0x013, "IABS"},   {0x016, "PRMT"},  {0x017, "IMNMX"},         {0x019, "SHF"},      {0x01c, "PLOP3"},   {0x020, "FMUL"},
    {0x021, "FADD"},   {0x023, "FFMA"},  {0x024, "IMAD"},          {0x025, "IMAD"},     {0x027, "IMAD"},    {0x028, "DMUL"},
    {0x029, "DADD"},   {0x02a, "DSETP"}, {0x02b, "DFMA"},          {0x02d, "PREEXIT"},  {0x02e, "ACQBULK"}, {0x030, "HADD2"},
    {0x031, "HFMA2"},  {0x032, "HMUL2"}, {0x035, "IADD"},          {0x036, "VIADD"},    {0x03b, "LDSM"},    {0x03c, "HMMA"},
    {0x03e, "F2FP"},   {0x045, "I2FP"},  {0x046, "VIADDMNMX"},     {0x048, "VIMNMX"},   {0x049, "FFMA2"},   {0x05a, "UI2F"},
    {0x05c, "UF2I"},   {0x082, "UMOV"},  {0x085, "UIMNMX"},        {0x086, "VOTEU"},    {0x087, "USEL"},    {0x08c, "UISETP"},
    {0x090, "UIADD3"}, {0x091, "ULEA"},  {0x092, "ULOP3"},         {0x097, "UIADD3"},   {0x099, "USHF"},    {0x09c, "UPLOP3"},
    {0x0a4, "UIMAD"},  {0x0a5, "UIMAD"}, {0x0a6, "UIMAD"},         {0x0b9, "ULDC"},     {0x0ca, "R2UR"},    {0x102, "FCHK"},
    {0x105, "F2I"},    {0x106, "I2F"},   {0x108, "MUFU"},          {0x109, "POPC"},     {0x110, "F2F"},     {0x111, "F2I"},
    {0x118, "NOP"},    {0x119, "S2R"},   {0x11b, "ENDCOLLECTIVE"}, {0x11d, "BAR"},      {0x141, "BSYNC"},   {0x144, "CALL"},
    {0x145, "BSSY"},   {0x146, "YIELD"}, {0x147, "BRA"},           {0x148, "WARPSYNC"}, {0x14d, "EXIT"},    {0x150, "RET"},
    {0x180, "LD"},     {0x181, "LDG"},   {0x182, "LDC"},           {0x183, "LDL"},      {0x184, "LDS"},     {0x185, "ST"},
    {0x186, "STG"},    {0x187, "STL"},   {0x188, "STS"},           {0x189, "SHFL"},     {0x18c, "ATOMS"},   {0x1a1, "MATCH"},
    {0x1a6, "RED"},    {0x1a9, "ATOMG"}, {0x1ac, "LDCU"},          {0x1ae, "LDGSTS"},   {0x1c2, "R2UR"},    {0x1c3, "S2UR"},
    {0x1f0, "HGMMA"},
};

constexpr int kOpcodeBits = 0x1ff, kNop = 0x118, kBranch = 0x147;
constexpr std::int64_t kInstruction = 16;  // bytes

int opcode_of(std::uint64_t word) { return int(word & kOpcodeBits); }

// Of an instruction by its first word: "FFMA"; "0x1ff" if it is not known.
std::string mnemonic_of(std::uint64_t word) {
  constexpr std::uint64_t kFormBits = 0xfff, kHalfFma = 0x435;  // before sm_100, whose integer addition has this opcode
  if ((word & kFormBits) == kHalfFma) return "HFMA2";
  for (const Mnemonic& m : kMnemonics)
    if (m.opcode == opcode_of(word)) return m.name;
  return fmt::format("{:#05x}", opcode_of(word));
}

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
  const std::string name = mnemonic_of(word);
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

// ---- programs of the toolkit ------------------------------------------------------------------------------------------------

// The toolkit's programs are often installed beside PATH.
std::optional<std::filesystem::path> find_tool(std::string_view name) {
  std::vector<std::filesystem::path> folders;
  if (const char* home = std::getenv("CUDA_HOME")) folders.push_back(std::filesystem::path(home) / "bin");
  folders.emplace_back("/usr/local/cuda/bin");
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/usr/local", error))
    if (entry.path().filename().string().starts_with("cuda-")) folders.push_back(entry.path() / "bin");
  return find_program(name, folders);
}

}  // namespace

const SassLoop* SassKernel::hottest() const {
  const auto weight = [](const SassLoop& l) { return std::int64_t(l.counts.instructions) << std::min(2 * l.depth, 40); };
  const auto best =
      std::max_element(loops.begin(), loops.end(), [&](const SassLoop& a, const SassLoop& b) { return weight(a) < weight(b); });
  return best == loops.end() ? nullptr : &*best;
}

std::vector<SassKernel> read_sass(std::string_view cubin) {
  std::vector<SassKernel> out;
  for (CubinKernel& kernel : read_cubin(cubin)) {
    std::vector<std::uint64_t> words;  // the first of each instruction
    for (std::size_t at = 0; at + kInstruction <= kernel.code.size(); at += kInstruction)
      std::memcpy(&words.emplace_back(), kernel.code.data() + at, sizeof(std::uint64_t));
    SassKernel& sass = out.emplace_back(SassKernel{std::move(kernel)});
    for (const std::uint64_t word : words) count(sass.counts, word);
    find_loops(sass, words);
  }
  return out;
}

std::optional<std::string> disassemble(std::string_view cubin) {
  const auto nvdisasm = find_tool("nvdisasm"), cuobjdump = nvdisasm ? std::nullopt : find_tool("cuobjdump");
  if (!nvdisasm && !cuobjdump) return {};
  std::string name = (std::filesystem::temp_directory_path() / "weft_XXXXXX").string();
  const int file = mkstemp(name.data());
  if (file < 0) fail(ErrorKind::io, "no temporary file can be made", name, "check TMPDIR");
  close(file);
  std::ofstream(name, std::ios::binary) << cubin;
  const auto text = output_of(nvdisasm ? Process{.program = *nvdisasm, .arguments = {"-c", name}}
                                       : Process{.program = *cuobjdump, .arguments = {"-sass", name}});
  std::filesystem::remove(name);
  if (!text || text->empty()) return {};
  return text;
}

std::string_view disassembler_hint() {
  return "for the whole listing: pip install nvidia-cuda-nvdisasm, and put its nvdisasm on PATH; or CUDA's package "
         "cuda-nvdisasm";
}

}  // namespace weft
