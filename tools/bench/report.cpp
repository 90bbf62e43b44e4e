#include "tools/bench/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>
#include <string_view>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/json.h"
#include "jit/print.h"

namespace weft {
namespace {

double rounded(double value, int digits) {
  const double unit = std::pow(10, digits);
  return std::round(value * unit) / unit;
}

bool same_row(const BenchJson& a, const BenchJson& b) {
  constexpr const char* keys[] = {"group", "op", "impl", "shape", "phase"};
  return std::all_of(std::begin(keys), std::end(keys), [&](const char* key) { return a.value(key, "") == b.value(key, ""); });
}

std::string line(const BenchJson& row) {
  auto text = [&](const char* key) { return row.at(key).get<std::string>(); };
  std::string s = fmt::format("{:<9.9} {:<28.28} {:<20.20} {:<22.22} {:<5.5}", text("group"), text("op"), text("impl"),
                              text("shape"), text("phase"));
  if (!row.contains("ms")) return s + " " + row.value("note", "n/a");
  s += fmt::format(" {:10.4f}", row.at("ms").get<double>());
  struct Field {
    const char *key, *before, *after;
    int digits;
  };
  constexpr Field fields[] = {{"wall_ms", "wall ", "", 3},   {"tokens_s", "", " tokens/s", 0}, {"gbps", "", "GB/s", 0},
                              {"tflops", "", "TF", 1},       {"x_floor", "x", "", 2},          {"sfu_ms", "sfu ", "", 3},
                              {"peak_gb", "", " GiB", 2},    {"first_s", "1st ", "s", 1},      {"kernels", "", " kernels", 0},
                              {"us_per_op", "", "us/op", 2}, {"burst_ms", "burst ", "", 3},    {"clock_mhz", "", " MHz", 0},
                              {"power_w", "", " W", 0}};
  for (const Field& f : fields)
    if (row.contains(f.key)) s += fmt::format(" {}{:.{}f}{}", f.before, row.at(f.key).get<double>(), f.digits, f.after);
  return row.contains("note") ? s + " " + row.at("note").get<std::string>() : s;
}

// ---- peers ------------------------------------------------------------------------------------------------------------------

struct Peer {
  std::string impl;
  double ms = 0, floor_ms = 0, x_floor = 0;
};

std::string without_layout(std::string shape) {
  if (shape.ends_with(" cf") || shape.ends_with(" cl")) shape.resize(shape.size() - 3);
  return shape;
}

std::optional<Peer> best_peer(const nlohmann::json& rows, const RowName& name) {
  std::optional<Peer> best;
  for (const auto& row : rows) {
    if (!row.contains("ms") || row.value("group", "") != name.group || row.value("op", "") != name.op ||
        row.value("phase", "") != name.phase || without_layout(row.value("shape", "")) != without_layout(name.shape))
      continue;
    Peer p{row.value("impl", ""), row.at("ms").get<double>(), row.value("floor_ms", 0.0), row.value("x_floor", 0.0)};
    if (!p.impl.starts_with(name.peer) || (best && best->ms <= p.ms)) continue;
    if (const std::string shape = row.value("shape", ""); shape != name.shape) p.impl += shape.substr(shape.size() - 3);
    best = p;
  }
  const std::size_t plus = name.op.find(" + ");
  if (best || plus == std::string::npos) return best;
  RowName first = name, second = name;
  first.op = name.op.substr(0, plus), second.op = name.op.substr(plus + 3);
  const auto a = best_peer(rows, first), b = best_peer(rows, second);
  if (!a || !b) return {};
  const double ms = a->ms + b->ms, floor_ms = a->floor_ms + b->floor_ms;
  return Peer{a->impl + " + " + b->impl, ms, floor_ms, floor_ms > 0 ? ms / floor_ms : 0};
}

std::string distance(double x_floor) { return x_floor > 0 ? fmt::format("x{:.2f}", x_floor) : "-"; }

BenchJson named(const RowName& n) {
  return {{"group", n.group}, {"op", n.op}, {"impl", n.impl}, {"shape", n.shape}, {"phase", n.phase}};
}

}  // namespace

BenchReport::BenchReport(std::filesystem::path file) : json_(std::move(file)) {
  if (!json_.empty() && std::filesystem::exists(json_)) old_ = BenchJson::parse(read_json(json_).dump());
}

void BenchReport::append(BenchJson row, const RowName& name) {
  print("{}\n", line(row));
  std::fflush(stdout);
  rows_.push_back(std::move(row));
  names_.push_back(name);
  save();
}

void BenchReport::add(const RowName& name, double ms, const Work& work, const BenchJson& extra) {
  BenchJson row = named(name);
  row["ms"] = rounded(ms, 5);
  if (ms > 0) {
    if (work.bytes > 0) row["gbps"] = rounded(work.bytes / ms / 1e6, 1);
    if (work.flops > 0) row["tflops"] = rounded(work.flops / ms / 1e9, 2);
  }
  const double copy = ceilings.value("copy_gbps", 0.0), products = ceilings.value("bf16_tflops", 0.0);
  if (copy > 0 && products > 0 && (work.bytes > 0 || work.flops > 0)) {
    const double bytes_ms = work.bytes / copy / 1e6, flops_ms = work.flops / products / 1e9,
                 floor = work.in_turn ? bytes_ms + flops_ms : std::max(bytes_ms, flops_ms);
    row["floor_ms"] = rounded(floor, 5);
    row["bound"] = bytes_ms >= flops_ms ? "memory" : "compute";
    row["x_floor"] = rounded(ms / floor, 2);
    if (ms > 0) row["of_ceiling"] = rounded(floor / ms, 3);
  }
  if (const double sfu = ceilings.value("sfu_gops", 0.0); sfu > 0 && work.exps > 0)
    row["sfu_ms"] = rounded(work.exps / sfu / 1e6, 5);
  if (extra.is_object()) row.update(extra);
  append(std::move(row), name);
}

void BenchReport::add_note(const RowName& name, const std::string& note) {
  BenchJson row = named(name);
  row["note"] = note.substr(0, 220);
  append(std::move(row), name);
}

void BenchReport::save() const {
  if (json_.empty()) return;
  BenchJson out = {{"meta", meta}, {"ceilings", ceilings}, {"rows", BenchJson::array()}};
  if (old_.is_object()) {
    out["meta"] = old_.value("meta", BenchJson::object());
    out["meta"].update(meta);
    out["ceilings"] = old_.value("ceilings", BenchJson::object());
    out["ceilings"].update(ceilings);
    for (const BenchJson& row : old_.value("rows", BenchJson::array()))
      if (std::none_of(rows_.begin(), rows_.end(), [&](const BenchJson& mine) { return same_row(mine, row); }))
        out["rows"].push_back(row);
  }
  for (const BenchJson& row : rows_) out["rows"].push_back(row);
  AtomicFile file(link_target(json_));
  const std::string text = out.dump(1) + "\n";
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

void BenchReport::print_against(const std::vector<std::string>& files) const {
  nlohmann::json peers = nlohmann::json::array();
  print("\n");
  for (const std::string& file : files) {
    const nlohmann::json all = read_json(file);
    if (!all.contains("rows"))
      fail(ErrorKind::io, fmt::format("{}: has no rows", file), {},
           "give a file that `weft bench --json` wrote, or one of its form");
    for (const nlohmann::json& row : all.at("rows")) peers.push_back(row);
    print("beside {} on {}\n", file, all.value("meta", nlohmann::json::object()).value("device", "another machine"));
  }
  print("ratio: peer's time / weft's\n");
  print("{:<9} {:<28} {:<22} {:<5} {:>10} {:>8} {:>10} {:>8} {:>7}  {}\n", "group", "op", "shape", "phase", "weft ms", "floor",
        "peer ms", "floor", "ratio", "peer");
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const RowName& n = names_[i];
    print("{:<9.9} {:<28.28} {:<22.22} {:<5.5} ", n.group, n.op, n.shape, n.phase);
    if (!rows_[i].contains("ms")) {
      print("{}\n", rows_[i].value("note", "n/a"));
      continue;
    }
    const double ms = rows_[i].at("ms").get<double>();
    print("{:>10.4f} {:>8}", ms, distance(rows_[i].value("x_floor", 0.0)));
    if (const auto peer = best_peer(peers, n))
      print(" {:>10.4f} {:>8} {:>7.2f}  {}\n", peer->ms, distance(peer->x_floor), peer->ms / ms, peer->impl);
    else
      print(" {:>10}\n", "no peer");
  }
}

}  // namespace weft
