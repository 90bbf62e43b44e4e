// All of weft.
#pragma once

#include <fmt/format.h>

#include "autograd/backward.h"
#include "autograd/check.h"
#include "autograd/op.h"
#include "autograd/random.h"
#include "autograd/run.h"
#include "autograd/state.h"
#include "autograd/tensor.h"
#include "jit/error.h"
#include "jit/expr.h"
#include "jit/parallel.h"
#include "models/mamba.h"
#include "models/sample.h"
#include "nn/init.h"
#include "nn/layers.h"
#include "nn/module.h"
#include "nn/safetensors.h"
#include "ops/ops.h"
#include "optim/adamw.h"
#include "optim/clip.h"
#include "optim/schedule.h"
#include "tools/data.h"
#include "tools/tokenizer.h"
#include "tools/trainer.h"
