// The families of language models that weft has. The first one is the default of `weft train`.
#include "models/falcon_h1.h"
#include "models/family.h"
#include "models/hymba.h"
#include "models/hymba_study.h"
#include "models/mamba.h"
#include "models/mamba2.h"
#include "models/transformer.h"

namespace weft {

std::vector<ModelFamily> built_in_families() {
  return {
      mamba_family(), mamba2_family(), transformer_family(), hymba_family(), hymba_study_family(), falcon_h1_family(),
  };
}

}  // namespace weft
