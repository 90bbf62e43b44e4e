#include "tools/inspect/show.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/json.h"

namespace weft {
namespace {

std::string bytes_text(double bytes) {
  if (bytes < 1024) return fmt::format("{:.0f} B", bytes);
  const char* units[] = {"KiB", "MiB", "GiB", "TiB"};
  int unit = -1;
  while (bytes >= 1024 && unit < 3) bytes /= 1024, ++unit;
  return fmt::format("{:.{}f} {}", bytes, bytes < 10 ? 1 : 0, units[unit]);
}

// At most four characters and a unit: 9.3M, 46K.
std::string brief(double value, double unit) {
  if (value < unit) return fmt::format("{:.0f}", value);
  std::string_view units = "KMGTP";
  for (value /= unit; value >= unit && units.size() > 1; value /= unit) units.remove_prefix(1);
  return fmt::format("{:.{}f}{}", value, value < 10 ? 1 : 0, units[0]);
}

unsigned shared_bytes(const KernelView& k) { return (k.kernel ? k.kernel->shared : 0) + unsigned(k.compiled.shared_bytes); }

// "110 registers, no spills, 20.0 KiB shared, ..."
std::string resources(const KernelView& k) {
  if (!k.kernel) return "a product of cuBLASLt: " + k.product;
  const std::string spills = k.compiled.spill_bytes ? fmt::format("{} bytes spilled", k.compiled.spill_bytes) : "no spills";
  return fmt::format("{} registers, {}, {} shared, grid {} x {} x {}, block {} x {} x {}", k.compiled.registers, spills,
                     bytes_text(shared_bytes(k)), k.kernel->grid[0], k.kernel->grid[1], k.kernel->grid[2], k.kernel->block[0],
                     k.kernel->block[1], k.kernel->block[2]);
}

// "models/mamba.cpp:42" of "at /long/path/models/mamba.cpp:42\n  in ..."
std::string call_site(const KernelView& k) {
  std::string first = k.where.substr(0, k.where.find('\n'));
  if (first.starts_with("at ")) first.erase(0, 3);
  const auto file = first.rfind('/'), folder = file == std::string::npos || file == 0 ? file : first.rfind('/', file - 1);
  return folder == std::string::npos ? first : first.substr(folder + 1);
}

// What the launches take if memory, or the arithmetic of products, is the only limit; 0: unknown.
double least_seconds(const KernelTable& t, const KernelView& k) {
  const double moving = t.peak_bytes > 0 ? k.bytes / t.peak_bytes : 0;
  return !k.kernel && t.peak_flops > 0 ? std::max(moving, k.flops / t.peak_flops) : moving;
}

double roofline_share(const KernelTable& t, const KernelView& k) { return k.seconds > 0 ? least_seconds(t, k) / k.seconds : 0; }

// ---- counters of the emulated device ----------------------------------------------------------------------------------------

// The share of the bytes in the sectors touched that threads asked for; more than 1 where several asked for the same.
double used_share(const EmulatedCounters& c) {
  return c.global_sectors ? double(c.global_read + c.global_written) / (32 * double(c.global_sectors)) : 0;
}

constexpr std::array kCounterColumns{"instr", "sect", "used", "banks"};  // of threads; sectors; passes that conflicts cost
std::vector<std::string> counter_cells(const std::optional<EmulatedCounters>& c) {
  if (!c) return std::vector<std::string>(kCounterColumns.size());
  return {brief(double(c->threads()), 1000), brief(double(c->global_sectors), 1000),
          c->global_sectors ? fmt::format("{:.0f}%", 100 * used_share(*c)) : "", brief(double(c->bank_conflicts), 1000)};
}

// ---- a table of cells, for both the terminal and HTML -----------------------------------------------------------------------

struct Column {
  const char* heading;
  bool numbers;  // to the right
};
struct Cells {
  std::vector<Column> columns;
  std::vector<std::vector<std::string>> rows;  // the last: totals
};

constexpr std::size_t kRecordedBy = 1;  // the column that gives way where a table is too wide

Cells cells_of(const KernelTable& t) {
  const bool counted =
      std::any_of(t.kernels.begin(), t.kernels.end(), [](const KernelView& k) { return k.counters.has_value(); });
  const bool timed = !t.seconds.empty() && !counted;  // the emulated device's times are the host's
  Cells out{{{"kernel", false},
             {"recorded by", false},
             {"at", false},
             {"runs", true},
             {"regs", true},
             {"spill", true},
             {"smem", true},
             {"bytes", true},
             {"flops", true}},
            {}};
  if (timed) out.columns.push_back({"us", true});
  if (t.peak_bytes > 0) out.columns.push_back({"roof", true});
  if (counted)
    for (const char* heading : kCounterColumns) out.columns.push_back({heading, true});
  const auto add = [&](const KernelView& k, std::string at, const std::string& registers, const std::string& spills,
                       const std::string& shared, double least) {
    out.rows.push_back({k.name, k.module, std::move(at), std::to_string(k.launches), registers, spills, shared,
                        k.bytes > 0 ? brief(k.bytes, 1024) : "", k.flops > 0 ? brief(k.flops, 1000) : ""});
    if (timed) out.rows.back().push_back(fmt::format("{:.1f}", k.seconds * 1e6));
    if (t.peak_bytes > 0)
      out.rows.back().push_back(least > 0 && k.seconds > 0 ? fmt::format("{:.0f}%", 100 * least / k.seconds) : "");
    if (counted)
      for (std::string& cell : counter_cells(k.counters)) out.rows.back().push_back(std::move(cell));
  };
  KernelView total{
      .name = "total", .module = fmt::format("{} kernels", t.kernels.size()), .where = {}, .reasons = {}, .launches = 0};
  double least = 0;
  for (const KernelView& k : t.kernels) {
    const Compiled& c = k.compiled;
    if (c.registers > 0)
      add(k, call_site(k), std::to_string(c.registers), std::to_string(c.spill_bytes), brief(shared_bytes(k), 1024),
          least_seconds(t, k));
    else
      add(k, call_site(k), "", "", "", least_seconds(t, k));
    total.launches += k.launches, total.bytes += k.bytes, total.flops += k.flops, total.seconds += k.seconds;
    total.compiled.spill_bytes += c.spill_bytes;
    if (k.counters) {
      if (!total.counters) total.counters.emplace();
      total.counters->add(*k.counters);
    }
    least += least_seconds(t, k);
  }
  add(total, "", "", std::to_string(total.compiled.spill_bytes), "", least);
  return out;
}

std::vector<std::size_t> widths_of(const Cells& cells) {
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < cells.columns.size(); ++c) {
    widths.push_back(std::string_view(cells.columns[c].heading).size());
    for (const auto& row : cells.rows) widths[c] = std::max(widths[c], row[c].size());
  }
  return widths;
}

// The end of a module path, "mixer.conv1d" of "backbone.layers.0.mixer.conv1d: conv1d": the kernel's name tells the op.
std::string end_of_path(std::string path, std::size_t width) {
  path = path.substr(0, path.find(": "));
  for (std::size_t dot; path.size() > width && (dot = path.find('.')) != std::string::npos;) path.erase(0, dot + 1);
  return path.substr(0, width);
}

// Shortens who recorded the kernels until the lines, with two spaces between columns, fit a terminal.
void fit(Cells& cells) {
  constexpr std::size_t kLine = 120, kLeast = 11;
  const std::vector<std::size_t> widths = widths_of(cells);
  std::size_t line = 2 * (widths.size() - 1);
  for (const std::size_t w : widths) line += w;
  if (line <= kLine) return;
  const std::size_t others = line - widths[kRecordedBy], room = others + kLeast < kLine ? kLine - others : kLeast;
  for (auto& row : cells.rows) row[kRecordedBy] = end_of_path(row[kRecordedBy], room);
}

// ---- HTML -------------------------------------------------------------------------------------------------------------------

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c;
  }
  return out;
}

