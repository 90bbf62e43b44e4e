// p <- p (1 - lr wd); m <- b1 m + (1-b1) g; v <- b2 v + (1-b2) g^2; p <- p - rate m / (sqrt(v) scale + eps), of a chunk of one
// parameter a block. Blocks and segments as in chunks_cuda.h; a segment is {gradient, param, m, v, p's bf16 twin or null,
// elements, decays}, all but gradient and twin of the type Param. Not IN_PLACE the new p goes to the twin alone, which is a
// Param too.

// A sum that is not contracted to FMA, as product() is not, so that the bits are those of the CPU.
DEVICE float plus(float x, float y) { return __fadd_rn(x, y); }
DEVICE double plus(double x, double y) { return __dadd_rn(x, y); }

struct Factors {
  real keep, first, first_rest, second, second_rest, rate, scale, eps, clip;

  DEVICE Factors(const double* f, const double* own, bool decays)
      : keep(decays ? real(f[KEEP]) : real(1)), first(real(f[FIRST])), first_rest(real(f[FIRST_REST])), second(real(f[SECOND])),
        second_rest(real(f[SECOND_REST])), rate(real(own[0])), scale(real(own[1])), eps(real(f[EPSILON])),
        clip(real(f[CLIP_FACTOR])) {}
};

// V elements from i on.
template <int V>
DEVICE void update(const Factors& f, const Gradient* g, Param* p, Param* m, Param* v, Copy* twin, i64 i) {
  real gi[V], pi[V], mi[V], vi[V];
  load_real<V>(g + i, gi);
  load_real<V>(p + i, pi);
  load_real<V>(m + i, mi);
  load_real<V>(v + i, vi);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const real x = product(gi[j], f.clip);
    mi[j] = plus(product(f.first, mi[j]), product(f.first_rest, x));
    vi[j] = plus(product(f.second, vi[j]), product(product(f.second_rest, x), x));
    pi[j] = plus(product(pi[j], f.keep), -(product(f.rate, mi[j]) / plus(product(sqrt_of(vi[j]), f.scale), f.eps)));
  }
  if (IN_PLACE) store_real<V>(p + i, pi);
  if (twin) store_real<V>(twin + i, pi);
  store_real<V>(m + i, mi);
  store_real<V>(v + i, vi);
}

DEVICE void update_chunk(const Factors& f, const Gradient* g, Param* p, Param* m, Param* v, Copy* twin, i64 n) {
  i64 done = 0;
  constexpr u64 kNarrow = sizeof(Gradient) == 2 ? 2 : 1;  // four of them are 8 bytes
  if (!IN_PLACE || (kNarrow * u64(g) | u64(p) | u64(m) | u64(v)) % 16 == 0) {
    done = n / 4 * 4;
    for (i64 i = 4 * threadIdx.x; i < done; i += 4 * T) update<4>(f, g, p, m, v, twin, i);
  }
  if (!IN_PLACE) {  // shards begin at multiples of 4 elements (optim/shards.cpp)
    if (const i64 i = done + threadIdx.x; i < n) update<1>(f, g, p, m, v, twin, i);
    return;
  }
  for (i64 i = done + threadIdx.x; i < n; i += T) update<1>(f, g, p, m, v, twin, i);
}

extern "C" __global__ void __launch_bounds__(T) KERNEL(PARAMETERS) {
  if (a.factors[ACTIVE] == 0.0) return;
  const u64 block = u64(a.blocks[blockIdx.x]);
  const double* own = a.factors + COMMON + 2 * (block >> 32);
  const i64* segment = a.segments + 7 * (block >> 32);
  const i64 begin = i64(u32(block)) * CHUNK, n = min_of(segment[5] - begin, i64(CHUNK));
  Param* p = reinterpret_cast<Param*>(segment[1]) + begin;
  Param* m = reinterpret_cast<Param*>(segment[2]) + begin;
  Param* v = reinterpret_cast<Param*>(segment[3]) + begin;
  Copy* twin = segment[4] ? reinterpret_cast<Copy*>(segment[4]) + begin : nullptr;
  const Factors factors(a.factors, own, segment[6] != 0);
  update_chunk(factors, reinterpret_cast<const Gradient*>(segment[0]) + begin, p, m, v, twin, n);
}
