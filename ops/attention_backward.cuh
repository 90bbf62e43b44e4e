// The gradients of attention; ops/attention.cuh stands before it. With P the probabilities, w the weights and
//   dP = w (dO V^T),  delta = the sum of dO O over the features,  dS = P (dP - delta), through the derivative of the score,
// dV = (w P)^T dO, dQ = scale dS K, dK = scale dS^T Q. A block owns queries and makes dQ, or owns keys and makes dK and dV
// from P^T and dS^T, which then are left operands as they lie in registers. Nothing is added up by atomics: results are equal
// from run to run.
//
// Facts: QUERIES, KEYS: the kernel has blocks that own queries, keys, or both kinds; SUB columns are computed at a time; DELTA:
// the blocks that own queries make delta, which those of another launch read; QUERIES_HELD, KEYS_HELD: how many of the own
// tiles are held in registers, that of Q or K first; ITEM_HEADS: 1 if the heads of a group have the same entries, else a group;
// ROW_SUMS, DIFFERENCES and COLUMN_SUMS of further roots of the score's derivative, over the keys of a query, over the places
// with one i - j, and over the queries of a key: they stand behind root 0 in this order.

constexpr int N = SUB / 8;
using Places = real[N][4];
using OwnK = Tile<OWN, DK>;  // and of queries
using OwnV = Tile<OWN, DV>;  // and of gradients
using OtherK = Tile<OTHER, DK>;
using OtherV = Tile<OTHER, DV>;
constexpr int TILES_SIZE = OwnK::SIZE + OwnV::SIZE + STAGES * (OtherK::SIZE + OtherV::SIZE);  // elements

// Minus the log2 of the normaliser of a row; of one that sees nothing 0, so that its P, of scores -inf, is 0.
DEVICE real shift_of(real lse) { return lse == -infinity() ? real(0) : lse * real(-LOG2_E); }

// Where the results of a block go. Beside wgmma it waits in shared memory, as it would take registers all along.
struct Place {
  index b, head, first;
  int part;
};
DEVICE Place& place_of(Element* memory) {
  return *reinterpret_cast<Place*>(reinterpret_cast<real*>(memory + TILES_SIZE) + 2 * STAGES * OTHER);
}

// ---- sums of further roots --------------------------------------------------------------------------------------------------

// Over the columns, of a lane's two rows.
template <int COUNT>
class RowSums {
 public:
  template <int ROOTS>
  DEVICE void add(int r, bool visible, const real (&roots)[ROOTS], int first) {
#pragma unroll
    for (int n = 0; n < COUNT; ++n) sums_[n][r] += visible ? roots[first + n] : real(0);
  }
  // To where at(n, r) says, unless that is null; they begin again from zero.
  template <class At>
  DEVICE void store(const Lane& lane, At at) {
#pragma unroll
    for (int n = 0; n < COUNT; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const real sum = row_fold(sums_[n][r], Sum());
        real* const to = at(n, r);
        if (to != nullptr && lane.column == 0 && lane.slice == 0) *to = sum;
        sums_[n][r] = 0;
      }
  }

 private:
  real sums_[COUNT > 0 ? COUNT : 1][2] = {};
};

