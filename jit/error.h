// The one exception type. An error has four parts: what went wrong, the numbers, where, and what to do.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

enum class ErrorKind { usage, training, device, io };

// Exit code of the weft program for each kind: training 1, usage 2, device 3, input/output 4.
int exit_code(ErrorKind kind);

struct ErrorParts {
  std::string what;     // "matmul: inner dimensions differ"
  std::string numbers;  // "a (8, 512), b (256, 4): 512 against 256"
  std::string where;    // "at FILE:LINE", then a line for each frame outward: "in layers.3, called at FILE:LINE"
  std::string hint;     // "transpose b, or check the layer's width"
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, ErrorParts parts);
  ErrorKind kind() const { return kind_; }
  const ErrorParts& parts() const { return parts_; }

 private:
  ErrorKind kind_;
  ErrorParts parts_;
};

[[noreturn]] void fail(ErrorKind kind, std::string what, std::string numbers = {}, std::string hint = {});

// "; did you mean 'X'?" for the closest of `known` to `word`, or "" if nothing is close.
std::string suggestion(std::string_view word, const std::vector<std::string>& known);
// A usage error, "WHAT 'word'; did you mean 'X'?", with the hint to use one of `known`.
[[noreturn]] void fail_unknown(std::string_view what, std::string_view word, const std::vector<std::string>& known);

}  // namespace weft
