// The pictures of a study, drawn by gnuplot from data that stay beside them.
#pragma once

#include <filesystem>
#include <string>

#include "tools/ablate/results.h"
#include "tools/train/gnuplot.h"

namespace weft {

// The models side by side: perplexity, speed, parameters, caches, time. Deviations over seeds are bars.
Picture results_picture(const StudyResults& results, const std::string& name);
// Both stages: perplexities, curves, learning rate, and of ORPO the parts of its loss and what the held-out pairs say.
Picture stages_picture(const StudyResults& results, const std::string& name);
// What was measured in `measured`, STAGE.json, of a model's attention, with the maps in `maps` (tools/ablate/measure.h).
Picture attention_picture(const std::filesystem::path& measured, const std::filesystem::path& maps, const std::string& title,
                          const std::string& name);

}  // namespace weft
