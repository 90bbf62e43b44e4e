// What the results of a study say, in words: every number in them is measured, and so is every "more" and "less".
#pragma once

#include <string>
#include <vector>

#include "tools/ablate/results.h"

namespace weft {

std::string setting_of(const StudyResults& results);  // what was trained, on what
std::vector<std::string> findings_of(const StudyResults& results);
// What differs from what the description of the study expects, and what does not. Empty where it says nothing of the models as
// they are.
struct Expectations {
  std::vector<std::string> surprises, confirmed;
};
Expectations expectations_of(const StudyResults& results);

}  // namespace weft
