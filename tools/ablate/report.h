// What a study has found: tables, pictures, and the report that says it in words.
#pragma once

#include <string>
#include <vector>

#include "tools/ablate/results.h"

namespace weft {

// Writes into the study's folder, of the runs that there are,
//
//   ablation_results.csv       a line for each model (csv_of)
//   detailed_metrics.txt       everything that was measured, of each run
//   generation_samples.txt     what each model writes after each stage
//   ablation_results.png, training_stages_comparison.png, hymba_attention_pretraining.png, hymba_attention_orpo.png, with their
//                              scripts, .gp, and data, .dat
//   REPORT.md, report.html
//
// and returns lines for people that say so. Without gnuplot the pictures are missing, as one of the lines says.
std::vector<std::string> report(const StudyPlan& plan, const StudyFolder& folder);

}  // namespace weft
