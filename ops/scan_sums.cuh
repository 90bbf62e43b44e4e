// dB and dC of the selective scan are sums over channels, of Gamma Delta u and of e h: over those of a block here, by shuffles
// in the compute type; over the blocks of a group by ops/sum_of_parts.cuh.

class ChannelSums {
 public:
  // dB, dC: rows of N of the first step; the next ones follow `stride` apart.
  DEVICE ChannelSums(const Owner& o, real* dB, real* dC, index stride) : stride_(stride) {
    const int value = o.channel * VALUES / CHANNELS, state = o.state + value % S;
    to_ = (value < S ? dB : dC) + state;
    mine_ = o.channel % SHARE != 0 ? 0 : N - state < HELD ? N - state : HELD;
  }
  // Step `step` of the sequence, if it exists.
  DEVICE void add(index step, bool exists, int, real e, real du, const real (&h)[S], const real (&gamma)[S]) {
    real x[VALUES];
#pragma unroll
    for (int j = 0; j < S; ++j) x[j] = gamma[j] * du, x[S + j] = e * h[j];
    sum_lanes<VALUES, CHANNELS>(x);
#pragma unroll
    for (int k = 0; k < HELD; ++k)
      if (exists && k < mine_) to_[step * stride_ + k] = x[k];
  }
  DEVICE void flush(index, index) {}

 private:
  static constexpr int VALUES = 2 * S;  // dB of S states, then dC
  static constexpr int HELD = VALUES > CHANNELS ? VALUES / CHANNELS : 1, SHARE = VALUES > CHANNELS ? 1 : CHANNELS / VALUES;
  real* to_;
  index stride_;
  int mine_;  // how many sums this lane stores
};