std::string details(std::string_view summary, std::string_view text) {
  if (text.empty()) return {};
  return fmt::format("<details><summary>{}</summary><pre>{}</pre></details>\n", escaped(summary), escaped(text));
}

constexpr std::string_view kStyle =
    "body{font:14px/1.4 system-ui,sans-serif;margin:2em;color-scheme:light dark}table{border-collapse:collapse}"
    "td,th{padding:.2em .8em;border-bottom:1px solid #8884;text-align:left;vertical-align:top}"
    ".n{text-align:right;font-variant-numeric:tabular-nums}tr:last-child{font-weight:bold}"
    "pre{background:#8881;padding:1em;overflow:auto}summary{cursor:pointer}h3{margin:1.5em 0 .3em;font-family:monospace}";

}  // namespace

std::string to_why(const KernelView& k) {
  std::string out = fmt::format("{}\n  {}{}, {} launches a step, {} moved\n  recorded by {}\n", k.name,
                                k.backward ? "backward; " : "", resources(k), k.launches, bytes_text(k.bytes), k.module);
  const auto add_lines = [&out](const std::string& text) {
    for (const std::string_view line : lines_of(text)) out.append("  ").append(line).append("\n");
  };
  add_lines(k.where);
  for (const std::string& r : k.reasons) out += "  " + r + "\n";
  if (k.kernel)
    for (const std::string& hole : k.kernel->holes) out += "  hole " + hole + "\n";
  if (k.reasons.empty()) out += "  a kernel of its own: nothing was fused into it\n";
  if (k.counters) add_lines(to_text(*k.counters));
  return out;
}

