#include "tools/ablate/document.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

namespace weft {
namespace {

std::string replaced(const std::string& text, const std::vector<std::pair<char, std::string>>& with) {
  std::string out;
  for (const char c : text) {
    const auto found = std::find_if(with.begin(), with.end(), [c](const auto& w) { return w.first == c; });
    out += found == with.end() ? std::string(1, c) : found->second;
  }
  return out;
}

std::string html_text(const std::string& text) {
  return replaced(text, {{'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'"', "&quot;"}});
}
// What would be markup.
std::string markdown_text(const std::string& text) {
  return replaced(text, {{'\\', "\\\\"}, {'*', "\\*"}, {'_', "\\_"}, {'`', "\\`"}, {'|', "\\|"}, {'<', "&lt;"}, {'[', "\\["}});
}

// A row of four or more backquotes if the text has three.
std::string fence_for(const std::string& text) {
  std::string fence = "```";
  while (text.find(fence) != text.npos) fence += "`";
  return fence;
}

constexpr const char* kPageStyle =
    "body{font:16px/1.5 sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}th,td{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:right}"
    "th:first-child,td:first-child{text-align:left}figure{margin:1.5rem 0}img{max-width:100%;height:auto}"
    "figcaption{color:#555}pre{background:#f6f6f6;padding:.8rem;white-space:pre-wrap}";

}  // namespace

void Document::heading(int level, const std::string& text) {
  markdown_ += std::string(std::size_t(level), '#') + " " + markdown_text(text) + "\n\n";
  html_ += fmt::format("<h{0}>{1}</h{0}>\n", level, html_text(text));
}

void Document::paragraph(const std::string& text) {
  markdown_ += markdown_text(text) + "\n\n";
  html_ += "<p>" + html_text(text) + "</p>\n";
}

void Document::list(const std::vector<std::string>& items) {
  html_ += "<ul>\n";
  for (const std::string& item : items)
    markdown_ += "- " + markdown_text(item) + "\n", html_ += "<li>" + html_text(item) + "</li>\n";
  markdown_ += "\n", html_ += "</ul>\n";
}

void Document::table(const std::vector<std::string>& head, const std::vector<std::vector<std::string>>& rows) {
  const auto add = [&](const std::vector<std::string>& row, const char* tag) {
    markdown_ += "|", html_ += "<tr>";
    for (const std::string& cell : row)
      markdown_ += " " + markdown_text(cell) + " |", html_ += fmt::format("<{0}>{1}</{0}>", tag, html_text(cell));
    markdown_ += "\n", html_ += "</tr>\n";
  };
  html_ += "<table>\n";
  add(head, "th");
  markdown_ += "| --- |";
  for (std::size_t i = 1; i < head.size(); ++i) markdown_ += " ---: |";
  markdown_ += "\n";
  for (const auto& row : rows) add(row, "td");
  markdown_ += "\n", html_ += "</table>\n";
}

void Document::picture(const std::string& file, const std::string& caption) {
  markdown_ += fmt::format("![{}]({})\n\n", markdown_text(caption), file);
  html_ += fmt::format("<figure><img src=\"{0}\" alt=\"{1}\"><figcaption>{1}</figcaption></figure>\n", html_text(file),
                       html_text(caption));
}

void Document::code(const std::string& text) {
  const std::string fence = fence_for(text);
  markdown_ += fence + "\n" + text + "\n" + fence + "\n\n";
  html_ += "<pre>" + html_text(text) + "</pre>\n";
}

std::string Document::html(const std::string& title) const {
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta "
      "charset=\"utf-8\"><title>{}</title><style>{}</style></head>\n<body>\n{}</body></html>\n",
      html_text(title), kPageStyle, html_);
}

}  // namespace weft
