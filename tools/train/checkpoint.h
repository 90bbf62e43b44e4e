// The folder of a training run. A checkpoint appears complete or not at all: it is written under another name, synced and
// renamed.
//
//   RUN/config.json        the options, all of them
//   RUN/environment.json   command line, versions and devices, of each start
//   RUN/metrics.jsonl      a line a step and a line a validation; RUN/events.out.tfevents.weft has the same for TensorBoard
//   RUN/loss.png, .svg     the curve, with loss.gp and loss.dat that it is made from
//   RUN/checkpoints/step-N
//   RUN/latest             a link to the newest checkpoint
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

namespace weft {

// The checkpoints of a run.
class Checkpoints {
 public:
  explicit Checkpoints(std::filesystem::path run) : run_(std::move(run)) {}

  // RUN/checkpoints/step-N for the newest N that is complete; nothing if there is none.
  std::optional<std::filesystem::path> newest() const;
  std::filesystem::path of_step(std::int64_t step) const;

  // Writes the checkpoint of `step`, makes it the latest, and then removes all but the newest `keep` (0: removes none).
  void write(std::int64_t step, std::int64_t keep, const std::function<void(const std::filesystem::path&)>& fill) const;
  // Makes the one of `step` the latest, and removes newer ones and what an interrupted write has left. Step 0: all are removed.
  void rewind(std::int64_t step) const;

 private:
  std::filesystem::path folder() const { return run_ / "checkpoints"; }
  void point_to(std::int64_t step) const;
  std::filesystem::path run_;
};

// The folder with the model that `path` refers to: a run's newest checkpoint, else `path` itself. Errors (ErrorKind::io): it is
// no folder.
std::filesystem::path model_folder(const std::filesystem::path& path);
// The run that a checkpoint belongs to, or `path` itself if it is a run; nothing otherwise.
std::optional<std::filesystem::path> run_of(const std::filesystem::path& path);

}  // namespace weft