std::string to_text(const EmulatedCounters& c) {
  std::string out =
      fmt::format("{} instructions of PTX of threads, {} of warps: by class (threads, warps)\n", c.threads(), c.warps());
  for (std::size_t k = 0; k < EmulatedCounters::classes; ++k)
    if (c.warp_instructions[k])
      out += fmt::format("  {:8} {:14} {:14}\n", EmulatedCounters::kClassNames[k], c.thread_instructions[k],
                         c.warp_instructions[k]);
  if (c.global_requests)
    out += fmt::format(
        "global: {} bytes read, {} written; {} requests of warps touch {} sectors, {:.0f} % of whose bytes are used\n",
        c.global_read, c.global_written, c.global_requests, c.global_sectors, 100 * used_share(c));
  if (c.shared_wavefronts)
    out += fmt::format("shared: {} bytes read, {} written; {} passes over the banks, {} of them for conflicts\n", c.shared_read,
                       c.shared_written, c.shared_wavefronts, c.bank_conflicts);
  if (c.local_read + c.local_written) out += fmt::format("local: {} bytes read, {} written\n", c.local_read, c.local_written);
  return out;
}

std::string to_text(const KernelTable& table) {
  Cells cells = cells_of(table);
  fit(cells);
  const std::vector<std::size_t> widths = widths_of(cells);
  std::string out;
  const auto line = [&](auto&& cell) {
    std::string text;
    for (std::size_t c = 0; c < widths.size(); ++c)
      text +=
          cells.columns[c].numbers ? fmt::format("{:>{}}  ", cell(c), widths[c]) : fmt::format("{:<{}}  ", cell(c), widths[c]);
    out += text.substr(0, text.find_last_not_of(' ') + 1) + "\n";
  };
  line([&](std::size_t c) { return std::string(cells.columns[c].heading); });
  for (const auto& row : cells.rows) line([&](std::size_t c) { return row[c]; });
  return out;
}

namespace {

// "norm_backward" of "norm_backward__add_cast__66bcd5": what a kernel is, without what is fused into it and its number.
std::string kind_of(const KernelView& k) { return k.name.substr(0, k.name.find("__")); }

struct KindSums {
  std::string kind;
  int launches = 0;
  double bytes = 0, flops = 0, seconds = 0, least = 0;
  void add(const KernelTable& t, const KernelView& k) {
    launches += k.launches, bytes += k.bytes, flops += k.flops, seconds += k.seconds, least += least_seconds(t, k);
  }
};

}  // namespace

