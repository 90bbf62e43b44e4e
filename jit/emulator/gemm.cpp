#include "jit/emulator/gemm.h"

#include <array>

#include "jit/emulator/device.h"

namespace weft {
namespace {

// f(first byte, bytes) for each contiguous run of a matrix of a batch.
template <class F>
void each_run(const GemmOperand& o, std::byte* const* slots, std::int64_t rows, std::int64_t columns, std::int64_t batch, F f) {
  const bool by_rows = o.col_stride == 1;
  const std::int64_t runs = by_rows ? rows : columns, length = by_rows ? columns : rows;
  const auto size = std::int64_t(size_of(o.dtype));
  for (std::int64_t e = 0; e < batch; ++e)
    for (std::int64_t r = 0; r < runs; ++r)
      f(slots[o.slot] + (o.offset + e * o.batch_stride + r * (by_rows ? o.row_stride : o.col_stride)) * size,
        std::size_t(length * size));
}

void run(const GemmCall& call, std::byte* const* slots) {
  const auto read = [&](const std::byte* begin, std::size_t bytes) { emulated_read(begin, bytes, to_string(call)); };
  each_run(call.a, slots, call.m, call.k, call.batch, read);
  each_run(call.b, slots, call.k, call.n, call.batch, read);
  if (call.bias) each_run(call.bias, slots, 1, call.n, 1, read);
  if (call.addend) each_run(call.addend, slots, call.m, call.n, call.batch, read);
  each_run(call.c, slots, call.m, call.n, call.batch,
           [](const std::byte* begin, std::size_t bytes) { emulated_write(begin, bytes); });
  emulate_gemm(call, slots);
}

}  // namespace

void emulated_gemm(const GemmCall& call, std::byte* const* slots, cu::CUstream stream) {
  GemmCall own = call;  // with slots of its own: the caller's array is gone when a graph repeats it
  std::array<std::byte*, 5> addresses{};
  int n = 0;
  for (GemmOperand* o : {&own.a, &own.b, &own.c, &own.bias, &own.addend})
    if (*o) addresses[std::size_t(n)] = slots[o->slot], o->slot = n++;
  emulated_work(stream, [own, addresses] { run(own, addresses.data()); });
}

}  // namespace weft
