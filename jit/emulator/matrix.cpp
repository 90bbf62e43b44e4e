// mma.sync, wgmma, ldmatrix, stmatrix and movmatrix: matrices spread over the lanes of a warp. Lane l = 4 g + t holds elements
// of row (or column) g and of columns (rows) that t chooses, as PTX defines for each shape.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "jit/emulator/addresses.h"
#include "jit/emulator/lanes.h"

namespace weft::emulator {
namespace {

// All 32 lanes at the instruction, or 0 if some have yet to come.
bool whole_warp(Warp& w, const Instruction& i) {
  if (!w.converge(kAllLanes, i)) return false;
  if (w.active() != kAllLanes)
    w.block.fault(w, i, std::countr_zero(~w.active()), "a matrix instruction without all lanes of the warp",
                  fmt::format("lanes {:#010x}", w.active()));
  return true;
}

// Places of the fragments, one after the other in Program::lists.
struct Fragments {
  Warp& warp;
  const std::uint32_t* places;
  std::uint32_t word(unsigned k, int lane) const { return warp.words<std::uint32_t>(places[k])[lane]; }
};

// d (16 x 8) = a (16 x K) b (K x 8) + c, accumulated in fp32.
template <int K>
struct Product {
  float a[16][K], b[K][8], c[16][8];
  void multiply() {
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < K; ++k)
        for (int j = 0; j < 8; ++j) c[i][j] += a[i][k] * b[k][j];
  }
};

template <class H>
float element(std::uint32_t word, int half) {
  return to_float(std::bit_cast<H>(std::uint16_t(word >> (16 * half))));
}
float tf32(std::uint32_t word) { return std::bit_cast<float>(word & ~0x1fffu); }

template <class H, int K>
void load_operands(Product<K>& m, const Fragments& f) {
  constexpr unsigned kA = K / 4, kB = K / 8;  // words of a lane
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane >> 2, t = lane & 3;
    for (unsigned k = 0; k < kA; ++k)
      for (int h = 0; h < 2; ++h) m.a[g + 8 * int(k & 1)][2 * t + 8 * int(k >> 1) + h] = element<H>(f.word(k, lane), h);
    for (unsigned k = 0; k < kB; ++k)
      for (int h = 0; h < 2; ++h) m.b[2 * t + 8 * int(k) + h][g] = element<H>(f.word(kA + k, lane), h);
  }
}
template <int K>
void load_operands_tf32(Product<K>& m, const Fragments& f) {
  constexpr unsigned kA = K / 2, kB = K / 4;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane >> 2, t = lane & 3;
    for (unsigned k = 0; k < kA; ++k) m.a[g + 8 * int(k & 1)][t + 4 * int(k >> 1)] = tf32(f.word(k, lane));
    for (unsigned k = 0; k < kB; ++k) m.b[t + 4 * int(k)][g] = tf32(f.word(kA + k, lane));
  }
}

struct Tf32 {};

// Lists: a, b, c, d. H: Half, Brain or Tf32; half_sums: c and d are packed f16.
template <class H, int K, bool half_sums>
void multiply_accumulate(Warp& w, const Instruction& i, Mask) {
  if (!whole_warp(w, i)) return;
  constexpr bool tf = std::is_same_v<H, Tf32>;
  constexpr unsigned operands = tf ? K / 2 + K / 4 : K / 4 + K / 8, sums = half_sums ? 2 : 4;
  const std::uint32_t* places = &w.program.lists[i.list];
  Product<K> m;
  if constexpr (tf)
    load_operands_tf32(m, {w, places});
  else
    load_operands<H>(m, {w, places});
  const Fragments c{w, places + operands};
  for (int lane = 0; lane < kLanes; ++lane)
    for (int k = 0; k < 4; ++k) {
      const std::uint32_t word = c.word(unsigned(half_sums ? k >> 1 : k), lane);
      m.c[(lane >> 2) + 8 * (k >> 1)][2 * (lane & 3) + (k & 1)] =
          half_sums ? element<Half>(word, k & 1) : std::bit_cast<float>(word);
    }
  m.multiply();
  for (unsigned k = 0; k < sums; ++k)
    write<std::uint32_t>(w, places[operands + sums + k], kAllLanes, [&](int lane) {
      const int g = lane >> 2, t = lane & 3;
      if constexpr (half_sums) {
        const float* row = m.c[g + 8 * int(k)];
        return std::bit_cast<std::uint32_t>(Pair<Half>{from_float<Half>(row[2 * t]), from_float<Half>(row[2 * t + 1])});
      } else {
        return std::bit_cast<std::uint32_t>(m.c[g + 8 * int(k >> 1)][2 * t + int(k & 1)]);
      }
    });
}

