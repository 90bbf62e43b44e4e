#include "jit/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "jit/error.h"
#include "jit/file.h"

namespace weft {
namespace {

using nlohmann::json;

// A bare word of the text that stands for a number which JSON cannot write. `index` counts the numbers of the text.
struct Special {
  std::size_t index;
  double value;
};

bool in_word(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '+' || c == '.' ||
         c == '_';
}

// Overwrites each bare NaN, Infinity and -Infinity by a 0 and spaces, so that positions stay true, and lists them.
std::vector<Special> take_specials(std::string& text) {
  std::vector<Special> specials;
  std::size_t numbers = 0;
  for (std::size_t i = 0; i < text.size();) {
    if (text[i] == '"') {
      for (++i; i < text.size() && text[i] != '"'; ++i) i += text[i] == '\\';
      ++i;
      continue;
    }
    std::size_t end = i;
    while (end < text.size() && in_word(text[end])) ++end;
    std::string_view word(text.data() + i, end - i);
    constexpr double infinity = std::numeric_limits<double>::infinity();
    double value = word == "Infinity" ? infinity : word == "-Infinity" ? -infinity : std::nan("");
    if (!std::isnan(value) || word == "NaN") {
      specials.push_back({numbers, value});
      std::fill_n(text.begin() + std::ptrdiff_t(i), word.size(), ' ');
      text[i] = '0';
    }
    if (i < end && (text[i] == '-' || (text[i] >= '0' && text[i] <= '9'))) ++numbers;
    i = std::max(end, i + 1);
  }
  return specials;
}

// The parser's input; it shows how far the parser has read.
class Cursor {
 public:
  using difference_type = std::ptrdiff_t;
  using value_type = char;
  using pointer = const char*;
  using reference = const char&;
  using iterator_category = std::input_iterator_tag;

  Cursor(const char* at, const char** seen) : at_(at), seen_(seen) {}
  reference operator*() const { return *at_; }
  Cursor& operator++() {
    *seen_ = ++at_;
    return *this;
  }
  Cursor operator++(int) {
    Cursor old = *this;
    ++*this;
    return old;
  }
  bool operator==(const Cursor& other) const { return at_ == other.at_; }

 private:
  const char* at_;
  const char** seen_;
};

// Builds the value while counting depth and refusing a key that an object has already.
class Builder {
 public:
  Builder(std::string_view text, std::string_view name, std::size_t line, std::vector<Special> specials)
      : text_(text), name_(name), line_(line), specials_(std::move(specials)), seen_(text.data()) {}

  json build() {
    if (auto zero = text_.find('\0'); zero != text_.npos) {  // the parser would take it for the end
      seen_ += zero + 1;
      refuse("a zero byte");
    }
    json::sax_parse(Cursor(text_.data(), &seen_), Cursor(text_.data() + text_.size(), &seen_), this);
    return std::move(root_);
  }

  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(std::int64_t value) { return add_number(value); }
  bool number_unsigned(std::uint64_t value) { return add_number(value); }
  bool number_float(double value, const std::string&) { return add_number(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(json::binary_t&) { return false; }
  bool start_object(std::size_t) { return open(json::object()); }
  bool start_array(std::size_t) { return open(json::array()); }
  bool end_object() { return open_.pop_back(), true; }
  bool end_array() { return open_.pop_back(), true; }
  bool key(std::string& key) {
    auto [place, fresh] = open_.back()->get_ref<json::object_t&>().try_emplace(key);
    if (!fresh) refuse(fmt::format("the key \"{}\" stands twice in one object", key.substr(0, 200)));
    value_ = &place->second;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error while ..."
    std::string message = reason_of(error);
    if (const auto at = message.find(": "); at != message.npos) message.erase(0, at + 2);
    refuse(message.substr(0, 300));
  }

 private:
  [[noreturn]] void refuse(std::string why) const {
    // Up to the last character read, which may be the one that ended a number.
    std::string_view read = text_.substr(0, std::max<std::size_t>(std::size_t(seen_ - text_.data()), 1) - 1);
    auto line_begin = read.rfind('\n') + 1;  // 0 on the first line
    fail(ErrorKind::io, fmt::format("{}: not valid JSON", name_),
         fmt::format("line {}, column {}: {}", std::size_t(std::count(read.begin(), read.end(), '\n')) + line_,
                     read.size() - line_begin + 1, why));
  }

  template <class T>
  bool add(T&& value) {
    *place() = std::forward<T>(value);
    return true;
  }

  template <class T>
  bool add_number(T value) {
    if (next_special_ < specials_.size() && specials_[next_special_].index == numbers_++)
      return add(specials_[next_special_++].value);
    return add(value);
  }

  bool open(json container) {
    if (open_.size() >= kMaxJsonDepth) refuse(fmt::format("more than {} levels", kMaxJsonDepth));
    json* at = place();
    *at = std::move(container);
    open_.push_back(at);
    return true;
  }

  // Where the next value goes: the root, the end of the open array, or behind the key just read.
  json* place() {
    if (open_.empty()) return &root_;
    if (open_.back()->is_array()) return &open_.back()->get_ref<json::array_t&>().emplace_back();
    return value_;
  }

  std::string_view text_, name_;
  std::size_t line_;  // of the text's first
  std::vector<Special> specials_;
  const char* seen_;
  std::size_t numbers_ = 0, next_special_ = 0;
  json root_;
  json* value_ = nullptr;
  std::vector<json*> open_;  // an open container is its parent's last element, which does not move
};

}  // namespace

std::string reason_of(const std::exception& error) {
  const std::string message = error.what();
  const auto at = message.find("] ");
  return at == message.npos ? message : message.substr(at + 2);
}

json parse_json(std::string_view text, std::string_view name, std::size_t line) {
  if (text.size() > kMaxJsonBytes)
    fail(ErrorKind::io, fmt::format("{}: JSON too large", name), fmt::format("{} bytes, limit {}", text.size(), kMaxJsonBytes));
  std::string copy(text);
  auto specials = take_specials(copy);
  return Builder(copy, name, line, std::move(specials)).build();
}

json read_json(const std::filesystem::path& file) {
  const std::string text = read_text(file, kMaxJsonBytes);
  refuse_foreign(file.string(), text, "JSON");
  return parse_json(text, file.string());
}

std::string text_of(const json& value, int indent) {
  if (!value.is_number_float() || std::isfinite(value.get<double>()))
    return value.dump(indent, ' ', false, json::error_handler_t::replace);
  return std::isnan(value.get<double>()) ? "NaN" : value.get<double>() > 0 ? "Infinity" : "-Infinity";
}

template <std::integral T>
T integer_at(const json& object, const char* key, std::string_view file) {
  const json& value = object.at(key);
  if (value.is_number_unsigned() ? std::in_range<T>(value.get<std::uint64_t>())
                                 : value.is_number_integer() && std::in_range<T>(value.get<std::int64_t>()))
    return value.get<T>();
  fail(ErrorKind::io, fmt::format("{}: \"{}\" is not a whole number, or beyond its range", file, key),
       text_of(value).substr(0, 200));
}
template std::int64_t integer_at(const json&, const char*, std::string_view);
template std::uint64_t integer_at(const json&, const char*, std::string_view);

}  // namespace weft
