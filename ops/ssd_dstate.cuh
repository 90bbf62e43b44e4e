// What each segment but the first adds to the gradient of the state before it, and its decay, from its last chunk to its first;
// ops/ssd.cuh stands before it. `e` is the gradient of s.

constexpr int RT = PT / 16 / WARPS_OF_ROW;

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) KERNEL(PARAMETERS) {
  extern __shared__ __align__(16) unsigned char memory[];
  float* const steps = reinterpret_cast<float*>(memory);
  const u32 es = shared_address(steps + STAGES * HEADS * STEPS), cs = es + STAGES * HEADS * place<XP>(Q, 0);
  const Place p = place_of(a, index(blockIdx.y) + 1);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, row = warp / WARPS_OF_ROW, part = warp % WARPS_OF_ROW;
  const auto copy = [&](int k) {
    if (k >= 0) {
      const int stage = k % STAGES, thread = this_thread();
      const index t = (p.begin + k) * Q;
      copy_features(a, p, thread, es + stage * HEADS * place<XP>(Q, 0), a.e, a.e_batch, a.e_time, a.e_head, t);
      copy_states(a, p, thread, cs + stage * place<NP>(Q, 0), a.C, a.C_batch, a.C_time, a.C_group, t);
      copy_steps(a, p, thread, steps + stage * HEADS * STEPS, p.begin + k);
    }
    commit_copies();
  };
  copy(p.chunks - 1);
  State<RT> state;
  float total = 0;
#pragma unroll 1
  for (int k = p.chunks - 1; k >= 0; --k) {
    if (STAGES == 1 && k + 1 < p.chunks) {
      __syncthreads();
      copy(k);
    }
    wait_for_copies<0>();
    __syncthreads();
    if (STAGES == 2) copy(k - 1);
    const float* const facts = steps + (k % STAGES * HEADS + row) * STEPS;
    total += facts[LOG_DECAY * Q + Q - 1];
    state.advance<FROM_START>(left_transposed_at<XP>(es, lane) + place<XP>((k % STAGES * HEADS + row) * Q, part * RT * 16),
                              right_of_columns_at<NP>(cs, lane) + k % STAGES * place<NP>(Q, 0), facts, lane);
  }
  if (row >= p.live) return;
  const i64 to = row_of(a, p, row) * a.segments + p.segment;
  state.store_rounded(a.added + to * (PT * NT), part, lane);
  if (part == 0 && lane == 0) a.decays[to] = total;
}
