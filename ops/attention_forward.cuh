// Attention, forward, with online softmax (arXiv:2205.14135); ops/attention.cuh stands before it. QueryHoles has the holes at a
// lane's two queries. HELD: the queries are held in registers.

constexpr int N = OTHER / 8;
using Places = real[N][4];

// What a lane knows of its two queries: the maximum that their exponents refer to, and the sum of these.
struct Softmax {
  real high[2] = {-infinity(), -infinity()}, sum[2] = {};

  // Takes in the scores s, of which `scale` > 0 makes exponents of two, and leaves their powers there. True if the maximum of a
  // row of the warp has moved: what was accumulated is to be multiplied by `factor`, to refer to the same one.
  // It moves only when it would grow by more than 2^8, for each row by itself: what another row holds changes no bit.
  DEVICE bool take(Places& s, real scale, real (&factor)[2]) {
    constexpr real SLACK = 8;
    bool moves = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      real most = larger(s[0][2 * r], s[0][2 * r + 1]);
#pragma unroll
      for (int n = 1; n < N; ++n) most = larger(most, larger(s[n][2 * r], s[n][2 * r + 1]));
      most = row_fold(most, [](real x, real y) { return larger(x, y); }) * scale;
      const bool move = most > high[r] + SLACK;
      factor[r] = move ? power_of_two(high[r] - most) : real(1);
      if (move) high[r] = most;
      sum[r] *= factor[r];
      moves |= move;
    }
    const real shift[2] = {high[0] == -infinity() ? real(0) : high[0], high[1] == -infinity() ? real(0) : high[1]};
    each_place<N>([&](int n, int k, int r, int) {
      s[n][k] = power_of_two(s[n][k] * scale - shift[r]);
      sum[r] += s[n][k];
    });
    return __any_sync(FULL_WARP, moves);
  }
};
template <int M>
DEVICE void multiply_rows(real (&x)[M][4], const real (&factor)[2]) {
  each_place<M>([&](int m, int k, int r, int) { x[m][k] *= factor[r]; });
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) KERNEL(PARAMETERS) {
  using Own = Tile<OWN, DK>;
  using Keys = Tile<OTHER, DK>;
  using Values = Tile<OTHER, DV>;
  using Out = Tile<OWN, DV>;
  extern __shared__ __align__(SWIZZLED ? 1024 : 16) unsigned char memory[];
  Element *const own = reinterpret_cast<Element*>(memory), *const keys = own + (DK > DV ? Own::SIZE : Out::SIZE);
  Element* const values = keys + STAGES * Keys::SIZE;
  const index b = index(blockIdx.x) / index(a.heads), h = index(blockIdx.x) - b * index(a.heads), g = h / index(a.group);
  const index tq = index(a.tq), tk = index(a.tk);
  const i64* const items = a.queries + 2 * (list_at(a.queries_lists, h) * a.queries_items + blockIdx.y);
  const Item item = item_at(items, 0);
  if (item.tile < 0) return;
  const index first = index(item.tile) * OWN;
  const Lane lane = this_lane();

  const Rows<DK> k(a.k + (i64(b) * a.k_batch + i64(g) * a.k_head), index(a.k_time));
  const Rows<DV> v(a.v + (i64(b) * a.v_batch + i64(g) * a.v_head), index(a.v_time));
  const auto kind = [&](int, int tile) {
    bool never[1] = {false}, always[1] = {false};
    class_of_queries(a, b, h, item.tile, tile, never, always);
    return kind_of(a, never[0], always[0], first + OWN, i64(tile + 1) * OTHER);
  };
  auto now = walk_of<1>(items, a.queries_entries, 1, kind);
  const auto copy_keys = [&](int stage, Entry entry) {
    k.copy<OTHER>(keys + stage * Keys::SIZE, index(entry.tile) * OTHER, tk);
  };
  const auto copy_values = [&](int stage, Entry entry) {
    v.copy<OTHER>(values + stage * Values::SIZE, index(entry.tile) * OTHER, tk);
  };
  const auto copy_queries = [&] {
    Rows<DK>(a.q + (i64(b) * a.q_batch + i64(h) * a.q_head), index(a.q_time)).copy<OWN>(own, first, tq);
  };

  const index i = first + lane.row;
  const QueryHoles holes(a, b, h, inside(i, tq), inside(i + 8, tq));
  OwnRows<Own, (HELD > 0)> queries(own, lane.warp_row);
  Accumulators<DV> acc = {};
  Softmax softmax;
  // The places of a tile that are visible.
  const auto places_of = [&](Entry entry) {
    const index j = index(entry.tile) * OTHER + lane.column;
    return visible_places<N>(a.queries_words, entry, 0, tq - i, tk - j,
                             [&](int r, int c) { return holes.visible(r, inside(j + c, tk)); });
  };
  // The weights of a tile, from its scores; as Softmax::take.
  const auto weigh = [&](Places& s, Entry entry, u32 places, real scale, real unit, real (&factor)[2]) {
    const index j = index(entry.tile) * OTHER + lane.column;
    if (unit < real(0)) each_place<N>([&](int m, int e, int, int) { s[m][e] = -s[m][e]; });
    if constexpr (SCORE)
      each_place<N>([&](int m, int e, int r, int c) { s[m][e] = holes.score(r, inside(j + c, tk), s[m][e] * scale); });
    if (!entry.full())
      each_place<N>([&](int m, int e, int, int) { s[m][e] = is_visible(places, m, e) ? s[m][e] : -infinity(); });
    const bool moves = softmax.take(s, abs_of(unit), factor);
    if constexpr (WEIGHT)
      each_place<N>([&](int m, int e, int r, int c) {
        s[m][e] *= is_visible(places, m, e) ? holes.weight(r, inside(j + c, tk)) : real(0);
      });
    return moves;
  };
  Weights<N> weights;
  real factor[2];
  if constexpr (ASYNC) {
    // The weights of a tile are made while the product of those before them with their values runs. Keys are copied a step
    // ahead, entries read two: who waits for a product waits for nothing else.
    const auto take = [&] {
      Entry entry = {-1, -1};
      if (!now.done()) {
        entry = now.entry();
        now.advance();
      }
      return entry;
    };
    const real scale = score_factor(a), unit = exponent_factor(a);
    Entry here = take(), ahead = take();
    copy_queries();
    const auto begin_step = [&](int n) {
      if (ahead.tile >= 0) copy_keys((n + 1) & 1, ahead);
      copy_values(n & 1, here);
      commit_copies();
    };
    if (here.tile >= 0) {
      Places s;
      copy_keys(0, here);
      commit_copies();
      begin_step(0);
      wait_for_copies<1>();
      publish();
      __syncthreads();
      queries.times<Keys>(keys, s);
      Entry behind = take();
      u32 places = EVALUATED ? 0 : places_of(here);
      finish<0>(s);
      int n = 0;
      bool moves;
      while (true) {
        if constexpr (EVALUATED) places = places_of(here);
        moves = weigh(s, here, places, scale, unit, factor);
        // This branch also keeps the wait for the product behind the weights: in one block it would come before them.
        if (ahead.tile < 0) break;
        finish<0>(acc);
        if (moves) multiply_rows(acc, factor);
        weights.take(s);
        here = ahead, ahead = behind;
        wait_for_copies<0>();
        publish();
        __syncthreads();
        begin_step(++n);
        queries.times<Keys>(keys + (n & 1) * Keys::SIZE, s);
        weights.times<Values>(values + (n - 1 & 1) * Values::SIZE, 0, acc);
        behind = take();
        if constexpr (!EVALUATED) places = places_of(here);
        finish<1>(s);
      }
      wait_for_copies<0>();
      publish();
      __syncthreads();
      finish<0>(acc);
      if (moves) multiply_rows(acc, factor);
      weights.take(s);
      weights.times<Values>(values + (n & 1) * Values::SIZE, 0, acc);
      finish<0>(acc);
    }
  } else {
    copy_queries();
    auto next = now;
    const auto copy = [&](int stage) { copy_keys(stage, next.entry()), copy_values(stage, next.entry()); };
    if constexpr (STAGES == 2) begin_copies(next, 0, copy);
    for (int n = 0; !now.done(); ++n, now.advance()) {
      const int stage = arrive(n, next, copy);
      if (n == 0) queries.hold();
      Places s;
      queries.times<Keys>(keys + stage * Keys::SIZE, s);
      const Entry entry = now.entry();
      if (weigh(s, entry, places_of(entry), score_factor(a), exponent_factor(a), factor)) multiply_rows(acc, factor);
      weights.take(s);
      weights.times<Values>(values + stage * Values::SIZE, lane.slice * slice_of(DV), acc);
    }
  }
  wait_for_all_copies();
  __syncthreads();  // nobody reads the queries any more

  const Lane again = this_lane_again();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const real sum = row_fold(softmax.sum[r], Sum());
    factor[r] = sum == real(0) ? real(0) : reciprocal(sum);  // a sum has a term of about 1
    const index row = first + again.row + 8 * r;
    if constexpr (has_lse)
      if (row < tq && again.column == 0 && again.slice == 0)
        a.lse[i64(blockIdx.x) * a.tq + row] = sum == real(0) ? -infinity() : softmax.high[r] * real(LN_2) + log_of(sum);
  }
  store_rows<DV>(again, acc, factor, a.o + (i64(b) * a.o_batch + i64(h) * a.o_head), a.o_time, first, tq, own);
}
