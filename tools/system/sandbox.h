// Running programs that nobody has read, such as those that a model has written.
//
// What it does: a program is run by Python in Linux namespaces of its own. It sees the machine's files read-only, and /tmp,
// /run and /dev as empty folders in memory, in the first of which, of 16 MiB, it works and which vanish with it; it has no
// network, sees and signals no other process, has no capabilities, and its environment is empty. It and all that it starts end
// after a time limit, and each process has limits of processor time, memory and file size.
//
// What it is not: a virtual machine. The program talks to the machine's own kernel, whose faults it may use; it may read every
// file that the user who runs weft may, though it can send none of it away; for a few seconds it may keep all processors busy
// and, with many processes, take much memory. Do not run programs in it that somebody has written to do harm.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace weft {

struct SandboxOptions {
  double seconds = 3;                             // from start to end
  std::size_t memory = std::size_t(1) << 30;      // bytes of address space of each process
  std::size_t file_bytes = std::size_t(4) << 20;  // of each file that it writes
  // Where the machine gives no namespaces: run it all the same, with the limits of time, memory and file size alone, in an
  // empty folder. It may then write and remove the user's files, and use the network.
  bool without_isolation = false;
  std::filesystem::path python = {};  // empty: python3 of /usr/bin or, failing that, of PATH
};

struct SandboxResult {
  enum End { passed, failed, timed_out } end = failed;
  std::string complaint;  // the last line on stderr, or how it ended; "" if it passed
  double seconds = 0;
};

// Why programs cannot be isolated here; nothing: they can.
std::optional<std::string> no_isolation();

// `program` passes if it comes to its end without an exception: one that leaves early, by exit(0) too, fails. Errors:
// ErrorKind::device if programs cannot be isolated and options do not say to do without; ErrorKind::io if there is no python3.
SandboxResult run_python(const std::string& program, const SandboxOptions& options = {});

}  // namespace weft
