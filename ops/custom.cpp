// Ops with a user's CUDA text. Ints of a node: [id of the op, facts, integers].
#include "ops/custom.h"

#include <algorithm>
#include <cctype>
#include <deque>
#include <mutex>
#include <utility>

#include <xxhash.h>

#include "autograd/pointwise.h"
#include "jit/rows.h"
#include "ops/check.h"

namespace weft {
namespace {

struct Registry {
  std::mutex mutex;
  std::deque<CustomOptions> list;
};
Registry& registry() {
  static Registry r;
  return r;
}

const CustomOptions& options_of(std::int64_t id) {
  const std::lock_guard lock(registry().mutex);
  return registry().list[std::size_t(id)];
}

bool is_identifier(const std::string& name) {
  return !name.empty() && !std::isdigit(static_cast<unsigned char>(name[0])) &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) || c == '_'; });
}

void check_options(const CustomOptions& o) {
  std::vector<std::string> names = {o.name};
  for (const CustomInput& i : o.inputs) names.push_back(i.name);
  for (const auto* list : {&o.outputs, &o.facts, &o.integers, &o.constants})
    names.insert(names.end(), list->begin(), list->end());
  for (const std::string& name : names)
    if (!is_identifier(name))
      fail(ErrorKind::usage, fmt::format("custom: '{}' cannot be a name in a kernel", name), o.name,
           "use letters, digits and _");
  if (o.outputs.empty()) fail(ErrorKind::usage, fmt::format("{}: the op has no output", o.name));
  if (o.cuda.empty() || !o.launch)
    fail(ErrorKind::usage, fmt::format("{}: the op has no kernel", o.name), {}, "give it .cuda and .launch");
}

void check_count(const CustomOptions& o, Site where, std::string_view what, std::size_t given, std::size_t wanted) {
  if (given != wanted)
    fail_at(where, fmt::format("{}: the number of {} is not that of the op", o.name, what),
            fmt::format("{} given, {} wanted", given, wanted));
}

void check_input(const CustomOptions& o, const CustomInput& input, const Tensor& t, Site where) {
  if (!t && input.optional) return;
  const std::string_view kind = input.kind == CustomInput::real      ? "real"
                                : input.kind == CustomInput::integer ? "integer"
                                                                     : "boolean";
  const bool fits = t && (input.kind == CustomInput::real      ? is_real(t.dtype())
                          : input.kind == CustomInput::integer ? is_integer(t.dtype())
                                                               : t.dtype() == DType::boolean);
  if (!fits)
    fail_at(where, fmt::format("{}: input '{}' must be {}", o.name, input.name, kind),
            fmt::format("{} {}", input.name, describe(t)), t ? "cast() it" : "pass a tensor");
  if (input.rank >= 0 && t.shape().rank() != input.rank)
    fail_at(where, fmt::format("{}: input '{}' must have {} axes", o.name, input.name, input.rank),
            fmt::format("{} {}", input.name, describe(t)));
}

// Of the ints that follow the id.
template <class Source>
void read_ints(const CustomOptions& o, const Source& node, std::vector<std::int64_t>& facts,
               std::vector<std::int64_t>& integers) {
  int at = 1;
  for (std::size_t k = 0; k < o.facts.size(); ++k) facts.push_back(node.integer(at++));
  for (std::size_t k = 0; k < o.integers.size(); ++k) integers.push_back(node.integer(at++));
}

// The node of output k: they follow one another on the tape.
const Node& output_node(const Lowering& l, std::size_t k) { return (&l.node())[k]; }

CustomCall call_of(const Lowering& l, const CustomOptions& o) {
  CustomCall call;
  for (int i = 0; i < l.inputs(); ++i) call.inputs.push_back(l.has(i) ? l.shape(i) : Shape{});
  for (std::size_t k = 0; k < o.outputs.size(); ++k) call.outputs.push_back(output_node(l, k).shape());
  read_ints(o, l, call.facts, call.integers);
  return call;
}

bool all_empty(const CustomCall& call) {
  return std::all_of(call.outputs.begin(), call.outputs.end(), [](const Shape& s) { return s.numel() == 0; });
}

// Dense memory of every input and output; of an output that nobody reads, scratch.
struct DenseMemory {
  std::vector<Operand> in, out;
  DenseMemory(Lowering& l, const CustomCall& call) {
    for (int i = 0; i < l.inputs(); ++i) in.push_back(l.dense(i));
    for (std::size_t k = 0; k < call.outputs.size(); ++k)
      out.push_back(l.wants(int(k)) ? l.output(int(k)) : l.scratch(output_node(l, k).dtype, call.outputs[k].dims()));
  }
};

void lower_custom(Lowering& l) {
  const CustomOptions& o = options_of(l.integer(0));
  if (!o.cpu)
    fail(ErrorKind::usage, fmt::format("{}: this op has no CPU function", o.name), {}, "give it .cpu, or run it on a GPU");
  const CustomCall call = call_of(l, o);
  if (all_empty(call)) return;
  const DenseMemory memory(l, call);
  l.emit(o.name, [&o, call, memory, first = l.constant(0)](const Launch& launch) {
    CustomData data{call, {}, {}, {}};
    for (std::size_t j = 0; j < o.constants.size(); ++j) data.constants.push_back(launch.constants[std::size_t(first) + j]);
    for (const Operand& from : memory.in) {
      std::vector<double>& values = data.in.emplace_back(std::size_t(from ? from.numel() : 0));
      if (values.empty()) continue;
      const View view = launch.view(from);
      const double* read = load_row(view.data, view.dtype, 0, from.numel(), values.data());
      if (read != values.data()) std::copy_n(read, values.size(), values.data());
    }
    for (const Operand& to : memory.out) data.out.emplace_back(std::size_t(to.numel()));
    o.cpu(data);
    for (std::size_t k = 0; k < memory.out.size(); ++k) {
      if (std::int64_t(data.out[k].size()) != memory.out[k].numel())
        fail(ErrorKind::usage, fmt::format("{}: the CPU function changed the size of output '{}'", o.name, o.outputs[k]));
      const View view = launch.view(memory.out[k]);
      store_row(view.data, view.dtype, 0, memory.out[k].numel(), data.out[k].data());
    }
  });
}

