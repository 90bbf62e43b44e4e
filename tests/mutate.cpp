#include "tests/mutate.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <map>

#include "jit/cuda_text.h"

namespace weft {
namespace {

// FNV-1a: the order in which mutants are drawn, by their descriptions, so that an edit moves no mutants but its own.
std::uint64_t hash_of(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash ^ hash >> 29;
}

bool in_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// The text with blanks for comments, literals and the preprocessor's lines, so that what is found in it is code.
std::string code_of(std::string_view text) {
  std::string code(text);
  const auto blank = [&](std::size_t from, std::size_t to) {
    for (std::size_t i = from; i < std::min(to, code.size()); ++i)
      if (code[i] != '\n') code[i] = ' ';
  };
  for (std::size_t i = 0; i < code.size();) {
    std::size_t end = i + 1;
    if (code.compare(i, 2, "//") == 0 || (code[i] == '#' && (i == 0 || code[i - 1] == '\n'))) {
      end = std::min(code.find('\n', i), code.size());
      blank(i, end);
    } else if (code[i] == '"') {
      while (end < code.size() && code[end] != '"') end += code[end] == '\\' ? 2 : 1;
      blank(i, ++end);
    }
    i = end;
  }
  return code;
}

class Finder {
 public:
  Finder(std::string_view file, std::string_view text) : file_(file), text_(text), code_(code_of(text)) {}

  std::vector<Mutant> all() {
    replace("barrier", "__syncthreads();", ";");
    replace("barrier", "__syncwarp();", ";");
    comparisons();
    plus_ones();
    loop_steps();
    row_strides();
    conditions();
    calls();
    std::stable_sort(found_.begin(), found_.end(), [](const Mutant& a, const Mutant& b) { return a.at < b.at; });
    return std::move(found_);
  }

 private:
  void add(const char* rule, std::size_t at, std::size_t end, std::string replacement) {
    const int line = 1 + int(std::count(text_.begin(), text_.begin() + std::ptrdiff_t(at), '\n'));
    if (text_.substr(at, end - at) != replacement)
      found_.push_back({std::string(file_), rule, line, at, end - at, std::move(replacement)});
  }
  std::string source(std::size_t at, std::size_t end) const { return std::string(text_.substr(at, end - at)); }

  // f(position) for each place of the word or operator.
  template <class F>
  void each(std::string_view what, F f) {
    for (std::size_t at = code_.find(what); at != std::string::npos; at = code_.find(what, at + 1)) {
      const bool whole = !in_word(what[0]) || at == 0 || !in_word(code_[at - 1]);
      if (whole) f(at);
    }
  }
  void replace(const char* rule, std::string_view what, std::string_view by) {
    each(what, [&](std::size_t at) { add(rule, at, at + what.size(), std::string(by)); });
  }

  // The bracket that closes the one at `open`.
  std::size_t close_of(std::size_t open) const {
    int depth = 0;
    for (std::size_t i = open; i < code_.size(); ++i) {
      if (std::string_view("([{").find(code_[i]) != std::string_view::npos) ++depth;
      if (std::string_view(")]}").find(code_[i]) != std::string_view::npos && --depth == 0) return i;
    }
    return code_.size();
  }
  // Ranges of [begin, end) between separators outside of brackets, without blanks around them.
  std::vector<std::pair<std::size_t, std::size_t>> split(std::size_t begin, std::size_t end, std::string_view separator) const {
    std::vector<std::pair<std::size_t, std::size_t>> parts;
    std::size_t from = begin;
    for (std::size_t i = begin; i <= end; ++i) {
      if (i < end && std::string_view("([{").find(code_[i]) != std::string_view::npos) i = close_of(i);
      if (i < end && code_[i] == '<' && in_word(code_[i - 1])) i = code_.find('>', i);  // template arguments
      if (i < end && code_.compare(i, separator.size(), separator) != 0) continue;
      std::size_t first = from, last = std::min(i, end);
      while (first < last && std::isspace(static_cast<unsigned char>(code_[first]))) ++first;
      while (first < last && std::isspace(static_cast<unsigned char>(code_[last - 1]))) --last;
      parts.emplace_back(first, last);
      from = i + separator.size();
    }
    return parts;
  }

  void comparisons() {
    each(" < ", [&](std::size_t at) {
      if (!is_minimum(at)) add("less", at, at + 3, " <= ");
    });
  }
  // Whether the comparison is that of a < b ? a : b, or of ? a : T(b).
  bool is_minimum(std::size_t at) const {
    const std::size_t mark = code_.find(" ? ", at);
    if (mark == std::string::npos || code_.substr(at, mark - at).find_first_of(";{}") != std::string::npos) return false;
    const std::size_t begin = condition_before(mark);
    if (begin > at) return false;
    const std::string a = code_.substr(begin, at - begin) + " : ", b = code_.substr(at + 3, mark - at - 3);
    if (code_.compare(mark + 3, a.size(), a) != 0) return false;
    const auto is_b = [&](std::size_t from) {
      return code_.compare(from, b.size(), b) == 0 &&
             std::string_view(",;)").find(code_[from + b.size()]) != std::string_view::npos;
    };
    const std::size_t other = mark + 3 + a.size();
    return is_b(other) || is_b(code_.find('(', other) + 1);
  }

