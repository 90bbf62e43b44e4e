// Columns col and so on of what is normalised.
DEVICE void norm_input(const Args& a, index row, index col, real (&x)[V]) {
  real given[V];
  source<V>(a, row, col, given);
  in_of<V>(a, row, col, given, x);
}
// What a norm makes of columns col and so on of a row x before its hole: y = (x - mean) r w + b.
DEVICE void norm_value(const Args& a, index col, const real (&x)[V], real mean, real r, real (&y)[V]) {
  real w[V], b[V];
  if constexpr (has_weight) load_real<V>(a.weight + col, w);
  if constexpr (has_bias) load_real<V>(a.bias + col, b);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    y[j] = (x[j] - mean) * r;
    if constexpr (has_weight) y[j] *= w[j];
    if constexpr (has_bias) y[j] += b[j];
  }
}

