#include "jit/gemm.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <cblas.h>

#include "jit/error.h"
#include "jit/parallel.h"
#include "jit/rows.h"
#include "jit/vmath.h"

namespace weft {

std::string_view name_of(Activation activation) {
  return activation == Activation::relu ? "relu" : activation == Activation::gelu_tanh ? "gelu_tanh" : "none";
}

namespace {

// Measured with OpenBLAS 0.3.21: below about 2 MFLOP a call's packing and the hand-over of a part show.
constexpr double kPartFlops = 2e6;
constexpr std::int64_t kMostParts = 64, kEnoughParts = 16;
constexpr std::int64_t kLeastTile = 128;    // rows and columns of a part: both operands are packed once for each part
constexpr std::int64_t kLeastDepth = 256;   // k of a part when k is cut
constexpr std::int64_t kPanelDepth = 1024;  // k converted at a time
constexpr std::int64_t kMostPartials = std::int64_t(1) << 23;  // elements of partial sums

// The cut of one product. Depends on m, n and k alone.
struct Cut {
  std::int64_t rows, columns, depth;  // of a part
  std::int64_t row_parts, column_parts, depth_parts;
  std::int64_t tiles() const { return row_parts * column_parts; }
};

Cut cut_of(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t batch) {
  const double flops = 2.0 * double(m) * double(n) * double(k) * double(batch);
  const auto target = std::int64_t(std::clamp(flops / kPartFlops, 1.0, double(kMostParts)));
  Cut cut{m, n, k, 1, 1, 1};
  while (batch * cut.tiles() < target && std::max(cut.rows, cut.columns) >= 2 * kLeastTile) {
    if (cut.rows >= cut.columns)
      cut.rows = ceil_div(ceil_div(cut.rows, 2), 16) * 16;
    else
      cut.columns = ceil_div(ceil_div(cut.columns, 2), 16) * 16;
    cut.row_parts = ceil_div(m, cut.rows);
    cut.column_parts = ceil_div(n, cut.columns);
  }
  const std::int64_t tiles = batch * cut.tiles(), wanted = std::min(target, kEnoughParts);
  if (tiles < wanted && k >= 2 * kLeastDepth) {
    const std::int64_t room = std::max<std::int64_t>(kMostPartials / std::max<std::int64_t>(batch * m * n, 1), 1);
    const std::int64_t parts = std::min({ceil_div(wanted, tiles), k / kLeastDepth, room});
    cut.depth = ceil_div(k, parts);
    cut.depth_parts = ceil_div(k, cut.depth);
  }
  return cut;
}

CBLAS_TRANSPOSE flag(bool transposed) { return transposed ? CblasTrans : CblasNoTrans; }

void blas_gemm(bool ta, bool tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b, int ldb, float beta,
               float* c, int ldc) {
  cblas_sgemm(CblasRowMajor, flag(ta), flag(tb), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
void blas_gemm(bool ta, bool tb, int m, int n, int k, double alpha, const double* a, int lda, const double* b, int ldb,
               double beta, double* c, int ldc) {
  cblas_dgemm(CblasRowMajor, flag(ta), flag(tb), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
void blas_gemv(bool transposed, int rows, int columns, float alpha, const float* a, int lda, const float* x, int incx,
               float beta, float* y, int incy) {
  cblas_sgemv(CblasRowMajor, flag(transposed), rows, columns, alpha, a, lda, x, incx, beta, y, incy);
}
void blas_gemv(bool transposed, int rows, int columns, double alpha, const double* a, int lda, const double* x, int incx,
               double beta, double* y, int incy) {
  cblas_dgemv(CblasRowMajor, flag(transposed), rows, columns, alpha, a, lda, x, incx, beta, y, incy);
}

// A matrix as BLAS takes it: row-major with leading dimension `ld`, stored transposed or not.
template <class T>
struct Stored {
  const T* data;
  int ld;
  bool transposed;
};

// rows x columns of `m` from (row, column) on, in place if BLAS can read it there.
template <class T>
bool in_place(const GemmInput& m, std::int64_t row, std::int64_t column, std::int64_t rows, std::int64_t columns,
              Stored<T>* out) {
  if (m.dtype != dtype_of<T>) return false;
  const T* data = reinterpret_cast<const T*>(m.data) + row * m.row_stride + column * m.col_stride;
  if ((m.col_stride == 1 || columns == 1) && (m.row_stride >= columns || rows == 1) && m.row_stride <= INT_MAX) {
    *out = {data, int(std::max({m.row_stride, columns, std::int64_t(1)})), false};
    return true;
  }
  if ((m.row_stride == 1 || rows == 1) && (m.col_stride >= rows || columns == 1) && m.col_stride <= INT_MAX) {
    *out = {data, int(std::max({m.col_stride, rows, std::int64_t(1)})), true};
    return true;
  }
  return false;
}

// The same, copied to `panel` (rows x columns) in the order of the memory.
template <class T>
Stored<T> converted(const GemmInput& m, std::int64_t row, std::int64_t column, std::int64_t rows, std::int64_t columns,
                    T* panel) {
  const bool transposed = m.col_stride != 1 && m.row_stride == 1;
  const GemmInput from = transposed ? m.transposed() : m;
  if (transposed) std::swap(row, column), std::swap(rows, columns);
  visit_dtype(from.dtype, [&]<class S>(S) {
    for (std::int64_t i = 0; i < rows; ++i) {
      const S* line = reinterpret_cast<const S*>(from.data) + (row + i) * from.row_stride + column * from.col_stride;
      T* to = panel + i * columns;
      if (from.col_stride == 1)
        for (std::int64_t j = 0; j < columns; ++j) to[j] = T(line[j]);
      else
        for (std::int64_t j = 0; j < columns; ++j) to[j] = T(line[j * from.col_stride]);
    }
  });
  return {panel, int(std::max<std::int64_t>(columns, 1)), transposed};
}

// A tile of the output: rows [row, row + rows) and so on, summed over [k_begin, k_end).
struct Tile {
  std::int64_t row, rows, column, columns, k_begin, k_end;
};

// c (rows, columns; ldc) = alpha A B + beta c. One call of BLAS, or one for each converted panel.
template <class T>
void multiply(const Tile& t, const GemmInput& a, const GemmInput& b, T alpha, T beta, T* c, std::int64_t ldc) {
  struct PanelA;
  struct PanelB;
  const std::int64_t k = t.k_end - t.k_begin;
  Stored<T> sa, sb;
  const bool direct_a = in_place(a, t.row, t.k_begin, t.rows, k, &sa);
  const bool direct_b = in_place(b, t.k_begin, t.column, k, t.columns, &sb);
  const std::int64_t step = direct_a && direct_b ? k : std::min(k, kPanelDepth);
  T* panel_a = direct_a ? nullptr : thread_scratch<T, PanelA>(std::size_t(t.rows * step));
  T* panel_b = direct_b ? nullptr : thread_scratch<T, PanelB>(std::size_t(t.columns * step));
  for (std::int64_t from = t.k_begin; from < t.k_end; from += step) {
    const std::int64_t depth = std::min(step, t.k_end - from);
    if (!direct_a)
      sa = converted(a, t.row, from, t.rows, depth, panel_a);
    else
      in_place(a, t.row, from, t.rows, depth, &sa);
    if (!direct_b)
      sb = converted(b, from, t.column, depth, t.columns, panel_b);
    else
      in_place(b, from, t.column, depth, t.columns, &sb);
    if (t.rows == 1)  // y = B^T a: the matrix is read once, without packing
      blas_gemv(!sb.transposed, int(sb.transposed ? t.columns : depth), int(sb.transposed ? depth : t.columns), alpha, sb.data,
                sb.ld, sa.data, sa.transposed ? sa.ld : 1, beta, c, 1);
    else if (t.columns == 1)
      blas_gemv(sa.transposed, int(sa.transposed ? depth : t.rows), int(sa.transposed ? t.rows : depth), alpha, sa.data, sa.ld,
                sb.data, sb.transposed ? 1 : sb.ld, beta, c, int(ldc));
    else
      blas_gemm(sa.transposed, sb.transposed, int(t.rows), int(t.columns), int(depth), alpha, sa.data, sa.ld, sb.data, sb.ld,
                beta, c, int(ldc));
    beta = 1;
  }
}

// Writes what the product is added to: beta D + bias, into `to`, which may be C itself.
template <class T>
void seed(const Tile& t, const GemmOutput& c, const GemmOptions& options, T* to, std::int64_t ld) {
  const GemmInput d = options.addend.data ? options.addend : GemmInput{c.data, c.dtype, c.row_stride};
  for (std::int64_t i = 0; i < t.rows; ++i) {
    T* row = to + i * ld;
    if (options.beta == 0) {
      std::fill_n(row, t.columns, T(0));
    } else {
      const T* old = load_row(d.data, d.dtype, (t.row + i) * d.row_stride + t.column, t.columns, row);
      for (std::int64_t j = 0; j < t.columns; ++j) row[j] = T(options.beta) * old[j];
    }
    if (!options.bias) continue;
    visit_dtype(options.bias_dtype, [&]<class S>(S) {
      const S* bias = reinterpret_cast<const S*>(options.bias) + t.column;
      for (std::int64_t j = 0; j < t.columns; ++j) row[j] += T(bias[j]);
    });
  }
}

template <class T>
void activate(Activation activation, T* row, std::int64_t n) {
  if (activation == Activation::relu)
    for (std::int64_t j = 0; j < n; ++j) row[j] = row[j] <= 0 ? T(0) : row[j];  // this way round a NaN stays one
  if (activation == Activation::gelu_tanh)
    for (std::int64_t j = 0; j < n; ++j) {
      const T x = row[j], inner = T(0.7978845608028654) * (x + T(0.044715) * x * x * x);  // sqrt(2 / pi)
      row[j] = T(0.5) * x * (T(1) + vmath::tanh(inner));
    }
}

// One tile over all of k, or, with partials, over a part of it.
template <class T>
void compute_tile(const Tile& t, const GemmInput& a, const GemmInput& b, const GemmOutput& c, const GemmOptions& options) {
  struct TileScratch;
  const bool direct = c.dtype == dtype_of<T>;
  T* to = direct ? reinterpret_cast<T*>(c.data) + t.row * c.row_stride + t.column
                 : thread_scratch<T, TileScratch>(std::size_t(t.rows * t.columns));
  const std::int64_t ld = direct ? std::max(c.row_stride, t.columns) : t.columns;
  const bool seeded = options.bias || options.beta != 0 || t.k_begin == t.k_end;
  if (seeded) seed(t, c, options, to, ld);
  multiply<T>(t, a, b, T(options.alpha), seeded ? T(1) : T(0), to, ld);
  for (std::int64_t i = 0; i < t.rows; ++i) activate(options.activation, to + i * ld, t.columns);
  if (direct) return;
  for (std::int64_t i = 0; i < t.rows; ++i)
    store_row(c.data, c.dtype, (t.row + i) * c.row_stride + t.column, t.columns, to + i * ld);
}

Tile tile_of(const Cut& cut, std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t index) {
  const std::int64_t row = index / cut.column_parts * cut.rows, column = index % cut.column_parts * cut.columns;
  return {row, std::min(cut.rows, m - row), column, std::min(cut.columns, n - column), 0, k};
}

std::byte* at(std::byte* data, DType dtype, std::int64_t offset) { return data + offset * std::int64_t(size_of(dtype)); }
const std::byte* at(const std::byte* data, DType dtype, std::int64_t offset) {
  return data + offset * std::int64_t(size_of(dtype));
}

// C = sum of the partial products over the parts of k, in order.
template <class T>
void add_partials(const T* partials, std::int64_t parts, std::int64_t m, std::int64_t n, const GemmOutput& c,
                  const GemmOptions& options) {
  const std::int64_t blocks = part_count(m, std::max<std::int64_t>(1, 65536 / (n * parts)));
  parallel(blocks, [&](std::int64_t block) {
    std::vector<T> row(n);
    const Range range = part_of(m, blocks, block);
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      seed<T>({i, 1, 0, n, 0, 0}, c, options, row.data(), n);
      fold_parts(partials + i * n, parts, m * n, n, row.data());
      activate(options.activation, row.data(), n);
      store_row(c.data, c.dtype, i * c.row_stride, n, row.data());
    }
  });
}

// OpenBLAS maps a buffer for each thread that is in it at once, and where it cannot (`ulimit -d`, `ulimit -v`) it tries for
// ever.
constexpr std::size_t kBlasBuffer = std::size_t(128) << 20;  // its BUFFER_SIZE on x86-64, the largest

bool can_map(std::size_t bytes) {
  void* there = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return there != MAP_FAILED && munmap(there, bytes) == 0;
}

// Its own threads, which weft does not use, begin with the process and try so too, and the end of the process waits for them.
// This comes before that wait, and after all else that is done at the end.
const int kEndsWithoutWaiting = on_exit(
    [](int status, void*) {
      if (can_map(kBlasBuffer)) return;
      std::fflush(nullptr);
      _exit(status);
    },
    nullptr);

void check_blas_buffers() {
  static std::atomic<int> possible = 0;
  const int wanted = threads();
  if (wanted <= possible) return;
  if (!can_map(std::size_t(wanted - possible) * kBlasBuffer))
    fail(ErrorKind::device, "memory: the BLAS has no room for its buffers",
         std::to_string(wanted) + " threads, 128 MiB of addresses each",
         "use fewer --threads, or raise `ulimit -d` or `ulimit -v`");
  possible = wanted;
}

}  // namespace

template <class T>
void gemm_batched(std::span<const GemmOffsets> batch, std::int64_t m, std::int64_t n, std::int64_t k, const GemmInput& a,
                  const GemmInput& b, const GemmOutput& c, const GemmOptions& options) {
  static const bool once = (openblas_set_num_threads(1), true);
  static_cast<void>(once);
  check_blas_buffers();
  const auto count = std::int64_t(batch.size());
  if (count == 0 || m == 0 || n == 0) return;
  const Cut cut = cut_of(m, n, k, count);
  const auto options_of = [&](std::int64_t e) {
    GemmOptions own = options;
    if (own.addend.data) own.addend.data = at(own.addend.data, own.addend.dtype, batch[e].addend);
    return own;
  };
  const auto element = [&](std::int64_t e, GemmInput* x, GemmInput* y, GemmOutput* z) {
    *x = {at(a.data, a.dtype, batch[e].a), a.dtype, a.row_stride, a.col_stride};
    *y = {at(b.data, b.dtype, batch[e].b), b.dtype, b.row_stride, b.col_stride};
    *z = {at(c.data, c.dtype, batch[e].c), c.dtype, c.row_stride};
  };
  if (cut.depth_parts == 1) {
    const double flops = 2.0 * double(cut.rows) * double(cut.columns) * double(k);  // small products share a part
    const std::int64_t tiles = count * cut.tiles();
    const std::int64_t group = std::int64_t(std::clamp(kPartFlops / std::max(flops, 1.0), 1.0, double(tiles)));
    parallel(ceil_div(tiles, group), [&](std::int64_t part) {
      GemmInput x, y;
      GemmOutput z;
      for (std::int64_t i = part * group; i < std::min(tiles, (part + 1) * group); ++i) {
        element(i / cut.tiles(), &x, &y, &z);
        compute_tile<T>(tile_of(cut, m, n, k, i % cut.tiles()), x, y, z, options_of(i / cut.tiles()));
      }
    });
    return;
  }
  struct Partials;
  T* partials = thread_scratch<T, Partials>(std::size_t(count * cut.depth_parts * m * n));
  GemmOptions plain;
  plain.alpha = options.alpha;
  parallel(count * cut.tiles() * cut.depth_parts, [&](std::int64_t part) {
    GemmInput x, y;
    GemmOutput z;
    const std::int64_t e = part / (cut.tiles() * cut.depth_parts), p = part % cut.depth_parts;
    element(e, &x, &y, &z);
    Tile tile = tile_of(cut, m, n, k, part / cut.depth_parts % cut.tiles());
    tile.k_begin = p * cut.depth;
    tile.k_end = std::min(k, tile.k_begin + cut.depth);
    z = {reinterpret_cast<std::byte*>(partials + (e * cut.depth_parts + p) * m * n), dtype_of<T>, n};
    compute_tile<T>(tile, x, y, z, plain);
  });
  for (std::int64_t e = 0; e < count; ++e) {
    GemmInput x, y;
    GemmOutput z;
    element(e, &x, &y, &z);
    add_partials(partials + e * cut.depth_parts * m * n, cut.depth_parts, m, n, z, options_of(e));
  }
}

template <class T>
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const GemmInput& a, const GemmInput& b, const GemmOutput& c,
          const GemmOptions& options) {
  const GemmOffsets zero{0, 0, 0};
  gemm_batched<T>(std::span(&zero, 1), m, n, k, a, b, c, options);
}

template void gemm<float>(std::int64_t, std::int64_t, std::int64_t, const GemmInput&, const GemmInput&, const GemmOutput&,
                          const GemmOptions&);
template void gemm<double>(std::int64_t, std::int64_t, std::int64_t, const GemmInput&, const GemmInput&, const GemmOutput&,
                           const GemmOptions&);
template void gemm_batched<float>(std::span<const GemmOffsets>, std::int64_t, std::int64_t, std::int64_t, const GemmInput&,
                                  const GemmInput&, const GemmOutput&, const GemmOptions&);
template void gemm_batched<double>(std::span<const GemmOffsets>, std::int64_t, std::int64_t, std::int64_t, const GemmInput&,
                                   const GemmInput&, const GemmOutput&, const GemmOptions&);

}  // namespace weft