void cuda_custom(Lowering& l) {
  const CustomOptions& o = options_of(l.integer(0));
  const CustomCall call = call_of(l, o);
  if (all_empty(call)) return;
  const CustomLaunch launch = o.launch(call);
  for (const auto& axes : {launch.grid, launch.block})
    if (std::count(axes.begin(), axes.end(), 0u))
      fail(ErrorKind::usage, fmt::format("{}: the launch has no threads", o.name),
           fmt::format("grid {} x {} x {}, block {} x {} x {}", launch.grid[0], launch.grid[1], launch.grid[2], launch.block[0],
                       launch.block[1], launch.block[2]));
  const DenseMemory memory(l, call);
  CudaText text = l.text(o.name);
  for (std::size_t i = 0; i < memory.in.size(); ++i) text.pointer(o.inputs[i].name, memory.in[i]);
  for (std::size_t k = 0; k < memory.out.size(); ++k) text.pointer(o.outputs[k], memory.out[k]);
  for (std::size_t j = 0; j < o.facts.size(); ++j) text.define(o.facts[j], call.facts[j]);
  for (std::size_t j = 0; j < o.integers.size(); ++j) text.integer(o.integers[j], call.integers[j]);
  for (std::size_t j = 0; j < o.constants.size(); ++j) text.constant(o.constants[j], l.constant(int(j)));
  // Lines are counted from the user's first one.
  l.emit(text.launch_text(fmt::format("#line 1 \"{}\"\n{}\n", o.name, o.cuda), launch.grid, launch.block, launch.shared));
}

// The op's text stands for its id, which depends on what was made before.
std::uint64_t identity(const Tape& t, NodeId id) {
  const auto ints = t.ints_of(id);
  const CustomOptions& o = options_of(ints[0]);
  const std::uint64_t text = XXH3_64bits_withSeed(o.cuda.data(), o.cuda.size(), XXH3_64bits(o.name.data(), o.name.size()));
  return XXH3_64bits_withSeed(ints.data() + 1, (ints.size() - 1) * sizeof ints[0], text);
}

}  // namespace

CustomLaunch CustomLaunch::of(std::int64_t threads, unsigned block) {
  return {.grid = {unsigned((threads + block - 1) / block), 1, 1}, .block = {block, 1, 1}};
}

Tensor CustomGrad::upstream(int k) const {
  if (const Tensor g = vjp_.grad(k)) return g;
  const Tensor y = vjp_.output(k);
  return is_real(y.dtype()) ? constant(0, y.shape(), y.dtype(), vjp_.where()) : Tensor{};
}

void CustomOp::differentiate(Vjp& v) {
  const CustomOptions& o = options_of(v.integer(0));
  if (!o.gradient)
    fail_at(v.where(), fmt::format("{}: a gradient is needed, but this op has none", o.name), {},
            "give it .gradient, or detach() its inputs");
  CustomValues values;
  read_ints(o, v, values.facts, values.integers);
  const std::span<const double> constants = v.constants();
  values.constants.assign(constants.begin(), constants.end());
  const std::vector<Tensor> gradients = o.gradient(CustomGrad(v, std::move(values)));
  check_count(o, v.where(), "gradients", gradients.size(), o.inputs.size());
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i] || !v.needs(int(i))) continue;
    const Shape shape = v.input(int(i)).shape();
    if (gradients[i].shape() != shape)
      fail_at(v.where(), fmt::format("{}: the gradient of '{}' has another shape than it", o.name, o.inputs[i].name),
              fmt::format("{} for {}", to_string(gradients[i].shape()), to_string(shape)));
    v.add(int(i), gradients[i]);
  }
}

const Op& CustomOp::op() {
  static const Op& op = register_op({.name = "custom",
                                     .vjp = differentiate,
                                     .lower = lower_custom,
                                     .cuda = cuda_custom,
                                     .identity = identity,
                                     .dense_outputs = true});
  return op;
}

CustomOp::CustomOp(CustomOptions options) {
  check_options(options);
  op();
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  id_ = std::int64_t(r.list.size());
  r.list.push_back(std::move(options));
}

Tensor custom(const CustomOp& op, std::initializer_list<Arg> inputs, std::vector<Out> outputs, CustomValues values,
              Site where) {
  const CustomOptions& o = options_of(op.id_);
  check_count(o, where, "inputs", inputs.size(), o.inputs.size());
  check_count(o, where, "outputs", outputs.size(), o.outputs.size());
  check_count(o, where, "facts", values.facts.size(), o.facts.size());
  check_count(o, where, "integers", values.integers.size(), o.integers.size());
  check_count(o, where, "constants", values.constants.size(), o.constants.size());
  std::vector<Tensor> tensors;
  for (const Arg& a : inputs) {
    check_input(o, o.inputs[tensors.size()], a.tensor(), where);
    tensors.push_back(a.tensor());
  }
  std::vector<std::int64_t> ints = {op.id_};
  ints.insert(ints.end(), values.facts.begin(), values.facts.end());
  ints.insert(ints.end(), values.integers.begin(), values.integers.end());
  return record(CustomOp::op(), tensors, outputs, ints, values.constants, where);
}

}  // namespace weft