// Over the places of one difference of row and column. The block has an array of its own, of OWN + tk - 1 differences from that
// of its first row and the last column on. A tile of roots lies in shared memory while each thread adds up one diagonal of it
// and adds that to the array, tile after tile.
class Diagonals {
 public:
  DEVICE Diagonals(const Args& a, index b, index h, int tile, Element* memory) : a_(a), b_(b), h_(h), tile_(tile) {
    tiles_ = reinterpret_cast<Roots*>(&place_of(memory) + ASYNC);
#pragma unroll
    for (int n = 0; n < DIFFERENCES; ++n)
      for (index d = int(threadIdx.x); d < OWN + index(a.tk) - 1; d += THREADS) difference_at(a, n, b, h, tile)[d] = 0;
  }
  template <int ROOTS>
  DEVICE void put(int row, int column, bool visible, const real (&roots)[ROOTS], int first) {
#pragma unroll
    for (int n = 0; n < DIFFERENCES; ++n) tiles_[n][row][column] = visible ? roots[first + n] : real(0);
  }
  // The tile whose first column is `column`.
  DEVICE void add(index column) {
    if constexpr (DIFFERENCES > 0) {
      __syncthreads();
      for (int d = int(threadIdx.x); d < OWN + SUB - 1; d += THREADS) {
        const int first = d < SUB - 1 ? 0 : d - (SUB - 1), shift = d - (SUB - 1);  // of row and column
        const index at = shift - column + index(a_.tk) - 1;
#pragma unroll
        for (int n = 0; n < DIFFERENCES; ++n) {
          real sum = 0;
          for (int row = first; row < OWN && row - shift < SUB && row - shift >= 0; ++row) sum += tiles_[n][row][row - shift];
          if (at >= 0) difference_at(a_, n, b_, h_, tile_)[at] += sum;
        }
      }
      __syncthreads();
    }
  }

 private:
  using Roots = real[OWN][SUB + 1];
  const Args& a_;
  index b_, h_;
  int tile_;
  Roots* tiles_;
};

// ---- blocks that own queries ------------------------------------------------------------------------------------------------

// delta of a lane's row: its four lanes add up a row of dO O.
DEVICE real delta_of(const Element* o, const Element* g) {
  real sum = 0;
#pragma unroll
  for (int c = int(threadIdx.x % 4) * CHUNK; c < DV; c += 4 * CHUNK) {
    real x[CHUNK], y[CHUNK];
    load_real<CHUNK>(o + c, x);
    load_real<CHUNK>(g + c, y);
#pragma unroll
    for (int k = 0; k < CHUNK; ++k) sum += x[k] * y[k];
  }
  return row_fold(sum, Sum());
}

