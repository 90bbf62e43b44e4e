// What the kernels of attention share (ops/attention.cpp has the formulas). A block owns rows of one side of the scores:
// queries, or keys where the gradients of K and V are made. It walks the tiles of the other side that a list names, which
// arrive in shared memory while the ones before them are used.
//
// A warp has 16 rows. What it computes for 8 neighbouring places of the other side lies in its lanes as mma.sync leaves it:
// lane 4 g + t holds rows g and g + 8 at columns 2 t and 2 t + 1, as x[0], x[1] and x[2], x[3]. So do its accumulators.
//
// Facts: Element, the type of q, k and v; DK, DV features of a head; WARPS; SLICES: so many warps have the same rows, each with
// a part of the features of what is accumulated; OTHER rows of a tile of the other side, STAGES of it in shared memory; BLOCKS
// that a multiprocessor must be able to hold; SCORE, WEIGHT: there are such holes; EVALUATED: mixed tiles evaluate the mask;
// LISTS: there are several. UNIT, ASYNC and SWIZZLED come with the products (attention_wgmma.cuh, attention_tensor.cuh,
// attention_plain.cuh).

constexpr int THREADS = 32 * WARPS, ROW_WARPS = WARPS / SLICES, OWN = 16 * ROW_WARPS;
constexpr int CHUNK = 16 / int(sizeof(Element));  // elements that are copied at once

// Features with the zeros behind them, and those of a slice.
DEVICE constexpr int padded(int features) { return (features + UNIT * SLICES - 1) / (UNIT * SLICES) * (UNIT * SLICES); }
DEVICE constexpr int slice_of(int features) { return padded(features) / SLICES; }

// A tile in shared memory. For tensor cores, SWIZZLED, blocks of 64 features follow each other, in which the chunks of a row of
// 128 bytes are permuted by the row; such a tile begins at a multiple of 1024 bytes. Else rows are an odd number of chunks
// apart. Either way eight rows that are read at once lie in different banks.
template <int ROWS, int FEATURES>
struct Tile {
  static constexpr int WIDTH = padded(FEATURES), PITCH = SWIZZLED ? 64 : WIDTH + CHUNK;
  static constexpr int SIZE = SWIZZLED ? (WIDTH + 63) / 64 * 64 * ROWS : ROWS * PITCH;  // elements
  static constexpr int BLOCK = ROWS * 128;                                           // bytes
  DEVICE static int at(u32 row, u32 column) {
    if constexpr (SWIZZLED) return int((column / 64 * ROWS + row) * 64 + (column % 64 / 8 ^ row % 8) * 8 + column % 8);
    return int(row * PITCH + column);
  }
  // From the place of a column to that of one that is `columns`, a whole number of blocks, behind it.
  DEVICE static constexpr int columns_on(int columns) { return SWIZZLED ? columns * ROWS : columns; }
};

// Where a thread stands: it has rows `row` and `row` + 8 of the block, at columns `column` and `column` + 1 of eight.
struct Lane {
  int warp_row, slice, row, column;  // warp_row: the first of its warp
};
DEVICE Lane lane_of(u32 thread) {
  const int lane = int(thread % 32), warp = int(thread / 32);
  const int slice = SLICES > 1 ? warp / ROW_WARPS : 0, first = (warp - slice * ROW_WARPS) * 16;
  return {first, slice, first + lane / 4, lane % 4 * 2};
}
DEVICE Lane this_lane() { return lane_of(threadIdx.x); }
// The same, made anew: held from before a loop to behind it, it would take registers all along.
DEVICE Lane this_lane_again() {
  u32 thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return lane_of(thread);
}

// ---- lists (jit/tiles.h) ----------------------------------------------------------------------------------------------------

