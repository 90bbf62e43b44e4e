// Functions of holes in the kernels for bf16, where these are enough.

// log(1 + e^x), within 1e-5 of itself; one special function, where the one for all has two.
DEVICE float softplus_of(float x) {
  const float t = exp2_of(float(-LOG2_E) * fabsf(x));
  float p = __fmaf_rn(__fmaf_rn(-0.0234436558f, t, 0.100139733f), t, -0.209079536f);
  p = __fmaf_rn(__fmaf_rn(__fmaf_rn(p, t, 0.324849581f), t, -0.499314652f), t, 0.999990592f);
  return __fmaf_rn(t, p, fmaxf(x, 0.0f));
}