DEVICE void own_queries(const Args& a, index b, index h, index number, Element* memory) {
  const i64* const items = a.queries + 2 * (list_at(a.queries_lists, h) * a.queries_items + number);
  const Item item = item_at(items, 0);
  if (item.tile < 0) return;
  Element *const own = memory, *const own_g = own + OwnK::SIZE, *const keys = own_g + OwnV::SIZE;
  Element* const values = keys + STAGES * OtherK::SIZE;
  const index g = h / index(a.group), tq = index(a.tq), tk = index(a.tk), first = index(item.tile) * OWN;
  const Lane lane = this_lane();
  const Rows<DK> k(a.k + (i64(b) * a.k_batch + i64(g) * a.k_head), index(a.k_time));
  const Rows<DV> v(a.v + (i64(b) * a.v_batch + i64(g) * a.v_head), index(a.v_time));
  const auto kind = [&](int, int tile) {
    bool never[1] = {false}, always[1] = {false};
    class_of_queries(a, b, h, item.tile, tile, never, always);
    return kind_of(a, never[0], always[0], first + OWN, i64(tile + 1) * OTHER);
  };
  auto now = walk_of<1>(items, a.queries_entries, 1, kind), next = now;
  const auto copy = [&](int stage) {
    const index from = index(next.entry().tile) * OTHER;
    k.copy<OTHER>(keys + stage * OtherK::SIZE, from, tk);
    v.copy<OTHER>(values + stage * OtherV::SIZE, from, tk);
  };
  const Element* const g_head = a.g + (i64(b) * a.g_batch + i64(h) * a.g_head);
  Rows<DK>(a.q + (i64(b) * a.q_batch + i64(h) * a.q_head), index(a.q_time)).copy<OWN>(own, first, tq);
  Rows<DV>(g_head, index(a.g_time)).copy<OWN>(own_g, first, tq);
  if constexpr (STAGES == 2) begin_copies(next, 0, copy);

  const index i = first + lane.row, row = (b * index(a.heads) + h) * tq + i;
  const QueryHoles holes(a, b, h, inside(i, tq), inside(i + 8, tq));
  const real scale = score_factor(a), unit = exponent_factor(a);
  real shift[2] = {}, delta[2] = {};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const index at = inside(i + 8 * r, tq);
    shift[r] = shift_of(a.lse[row - i + at]);
    if constexpr (DELTA) {
      delta[r] = delta_of(a.o + (i64(b) * a.o_batch + i64(h) * a.o_head + i64(at) * a.o_time), g_head + i64(at) * a.g_time);
      if (i + 8 * r < tq && lane.column == 0 && lane.slice == 0) a.delta[row + 8 * r] = delta[r];
    } else {
      delta[r] = a.delta[row - i + at];
    }
  }
  OwnRows<OwnK, (QUERIES_HELD > 0)> queries(own, lane.warp_row);
  OwnRows<OwnV, (QUERIES_HELD > 1)> gradients(own_g, lane.warp_row);
  Accumulators<DK> acc = {};
  RowSums<ROW_SUMS> row_sums;
  Diagonals diagonals(a, b, h, item.tile, memory);
  for (int n = 0; !now.done(); ++n, now.advance()) {
    const int stage = arrive(n, next, copy);
    if (n == 0) queries.hold(), gradients.hold();
    const Entry entry = now.entry();
#pragma unroll
    for (int sub = 0; sub < OTHER; sub += SUB) {
      const Element* const key_rows = keys + stage * OtherK::SIZE + sub * OtherK::PITCH;
      const Element* const value_rows = values + stage * OtherV::SIZE + sub * OtherV::PITCH;
      const index j = index(entry.tile) * OTHER + sub + lane.column;
      Places s, p, x;
      queries.template times<OtherK>(key_rows, s);
      if constexpr (ASYNC) gradients.template times<OtherV>(value_rows, x);
      finish<1>(s);
      const u32 places = visible_places<N>(a.queries_words, entry, sub / 8, tq - i, tk - j,
                                           [&](int r, int c) { return holes.visible(r, inside(j + c, tk)); });
      each_place<N>([&](int m, int e, int r, int c) {
        if constexpr (SCORE) s[m][e] *= scale;
        p[m][e] = power_of_two(holes.score(r, inside(j + c, tk), s[m][e]) * unit + shift[r]);
      });
      if constexpr (!ASYNC) gradients.template times<OtherV>(value_rows, x);
      finish<0>(x);
      each_place<N>([&](int m, int e, int r, int c) {
        const index column = inside(j + c, tk);
        if constexpr (WEIGHT) x[m][e] *= holes.weight(r, column);
        real roots[1 + ROW_SUMS + DIFFERENCES];
        holes.score_gradient(r, column, s[m][e], p[m][e] * (x[m][e] - delta[r]), roots);
        x[m][e] = roots[0];
        row_sums.add(r, is_visible(places, m, e), roots, 1);
        diagonals.put(lane.row + 8 * r, lane.column + c, is_visible(places, m, e), roots, 1 + ROW_SUMS);
      });
      diagonals.add(j - lane.column);
      if (!entry.full())
        each_place<N>([&](int m, int e, int, int) { x[m][e] = is_visible(places, m, e) ? x[m][e] : real(0); });
      Weights<N> weights;
      weights.take(x);
      weights.template times<OtherK>(key_rows, lane.slice * slice_of(DK), acc);
      finish<0>(acc);
    }
  }
  wait_for_all_copies();
  __syncthreads();  // nobody reads the queries any more
  row_sums.store(lane, [&](int n, int r) { return i + 8 * r < tq ? row_sum_at(a, n, b, h, i + 8 * r) : nullptr; });
  const real factor[2] = {a.scale(), a.scale()};
  store_rows<DK>(lane, acc, factor, a.dq + (i64(b) * a.dq_batch + i64(h) * a.dq_head), a.dq_time, first, tq, own);
}

// ---- blocks that own keys ---------------------------------------------------------------------------------------------------

