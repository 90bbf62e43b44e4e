// The model that a training run begins with where it is not a new one, and the adapter that is trained instead of it.
#pragma once

#include <memory>

#include "models/language_model.h"
#include "tools/train/train_options.h"

namespace weft {

// That of options.from, with a new adapter if options.adapter says so; the adapter that the folder has is trained on. Errors:
// those of LanguageModel::load and add_adapter; (ErrorKind::usage) options.adapter where there is an adapter already.
std::unique_ptr<LanguageModel> load_to_train(const TrainOptions& options, const ComputeOptions& how);

// After the first step. Errors (ErrorKind::training): an adapter that has had no gradient and so cannot learn, all of them.
void check_adapters_learn(const LanguageModel& model);

}  // namespace weft