// m8n8k4 of doubles: lists a, b, c (2), d (2).
void multiply_accumulate_double(Warp& w, const Instruction& i, Mask) {
  if (!whole_warp(w, i)) return;
  const std::uint32_t* places = &w.program.lists[i.list];
  const Source<double> a(w, places[0]), b(w, places[1]), c0(w, places[2]), c1(w, places[3]);
  double d[2][kLanes];
  for (int lane = 0; lane < kLanes; ++lane)
    for (int h = 0; h < 2; ++h) {
      double sum = h ? c1[lane] : c0[lane];
      for (int k = 0; k < 4; ++k) sum = std::fma(a[(lane & ~3) + k], b[4 * (2 * (lane & 3) + h) + k], sum);
      d[h][lane] = sum;
    }
  for (unsigned h = 0; h < 2; ++h) write<double>(w, places[4 + h], kAllLanes, [&](int lane) { return d[h][lane]; });
}

// Rows of 8 16-bit elements: lane 8 k + r has the address of row r of matrix k.
template <bool transposed, bool storing>
void move_matrices(Warp& w, const Instruction& i, Mask) {
  if (!whole_warp(w, i)) return;
  std::uint64_t addresses[kLanes];
  addresses_of(w, i.a, i.mode & 1, i.offset, addresses);
  const Mask rows = i.count == 4 ? kAllLanes : (Mask{1} << (8 * i.count)) - 1;
  const bool shared_window = addresses[0] >= kSharedWindow;
  const Pointers p = resolve(w, i, rows, shared_window ? Space::generic : Space::shared, addresses, 16,
                             storing ? Access::write : Access::read);
  for (unsigned k = 0; k < i.count; ++k) {
    std::uint32_t* words = w.words<std::uint32_t>(w.program.lists[i.list + k]);
    for (int lane = 0; lane < kLanes; ++lane)
      for (unsigned h = 0; h < 2; ++h) {
        const unsigned g = unsigned(lane) >> 2, pair = 2 * (unsigned(lane) & 3) + h;
        const unsigned row = transposed ? pair : g, column = transposed ? g : pair;
        std::byte* cell = p.at[8 * k + row] + 2 * column;
        if constexpr (storing) {
          const auto half = std::uint16_t(words[lane] >> (16 * h));
          check_rewriting(w, i, p, int(8 * k + row), 2 * column, &half, 2);
          std::memcpy(cell, &half, 2);
        } else {
          std::uint16_t half;
          std::memcpy(&half, cell, 2);
          words[lane] = h == 0 ? half : (words[lane] & 0xffffu) | std::uint32_t(half) << 16;
        }
      }
  }
}

// movmatrix: 8 x 8 16-bit elements, two of a row in each lane, become those of the transposed matrix.
void transpose(Warp& w, const Instruction& i, Mask) {
  if (!whole_warp(w, i)) return;
  const Source<std::uint32_t> from(w, i.a);
  std::uint32_t words[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) words[lane] = from[lane];
  write<std::uint32_t>(w, i.d, kAllLanes, [&](int lane) {
    const int column = lane >> 2, row = 2 * (lane & 3);
    const auto cell = [&](int r) { return words[4 * r + (column >> 1)] >> (16 * (column & 1)) & 0xffffu; };
    return cell(row) | cell(row + 1) << 16;
  });
}

Handler mma_handler(const PtxInstruction& p) {
  const bool k16 = p.has("m16n8k16"), k8 = p.has("m16n8k8"), k4 = p.has("m16n8k4");
  const std::string_view last = p.words.back();
  if (p.has("bf16")) return k16 ? multiply_accumulate<Brain, 16, false> : k8 ? multiply_accumulate<Brain, 8, false> : nullptr;
  if (p.has("tf32")) return k8 ? multiply_accumulate<Tf32, 8, false> : k4 ? multiply_accumulate<Tf32, 4, false> : nullptr;
  if (!p.has("f16")) return nullptr;
  if (last == "f16") return k16 ? multiply_accumulate<Half, 16, true> : k8 ? multiply_accumulate<Half, 8, true> : nullptr;
  return k16 ? multiply_accumulate<Half, 16, false> : k8 ? multiply_accumulate<Half, 8, false> : nullptr;
}