  void plus_ones() {
    each(" + 1", [&](std::size_t at) {
      const char next = code_[at + 4];
      if (!in_word(next) && next != '.') add("plus_one", at, at + 4, " + 0");
    });
  }

  void loop_steps() {
    each("for (", [&](std::size_t at) {
      const std::size_t open = at + 4, close = close_of(open);
      const auto clauses = split(open + 1, close, ";");
      if (clauses.size() != 3) return;
      for (const auto& [from, to] : split(clauses[2].first, clauses[2].second, ","))
        for (const char* step : {" += ", " -= "})
          if (const std::size_t e = code_.find(step, from); e < to) add("stride", e + 4, to, "2 * (" + source(e + 4, to) + ")");
    });
  }
  // Arguments of the kernel named so, and `stride` itself where it is not declared.
  void row_strides() {
    for (const char* name : {"_row", "_time", "_batch", "_group", "stride", "stride_"})
      for (std::size_t at = code_.find(name); at != std::string::npos; at = code_.find(name, at + 1)) {
        std::size_t begin = at, end = at + std::string_view(name).size();
        if (in_word(code_[end]) || code_[end] == '(') continue;
        while (in_word(code_[begin - 1])) --begin;
        const bool argument = name[0] == '_' && code_.compare(begin - 2, 2, "a.") == 0;
        const bool variable = name[0] != '_' && begin == at && !(code_[begin - 1] == ' ' && in_word(code_[begin - 2]));
        if (argument) begin -= 2;
        if (argument || variable) add("stride", begin, end, "2 * " + source(begin, end));
      }
  }

  void mask(std::size_t begin, std::size_t end) {
    for (const auto& [from, to] : split(begin, end, " && ")) add("mask", from, to, "true");
  }
  void conditions() {
    each("if (", [&](std::size_t at) { mask(at + 4, close_of(at + 3)); });
    each(" ? ", [&](std::size_t at) { mask(condition_before(at), at); });
    each("bool ", [&](std::size_t at) {
      const std::size_t equal = code_.find(" = ", at), end = code_.find(';', at);
      if (equal < end && code_.find_first_of("(),?", at) > equal &&
          code_.substr(equal, end - equal).find(" ? ") == std::string::npos)
        mask(equal + 3, end);
    });
  }
  // Where the condition that ends at `end` begins.
  std::size_t condition_before(std::size_t end) const {
    int depth = 0;
    for (std::size_t i = end; i-- > 0;) {
      const char c = code_[i];
      if (c == ')' || c == ']') ++depth;
      if ((c == '(' || c == '[') && --depth < 0) return i + 1;
      if (depth > 0) continue;
      if (c == ',' || c == ';' || c == '{' || c == '}') return i + 1;
      for (const char* before : {" = ", " ? ", " : ", "return ", " += ", " -= "})
        if (code_.compare(i, std::string_view(before).size(), before) == 0) return i + std::string_view(before).size();
    }
    return 0;
  }

  void calls() {
    for (std::size_t open = code_.find('('); open != std::string::npos; open = code_.find('(', open + 1)) {
      std::size_t end = open;
      if (end > 0 && code_[end - 1] == '>') end = code_.rfind('<', end);
      std::size_t begin = end;
      while (begin > 0 && in_word(code_[begin - 1])) --begin;
      const auto arguments = split(open + 1, close_of(open), ",");
      if (begin == end || unordered(code_.substr(begin, end - begin), begin, arguments)) continue;
      for (std::size_t k = 0; k + 1 < arguments.size(); ++k) {
        const auto [a, a_end] = arguments[k];
        const auto [b, b_end] = arguments[k + 1];
        add("swap", a, b_end, source(b, b_end) + source(a_end, b) + source(a, a_end));
      }
    }
  }
  // Not a call whose arguments have an order: a statement, the declaration of a function, or a symmetric function.
  bool unordered(const std::string& name, std::size_t begin,
                 const std::vector<std::pair<std::size_t, std::size_t>>& arguments) const {
    for (const char* word :
         {"for", "if", "switch", "asm", "volatile", "static_assert", "__launch_bounds__", "__align__", "DEVICE", "return"})
      if (name == word) return true;
    for (const char* symmetric : {"min_of", "max_of", "__umulhi", "fold", "plus", "product"})
      if (name == symmetric) return true;
    std::size_t before = begin;
    while (before > 0 && code_[before - 1] == ' ') --before;
    std::size_t type = before;
    while (type > 0 && in_word(code_[type - 1])) --type;
    const std::string word = code_.substr(type, before - type);
    for (const char* known :
         {"void", "real", "index", "float", "double", "int", "u32", "u64", "i64", "bool", "bf16", "R", "DEVICE"})
      if (word == known) return true;
    return std::any_of(arguments.begin(), arguments.end(), [&](const auto& a) {  // "const T* x", "index row"
      const std::string text = code_.substr(a.first, a.second - a.first);
      const std::size_t blank = text.find(' ');
      return blank != std::string::npos &&
             std::all_of(text.begin(), text.begin() + std::ptrdiff_t(blank),
                         [](char c) { return in_word(c) || c == '&' || c == '*'; }) &&
             (in_word(text[blank + 1]) || text[blank + 1] == '(');
    });
  }

