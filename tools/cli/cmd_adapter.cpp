#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "autograd/run.h"
#include "jit/error.h"
#include "jit/json.h"
#include "jit/print.h"
#include "models/adapters.h"
#include "nn/undrawn.h"
#include "tools/cli/commands.h"
#include "tools/evaluate/generate.h"
#include "tools/system/folder.h"
#include "tools/train/checkpoint.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// The folder of an adapter that `path`, a run, a model or itself one, has.
fs::path adapter_of(const fs::path& path) {
  const fs::path folder = model_folder(path);
  if (const auto found = adapter_in(folder)) return *found;
  fail(ErrorKind::io, folder.string() + ": there is no adapter", "no adapter_config.json, here or in adapter/",
       "`weft train --adapter lora --from FOLDER --out RUN` makes a run with one");
}

// The model of a folder, as its config.json says, without values.
std::unique_ptr<LanguageModel> shape_of(const fs::path& folder) {
  const nlohmann::json config = read_model_config(folder);
  const std::string file = (folder / "config.json").string();
  return family_of(config, file).from_json(config, file, {}, nullptr);
}

void copy_tokenizer(const fs::path& from, const fs::path& to) {
  if (fs::exists(from / "tokenizer.model")) fs::copy_file(from / "tokenizer.model", to / "tokenizer.model");
}

}  // namespace

int cmd_adapter_info(const AdapterCommand& c) {
  const fs::path adapter = adapter_of(c.from);
  const nlohmann::json config = read_json(adapter / "adapter_config.json");
  const auto base = config.is_object() ? config.find("base_model_name_or_path") : config.end();
  print("adapter: {}\n", adapter.string());
  if (base != config.end() && !base->is_null()) print("of the model: {}\n", text_of(*base));
  // The model is that around it, or the one that it names.
  fs::path folder = model_folder(c.from);
  if (!fs::exists(folder / "config.json") && base != config.end() && base->is_string())
    folder = model_folder(base->get<std::string>());
  if (!fs::exists(folder / "config.json")) {
    print("its model is not here, so nothing more can be said\n");
    return 0;
  }
  const Undrawn shapes;
  const auto model = shape_of(folder);
  load_adapter(*model, adapter);
  print("model: {}\n", model->description());
  print("{:<12} {:>8} {:>12}\n", "layer", "modules", "parameters");
  for (const AdapterCounts& row : count_adapters(*model))
    print("{:<12} {:>8} {:>12}  {}\n", row.layer, row.modules, row.parameters, to_text(row.options));
  print("{}\n", to_text(count_parameters(*model)));
  return 0;
}

int cmd_adapter_merge(const AdapterCommand& c) {
  use_device("cpu");
  const fs::path folder = model_folder(c.from);
  const auto model = LanguageModel::load(folder);
  add_adapters_from(*model, c.adapters);
  const std::vector<AdapterCounts> counts = count_adapters(*model);
  if (counts.empty())
    fail(ErrorKind::io, folder.string() + ": there is no adapter", "no folder adapter/ in it",
         "give one with --adapter FOLDER");
  merge_adapters(*model);
  write_folder(c.out, [&](const fs::path& to) {
    model->save(to);
    copy_tokenizer(folder, to);
  });
  print("merged: {}\nsaved: {}\n", to_text(counts), c.out);
  return 0;
}

int cmd_adapter_extract(const AdapterCommand& c) {
  const fs::path adapter = adapter_of(c.from);
  write_folder(c.out, [&](const fs::path& to) {
    for (const char* file : {"adapter_config.json", "adapter_model.safetensors"}) fs::copy_file(adapter / file, to / file);
  });
  print("saved: {}\n", c.out);
  return 0;
}

}  // namespace weft
