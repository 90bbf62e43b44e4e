// The table of the BSMamba2 speed guide: a Mamba2Block on frames of audio, 100 to a second.
#pragma once

#include <cstdint>
#include <vector>

namespace weft {

struct BlockTiming {
  std::int64_t batch, frames;
  double ms = 0, loop_ms = 0;  // means, of a forward pass and of one that loops over the frames
  double difference = 0;       // the largest between their outputs and last states
  double frames_per_second() const { return double(batch * frames) / ms * 1e3; }
  double speed_up() const { return loop_ms / ms; }
};

// On the device in use, in f32, width 192 and 64 states: means of `runs` after a quarter as many to warm up.
BlockTiming time_mamba2_block(std::int64_t batch, std::int64_t frames, int runs = 20);
void bench_mamba2_block(bool smoke);  // measures and prints the four rows

}  // namespace weft