// What a block does: the tile that it owns, entries [first, last) of the list, and where its partial sums go, or -1.
struct Item {
  int tile, first, last, part;
};
DEVICE Item item_at(const i64* items, i64 n) {
  const i64 x = items[2 * n], y = items[2 * n + 1];
  return {int(x), int(x >> 32), int(y), int(y >> 32)};
}
// A tile of the other side: every place of it is visible, or the mask is evaluated, or a word for each lane tells.
struct Entry {
  int tile, bits;
  DEVICE bool full() const { return bits == -1; }
};
DEVICE Entry entry_at(const i64* entries, int n) {
  const i64 x = entries[n];
  return {int(x), int(x >> 32)};
}
// Walks the entries of a block, those of `heads` heads one after the other. Where the mask is the same for all heads, so are
// their entries: an item then has them once, ITEM_HEADS is 1. Where the mask is evaluated, kind(head, tile) tells the class of
// a tile: -1 if nothing of it is visible, and it is passed over, 1 if all of it is.
template <int ITEM_HEADS, class Kind>
class Walk {
 public:
  DEVICE Walk(const i64* item, const i64* entries, int heads, const Kind& kind)
      : item_(item), entries_(entries), heads_(heads), kind_(kind) {
    const Item first = item_at(item, 0);
    first_ = at_ = first.first, last_ = first.last;
    if (at_ == last_) {
      if constexpr (ITEM_HEADS == 1)
        heads_ = 0;
      else
        next_head();
    }
    pass();
  }
  DEVICE bool done() const { return head_ >= heads_; }
  DEVICE int head() const { return head_; }
  DEVICE Entry entry() const {
    Entry entry = entry_at(entries_, at_);
    if (EVALUATED && class_ > 0) entry.bits = -1;
    return entry;
  }
  DEVICE void advance() { step(), pass(); }

 private:
  DEVICE void step() {
    if (++at_ == last_) next_head();
  }
  // The first entry of the next head that has any.
  DEVICE void next_head() {
    if constexpr (ITEM_HEADS == 1) {
      at_ = first_, ++head_;
    } else {
      do {
        if (++head_ >= heads_) return;
        const Item item = item_at(item_, head_);
        at_ = item.first, last_ = item.last;
      } while (at_ == last_);
    }
  }
  DEVICE void pass() {
    if constexpr (EVALUATED)
      while (!done() && (class_ = kind_(head_, entry_at(entries_, at_).tile)) < 0) step();
  }
  const i64 *item_, *entries_;
  int heads_;
  const Kind& kind_;
  int head_ = 0, first_ = 0, at_ = 0, last_ = 0, class_ = 0;
};
template <int ITEM_HEADS, class Kind>
DEVICE Walk<ITEM_HEADS, Kind> walk_of(const i64* item, const i64* entries, int heads, const Kind& kind) {
  return Walk<ITEM_HEADS, Kind>(item, entries, heads, kind);
}
// The class of a pair of tiles, of which queries and keys end here. One that reaches over the edge of the space is not all
// visible.
DEVICE int kind_of(const Args& a, bool never, bool always, i64 queries, i64 keys) {
  return never ? -1 : always & (queries <= a.tq) & (keys <= a.tk) ? 1 : 0;
}

// The list of a block of heads, where there are several.
DEVICE i64 list_at(const i64* lists, index block) {
  if constexpr (LISTS) return lists[block];
  return 0;
}

// ---- copies -----------------------------------------------------------------------------------------------------------------