bool decode_mma(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  const bool doubles = p.has("m8n8k4") && p.has("f64");
  i.run = doubles ? multiply_accumulate_double : p.has("row") && p.has("col") ? mma_handler(p) : nullptr;
  if (!i.run || p.has("sparse") || p.has("sp")) return false;
  std::vector<std::uint32_t> places;
  for (std::size_t operand : {1, 2, 3, 0}) {
    const Operand& o = p.operands.at(operand);
    if (o.kind != Operand::list) places.push_back(decoder.place(o, doubles ? 64 : 32));
    for (const Operand& part : o.parts) places.push_back(decoder.place(part, doubles ? 64 : 32));
  }
  i.list = decoder.list(places);
  return true;
}

// ---- wgmma ------------------------------------------------------------------------------------------------------------------

// A matrix in shared memory as its descriptor says: 16-byte chunks in rows of 128 bytes, of which the three address bits above
// 16 bytes are permuted by those above 128. Rows are those of the matrix, of 16 elements that are multiplied; or, transposed,
// those of one such element, of 64 columns each.
struct SharedMatrix {
  std::uint64_t descriptor;
  bool transposed;

  static std::uint64_t bytes(std::uint64_t field) { return (field & 0x3fff) << 4; }
  bool swizzled() const { return descriptor >> 61 == 2 && (descriptor >> 49 & 7) == 0; }
  // The address of chunk `chunk` (of 8 elements) of row `row`.
  std::uint64_t address(int row, int chunk) const {
    const std::uint64_t at = bytes(descriptor) + std::uint64_t(row / 8) * bytes(descriptor >> 32) +
                             std::uint64_t(row % 8) * 128 +
                             (transposed ? std::uint64_t(chunk / 8) * bytes(descriptor >> 16) : 0) +
                             std::uint64_t(transposed ? chunk % 8 : chunk) * 16;
    return at ^ (at >> 7 & 7) << 4;
  }
};

// Calls f(row, column, value) for bf16 elements of `rows` rows from `first` on, of `chunks` chunks each.
template <class F>
void read_matrix(Warp& w, const Instruction& i, const SharedMatrix& m, int first, int rows, int chunks, F&& f) {
  for (int next = 0; next < rows * chunks; next += kLanes) {
    const int count = std::min(kLanes, rows * chunks - next);
    std::uint64_t addresses[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const int k = next + std::min(l, count - 1);
      addresses[l] = m.address(first + k / chunks, k % chunks);
    }
    const Mask lanes = count == kLanes ? kAllLanes : (Mask{1} << count) - 1;
    const Pointers p = resolve(w, i, lanes, Space::shared, addresses, 16, Access::read, false);
    for (int l = 0; l < count; ++l) {
      std::uint16_t x[8];
      std::memcpy(x, p.at[std::size_t(l)], sizeof x);
      for (int e = 0; e < 8; ++e) f((next + l) / chunks, (next + l) % chunks * 8 + e, to_float(Brain{x[e]}));
    }
  }
}

