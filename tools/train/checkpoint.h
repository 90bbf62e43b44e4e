// The folder of a training run. A checkpoint appears complete or not at all: it is written under another name, synced and
// renamed.
//
//   RUN/config.json        the options, all of them
//   RUN/environment.json   command line, versions and devices, of each start
//   RUN/metrics.jsonl      a line a step and a line a validation; RUN/events.out.tfevents.weft has the same for TensorBoard
//   RUN/loss.png, .svg     the curve, with loss.gp and loss.dat that it is made from
//   RUN/checkpoints/step-N
//   RUN/latest             a link to the newest checkpoint
//   RUN/weft.lock          locked by the process that trains; by it the folder is known as a run
#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace weft {

// The checkpoints of a run.
class Checkpoints {
 public:
  explicit Checkpoints(std::filesystem::path run) : run_(std::move(run)) {}

  // RUN/checkpoints/step-N for the newest N that is complete; nothing if there is none.
  std::optional<std::filesystem::path> newest() const;
  std::filesystem::path of_step(std::int64_t step) const;
  std::vector<std::filesystem::path> all() const;  // the oldest first

  // Writes the checkpoint of `step`, makes it the latest, and then removes all but the newest `keep` (0: removes none).
  void write(std::int64_t step, std::int64_t keep, const std::function<void(const std::filesystem::path&)>& fill) const;
  // Makes the one of `step` the latest, and removes newer ones and what an interrupted write has left. Step 0: all are removed.
  // Nothing else in the folder is touched.
  void rewind(std::int64_t step) const;

 private:
  std::filesystem::path folder() const { return run_ / "checkpoints"; }
  void point_to(std::int64_t step) const;
  std::filesystem::path run_;
};

// The folder with the model that `path` refers to: a run's newest checkpoint, the one that RUN/latest names, else `path`
// itself. Errors (ErrorKind::io): it is no folder.
std::filesystem::path model_folder(const std::filesystem::path& path);

// read(model_folder(path)); with the newer one, if the run is trained and that checkpoint was removed meanwhile.
bool superseded(const std::filesystem::path& path, const std::filesystem::path& folder);  // of model_folder(path)
template <class Read>
auto read_model_folder(const std::filesystem::path& path, Read&& read) {
  for (;;) {
    const std::filesystem::path folder = model_folder(path);
    try {
      return read(folder);
    } catch (const std::exception&) {
      if (!superseded(path, folder)) throw;
    }
  }
}

// A folder in which `weft train --out` has begun.
bool is_run(const std::filesystem::path& folder);
// The run that a checkpoint belongs to, or `path` itself if it is a run; nothing otherwise.
std::optional<std::filesystem::path> run_of(const std::filesystem::path& path);

}  // namespace weft