std::string to_profile(const KernelTable& table) {
  std::vector<KindSums> kinds;
  KindSums total{"total"};
  for (const KernelView& k : table.kernels) {
    const std::string kind = kind_of(k);
    auto found = std::find_if(kinds.begin(), kinds.end(), [&](const KindSums& s) { return s.kind == kind; });
    if (found == kinds.end()) found = kinds.insert(kinds.end(), KindSums{kind});
    found->add(table, k), total.add(table, k);
  }
  const bool timed = total.seconds > 0, peaks = table.peak_bytes > 0;
  std::stable_sort(kinds.begin(), kinds.end(),
                   [&](const KindSums& a, const KindSums& b) { return timed ? a.seconds > b.seconds : a.bytes > b.bytes; });
  kinds.push_back(total);
  std::size_t width = 4;
  for (const KindSums& s : kinds) width = std::max(width, s.kind.size());
  std::string out = fmt::format("{:<{}}  {:>5}  {:>6}  {:>6}", "kind", width, "runs", "bytes", "flops");
  if (timed) out += fmt::format("  {:>8}", "ms");
  if (timed && peaks) out += fmt::format("  {:>8}  {:>4}", "floor ms", "roof");
  out += "\n";
  for (const KindSums& s : kinds) {
    out += fmt::format("{:<{}}  {:>5}  {:>6}  {:>6}", s.kind, width, s.launches, s.bytes > 0 ? brief(s.bytes, 1024) : "",
                       s.flops > 0 ? brief(s.flops, 1000) : "");
    if (timed) out += fmt::format("  {:>8.3f}", s.seconds * 1e3);
    if (timed && peaks)
      out += fmt::format("  {:>8.3f}  {:>3.0f}%", s.least * 1e3, s.seconds > 0 ? 100 * s.least / s.seconds : 0);
    out += "\n";
  }
  if (table.step_seconds > 0)
    out += fmt::format("a step takes {:.3f} ms, {:.3f} ms {} its kernels one by one with cold caches{}\n",
                       table.step_seconds * 1e3, std::abs(table.step_seconds - total.seconds) * 1e3,
                       table.step_seconds > total.seconds ? "more than" : "less than",
                       peaks ? fmt::format("; {:.0f} % of it is the floor", 100 * total.least / table.step_seconds) : "");
  return out;
}

nlohmann::json to_json(const KernelTable& table) {
  nlohmann::json kernels = nlohmann::json::array();
  for (const KernelView& k : table.kernels) {
    nlohmann::json j{{"name", k.name},         {"module", k.module},     {"where", k.where}, {"why", k.reasons},
                     {"backward", k.backward}, {"launches", k.launches}, {"bytes", k.bytes}, {"flops", k.flops}};
    if (k.kernel)
      j.update({{"grid", k.kernel->grid},
                {"block", k.kernel->block},
                {"shared", shared_bytes(k)},
                {"holes", k.kernel->holes},
                {"registers", k.compiled.registers},
                {"spills", k.compiled.spill_bytes},
                {"source", k.kernel->text}});
    else
      j["product"] = k.product;
    if (k.seconds > 0) j["seconds"] = k.seconds;
    if (k.counters)
      for (const auto& [name, value] : k.counters->named()) j["counters"][name] = value;
    if (roofline_share(table, k) > 0) j["roofline"] = roofline_share(table, k);
    kernels.push_back(std::move(j));
  }
  nlohmann::json out{{"title", table.title}, {"target", table.target}, {"kernels", std::move(kernels)}, {"order", table.order}};
  if (!table.seconds.empty())
    out.update({{"timing", table.timing},
                {"step_seconds", table.step_seconds},
                {"seconds", table.seconds},
                {"peak_bytes", table.peak_bytes},
                {"peak_flops", table.peak_flops}});
  return out;
}

