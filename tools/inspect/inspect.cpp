#include "tools/inspect/inspect.h"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>

#include "autograd/backward.h"
#include "autograd/context.h"
#include "autograd/run.h"
#include "jit/emulator/device.h"
#include "jit/gpu.h"
#include "jit/json.h"
#include "jit/sizes.h"
#include "models/language_model.h"
#include "nn/undrawn.h"
#include "ops/ops.h"
#include "optim/adamw.h"
#include "tools/bench/time.h"
#include "tools/train/checkpoint.h"
#include "tools/train/trainer.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

fs::path config_file(const fs::path& path) {
  const fs::path file = fs::is_directory(path) ? model_folder(path) / "config.json" : path;
  if (!fs::is_regular_file(file))
    fail(ErrorKind::io, "inspect: there is no model here", file.string(), "give a config.json, or a folder with one");
  return file;
}

// Read and written once.
double bytes_of(const GemmCall& g) {
  const auto size = [](const GemmOperand& o) { return double(size_of(o.dtype)); };
  const double m = double(g.m), n = double(g.n), k = double(g.k);
  return double(g.batch) * (m * k * size(g.a) + k * n * size(g.b) + m * n * (size(g.c) + (g.addend ? size(g.addend) : 0)));
}

// A run's own, or usual ones; what is given on the command line goes before them.
TrainOptions step_options(const fs::path& path, const InspectOptions& given) {
  const fs::path folder = config_file(path).parent_path();
  TrainOptions o =
      fs::exists(folder / "state.json") ? read_state(folder).options : TrainOptions{.length = 256, .precision = "bf16"};
  o.batch = given.batch.value_or(o.batch), o.length = given.length.value_or(o.length);
  if (given.bf16) o.precision = *given.bf16 ? "bf16" : "fp32";
  o.check();
  return o;
}

struct Inspected {
  fs::path file;
  TrainOptions options;
  nlohmann::json config;
};
Inspected read_inspected(const fs::path& path, const InspectOptions& given) {
  const auto read = [&](const fs::path& place) {
    const fs::path file = config_file(place);
    return Inspected{file, step_options(file, given), read_json(file)};
  };
  return fs::is_directory(path) ? read_model_folder(path, read) : read(path);
}

// Scattered over the vocabulary, as a text's are: equal ids would make the embedding's gradient one long sum.
Tensor some_ids(const Shape& shape, std::int64_t vocab, std::uint64_t salt) {
  const std::string what = "a batch of " + to_string(shape);
  check_memory(std::size_t(checked_product(what, {shape[0], shape[1], 4 * sizeof(std::int64_t)})),
               what);  // twice, with targets
  std::vector<std::int64_t> ids(std::size_t(shape.numel()));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = std::int64_t(((i + salt) * 2654435761u >> 8) % std::uint64_t(vocab));
  return Tensor::from(ids, shape);
}

// What a plan that never runs needs of them.
Tensor described_ids(const Shape& shape) {
  auto* value = new Value;
  value->dtype = DType::i64, value->shape = shape;
  value->memory = std::make_shared<Memory>(Device::cpu, 0, "ids");
  return Tensor::of_value(value);
}

// Each kernel of the plan that ran last, alone.
std::vector<double> kernel_seconds() {
  if (settings().split_arena)
    fail(ErrorKind::usage, "inspect: WEFT_ARENA=split gives values no lasting address", {}, "unset WEFT_ARENA");
  std::vector<int> cuts;
  for (std::size_t k = 0; k <= context().last_plan->kernels.size(); ++k) cuts.push_back(int(k));
  return time_last_plan(cuts, Gpu::of(device()).emulated() ? 1 : 10);
}

// Of the kernels of one step on the emulated device.
template <class Step>
std::map<std::string, EmulatedCounters> count_step(const Step& step) {
  reset_emulated_counters();
  run(step);
  return emulated_counters();
}

// What the device in use can reach: a large copy, and a large product of this dtype.
void measure_peaks(KernelTable& table, DType dtype) {
  constexpr std::size_t bytes = std::size_t(1) << 29;
  constexpr std::int64_t m = 8192;
  const Memory from(device(), bytes, "the copy's source"), to(device(), bytes, "the copy's target");
  table.peak_bytes =
      2 * double(bytes) / (time_launches([&] { Gpu::of(device()).copy(to.data(), from.data(), bytes); }, {}) * 1e-3);
  const State a(Shape{m, m}, dtype, "a factor"), b(Shape{m, m}, dtype, "a factor");
  run([&] { assign(a, normal(a.shape())), assign(b, normal(b.shape())); });
  const StepTimes product = time_step({[&](const Keep& keep) { keep(matmul(a, b)); }}, {});
  table.peak_flops = 2 * double(m) * double(m) * double(m) / (product.total_ms * 1e-3);
}

// The emulated GPU has no memory of its own whose speed could be a measure.
void describe_timing(KernelTable& table, DType dtype) {
  const Gpu& gpu = Gpu::of(device());
  if (gpu.emulated()) {
    table.timing =
        "emulated (a trace has this host's times); instr: PTX of threads; sect: sectors of 32 bytes, and the part used; banks: "
        "conflicts";
    return;
  }
  measure_peaks(table, dtype);
  table.timing = fmt::format("{}: each kernel alone, with cold caches; roof: {:.2f} TB/s (a copy), products {:.0f} TFLOP/s",
                             gpu.name(), table.peak_bytes / 1e12, table.peak_flops / 1e12);
}

