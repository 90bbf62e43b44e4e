#include "jit/error.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace weft {
namespace {

std::string message(const ErrorParts& parts) {
  std::string text = parts.what;
  if (!parts.numbers.empty()) text += ": " + parts.numbers;
  for (std::size_t begin = 0; begin < parts.where.size();) {
    std::size_t end = std::min(parts.where.find('\n', begin), parts.where.size());
    text += "\n  " + parts.where.substr(begin, end - begin);
    begin = end + 1;
  }
  if (!parts.hint.empty()) text += "\n  hint: " + parts.hint;
  return text;
}

// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`; three rows of the table at a time.
int edit_distance(std::string_view a, std::string_view b) {
  std::vector<int> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 0; i < a.size(); ++i) {
    before.swap(last), last.swap(row);
    row[0] = int(i) + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      row[j + 1] = std::min({last[j] + (a[i] != b[j]), last[j + 1] + 1, row[j] + 1});
      if (i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j]) row[j + 1] = std::min(row[j + 1], before[j - 1] + 1);
    }
  }
  return row.back();
}

}  // namespace

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::training:
      return 1;
    case ErrorKind::usage:
      return 2;
    case ErrorKind::device:
      return 3;
    case ErrorKind::io:
      return 4;
  }
  return 1;
}

Error::Error(ErrorKind kind, ErrorParts parts) : std::runtime_error(message(parts)), kind_(kind), parts_(std::move(parts)) {}

void fail(ErrorKind kind, std::string what, std::string numbers, std::string hint) {
  throw Error(kind, {std::move(what), std::move(numbers), {}, std::move(hint)});
}

std::string suggestion(std::string_view word, const std::vector<std::string>& known) {
  int best = int(std::max<std::size_t>(word.size(), 3) / 3) + 1;  // farther than a third of the word is another word
  const std::string* closest = nullptr;
  for (const std::string& candidate : known) {
    if (int distance = edit_distance(word, candidate); distance < best) best = distance, closest = &candidate;
  }
  return closest ? "; did you mean '" + *closest + "'?" : "";
}

void fail_unknown(std::string_view what, std::string_view word, const std::vector<std::string>& known) {
  std::string list;
  for (const std::string& k : known) list += (list.empty() ? "" : ", ") + k;
  fail(ErrorKind::usage, std::string(what) + " '" + std::string(word) + "'" + suggestion(word, known), {}, "use " + list);
}

}  // namespace weft
