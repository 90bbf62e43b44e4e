// Ops with a user's CUDA text. Plain ints of a node: [id of the op, facts, integers]; its constants, then those of the holes.
#include "ops/custom.h"

#include <algorithm>
#include <cctype>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>

#include <xxhash.h>

#include "autograd/pointwise.h"
#include "jit/hole_text.h"
#include "jit/rows.h"
#include "ops/check.h"
#include "ops/holes.h"

namespace weft {
namespace {

constexpr std::size_t kMostHoles = 4;

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

void check_options(const CustomOptions& o, Site where) {
  std::vector<std::string> names = {o.name};
  for (const CustomInput& i : o.inputs) names.push_back(i.name);
  for (const auto* list : {&o.outputs, &o.facts, &o.integers, &o.constants})
    names.insert(names.end(), list->begin(), list->end());
  for (const CustomHole& h : o.holes) {
    names.push_back(h.name);
    if (h.output < 0 || h.output >= int(o.outputs.size()))
      fail_at(where, fmt::format("{}: hole '{}' has no space", o.name, h.name),
              fmt::format("output {} of {}", h.output, o.outputs.size()), "its space is that of an output");
  }
  if (o.holes.size() > kMostHoles)
    fail_at(where, fmt::format("{}: too many holes", o.name), fmt::format("{} of at most {}", o.holes.size(), kMostHoles));
  for (const std::string& name : names)
    if (!is_identifier(name))
      fail_at(where, fmt::format("custom: '{}' cannot be a name in a kernel", name), o.name, "use letters, digits and _");
  if (o.outputs.empty()) fail_at(where, fmt::format("{}: the op has no output", o.name));
  if (o.cuda.empty() || !o.launch)
    fail_at(where, fmt::format("{}: the op has no kernel", o.name), {}, "give it .cuda and .launch");
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
  for (int i = 0; i < int(o.inputs.size()); ++i) call.inputs.push_back(l.has(i) ? l.shape(i) : Shape{});
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
    for (int i = 0; i < int(call.inputs.size()); ++i) in.push_back(l.dense(i));
    for (std::size_t k = 0; k < call.outputs.size(); ++k)
      out.push_back(l.wants(int(k)) ? l.output(int(k)) : l.scratch(output_node(l, k).dtype, call.outputs[k].dims()));
  }
};

std::vector<Fused> holes_of(Lowering& l, const CustomOptions& o, const CustomCall& call) {
  std::vector<Fused> holes;
  for (std::size_t h = 0; h < o.holes.size(); ++h) {
    Fused& hole = holes.emplace_back(l.hole(int(h), call.outputs[std::size_t(o.holes[h].output)]));
    if (!hole.hole.empty()) hole.hole.replace(0, hole.hole.find('('), o.holes[h].name);  // the op knows them by number
  }
  return holes;
}

void lower_custom(Lowering& l) {
  const CustomOptions& o = options_of(l.integer(0));
  if (!o.cpu)
    fail(ErrorKind::usage, fmt::format("{}: this op has no CPU function", o.name), {}, "give it .cpu, or run it on a GPU");
  const CustomCall call = call_of(l, o);
  if (all_empty(call)) return;
  const DenseMemory memory(l, call);
  l.emit(o.name, [&o, call, memory, holes = holes_of(l, o, call), first = l.constant(0)](const Launch& launch) {
    CustomData data{call, {}, {}, {}, {}};
    for (const Fused& hole : holes)
      data.holes.emplace_back([run = std::make_shared<Runner<double>>(launch, hole)](std::int64_t element, double value) {
        run_hole(*run, element, 1, &value);
        return value;
      });
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
  const std::vector<Fused> holes = holes_of(l, o, call);
  for (std::size_t h = 0; h < holes.size(); ++h) fused_rows(text, o.holes[h].name, holes[h], holes[h].dims);
  // Lines are counted from the user's first one.
  l.emit(text.launch_text(fmt::format("#line 1 \"{}\"\n{}\n", o.name, o.cuda), launch.grid, launch.block, launch.shared));
}

// The op's text stands for its id, which depends on what was made before.
std::uint64_t identity(const Tape& t, NodeId id) {
  const auto ints = plain_ints(t, id);
  const CustomOptions& o = options_of(ints[0]);
  const std::uint64_t text = XXH3_64bits_withSeed(o.cuda.data(), o.cuda.size(), XXH3_64bits(o.name.data(), o.name.size()));
  return XXH3_64bits_withSeed(ints.data() + 1, (ints.size() - 1) * sizeof ints[0], text);
}

// The gradient of a hole outside of the kernel. Inputs: its value and the upstream gradient, over whose shape it is evaluated;
// ints: the output of each root, -1 for none.
void lower_before_hole(Lowering& l) {
  const Shape space = l.shape(0);
  Fused gradient = l.hole(0, space);
  gradient.values = 0;  // they are in memory
  gradient.leaves.insert(gradient.leaves.begin(),
                         {broadcast_to(l.view(0), space.dims()), broadcast_to(l.view(1), space.dims())});
  const std::vector<Operand> outputs = root_outputs(l, gradient.roots.size());
  const std::vector<Expr> roots = gradient.roots;
  for (std::size_t k = 0; k < roots.size(); ++k) {
    if (!outputs[k]) continue;
    gradient.roots = {roots[k]};
    gradient.program = Program(gradient.roots);
    l.emit_pointwise("before_hole", gradient, outputs[k]);
  }
}

constexpr HoleSpec kBeforeHole[] = {
    {.name = "gradient", .coordinates = "i j k l m n", .values = 2, .results = 0, .dense = true, .names = {"v", "g"}}};
void before_hole_vjp(Vjp& v) {
  v.compose([&] {
    std::vector<Tensor> outputs(1);
    compose_hole(v, real_input(v, 0), real_input(v, 1), 0, outputs);
    return outputs;
  });
}
const Op& before_hole_op = register_op({.name = "before_hole",
                                        .vjp = before_hole_vjp,
                                        .lower = lower_before_hole,
                                        .cuda = lower_before_hole,
                                        .holes = kBeforeHole});

}  // namespace

CustomLaunch CustomLaunch::of(std::int64_t threads, unsigned block) {
  return {.grid = {unsigned((threads + block - 1) / block), 1, 1}, .block = {block, 1, 1}};
}

Tensor CustomGrad::upstream(int k) const {
  if (const Tensor g = vjp_.grad(k)) return g;
  const Tensor y = vjp_.output(k);
  return is_real(y.dtype()) ? constant(0, y.shape(), y.dtype(), vjp_.where()) : Tensor{};
}

Tensor CustomGrad::before_hole(int h, const Tensor& value, const Tensor& upstream) const {
  passed_ |= 1u << h;
  const Hole filled = vjp_.hole(h);
  if (!filled.filled()) return upstream;
  Outs outs = {{value.shape(), value.dtype()}};
  const HoleInVjp hole(vjp_, h, filled, value.shape(), sum_dtype(vjp_), 0, outs);
  Recorder r(before_hole_op, vjp_.where());
  r.input(value).input(upstream).hole(0, hole.gradient, value.shape()).integers(hole.outputs).out(outs);
  const Tensor before = r.record(vjp_.constants());
  hole.add(vjp_, h, before);
  return before;
}

void CustomOp::differentiate(Vjp& v) {
  const CustomOptions& o = options_of(v.integer(0));
  if (!o.gradient)
    fail_at(v.where(), fmt::format("{}: a gradient is needed, but this op has none", o.name), {},
            "give it .gradient, or detach() its inputs");
  CustomValues values;
  read_ints(o, v, values.facts, values.integers);
  const std::span<const double> constants = v.constants().first(o.constants.size());
  values.constants.assign(constants.begin(), constants.end());
  for (std::size_t h = 0; h < o.holes.size(); ++h) values.holes.push_back(v.hole(int(h)));
  const CustomGrad rule(v, std::move(values));
  const std::vector<Tensor> gradients = o.gradient(rule);
  for (std::size_t h = 0; h < o.holes.size(); ++h)
    for (std::size_t k = 0; k < rule.values().holes[h].captured.size(); ++k)
      if (v.needs(v.hole_input(int(h), int(k))) && !(rule.passed_ >> h & 1))
        fail_at(v.where(), fmt::format("{}: a tensor that hole '{}' captures needs a gradient", o.name, o.holes[h].name),
                fmt::format("captured {}", k), "the gradient rule must call before_hole(), or detach() the tensor");
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
  constexpr auto spec = [](std::string_view name) {
    return HoleSpec{.name = name, .coordinates = "i j k l m n", .values = 1, .dense = true, .names = {"v"}};
  };
  static constexpr HoleSpec kHoles[kMostHoles] = {spec("0"), spec("1"), spec("2"), spec("3")};
  static const Op& op = register_op({.name = "custom",
                                     .vjp = differentiate,
                                     .lower = lower_custom,
                                     .cuda = cuda_custom,
                                     .holes = kHoles,
                                     .identity = identity,
                                     .dense_outputs = true});
  return op;
}

CustomOp::CustomOp(CustomOptions options, Site where) {
  check_options(options, where);
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
  check_count(o, where, "holes", values.holes.size(), o.holes.size());
  Recorder r(CustomOp::op(), where);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Tensor& t = inputs.begin()[i].tensor();
    check_input(o, o.inputs[i], t, where);
    r.input(t);
  }
  for (const double c : values.constants) r.constant(c);
  for (std::size_t h = 0; h < kMostHoles; ++h) {
    const Hole hole = h < values.holes.size() ? values.holes[h] : Hole{};
    r.hole(int(h), hole, hole.filled() ? outputs[std::size_t(o.holes[h].output)].shape : Shape{});
  }
  r.integer(op.id_);
  for (const auto* list : {&values.facts, &values.integers})
    for (const std::int64_t i : *list) r.integer(i);
  for (const Out& out : outputs) r.out(out.shape, out.dtype);
  return r.record();
}

}  // namespace weft
