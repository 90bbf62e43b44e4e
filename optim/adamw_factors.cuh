// What all elements of an update have in common, and of each segment its powers b1^t and b2^t, multiplied on, and the factors
// that follow from them, in fp64, by one block; and the flag of a bad step, which is sticky. Constants and factors are
// enumerated in adamw_op.h and adamw_cuda.cpp. Products are rounded before they are subtracted, as on the CPU.

extern "C" __global__ void __launch_bounds__(T) KERNEL(PARAMETERS) {
  const double* c = a.constants + a.first;
  const double norm = double(read_real(a.norm)), limit = c[CLIP];
  const bool known = *a.bad_step != 0, active = !known && isfinite(norm);
  double* f = a.factors;
  __syncthreads();  // everybody has read the flag
  if (threadIdx.x == 0) {
    if (!known && !active) *a.bad_step = i64(c[STEP]);
    if (!active) notify(a.status);
    f[ACTIVE] = active ? 1.0 : 0.0;
    f[KEEP] = 1.0 - product(c[LR], c[DECAY]);
    f[FIRST] = c[BETA1];
    f[FIRST_REST] = 1.0 - c[BETA1];
    f[SECOND] = c[BETA2];
    f[SECOND_REST] = 1.0 - c[BETA2];
    f[EPSILON] = c[EPS];
    f[CLIP_FACTOR] = limit > 0.0 ? min_of(1.0, limit / (norm + 1e-6)) : 1.0;
  }
  if (!active) return;
  for (i64 s = threadIdx.x; s < a.segments; s += T) {
    double* powers = a.powers + 2 * a.rows[s];
    const double first = product(powers[0], c[BETA1]), second = product(powers[1], c[BETA2]);
    powers[0] = first, powers[1] = second;
    double* own = f + COMMON + 2 * s;
    own[0] = c[LR] / (1.0 - first);
    own[1] = 1.0 / sqrt(1.0 - second);
  }
}