// The list is walked once for each head of the group.
DEVICE void own_keys(const Args& a, index b, index g, index number, Element* memory) {
  const i64* const items = a.keys + (list_at(a.keys_lists, g) * a.keys_items + number) * (2 * ITEM_HEADS);
  const Item item = item_at(items, 0);
  if (item.tile < 0) return;
  Element *const own = memory, *const own_v = own + OwnK::SIZE, *const queries = own_v + OwnV::SIZE;
  Element* const gradients = queries + STAGES * OtherK::SIZE;
  real* const lse = reinterpret_cast<real*>(memory + TILES_SIZE);
  real* const delta = lse + STAGES * OTHER;
  const index tq = index(a.tq), tk = index(a.tk), first = index(item.tile) * OWN, first_head = g * index(a.group);
  const Lane lane = this_lane();
  const auto kind = [&](int head, int tile) {
    bool never[1] = {false}, always[1] = {false};
    class_of_keys(a, b, first_head + head, tile, item.tile, never, always);
    return kind_of(a, never[0], always[0], i64(tile + 1) * OTHER, first + OWN);
  };
  auto now = walk_of<ITEM_HEADS>(items, a.keys_entries, int(a.group), kind), next = now;
  const Rows<DK> q(a.q + (i64(b) * a.q_batch + i64(first_head) * a.q_head), index(a.q_time));
  const Rows<DV> og(a.g + (i64(b) * a.g_batch + i64(first_head) * a.g_head), index(a.g_time));
  const index statistics = (b * index(a.heads) + first_head) * tq;
  const auto copy = [&](int stage) {
    const index h = index(next.head()), from = index(next.entry().tile) * OTHER;
    q.template copy<OTHER>(queries + stage * OtherK::SIZE, from, tq, h * index(a.q_head));
    og.template copy<OTHER>(gradients + stage * OtherV::SIZE, from, tq, h * index(a.g_head));
    static_assert(THREADS >= OTHER, "a thread copies what belongs to one query");
    if (const int c = int(threadIdx.x); c < OTHER) {
      const bool exists = from + c < tq;
      const index at = statistics + h * tq + from + c;
      copy_real(lse + stage * OTHER + c, a.lse + at, exists);
      copy_real(delta + stage * OTHER + c, a.delta + at, exists);
    }
  };
  Rows<DK>(a.k + (i64(b) * a.k_batch + i64(g) * a.k_head), index(a.k_time)).copy<OWN>(own, first, tk);
  Rows<DV>(a.v + (i64(b) * a.v_batch + i64(g) * a.v_head), index(a.v_time)).copy<OWN>(own_v, first, tk);
  if constexpr (STAGES == 2) begin_copies(next, 0, copy);

  if (ASYNC && threadIdx.x == 0) place_of(memory) = {b, g, first, item.part};
  const index j = first + lane.row;
  const real scale = score_factor(a), unit = exponent_factor(a);
  OwnRows<OwnK, (KEYS_HELD > 0)> keys(own, lane.warp_row);
  OwnRows<OwnV, (KEYS_HELD > 1)> values(own_v, lane.warp_row);
  Accumulators<DK> dk = {};
  Accumulators<DV> dv = {};
  RowSums<COLUMN_SUMS> column_sums;
  for (int n = 0; !now.done(); ++n) {
    const int stage = arrive(n, next, copy);
    if (n == 0) keys.hold(), values.hold();
    const Entry entry = now.entry();
    const KeyHoles holes(a, b, first_head + now.head(), inside(j, tk), inside(j + 8, tk));
#pragma unroll
    for (int sub = 0; sub < OTHER; sub += SUB) {
      const Element* const query_rows = queries + stage * OtherK::SIZE + sub * OtherK::PITCH;
      const Element* const gradient_rows = gradients + stage * OtherV::SIZE + sub * OtherV::PITCH;
      const int at = stage * OTHER + sub + lane.column;
      const index i = index(entry.tile) * OTHER + sub + lane.column;
      Places s, p, x;
      keys.template times<OtherK>(query_rows, s);
      if constexpr (ASYNC) values.template times<OtherV>(gradient_rows, x);
      finish<1>(s);
      const u32 places = visible_places<N>(a.keys_words, entry, sub / 8, tk - j, tq - i,
                                           [&](int r, int c) { return holes.visible(r, inside(i + c, tq)); });
      each_place<N>([&](int m, int e, int r, int c) {
        if constexpr (SCORE) s[m][e] *= scale;
        p[m][e] = power_of_two(holes.score(r, inside(i + c, tq), s[m][e]) * unit + shift_of(lse[at + c]));
      });
      if (!entry.full())
        each_place<N>([&](int m, int e, int, int) { p[m][e] = is_visible(places, m, e) ? p[m][e] : real(0); });
      Weights<N> to_dv, to_dk;
      if constexpr (WEIGHT) {
        Places weighted;
        each_place<N>([&](int m, int e, int r, int c) {
          const bool live = is_visible(places, m, e);
          weighted[m][e] = live ? p[m][e] * holes.weight(r, inside(i + c, tq)) : real(0);
        });
        to_dv.take(weighted);
      } else {
        to_dv.take(p);
      }
      finish<0>(x);
      to_dv.template times<OtherV>(gradient_rows, lane.slice * slice_of(DV), dv);
      if constexpr (!ASYNC) values.template times<OtherV>(gradient_rows, x);
      each_place<N>([&](int m, int e, int r, int c) {
        const index column = inside(i + c, tq);
        if constexpr (WEIGHT) x[m][e] *= holes.weight(r, column);
        real roots[1 + COLUMN_SUMS];
        holes.score_gradient(r, column, s[m][e], p[m][e] * (x[m][e] - delta[at + c]), roots);
        x[m][e] = roots[0];
        column_sums.add(r, is_visible(places, m, e), roots, 1);
      });
      if (!entry.full())
        each_place<N>([&](int m, int e, int, int) { x[m][e] = is_visible(places, m, e) ? x[m][e] : real(0); });
      to_dk.take(x);
      to_dk.template times<OtherK>(query_rows, lane.slice * slice_of(DK), dk);
      finish<0>(dv);
      finish<0>(dk);
    }
    const index h = first_head + now.head();
    now.advance();
    if (COLUMN_SUMS > 0 && first_head + now.head() != h)
      column_sums.store(lane, [&](int k, int r) { return j + 8 * r < tk ? column_sum_at(a, k, b, h, j + 8 * r) : nullptr; });
  }
  wait_for_all_copies();
  __syncthreads();  // nobody reads the keys and values any more
  const real factor[2] = {a.scale(), a.scale()}, one[2] = {1, 1};
  const Place at = ASYNC ? place_of(memory) : Place{b, g, first, item_at(items, 0).part};
  const Lane again = this_lane_again();
  if (at.part < 0) {
    store_rows<DK>(again, dk, factor, a.dk + (i64(at.b) * a.dk_batch + i64(at.head) * a.dk_head), a.dk_time, at.first, tk, own);
    store_rows<DV>(again, dv, one, a.dv + (i64(at.b) * a.dv_batch + i64(at.head) * a.dv_head), a.dv_time, at.first, tk, own_v);
  } else {  // (parts, b, g, OWN, DK + DV)
    real* const to = a.parts + ((at.part * a.batch + at.b) * a.groups + at.head) * (OWN * (DK + DV));
    store_rows<DK>(again, dk, factor, to, DK + DV, 0, OWN, own);
    store_rows<DV>(again, dv, one, to + DK, DK + DV, 0, OWN, own_v);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) KERNEL(PARAMETERS) {
  extern __shared__ __align__(SWIZZLED ? 1024 : 16) unsigned char memory[];
  Element* const tiles = reinterpret_cast<Element*>(memory);
  const index heads = index(a.heads), group = index(a.group), groups = index(a.groups);
  // x counts heads; where keys are owned, `group` items share a row of the grid.
  index b = index(blockIdx.x) / heads, h = index(blockIdx.x) - b * heads, item = index(blockIdx.y);
  if constexpr (KEYS) {
    const index rows = index(a.keys_rows);
    if (item < rows) {
      const index mine = item * group + h / groups;
      if (mine < index(a.keys_items)) own_keys(a, b, h % groups, mine, tiles);
      return;
    }
    item -= rows;
  }
  if constexpr (QUERIES) own_queries(a, b, h, item, tiles);
}