DEVICE u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }
// 16 bytes, or zeros, for which nothing is read.
DEVICE void copy_chunk(Element* to, const Element* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(exists ? 16 : 0)
               : "memory");
}
DEVICE void copy_real(real* to, const real* from, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(sizeof(real)),
               "r"(exists ? int(sizeof(real)) : 0)
               : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the last LEFT that were committed.
template <int LEFT>
DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
// Those too that were not committed: a block without entries has copied its own rows all the same.
DEVICE void wait_for_all_copies() {
  commit_copies();
  wait_for_copies<0>();
}

// Rows of a head in memory, as the block copies them: a thread has every LANES-th chunk of every STEP-th row. One address a
// thread is held; an offset in elements leads to another head.
template <int FEATURES>
class Rows {
 public:
  DEVICE Rows(const Element* head, index stride) : from_(head + (row() * stride + column())), stride_(stride) {
    asm("" : "+l"(from_));  // else it is taken apart, to be put together for each tile
  }
  // Rows [first, first + COUNT), of which those below `rows` exist; zeros stand for the others, and behind the features.
  template <int COUNT>
  DEVICE void copy(Element* tile, index first, index rows, index offset = 0) const {
    using To = Tile<COUNT, FEATURES>;
    const Element* from = from_ + (first * stride_ + offset);
    Element* const to = tile + To::at(row(), column());
    const index left = rows - first - row(), step = STEP * stride_;
#pragma unroll
    for (int k = 0; k < COUNT; k += STEP) {
#pragma unroll
      for (int c = 0; c < padded(FEATURES); c += LANES * CHUNK)
        if ((COUNT % STEP == 0 || row() + k < COUNT) &&
            (padded(FEATURES) % (LANES * CHUNK) == 0 || column() + c < padded(FEATURES))) {
          const bool exists = left > k && (padded(FEATURES) == FEATURES || column() + c < FEATURES);
          copy_chunk(to + k * To::PITCH + To::columns_on(c), from + c, exists);
        }
      from += step;
    }
  }

 private:
  static constexpr int CHUNKS = padded(FEATURES) / CHUNK;
  static constexpr int MOST_LANES = SWIZZLED ? 8 : 32;  // of a row of a tile, or of a block of it
  static constexpr int LANES = CHUNKS > MOST_LANES / 2 ? MOST_LANES : CHUNKS > 8 ? 16 : CHUNKS > 4 ? 8 : CHUNKS > 2 ? 4 : 2;
  static constexpr int STEP = THREADS / LANES;
  static_assert(!SWIZZLED || STEP % 8 == 0, "all rows of a thread are permuted alike");
  DEVICE static int row() { return int(threadIdx.x / LANES); }
  DEVICE static int column() { return int(threadIdx.x % LANES * CHUNK); }
  const Element* from_;
  index stride_;
};

template <class Steps, class Copy>
DEVICE void begin_copies(Steps& next, int stage, Copy copy) {
  if (!next.done()) {
    copy(stage);
    next.advance();
  }
  commit_copies();
}
// Waits for the tiles of step `n` and begins with those of the next one. `next` walks ahead; copy(stage) begins to copy the
// tiles of its entry. Returns the stage of step n.
template <class Steps, class Copy>
DEVICE int arrive(int n, Steps& next, Copy copy) {
  if constexpr (STAGES == 1) __syncthreads();  // the step before has been used
  if constexpr (STAGES == 1) begin_copies(next, 0, copy);
  wait_for_copies<0>();
  publish();
  __syncthreads();
  if constexpr (STAGES == 2) begin_copies(next, (n + 1) & 1, copy);
  return STAGES == 1 ? 0 : n & 1;
}

// What is multiplied by the scale: scores where a hole takes them, else exponents, whose unit is log2. The scale is read where
// it is used: it would take a register all along.
DEVICE real score_factor(const Args& a) { return SCORE ? a.scale() : real(1); }
DEVICE real exponent_factor(const Args& a) { return (SCORE ? real(1) : a.scale()) * real(LOG2_E); }

// ---- places -----------------------------------------------------------------------------------------------------------------

// The nearest coordinate that exists: a hole is not evaluated outside of its space, even where its value has no effect.
DEVICE index inside(index i, index size) { return i < size ? i : size - 1; }
// f(n, k, r, c) for element x[n][k] of N fragments: row 8 r and column 8 n + c from those of the lane.
template <int N, class F>
DEVICE void each_place(F f) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int k = 0; k < 4; ++k) f(n, k, k / 2, 8 * n + k % 2);
}

