#include "tools/train/adapt.h"

#include <fmt/format.h>

#include "jit/error.h"
#include "models/adapters.h"
#include "tools/train/checkpoint.h"

namespace weft {

std::unique_ptr<LanguageModel> load_to_train(const TrainOptions& o, const ComputeOptions& how) {
  auto model = read_model_folder(o.from, [&](const std::filesystem::path& folder) { return LanguageModel::load(folder, how); });
  if (o.adapter.empty()) return model;
  if (const std::vector<AdapterCounts> there = count_adapters(*model); !there.empty())
    fail(ErrorKind::usage, "train: the model has an adapter already", to_text(there),
         "leave out --adapter to train that one, or begin with a model that `weft adapter merge` made");
  const AdapterKind kind = o.adapter == "ia3" ? AdapterKind::ia3 : AdapterKind::lora;
  const std::string targets = o.targets.empty() ? usual_targets(*model) : o.targets;
  add_adapter(*model, {.kind = kind, .rank = o.rank, .alpha = o.alpha, .dropout = o.adapter_dropout},
              parse_targets(targets, kind));
  return model;
}

void check_adapters_learn(const LanguageModel& model) {
  std::string idle;
  for (const Adapter& a : model.parts<Adapter>())
    if (a.is_identity()) idle += (idle.empty() ? "" : ", ") + a.path();
  if (!idle.empty())
    fail(ErrorKind::training, "train: adapters have had no gradient in the first step, so they cannot learn", idle,
         "name other --targets: nothing of the loss depends on these layers");
}

}  // namespace weft