// m64nNk16 of bf16 in fp32. A warp makes its 16 rows, and at once: that it reads results and overwrites operands only after the
// wait is not looked at. Lists: scale-d, b, a (1 or 4), d (N / 2). mode: 1, a is in shared memory; 2, b is transposed.
void multiply_warpgroup(Warp& w, const Instruction& i, Mask) {
  if (!whole_warp(w, i)) return;
  const std::uint32_t* places = &w.program.lists[i.list];
  const bool shared = i.mode & 1;
  const int columns = 8 * i.count;
  float a[16][16], b[256][16];
  const auto matrix = [&](unsigned k, bool transposed) {
    const SharedMatrix m{w.words<std::uint64_t>(places[k])[0], transposed};
    if (!m.swizzled())
      w.block.fault(w, i, 0, "a matrix of another layout than the swizzle of 128 bytes", fmt::format("{:#x}", m.descriptor));
    return m;
  };
  if (shared) {
    read_matrix(w, i, matrix(2, false), int(w.index % 4) * 16, 16, 2, [&](int row, int k, float x) { a[row][k] = x; });
  } else {
    const Fragments f{w, places + 2};
    for (int lane = 0; lane < kLanes; ++lane)
      for (unsigned k = 0; k < 4; ++k)
        for (int h = 0; h < 2; ++h)
          a[(lane >> 2) + 8 * int(k & 1)][2 * (lane & 3) + 8 * int(k >> 1) + h] = element<Brain>(f.word(k, lane), h);
  }
  if (i.mode & 2)
    read_matrix(w, i, matrix(1, true), 0, 16, columns / 8, [&](int k, int column, float x) { b[column][k] = x; });
  else
    read_matrix(w, i, matrix(1, false), 0, columns, 2, [&](int column, int k, float x) { b[column][k] = x; });
  const bool adds = w.predicate(places[0]) != 0;
  const std::uint32_t* sums = places + (shared ? 3 : 6);
  for (int n = 0; n < i.count; ++n)
    for (int e = 0; e < 4; ++e)
      write<std::uint32_t>(w, sums[4 * n + e], kAllLanes, [&](int lane) {
        const int row = (lane >> 2) + 8 * (e >> 1), column = 8 * n + 2 * (lane & 3) + (e & 1);
        float sum = adds ? std::bit_cast<float>(w.words<std::uint32_t>(sums[4 * n + e])[lane]) : 0.0f;
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
        return std::bit_cast<std::uint32_t>(sum);
      });
}
void no_operation(Warp&, const Instruction&, Mask) {}

bool decode_wgmma(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  const std::string_view what = p.words.at(1);
  if (what == "fence" || what == "commit_group" || what == "wait_group") {
    i.run = no_operation;
    return true;
  }
  if (what != "mma_async" || p.has("sp") || p.words.size() != 8 || p.words[5] != "f32" || p.words[6] != "bf16" ||
      p.words[7] != "bf16")
    return false;
  const auto number = [&](std::size_t operand) {
    return p.operands.at(operand).kind == Operand::number ? p.operands[operand].bits : 9;
  };
  const Operand &sums = p.operands.at(0), &a = p.operands.at(1), &b = p.operands.at(2), &scale = p.operands.at(3);
  const bool shared = a.kind != Operand::list;
  if (number(4) != 1 || number(5) != 1 || (shared && number(6) != 0) || scale.negated || number(shared ? 7 : 6) > 1)
    return false;
  std::vector<std::uint32_t> places = {decoder.place(scale, 1), decoder.place(b, 64)};
  if (shared) places.push_back(decoder.place(a, 64));
  for (const Operand& part : a.parts) places.push_back(decoder.place(part, 32));
  for (const Operand& part : sums.parts) places.push_back(decoder.place(part, 32));
  i.list = decoder.list(places);
  i.count = std::uint8_t(sums.parts.size() / 4);
  i.mode = std::uint8_t(int(shared) | int(number(shared ? 7 : 6)) << 1);
  i.target = decoder.program().access_sites++;
  i.run = multiply_warpgroup;
  return true;
}

}  // namespace

bool decode_matrix(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  const std::string_view op = p.words[0];
  if (op == "mma") return decode_mma(p, decoder, i);
  if (op == "wgmma") return decode_wgmma(p, decoder, i);
  if (op == "movmatrix") {
    if (!p.has("m8n8") || !p.has("trans") || !p.has("b16")) return false;
    i.d = decoder.place(p.operands.at(0), 32), i.a = decoder.place(p.operands.at(1), 32);
    i.run = transpose;
    return true;
  }
  const bool storing = op == "stmatrix";
  if ((op != "ldmatrix" && !storing) || !p.has("m8n8") || !p.has("b16")) return false;
  const Operand &registers = p.operands.at(storing ? 1 : 0), &address = p.operands.at(storing ? 0 : 1);
  std::vector<std::uint32_t> places;
  for (const Operand& part : registers.parts) places.push_back(decoder.place(part, 32));
  if (registers.kind == Operand::reg) places.push_back(decoder.place(registers, 32));
  i.count = std::uint8_t(places.size()), i.list = decoder.list(places);
  i.a = decoder.base(address, i);
  i.target = decoder.program().access_sites++;
  i.run = storing ? (p.has("trans") ? move_matrices<true, true> : move_matrices<false, true>)
                  : (p.has("trans") ? move_matrices<true, false> : move_matrices<false, false>);
  return true;
}

}  // namespace weft::emulator