// Which places of 8 N columns, from column 8 `first` of the tile on, are visible: bit 4 n + k for x[n][k]. visible(r, c) is the
// mask inside of the space, of which `rows` and `columns` are left from the lane's place on.
template <int N, class Mask>
DEVICE u32 visible_places(const i64* words, Entry entry, int first, index rows, index columns, Mask visible) {
  if (entry.full()) return FULL_WARP;
  if constexpr (EVALUATED) {
    u32 places = 0;
    each_place<N>([&](int n, int k, int r, int c) {
      const bool exists = (8 * r < rows) & (c < columns);
      places |= u32(exists & visible(r, c)) << (4 * n + k);
    });
    return places;
  } else {
    const int thread = SLICES > 1 ? int(threadIdx.x) % (32 * ROW_WARPS) : int(threadIdx.x);
    return reinterpret_cast<const u32*>(words)[entry.bits + thread] >> (4 * first);
  }
}
DEVICE bool is_visible(u32 places, int n, int k) { return places >> (4 * n + k) & 1; }

DEVICE float larger(float x, float y) { return fmaxf(x, y); }  // without the NaN of either side
DEVICE double larger(double x, double y) { return fmax(x, y); }
template <class Fold>
DEVICE real row_fold(real x, Fold fold) {  // of the four lanes of a row
  x = fold(x, __shfl_xor_sync(FULL_WARP, x, 1));
  return fold(x, __shfl_xor_sync(FULL_WARP, x, 2));
}

// ---- results ----------------------------------------------------------------------------------------------------------------

// The lane's features of a row: acc[n] has features first + 8 n .. of it.
template <int FEATURES>
using Accumulators = real[slice_of(FEATURES) / 8][4];

// Rows of the warp times `factor` to rows of memory, of which those below `rows` exist, from `first`, the block's first, on.
// By way of the warp's rows of `tile`, a tile in shared memory that nobody reads any more, so that a lane stores 16 bytes.
template <int FEATURES, class T>
DEVICE void store_rows(const Lane& lane, const Accumulators<FEATURES>& acc, const real (&factor)[2], T* to, i64 stride,
                       index first, index rows, Element* tile) {
  using By = Tile<OWN, FEATURES>;
  constexpr int WIDTH = slice_of(FEATURES), SIZE = 16 / int(sizeof(T)), CHUNKS = WIDTH / SIZE;
  const int feature = lane.slice * WIDTH;
  if constexpr (sizeof(T) == sizeof(Element)) {
    T* const mine = reinterpret_cast<T*>(tile);
#pragma unroll
    for (int n = 0; n < WIDTH / 8; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const real x[2] = {acc[n][2 * r] * factor[r], acc[n][2 * r + 1] * factor[r]};
        store_real<2>(mine + By::at(lane.row + 8 * r, feature + 8 * n + lane.column), x);
      }
    __syncwarp();
    constexpr int TIMES = 16 * CHUNKS / 32;
    static_assert(TIMES * 32 == 16 * CHUNKS, "each lane has as many chunks");
    const auto row_of = [&](int k) { return lane.warp_row + (int(threadIdx.x % 32) + 32 * k) / CHUNKS; };
    const auto column_of = [&](int k) { return feature + (int(threadIdx.x % 32) + 32 * k) % CHUNKS * SIZE; };
    T x[TIMES][SIZE];  // all are read before the first is stored: none waits for another
#pragma unroll
    for (int k = 0; k < TIMES; ++k) load<SIZE>(mine + By::at(row_of(k), column_of(k)), x[k]);
#pragma unroll
    for (int k = 0; k < TIMES; ++k) {
      i64 at = i64(first + row_of(k)) * stride + column_of(k);
      asm("" : "+l"(at));  // else NVRTC takes the store apart
      if (first + row_of(k) < rows && column_of(k) < FEATURES) store<SIZE>(to + at, x[k]);
    }
  } else {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const index row = first + lane.row + 8 * r;
      i64 at = i64(row) * stride + (feature + lane.column);
      asm("" : "+l"(at));
#pragma unroll
      for (int n = 0; n < WIDTH / 8; ++n) {
        const real x[2] = {acc[n][2 * r] * factor[r], acc[n][2 * r + 1] * factor[r]};
        if (row < rows && feature + 8 * n < FEATURES) store_real<2>(to + at + 8 * n, x);
      }
    }
  }
}
