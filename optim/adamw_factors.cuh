// What all elements of an update have in common, computed once, by one thread, in fp64; and the flag of a bad step, which is
// sticky. Constants and factors are enumerated in adamw_op.h.

extern "C" __global__ void __launch_bounds__(1) KERNEL(PARAMETERS) {
  const double* c = a.constants + a.first;
  const double norm = double(read_real(a.norm)), limit = c[CLIP];
  if (*a.bad_step == 0 && !isfinite(norm)) *a.bad_step = i64(c[STEP]);
  double* f = a.factors;
  f[ACTIVE] = *a.bad_step == 0 ? 1.0 : 0.0;
  f[KEEP] = 1.0 - c[LR] * c[DECAY];
  f[FIRST] = c[BETA1];
  f[FIRST_REST] = 1.0 - c[BETA1];
  f[SECOND] = c[BETA2];
  f[SECOND_REST] = 1.0 - c[BETA2];
  f[RATE] = c[LR] / c[CORRECTION1];
  f[SCALE] = 1.0 / sqrt(c[CORRECTION2]);
  f[EPSILON] = c[EPS];
  f[CLIP_FACTOR] = limit > 0.0 ? min_of(1.0, limit / (norm + 1e-6)) : 1.0;
}
