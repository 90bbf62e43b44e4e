#include "models/mamba2.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "models/family.h"
#include "ops/ops.h"

namespace weft {
namespace {

Initialiser residual_init(const Mamba2Config& c) {
  const double layers = c.rescale_residual ? double(c.layers) : 1;
  return init::uniform(1 / std::sqrt(double(c.inner_width()) * layers));
}

// ln of a uniform draw, so that A is uniform.
Initialiser log_uniform_in(double low, double high) {
  return [=](const Draws& draws, std::int64_t i) { return std::log(low + (high - low) * draws.uniform(i)); };
}

Param undecayed(std::int64_t size, DType dtype) {
  Param p({size}, dtype);
  p.set_decay(false);
  return p;
}

}  // namespace

// ---- the gated norm ---------------------------------------------------------------------------------------------------------

GatedNorm::GatedNorm(std::int64_t width, const GatedNormOptions& options, Site where)
    : weight_(undecayed(width, options.dtype)), options_(options) {
  if (options.groups < 1 || width % options.groups != 0)
    fail_at(where, "GatedNorm: the width does not divide into the groups",
            fmt::format("width {}, {} groups", width, options.groups), "every group has the same number of features");
  add("weight", weight_, init::constant(1));
}

Tensor GatedNorm::forward(const Tensor& y, const Tensor& z) {
  const GatedNormOptions& o = options_;
  if (o.groups == 1)
    return rms_norm(y, weight_, o.eps, o.output, o.norm_first ? gate(z) : Hole{}, o.norm_first ? Hole{} : gate(z));
  Shape grouped = y.shape();
  const std::int64_t size = grouped[-1] / o.groups;
  grouped[-1] = o.groups, grouped.push_back(size);
  const Tensor w = reshape(weight_, {o.groups, size}), by = reshape(z, grouped);
  const Hole out = o.norm_first ? hole({w, by}, [](Expr e, Expr weight, Expr s) { return e * weight * silu(s); })
                                : hole({w}, [](Expr e, Expr weight) { return e * weight; });
  return reshape(rms_norm(reshape(y, grouped), Tensor{}, o.eps, o.output, out, o.norm_first ? Hole{} : gate(by)), y.shape());
}

// ---- a loop -----------------------------------------------------------------------------------------------------------------

namespace {

// ssd step by step, as its formulas stand, with step sizes (b, t, h): what faster ways are compared with.
Tensor sequential_ssd(const Tensor& x, const Tensor& step, const Tensor& A, const Tensor& B, const Tensor& C, const Tensor& D,
                      Tensor initial, Tensor* last) {
  const std::int64_t b = x.dim(0), t = x.dim(1), h = x.dim(2), p = x.dim(3), g = B.dim(2), n = B.dim(3), r = h / g;
  const Tensor decay = reshape(exp(step * A), {b, t, g, r, 1, 1});
  const Tensor fed = reshape(x * reshape(step, {b, t, h, 1}), {b, t, g, r, p, 1});
  const Tensor Bs = reshape(B, {b, t, g, 1, 1, n}), Cs = reshape(C, {b, t, g, 1, 1, n});
  Tensor S = initial ? reshape(initial, {b, 1, g, r, p, n}) : zeros({b, 1, g, r, p, n}, x.dtype());
  std::vector<Arg> rows;
  for (std::int64_t k = 0; k < t; ++k) {
    const auto at = [&](const Tensor& of) { return slice(of, 1, k, k + 1); };
    S = at(decay) * S + at(fed) * at(Bs);
    rows.emplace_back(reshape(sum(S * at(Cs), {-1}), {b, 1, h, p}));
  }
  if (last) *last = reshape(S, {b, h, p, n});
  const Tensor skip = x * (D.shape().rank() == 1 ? reshape(D, {h, 1}) : D);
  return rows.empty() ? skip : concat(std::move(rows), 1) + skip;
}

}  // namespace

// ---- mixer ------------------------------------------------------------------------------------------------------------------

Mamba2LayerCache::Mamba2LayerCache(const Mamba2Config& c, std::int64_t b, const std::string& name)
    : ssm({b, c.heads(), c.head, c.state}, c.dtype, name + ".ssm_state") {
  if (c.conv > 1) conv = State({b, c.conv - 1, c.conv_width()}, c.compute(), name + ".conv_state");
}

Mamba2Mixer::Mamba2Mixer(const Mamba2Config& c, const Mamba2MixerOptions& o)
    : config_(c),
      scales_(o.scales),
      in_proj_(c.width, c.projected_width(),
               {.bias = c.bias,
                .weight_init = o.deviation > 0 ? init::normal(o.deviation) : Initialiser{},
                .bias_init = init::constant(0),
                .dtype = c.dtype}),
      conv1d_(c.conv_width(), c.conv, {.bias = c.conv_bias, .dtype = c.dtype}),
      out_proj_(c.inner_width(), c.width,
                {.bias = c.bias,
                 .weight_init = o.deviation > 0 ? init::normal(o.deviation) : residual_init(c),
                 .bias_init = init::constant(0),
                 .dtype = c.dtype}),
      dt_bias_(undecayed(c.heads(), c.dtype)),
      A_log_(undecayed(c.heads(), c.dtype)),
      D_(undecayed(c.skip_features ? c.scanned_width() : c.heads(), c.dtype)) {
  add("dt_bias", dt_bias_, init::dt_bias(c.dt_min, c.dt_max, c.dt_floor));
  add("A_log", A_log_, log_uniform_in(c.A_min, c.A_max));
  add("D", D_, init::constant(1));
  add("in_proj", in_proj_);
  add("conv1d", conv1d_);
  if (o.norm) {
    norm_.emplace(c.scanned_width(),
                  GatedNormOptions{
                      .groups = c.groups, .norm_first = c.norm_first, .eps = c.eps, .dtype = c.dtype, .output = c.compute()});
    add("norm", *norm_);
  }
  add("out_proj", out_proj_);
}

Tensor Mamba2Mixer::forward(const Tensor& x, const Mamba2LayerCache* cache, const SequencePass& pass) {
  if (!cache) return mixed(x, nullptr, ScanPath::fast, pass);
  Mamba2States states{cache->conv ? begin_with(cache->conv, pass) : Tensor(), begin_with(cache->ssm, pass)};
  const Tensor y = mixed(x, &states, ScanPath::fast, pass);
  if (cache->conv) assign(cache->conv, states.conv);
  assign(cache->ssm, states.ssm);
  return y;
}

Tensor Mamba2Mixer::forward(const Tensor& x, Mamba2States& states, ScanPath path, const SequencePass& pass) {
  return mixed(x, &states, path, pass);
}

Tensor Mamba2Mixer::mixed(const Tensor& x, Mamba2States* states, ScanPath path, const SequencePass& pass) {
  const Mamba2Config& c = config_;
  const std::int64_t gated = c.gated_width();
  const std::vector<Tensor> parts =
      split(scaled(in_proj_(x)), {gated, gated, c.scanned_width(), c.conv_width(), c.heads()}, -1);
  const Tensor s = scanned(parts[3], parts[4], states, path, pass);
  const Tensor y = norm_ ? (*norm_)(s, parts[2]) : s * silu(parts[2]);
  return out_proj_(gated ? concat({silu(parts[0]) * parts[1], y}, -1) : y);
}

Tensor Mamba2Mixer::scaled(const Tensor& projected) const {
  if (std::all_of(scales_.begin(), scales_.end(), [](double s) { return s == 1; })) return projected;
  const Mamba2Config& c = config_;
  const std::int64_t gated = 2 * c.gated_width(), s = c.scanned_width(), gn = c.groups * c.state;
  const std::int64_t widths[] = {s, s, gn, gn, c.heads()};
  return pointwise("scaled", {projected}, [&](Expr v) {
    Expr by = 1.0;
    std::int64_t begin = gated;
    for (std::size_t k = 0; k < scales_.size(); begin += widths[k++])
      by = where(expr::index(2) >= Expr(begin), Expr(scales_[k]), by);
    return v * by;
  });
}

Tensor Mamba2Mixer::scanned(const Tensor& xBC, const Tensor& dt, Mamba2States* states, ScanPath path,
                            const SequencePass& pass) {
  const Mamba2Config& c = config_;
  Conv1dOptions conv{.silu = true, .segments = pass.segments};
  Tensor conv_state;
  if (states && c.conv > 1) conv.initial = states->conv, conv.last = &conv_state;
  const Tensor u = conv1d_(xBC, conv);
  if (conv_state) states->conv = pass.ends ? last_inputs(xBC, c.conv - 1, pass.ends) : conv_state;

  const std::int64_t b = u.dim(0), t = u.dim(1), s = c.scanned_width(), gn = c.groups * c.state;
  const std::vector<Tensor> parts = split(u, {s, gn, gn}, -1);
  const Shape groups{b, t, c.groups, c.state};
  const Tensor x = reshape(parts[0], {b, t, c.heads(), c.head}), B = reshape(parts[1], groups), C = reshape(parts[2], groups);
  const Tensor A = -exp(A_log_), D = c.skip_features ? reshape(D_.read(), {c.heads(), c.head}) : D_.read();
  Tensor y, last;
  if (path == ScanPath::sequential) {
    const Tensor step = clamp(softplus(dt + dt_bias_.read()), c.dt_low, c.dt_high);
    y = sequential_ssd(x, step, A, B, C, D, states ? states->ssm : Tensor(), &last);
  } else {
    SsdOptions options{.D = D, .dt = step_size(dt_bias_.read(), pass.ends), .segments = pass.segments};
    options.plain = path == ScanPath::plain;
    if (states) options.initial = states->ssm, options.last = &last;
    y = ssd(x, dt, A, B, C, options);
  }
  if (states) states->ssm = last;
  return reshape(y, {b, t, s});
}

// softplus(raw + bias) within its limits, and 0, which leaves the state as it is, where a text has ended.
HoleOf<1, 3> Mamba2Mixer::step_size(const Tensor& bias, const Tensor& ends) const {
  const double low = config_.dt_low, high = config_.dt_high;
  if (!(low > 0) && std::isinf(high)) return ends ? until(ends, bias) : softplus_bias(bias);
  return [&](Expr raw, Index b, Index t, Index h) {
    Expr step = softplus(raw + bias(h));
    if (low > 0) step = max(step, Expr(low));
    if (std::isfinite(high)) step = min(step, Expr(high));
    return ends ? where(t < ends(b), step, Expr(0)) : step;
  };
}

// ---- model ------------------------------------------------------------------------------------------------------------------

Mamba2::Mamba2(Mamba2Config config) : Backbone("Mamba2", std::move(config)) {}

// The same whatever the length.
CacheBytes Mamba2::cache_bytes(std::int64_t) const {
  const double conv = double(config_.conv - 1) * double(config_.conv_width()) * double(size_of(config_.compute())),
               ssm = double(config_.scanned_width()) * double(config_.state) * double(size_of(config_.dtype));
  return {.states = double(config_.layers) * (conv + ssm)};
}

std::string Mamba2::description() const {
  return fmt::format("Mamba-2, {} layers, width {}, {} heads, state {}, {} parameters", config_.layers, config_.width,
                     config_.heads(), config_.state, config_.parameter_count());
}

// Of a state element, step by step: its decay, the product of x with B and its sum, and that with C.
double Mamba2::flops_per_token(std::int64_t) const {
  const Mamba2Config& c = config_;
  const double d = double(c.width), conv = double(c.conv_width()) * double(c.conv);
  const double weights = d * double(c.projected_width()) + conv + double(c.inner_width()) * d;
  const double states = double(c.scanned_width()) * double(c.state);
  return double(c.layers) * (2 * weights + 5 * states) + 2 * double(c.rows()) * d;
}

nlohmann::json Mamba2::config_json(CheckpointNames names) const {
  return names == CheckpointNames::original ? to_original(config_) : mamba2_config_to_json(config_);
}

Mamba2 Mamba2::load(const std::filesystem::path& folder, DType dtype) { return load_as<Mamba2>(folder, dtype, "Mamba-2"); }

// ---- family -----------------------------------------------------------------------------------------------------------------

// The models of the Mamba-2 paper, with the learning rates and the length of their training. With the vocabulary of the
// published ones they have 128,989,632, 368,346,624, 780,161,280, 1,343,757,312 and 2,702,599,680 parameters.
static Preset paper(const char* name, const char* width, const char* layers, const char* lr) {
  return {name,
          "",
          {{"width", width},
           {"layers", layers},
           {"state", "128"},
           {"head_size", "64"},
           {"batch", "8"},
           {"length", "2048"},
           {"accumulate", "8"},
           {"lr", lr},
           {"warmup", "500"},
           {"steps", "20000"},
           {"tokenizer", "unigram"},
           {"vocab", "32000"},
           {"recompute", "true"}}};
}

ModelFamily mamba2_family() {
  ModelFamily family{.name = "mamba2", .title = "Mamba-2", .model_types = {"mamba2"}};
  family.recognises = [](const nlohmann::json& config) {  // the original form
    return config.contains("ssm_cfg") && config["ssm_cfg"].is_object() &&
           config["ssm_cfg"].value("layer", nlohmann::json()) == "Mamba2";
  };
  family.presets = {{"tiny"},
                    {"small",
                     "10 M",
                     {{"width", "384"},
                      {"layers", "10"},
                      {"batch", "16"},
                      {"length", "256"},
                      {"lr", "2e-3"},
                      {"warmup", "100"},
                      {"tokenizer", "unigram"}}},
                    paper("130m", "768", "24", "3e-3"),
                    paper("370m", "1024", "48", "1.5e-3"),
                    paper("780m", "1536", "48", "1.25e-3"),
                    paper("1.3b", "2048", "48", "1e-3"),
                    paper("2.7b", "2560", "64", "8e-4"),
                    {"task",
                     "with --task",
                     {{"width", "64"},
                      {"layers", "2"},
                      {"batch", "64"},
                      {"length", "64"},
                      {"lr", "1e-2"},
                      {"steps", "600"},
                      {"eval_every", "100"}}}};
  return make_family<Mamba2>(std::move(family),
                             {{"width", "Width of the model", &Mamba2Config::width, std::int64_t(128)},
                              {"layers", "Layers of the model", &Mamba2Config::layers, std::int64_t(4)},
                              {"state", "State size of a feature", &Mamba2Config::state, std::int64_t(64)},
                              {"head_size", "Features of a head", &Mamba2Config::head, std::int64_t(32)},
                              {"groups", "Groups of heads that share B and C", &Mamba2Config::groups, std::int64_t(1)}},
                             mamba2_config_from_json);
}

}  // namespace weft
