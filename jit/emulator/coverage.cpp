#include "jit/emulator/coverage.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "jit/print.h"

namespace weft::emulator {
namespace {

// NAME__0123ab
bool is_generated(const std::string& name) {
  const auto end = name.rfind("__");
  return end != std::string::npos && name.size() == end + 8 &&
         name.find_first_not_of("0123456789abcdef", end + 2) == std::string::npos;
}

struct BasicBlock {
  int line = 0;  // of the PTX
  bool executed = false;
  std::string opcodes;  // separated by spaces
};

class Coverage {
 public:
  ~Coverage() { write(); }

  void add(const Program& program) {
    const std::lock_guard lock(mutex_);
    blocks(program);
  }

  void add(const Program& program, const std::vector<Executed>& executed) {
    const std::lock_guard lock(mutex_);
    std::vector<BasicBlock>& all = blocks(program);
    const std::vector<std::uint32_t> first = basic_blocks(program);
    for (std::size_t b = 0; b < all.size(); ++b) all[b].executed |= executed[first[b]].warps > 0;
  }

 private:
  std::vector<BasicBlock>& blocks(const Program& program) {
    auto [at, is_new] = kernels_.try_emplace(program.name);
    if (!is_new) return at->second;
    const std::vector<std::uint32_t> first = basic_blocks(program);
    for (std::size_t b = 0; b < first.size(); ++b) {
      const std::size_t end = b + 1 < first.size() ? first[b + 1] : program.instructions.size();
      BasicBlock block{program.instructions[first[b]].source->line, false, {}};
      for (std::size_t k = first[b]; k < end; ++k)
        if (const Instruction& i = program.instructions[k]; i.kind != EmulatedCounters::classes && i.source->line > 0)
          block.opcodes += (block.opcodes.empty() ? "" : " ") + i.source->opcode;
      at->second.push_back(std::move(block));
    }
    return at->second;
  }

  // A line a block: kernel, line of the PTX, whether it has run, its opcodes.
  void write() const {
    if (kernels_.empty()) return;
    const std::string path = fmt::format("{}/{}.tsv", std::getenv("WEFT_EMU_COVERAGE"), getpid());
    std::FILE* file = std::fopen(path.c_str(), "w");
    if (!file) return print_error("WEFT_EMU_COVERAGE: cannot write {}\n", path);
    for (const auto& [name, blocks] : kernels_)
      for (const BasicBlock& b : blocks) fmt::print(file, "{}\t{}\t{}\t{}\n", name, b.line, int(b.executed), b.opcodes);
    std::fclose(file);
  }

  std::mutex mutex_;
  std::map<std::string, std::vector<BasicBlock>> kernels_;
};

// Null if nobody wants to know.
Coverage* coverage(const Program& program) {
  static const char* folder = std::getenv("WEFT_EMU_COVERAGE");
  if (!folder || !*folder || !is_generated(program.name)) return nullptr;
  static Coverage coverage;
  return &coverage;
}

}  // namespace

std::vector<std::uint32_t> basic_blocks(const Program& program) {
  std::set<std::uint32_t> first{0};
  const auto& all = program.instructions;
  for (std::size_t k = 0; k < all.size(); ++k) {
    const Instruction& i = all[k];
    if (i.kind != EmulatedCounters::branch) continue;
    first.insert(std::uint32_t(k + 1));
    const std::string_view word = i.source->words[0];
    if (word == "bra" || word == "call") first.insert(i.target);
    if (word == "brx") first.insert(&program.lists[i.list], &program.lists[i.list] + i.count);
  }
  // The return behind the last instruction is not in the text; nor is there code behind it.
  std::vector<std::uint32_t> blocks;
  for (const std::uint32_t k : first)
    if (k < all.size() && all[k].source->line > 0) blocks.push_back(k);
  return blocks;
}

void cover_loaded(const Program& program) {
  if (Coverage* c = coverage(program)) c->add(program);
}
void cover_executed(const Program& program, const std::vector<Executed>& executed) {
  if (Coverage* c = coverage(program)) c->add(program, executed);
}

}  // namespace weft::emulator
