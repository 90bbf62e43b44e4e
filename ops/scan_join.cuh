// Where segments of time ran side by side from zero: the state that each begins with. h (b, segments, i, n) are the states at
// their ends, decay their decays exp(A sum of Delta); start receives the state at the begin of each, last the one behind all.
// REVERSE: the same from right to left, for gradients of states.
extern "C" __global__ void __launch_bounds__(256) KERNEL(PARAMETERS) {
  const i64 at = i64(blockIdx.x) * 256 + threadIdx.x, states = a.channels * N;  // (i, n) of a batch element
  if (at >= a.batch * states) return;
  const i64 batch = at / states, state = at - batch * states, channel = state / N, j = state - channel * N;
  const real A2 = real(LOG2_E) * real(read_real(a.A + (channel * a.A_row + j)));
  const i64 row = batch * a.channels + channel;
  real h = 0;
  if constexpr (has_first) h = read_real(a.first + (row * a.first_row + j));
#pragma unroll 4
  for (i64 k = 0; k < a.segments; ++k) {
    const i64 segment = batch * a.segments + (REVERSE ? a.segments - 1 - k : k), place = segment * a.channels + channel;
    a.start[place * N + j] = h;
    h = exp2_of(A2 * a.sums[place]) * h + a.ends[place * N + j];
  }
  if constexpr (has_last) write_real(a.last + (row * a.last_row + j), h);
}
