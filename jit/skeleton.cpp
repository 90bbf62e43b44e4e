#include "jit/skeleton.h"

#include <algorithm>
#include <cstring>

namespace weft {

std::int64_t Operand::numel() const {
  std::int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= dims[i];
  return n;
}

double Operand::bytes() const {
  if (slot < 0) return 0;
  double n = double(size_of(dtype));
  for (int i = 0; i < rank; ++i)
    if (strides[i] != 0) n *= double(dims[i]);
  return n;
}

bool Operand::contiguous() const {
  std::int64_t expected = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (dims[i] != 1 && strides[i] != expected) return false;
    expected *= dims[i];
  }
  return true;
}

bool Operand::rows() const {
  if (rank == 0 || numel() == 0) return true;
  if (dims[rank - 1] != 1 && strides[rank - 1] != 1) return false;
  std::int64_t expected = -1;  // the stride that the next dim outward must have
  for (int i = rank - 2; i >= 0; --i) {
    if (dims[i] == 1) continue;
    if (expected >= 0 && strides[i] != expected) return false;
    expected = strides[i] * dims[i];
  }
  return true;
}

bool Operand::sixteens() const {
  if (rank == 0 || numel() == 0) return true;
  const auto size = std::int64_t(size_of(dtype));
  if ((dims[rank - 1] != 1 && strides[rank - 1] != 1) || offset * size % 16 != 0) return false;
  for (int i = 0; i + 1 < rank; ++i)
    if (dims[i] != 1 && strides[i] * size % 16 != 0) return false;
  return true;
}

std::int64_t Operand::row_stride() const {
  for (int i = rank - 2; i >= 0; --i)
    if (dims[i] != 1) return strides[i];
  return rank > 0 ? dims[rank - 1] : 1;
}

Operand Operand::transposed() const {
  Operand o = *this;
  if (rank < 2) return o;
  std::swap(o.dims[std::size_t(rank - 1)], o.dims[std::size_t(rank - 2)]);
  std::swap(o.strides[std::size_t(rank - 1)], o.strides[std::size_t(rank - 2)]);
  return o;
}

Operand dense_operand(int slot, DType dtype, std::span<const std::int64_t> dims) {
  Operand o;
  o.slot = slot;
  o.dtype = dtype;
  o.rank = int(dims.size());
  std::int64_t stride = 1;
  for (int i = o.rank - 1; i >= 0; --i) {
    o.dims[i] = dims[i];
    o.strides[i] = stride;
    stride *= dims[i];
  }
  return o;
}

Operand broadcast_to(const Operand& operand, std::span<const std::int64_t> dims) {
  Operand o = operand;
  o.rank = int(dims.size());
  o.dims = {};
  o.strides = {};
  for (int i = 0; i < o.rank; ++i) {
    o.dims[i] = dims[i];
    const int from = i - (o.rank - operand.rank);
    if (from >= 0 && operand.dims[from] == dims[i]) o.strides[i] = operand.strides[from];
  }
  return o;
}

View Launch::view(const Operand& operand) const {
  View v;
  v.data = slots[operand.slot] + operand.offset * std::int64_t(size_of(operand.dtype));
  v.dtype = operand.dtype;
  v.rank = operand.rank;
  v.dims = operand.dims;
  v.strides = operand.strides;
  return v;
}

namespace {
std::vector<double> gather(const double* block, const std::vector<int>& which) {
  std::vector<double> out(which.size());
  for (std::size_t i = 0; i < which.size(); ++i) out[i] = block[which[i]];
  return out;
}
std::vector<View> views(const Launch& launch, const std::vector<Operand>& operands) {
  std::vector<View> out;
  for (const Operand& o : operands) out.push_back(launch.view(o));
  return out;
}
}  // namespace

template <class T>
Runner<T>::Runner(const Launch& launch, const Fused& fused)
    : fused_(&fused),
      constants_(gather(launch.constants, fused.constants)),
      tables_(views(launch, fused.tables)),
      state_(fused.program, constants_.data(), tables_.data()),
      inputs_(std::max<std::size_t>(fused.values + fused.leaves.size(), fused.program.inputs())) {
  leaves_.reserve(fused.leaves.size());
  for (const Operand& leaf : fused.leaves) leaves_.push_back(collapse(launch.view(leaf)));
  buffers_.resize(leaves_.size());
  identity_ = fused.values == 0 && fused.roots.size() == 1 && fused.leaves.size() == 1 &&
              same(fused.roots[0], expr::input(0, fused.roots[0].type())) && fused.roots[0].type() == ExprType::real;
}

template <class T>
void Runner<T>::run(std::int64_t first, int n, std::span<const void* const> values, std::span<void* const> outputs) {
  const Program& program = fused_->program;
  for (int k = 0; k < fused_->values; ++k) inputs_[k] = values[k];
  for (std::size_t k = 0; k < leaves_.size(); ++k) {
    const int input = fused_->values + int(k);
    if (input < program.inputs() && program.uses_input(input))
      inputs_[input] = read_block<T>(leaves_[k], program.input_type(input), first, n, buffers_[k].data());
  }
  state_.run(inputs_.data(), outputs.data(), n, first, fused_->dims);
}

template <class T>
const T* Runner<T>::read(std::int64_t first, int n) {
  if (identity_) return static_cast<const T*>(read_block<T>(leaves_[0], ExprType::real, first, n, buffers_[0].data()));
  result_.resize(kBlock);
  void* out = result_.data();
  run(first, n, {}, std::span(&out, 1));
  return result_.data();
}

template <class T>
void Runner<T>::read(std::int64_t first, std::int64_t n, T* out) {
  for (std::int64_t done = 0; done < n; done += kBlock) {
    const int m = int(std::min<std::int64_t>(kBlock, n - done));
    std::memcpy(out + done, read(first + done, m), std::size_t(m) * sizeof(T));
  }
}

template class Runner<float>;
template class Runner<double>;

}  // namespace weft
