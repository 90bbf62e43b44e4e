// dB and dC of the selective scan are sums over channels, of Gamma Delta u and of e h: over those of a block here, on tensor
// cores, with h, Gamma, e and Delta u rounded to bf16; over the blocks of a group by ops/sum_of_parts.cuh. For S = 4 states a
// thread and 32 channels, so that a warp is a slice.
//
// A step of a warp is a matrix of 32 channels x 8 values, h and Gamma of 4 states, stored as rows and loaded transposed as the
// A operand of m16n8k16: two steps make the 16 rows. The columns of the B operand are e and Delta u of 4 steps. Each lane has
// then one wanted sum: that of value lane / 4 at step lane % 4.
static_assert(S == 4 && SUB == 4 && CHANNELS == 32 && V % 2 == 0, "the shape of the matrices");

// The transposes of four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
DEVICE void load_transposed(const void* row, u32 (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(u32(__cvta_generic_to_shared(row)))
               : "memory");
}
// d (16 x 8) += A (16 x 16) B (16 x 8)
DEVICE void multiply_add(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

class ChannelSums {
 public:
  struct alignas(16) Memory {
    u32 factors[CHUNK][ROW];       // e, then Delta u, of pairs of channels in the order in which lanes read them
    Words4 values[SLICES][4][32];  // h and Gamma of 4 steps: a row a channel
  };
  // dB, dC: rows of N of the first step; the next ones follow `stride` apart.
  DEVICE ChannelSums(const Owner& o, real* dB, real* dC, index stride, Memory& memory)
      : memory_(memory), slice_(o.slice), lane_(o.channel), stride_(stride) {
    const int state = o.state + lane_ / 4 % 4;
    to_ = (lane_ < 16 ? dC : dB) + state;
    mine_ = state < N;
  }
  // e and Delta u of channels [c, c + V) at step k of the chunk.
  static DEVICE void stage(Memory& memory, int k, int c, const real (&e)[V], const real (&du)[V]) {
#pragma unroll
    for (int j = 0; j < V; j += 2) {
      const int at = (c + j) % 8 / 2 * 4 + (c + j) / 8;
      memory.factors[k][at] = pack_bf16(e[j], e[j + 1]);
      memory.factors[k][CHANNELS / 2 + at] = pack_bf16(du[j], du[j + 1]);
    }
  }
  // Step k of the SUB that are held.
  DEVICE void add(index, bool, int k, real, real, const real (&h)[S], const real (&gamma)[S]) {
    memory_.values[slice_][k][lane_] =
        Words4{{pack_bf16(h[0], h[1]), pack_bf16(h[2], h[3]), pack_bf16(gamma[0], gamma[1]), pack_bf16(gamma[2], gamma[3])}};
  }
  // They are steps k .. of the chunk and `step` .. of the sequence, of which `left` exist.
  DEVICE void flush(index step, index left, int k) {
    __syncwarp();
    u32 m[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) load_transposed(&memory_.values[slice_][i][lane_], m[i]);
    __syncwarp();
    u32 f[4];
    load<4>(&memory_.factors[k + lane_ / 8][lane_ % 8 * 4], f);
    float d[2][4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      multiply_add(d[i], m[2 * i][0], m[2 * i + 1][0], m[2 * i][1], m[2 * i + 1][1], f[0], f[1]);
      multiply_add(d[i], m[2 * i][2], m[2 * i + 1][2], m[2 * i][3], m[2 * i + 1][3], f[2], f[3]);
    }
    // Rows 0-7 of d[i] are step 2 i, rows 8-15 step 2 i + 1; columns 2 s and 2 s + 1 are e and Delta u of step s.
    const bool late = lane_ & 2, odd = lane_ & 1, gamma = lane_ & 16;
    float sums[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[j] = late ? d[1][j] : d[0][j];
    const float sum = gamma ? (odd ? sums[3] : sums[1]) : (odd ? sums[2] : sums[0]);
    if (mine_ && lane_ % 4 < left) to_[(step + lane_ % 4) * stride_] = sum;
  }

 private:
  Memory& memory_;
  int slice_, lane_;
  real* to_;
  index stride_;
  bool mine_;
};
