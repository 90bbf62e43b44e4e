// Values are pinned by tests of their own; here gradients, odd shapes, determinism.
#include <string>

#include "ops/ops.h"
#include "tests/op_cases/families.h"
#include "tests/op_cases/reference.h"

namespace weft {

void add_random(std::vector<OpRow>& rows) {
  rows.push_back({"dropout",
                  [](auto& in) { return dropout(in[0], 0.4); },
                  nullptr,
                  {{"normal", {{{40, 7}}}}, {"odd", {{{9, 7}}}}, {"one", {{{1}}}}, {"empty", {{{0}}}}}});
  for (const MaskNoise noise : {MaskNoise::gumbel, MaskNoise::logistic}) {
    const std::string tag = noise == MaskNoise::gumbel ? "_gumbel" : "_logistic";
    rows.push_back({"mask_soft" + tag,
                    [=](auto& in) { return gumbel_sigmoid(in[0], {.temperature = 0.8, .hard = false, .noise = noise}); },
                    nullptr,
                    {{"normal", {{{20, 7}}}}, {"special", {{{15}, 0, 0, special_points()}}, false}}});
    rows.push_back(
        {"mask_scalar" + tag,
         [=](auto& in) { return gumbel_sigmoid(in[0], {.temperature_scalar = Scalar(0.7), .hard = false, .noise = noise}); },
         nullptr,
         {{"normal", {{{20, 7}}}}}});
    rows.push_back({"mask_hard" + tag,
                    [=](auto& in) { return gumbel_sigmoid(in[0], {.noise = noise}); },
                    nullptr,
                    {{"normal", {{{20, 7}}}, false}}});
  }
  rows.push_back({"mask_eval",
                  [](auto& in) { return gumbel_sigmoid(in[0], {.training = false}); },
                  [](const Inputs& in, const Shapes&) {
                    Values out;
                    for (const double x : in[0]) out.push_back(x > 0);
                    return out;
                  },
                  {{"normal", {{{20, 7}}}, false}}});
  rows.push_back({"normal_numbers",
                  [](auto& in) { return in[0] * normal(in[0].shape(), in[0].dtype()); },
                  nullptr,
                  {{"normal", {{{20, 7}}}}, {"odd", {{{9, 7}}}}}});
}

}  // namespace weft
