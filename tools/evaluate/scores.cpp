#include "tools/evaluate/scores.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "jit/error.h"

namespace weft {
namespace {

char lower_of(char c) { return c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c; }
bool is_punctuation(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}
bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Words are what stands between characters for which `between` holds.
template <class Between>
std::vector<std::string> words_between(std::string_view text, Between between) {
  std::vector<std::string> words;
  bool inside = false;
  for (const char c : text) {
    if (between(c)) {
      inside = false;
      continue;
    }
    if (!std::exchange(inside, true)) words.emplace_back();
    words.back() += lower_of(c);
  }
  return words;
}

Overlap overlap_of(double common, double made, double reference) {
  const double p = made > 0 ? common / made : 0, r = reference > 0 ? common / reference : 0;
  return {p, r, p + r > 0 ? 2 * p * r / (p + r) : 0};
}

using Counts = std::map<std::vector<std::string>, std::int64_t>;

Counts grams_of(const std::vector<std::string>& words, std::size_t n) {
  Counts counts;
  for (std::size_t i = 0; i + n <= words.size(); ++i)
    ++counts[{words.begin() + std::ptrdiff_t(i), words.begin() + std::ptrdiff_t(i + n)}];
  return counts;
}

Overlap common_grams(const std::vector<std::string>& made, const std::vector<std::string>& reference, std::size_t n) {
  const Counts a = grams_of(made, n), b = grams_of(reference, n);
  std::int64_t common = 0, in_a = 0, in_b = 0;
  for (const auto& [gram, count] : a) {
    in_a += count;
    if (const auto found = b.find(gram); found != b.end()) common += std::min(count, found->second);
  }
  for (const auto& [gram, count] : b) in_b += count;
  return overlap_of(double(common), double(in_a), double(in_b));
}

std::vector<std::string> answer_words(std::string_view text) {
  std::string plain;
  for (const char c : text)
    if (!is_punctuation(c)) plain += c;
  std::vector<std::string> words = words_between(plain, is_blank);
  std::erase_if(words, [](const std::string& word) { return word == "a" || word == "an" || word == "the"; });
  return words;
}

}  // namespace

std::vector<std::string> rouge_words(std::string_view text) {
  return words_between(text, [](char c) {
    const char low = lower_of(c);
    return !((low >= 'a' && low <= 'z') || (c >= '0' && c <= '9') || (std::uint8_t(c) & 0x80));
  });
}

Overlap rouge_n(std::string_view made, std::string_view reference, int n) {
  if (n < 1) fail(ErrorKind::usage, "rouge_n: an n-gram has at least one word", fmt::format("n {}", n));
  return common_grams(rouge_words(made), rouge_words(reference), std::size_t(n));
}

Overlap rouge_l(std::string_view made, std::string_view reference) {
  const std::vector<std::string> a = rouge_words(made), b = rouge_words(reference);
  std::vector<std::int64_t> longest(b.size() + 1);  // of the words of a so far and the first j of b
  for (const std::string& word : a) {
    std::int64_t before = 0;  // of the word before and the first j - 1
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::int64_t here = word == b[j - 1] ? before + 1 : std::max(longest[j], longest[j - 1]);
      before = std::exchange(longest[j], here);
    }
  }
  return overlap_of(double(longest.back()), double(a.size()), double(b.size()));
}

std::string normalised_answer(std::string_view text) {
  std::string joined;
  for (const std::string& word : answer_words(text)) joined += (joined.empty() ? "" : " ") + word;
  return joined;
}

bool exact_match(std::string_view made, std::string_view reference) {
  return normalised_answer(made) == normalised_answer(reference);
}

Overlap answer_overlap(std::string_view made, std::string_view reference) {
  const std::vector<std::string> a = answer_words(made), b = answer_words(reference);
  if (a.empty() && b.empty()) return {1, 1, 1};
  return common_grams(a, b, 1);
}

Overlap hotpot_overlap(std::string_view made, std::string_view reference) {
  const std::string a = normalised_answer(made), b = normalised_answer(reference);
  const auto closed = [](const std::string& answer) { return answer == "yes" || answer == "no" || answer == "noanswer"; };
  if ((closed(a) || closed(b)) && a != b) return {};
  return answer_overlap(made, reference);
}

double pass_at_k(std::int64_t n, std::int64_t c, std::int64_t k) {
  if (c < 0 || c > n || k < 1 || k > n)
    fail(ErrorKind::usage, "pass_at_k: no such draw", fmt::format("{} of {} pass, {} are drawn", c, n, k),
         "make at least k samples of each problem");
  double none = 1;  // C(n - c, k) / C(n, k), as a product that cannot overflow
  for (std::int64_t i = n - c + 1; i <= n; ++i) none *= std::max(0.0, 1 - double(k) / double(i));
  return 1 - none;
}

}  // namespace weft