std::string to_html(const KernelTable& table) {
  const Cells cells = cells_of(table);
  std::string out = fmt::format(
      "<!doctype html>\n<meta charset=\"utf-8\">\n<title>{0}</title>\n<style>{1}</style>\n<h1>{0}</h1>\n<p>{2}{3}</p>\n",
      escaped(table.title), kStyle, escaped(table.target), escaped(table.timing.empty() ? "" : "; " + table.timing));
  const auto row_of = [&](const std::vector<std::string>& row, std::string_view tag) {
    out += "<tr>";
    for (std::size_t c = 0; c < row.size(); ++c) {
      std::string text = escaped(row[c]);
      if (c == 0 && tag == "td" && row[0] != "total") text = fmt::format("<a href=\"#{0}\">{0}</a>", text);
      out += fmt::format("<{0}{1}>{2}</{0}>", tag, cells.columns[c].numbers ? " class=\"n\"" : "", text);
    }
    out += "</tr>\n";
  };
  out += "<table>\n";
  std::vector<std::string> headings;
  for (const Column& c : cells.columns) headings.emplace_back(c.heading);
  row_of(headings, "th");
  for (const auto& row : cells.rows) row_of(row, "td");
  out += "</table>\n";
  for (const KernelView& k : table.kernels) {
    out += fmt::format("<h3 id=\"{0}\">{0}</h3>\n<p>{1}</p>\n", escaped(k.name), escaped(resources(k)));
    out += details("why", to_why(k));
    if (k.kernel) out += details("source", k.kernel->text);
    out += details("PTX", k.compiled.ptx);
  }
  return out + details("prelude: what every source begins with", embedded_text("jit/prelude.cuh"));
}

std::string to_trace(const KernelTable& table) {
  if (table.seconds.empty())
    fail(ErrorKind::usage, "inspect: a trace needs the times of a GPU", "none were measured", "--device cuda");
  nlohmann::json events = nlohmann::json::array();
  double at = 0;  // microseconds
  for (std::size_t i = 0; i < table.order.size(); ++i) {
    const KernelView& k = table.kernels[std::size_t(table.order[i])];
    const double duration = table.seconds[i] * 1e6;
    events.push_back({{"name", k.name},
                      {"cat", k.backward ? "backward" : "forward"},
                      {"ph", "X"},
                      {"pid", 0},
                      {"tid", 0},
                      {"ts", at},
                      {"dur", duration},
                      {"args",
                       {{"recorded by", k.module},
                        {"at", call_site(k)},
                        {"bytes", k.bytes / k.launches},
                        {"flops", k.flops / k.launches}}}});
    at += duration;
  }
  return text_of({{"traceEvents", std::move(events)}, {"displayTimeUnit", "ns"}}, 1) + "\n";
}

std::string line_difference(std::string_view a, std::string_view b) {
  const std::vector<std::string_view> x = lines_of(a), y = lines_of(b);
  // common[i][j]: length of the longest common subsequence of x from i on and y from j on.
  std::vector<std::vector<int>> common(x.size() + 1, std::vector<int>(y.size() + 1));
  for (std::size_t i = x.size(); i-- > 0;)
    for (std::size_t j = y.size(); j-- > 0;)
      common[i][j] = x[i] == y[j] ? common[i + 1][j + 1] + 1 : std::max(common[i + 1][j], common[i][j + 1]);
  std::string out;
  for (std::size_t i = 0, j = 0; i < x.size() || j < y.size();) {
    if (i < x.size() && j < y.size() && x[i] == y[j]) {
      out.append("  ").append(x[i]).append("\n");
      ++i, ++j;
    } else if (j == y.size() || (i < x.size() && common[i + 1][j] >= common[i][j + 1])) {
      out.append("- ").append(x[i++]).append("\n");
    } else {
      out.append("+ ").append(y[j++]).append("\n");
    }
  }
  return out;
}

}  // namespace weft