// What to compile for.
std::string inspected_target(const InspectOptions& options) {
  if (options.device != "cuda") return options.target.empty() ? "sm_90a" : options.target;
  const std::string& own = Gpu::of(device()).architecture();
  if (!options.target.empty() && options.target != own)
    fail(ErrorKind::usage, fmt::format("inspect: this GPU runs {}, not {}", own, options.target), {},
         "leave out --arch or --device");
  return own;
}

}  // namespace

std::vector<KernelView> views_of(const Plan& plan, const std::vector<double>& seconds) {
  std::vector<KernelView> views;
  for (std::size_t i = 0; i < plan.kernels.size(); ++i) {
    const PlannedKernel& p = plan.kernels[i];
    KernelView v{.name = p.record.name,
                 .module = p.record.where,
                 .where = p.where,
                 .reasons = p.record.reasons,
                 .backward = p.record.backward};
    if (i < seconds.size()) v.seconds = seconds[i];
    const auto slot = [&](int s) { v.slots[s] = plan.slots[std::size_t(s)].bytes; };
    std::visit(by_kind{[](const Kernel&) {},
                       [&](const CudaKernelPointer& cuda) {
                         v.name = cuda->name, v.kernel = cuda, v.bytes = cuda->bytes, v.flops = cuda->flops;
                         for (const CudaArg& a : cuda->args)
                           if (a.kind == CudaArg::pointer) slot(a.slot);
                         for (const TmaMap& map : cuda->maps) slot(map.slot);
                         for (const auto& words : cuda->tables)
                           for (const CudaArg& a : words)
                             if (a.kind == CudaArg::pointer) slot(a.slot);
                       },
                       [&](const GemmCall& call) {
                         v.name += fmt::format("__{}x{}x{}", call.m, call.n, call.k);
                         v.product = to_string(call), v.bytes = bytes_of(call), v.flops = call.flops();
                       },
                       [&](const CollectiveCall& call) {
                         v.product = to_string(call), v.bytes = double(call.from_bytes() + call.to_bytes());
                       }},
               p.work);
    views.push_back(std::move(v));
  }
  return views;
}

void compile_views(std::vector<KernelView>& views, const std::string& target, bool want_ptx) {
  std::vector<CompileJob> jobs;
  std::unordered_map<std::string, std::size_t> job_of;  // by name, which holds a hash of the text
  for (const KernelView& v : views)
    if (v.kernel && job_of.emplace(v.name, jobs.size()).second)
      jobs.push_back({v.name, complete_text(*v.kernel), target, want_ptx});
  const std::vector<Compiled> compiled = compile_all(jobs);
  for (KernelView& v : views)
    if (v.kernel) v.compiled = compiled[job_of.at(v.name)];
}

KernelTable inspect_training_step(const fs::path& path, const InspectOptions& options) {
  const auto [file, o, config] = read_inspected(path, options);
  const bool timed = options.device != "none";
  if (timed) use_device(options.device);
  const std::string target = inspected_target(options);
  std::optional<Undrawn> undrawn;
  if (!timed) undrawn.emplace();
  const auto model = family_of(config, file.string()).from_json(config, file.string(), compute_options(o), nullptr);
  AdamW optimizer(model->parameters(), {.weight_decay = o.weight_decay, .clip_norm = o.clip});
  const Shape shape{o.batch, o.length};
  const auto ids = [&](std::uint64_t salt) { return timed ? some_ids(shape, model->vocab(), salt) : described_ids(shape); };
  const Tensor inputs = ids(0), targets = ids(1);
  const auto step = [&] {
    Tensor loss = cross_entropy((*model)(inputs), targets);
    backward(loss);
    optimizer.step();
    return std::pair(loss, optimizer.grad_norm());
  };
  std::vector<KernelView> views;
  std::map<std::string, EmulatedCounters> counters;
  if (timed) {
    for (int i = 0; i < 2; ++i) run(step);  // compiles everything, then launches it as later steps are
    if (Gpu::of(device()).emulated()) counters = count_step(step);
    views = views_of(*context().last_plan, kernel_seconds());
  } else {
    views = views_of(*plan_for(target_for(target), step));
  }
  compile_views(views, target, options.want_ptx);
  double step_seconds = 0;
  if (timed && !Gpu::of(device()).emulated()) {
    constexpr int kSteps = 10;
    std::vector<double> times;
    for (int i = 0; i < kSteps; ++i) times.push_back(time_wall([&] { run(step); }));
    step_seconds = median(times);
  }
  const std::string title = fmt::format("{}: {}, {:.3g} MFLOP a token; {} x {} tokens, {}", file.string(), model->description(),
                                        model->flops_per_token(o.length) * 1e-6, o.batch, o.length, o.precision);
  KernelTable table = kernel_table(title, target, views);
  table.cache = to_text(model->cache_bytes(o.length), o.length);
  table.step_seconds = step_seconds;
  if (timed) describe_timing(table, compute_options(o).dtype);
  for (KernelView& k : table.kernels)
    if (const auto found = counters.find(k.name); found != counters.end()) k.counters = found->second;
  return table;
}

}  // namespace weft
