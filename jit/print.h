// What is said on a terminal. Names and texts come from files that others wrote, so everything goes through printable().
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

namespace weft {

// `text` with what could control a terminal or change the order of what is read escaped: control characters other than newline
// and tab (C0, DEL, C1), bidirectional controls, line separators, and bytes that are no UTF-8.
std::string printable(std::string_view text);

// To stdout or stderr, as it stands: of trusted or printable text. Where stderr cannot be written nothing is said; what fails
// on stdout is found by std::ferror(stdout) when the program ends.
void put_out(std::string_view text);
void put_error(std::string_view text);
// Of several processes that say the same, one speaks: from now on nothing is said here, or it is again.
void mute(bool on);

template <class... T>
void print(fmt::format_string<T...> format, T&&... values) {
  put_out(printable(fmt::format(format, std::forward<T>(values)...)));
}
template <class... T>
void print_error(fmt::format_string<T...> format, T&&... values) {
  put_error(printable(fmt::format(format, std::forward<T>(values)...)));
}

}  // namespace weft