  std::string_view file_, text_;
  std::string code_;
  std::vector<Mutant> found_;
};

}  // namespace

std::vector<Mutant> mutants_of(std::string_view file, std::string_view text) { return Finder(file, text).all(); }

const std::vector<Mutant>& drawn_mutants() {
  static const std::vector<Mutant> drawn = [] {
    std::vector<std::pair<std::uint64_t, Mutant>> all;
    for (const EmbeddedText& e : embedded_texts())
      for (Mutant& m : mutants_of(e.file, e.text)) {
        const std::uint64_t hash = hash_of(describe(e.text, m));
        all.emplace_back(hash, std::move(m));
      }
    std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<Mutant> out;
    for (auto& [hash, m] : all) out.push_back(std::move(m));
    return out;
  }();
  return drawn;
}

std::string mutated(std::string_view text, const Mutant& m) { return std::string(text).replace(m.at, m.size, m.replacement); }

std::string describe(std::string_view text, const Mutant& m) {
  const std::string after = mutated(text, m);
  std::size_t begin = after.rfind('\n', m.at) + 1;                                 // npos + 1 is 0
  if (m.rule == "barrier" && begin > 1) begin = after.rfind('\n', begin - 2) + 1;  // the line before tells where it was
  begin = after.find_first_not_of(' ', begin);
  std::string line = after.substr(begin, after.find('\n', m.at + m.replacement.size()) - begin);
  for (std::size_t at = line.find('\n'); at != std::string::npos; at = line.find('\n'))  // several lines as one
    line.replace(at, line.find_first_not_of(' ', at + 1) - at, " ");
  return m.file + ": " + m.rule + ": " + line;
}

std::string canonical_ptx(std::string_view ptx) {
  std::string out;
  std::map<std::string, std::string, std::less<>> names;  // of registers and labels: by their first use
  std::map<std::string, int, std::less<>> used;
  const auto is_name = [](char c) { return in_word(c) || c == '$'; };
  for (std::size_t begin = 0; begin < ptx.size();) {
    const std::size_t end = std::min(ptx.find('\n', begin), ptx.size());
    std::string_view line = ptx.substr(begin, end - begin);
    begin = end + 1;
    line = line.substr(0, line.find("//"));
    line = line.substr(0, line.find_last_not_of(" \t") + 1);
    const std::size_t first = line.find_first_not_of(" \t");
    if (first == std::string_view::npos || line.substr(first).starts_with(".loc") || line.substr(first).starts_with(".reg"))
      continue;
    if (line.substr(first).starts_with(".file") || line.substr(first).starts_with(".section")) break;  // for debuggers
    for (std::size_t i = first; i < line.size();) {
      std::size_t stop = i + 1;
      while (stop < line.size() && is_name(line[stop]) && (is_name(line[i]) || line[i] == '%')) ++stop;
      const std::string_view word = line.substr(i, stop - i);
      i = stop;
      const std::size_t digits = word.find_last_not_of("0123456789_") + 1;
      if ((word[0] == '%' || word[0] == '$') && digits > 1 && digits < word.size()) {
        std::string& name = names[std::string(word)];
        if (name.empty()) {
          const std::string kind(word.substr(0, digits));
          name = kind + '#' + std::to_string(used[kind]++);
        }
        out += name;
      } else if (const std::size_t hash = word.find("__"); hash != std::string_view::npos && hash > 0) {
        out.append(word.substr(0, hash)).append(word.substr(std::min(hash + 8, word.size())));  // "softmax__24a894_param_0"
      } else {
        out += word;
      }
    }
    out += '\n';
  }
  return out;
}

void plant(const Mutant& m) {
  static std::string text;
  for (EmbeddedText& e : embedded_texts())
    if (e.file == m.file) {
      text = mutated(e.text, m);
      e.text = text;
    }
}

}  // namespace weft
