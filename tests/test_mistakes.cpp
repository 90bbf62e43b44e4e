// Mistakes and what is said about them: message and exit code, by the library and by the program.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "autograd/settings.h"
#include "jit/driver.h"
#include "tests/expect_error.h"
#include "tests/temp_folder.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// ---- in a program that uses the library
// -------------------------------------------------------------------------------

struct Mistake {
  const char* name;
  int code;                        // of the weft program, had it made the mistake
  std::vector<std::string> words;  // what, numbers, where and hint
  std::function<void()> make;
};

Tensor tensor(Shape shape) { return ones(shape); }

struct Mlp : Layer<Mlp> {
  Linear up{4, 8};
  Mlp() { add("up", up); }
  Tensor forward(const Tensor& x) { return up(x); }
};

std::vector<Mistake> mistakes() {
  return {
      {"matmul of shapes that do not fit",
       2,
       {"matmul: inner dimensions differ", "(8, 512)", "(256, 4)", "512 against 256", "test_mistakes.cpp", "hint: "},
       [] {
         matmul(tensor({8, 512}), tensor({256, 4}));
       }},
      {"linear with the wrong width, in a module",
       2,
       {"linear: the last axis of x is not the weight's input width", "(2, 5)", "(8, 4)", "in up, called at",
        "test_mistakes.cpp"},
       [] {
         Mlp mlp;
         run([&] { return mlp(tensor({2, 5})); });
       }},
      {"shapes that do not broadcast",
       2,
       {"the shapes do not broadcast", "(3, 4)", "(5,)", "test_mistakes.cpp"},
       [] {
         tensor({3, 4}) + tensor({5});
       }},
      {"a handle that outlived its step",
       2,
       {"tensor: this handle is dead", "return the tensor from the step function", "test_mistakes.cpp"},
       [] {
         Tensor kept;
         run([&] {
           kept = tensor({2}) * 3.0;
           return kept + 1.0;
         });
         kept + 1.0;
       }},
      {"item inside run",
       2,
       {"tensor: a value was asked for inside run", "test_mistakes.cpp"},
       [] { run([] { return tensor({}) * tensor({}).item(); }); }},
      {"run inside run",
       2,
       {"run: called inside run", "call the inner step's function directly"},
       [] { run([] { run([] { return tensor({1}); }); }); }},
      {"two assigns to one State",
       2,
       {"assign: state 'counter' is written twice in one step", "combine the values and assign once",
        "test_mistakes.cpp"},
       [] {
         State s({2}, DType::f32, "counter");
         run([&] { assign(s, tensor({2})), assign(s, tensor({2})); });
       }},
      {"a State read on the host inside run",
       2,
       {"state 'counter' was accessed from the host inside run"},
       [] {
         State s({2}, DType::f32, "counter");
         run([&] { s.to_host<float>(); });
       }},
      {"backward of something that is no loss",
       2,
       {"backward: the loss is not one real number", "(2, 3)", "test_mistakes.cpp"},
       [] {
         Param w({2, 3});
         run([&] { backward(w.read() * 2.0); });
       }},
      {"backward of a loss without parameters",
       2,
       {"backward: the loss does not depend on a trainable parameter"},
       [] { run([] { backward(sum(tensor({3}))); }); }},
      {"step without backward",
       2,
       {"AdamW: no parameter has a gradient", "call backward(loss) before step()", "test_mistakes.cpp"},
       [] {
         AdamW opt({Param({2})});
         run([&] { opt.step(); });
       }},
      {"a token id beyond the vocabulary",
       2,
       {"out of range", "300", "vocabulary 256"},
       [] {
         Embedding table(256, 4);
         run([&] { return table(Tensor::from(std::vector<std::int64_t>{1, 300}, {2})); });
       }},
      {"a prompt beyond the vocabulary",
       2,
       {"generate: a token id is out of range", "id 256, vocabulary 256", "hint: "},
       [] {
         Mamba model({.vocab = 256, .width = 8, .layers = 1, .state = 2});
         generate(model, {65, 256});
       }},
      {"item of many elements", 2, {"item: the tensor has not one element", "(2,)"}, [] { tensor({2}).item(); }},
      {"a slice out of range",
       2,
       {"slice: out of range", "[2, 9) of axis 0 of (4,)"},
       [] { slice(tensor({4}), 0, 2, 9); }},
      {"a missing file",
       4,
       {"/nowhere/model.safetensors", "No such file"},
       [] { read_safetensors("/nowhere/model.safetensors"); }},
      {"a truncated safetensors file",
       4,
       {"model.safetensors"},
       [] {
         const TempFolder folder;
         Mamba model({.vocab = 8, .width = 8, .layers = 1, .state = 2});
         model.save(folder.path());
         fs::resize_file(folder / "model.safetensors", fs::file_size(folder / "model.safetensors") - 9);
         Mamba::load(folder.path());
       }},
      {"an unknown configuration key",
       4,
       {"unknown key", "'vocab_sise'; did you mean 'vocab_size'?"},
       [] {
         nlohmann::json j = to_hugging_face({.width = 8, .layers = 1});
         j["vocab_sise"] = 4;
         mamba_config_from_json(j);
       }},
      {"a missing configuration key",
       4,
       {"size keys are missing: num_hidden_layers"},
       [] {
         nlohmann::json j = to_hugging_face({.width = 8, .layers = 1});
         j.erase("num_hidden_layers");
         mamba_config_from_json(j);
       }},
      {"weights of another model",
       4,
       {"load: the tensors do not fit the model", "missing: bias (3,)", "nothing was loaded"},
       [] { Linear(4, 3).load_state_dict(Linear(4, 3, {.bias = false}).state_dict()); }},
      {"an unknown device", 2, {"unknown device 'tpu'"}, [] { use_device("tpu"); }},
      {"a device that is not there",
       3,
       {"CUDA driver is missing", "apt-get install"},
       [] { use_device("cuda"); }},
      {"a word WEFT_LOG does not know",
       2,
       {"WEFT_LOG: unknown word 'kernals'; did you mean 'kernels'?"},
       [] {
         ::setenv("WEFT_LOG", "why,kernals", 1);
         try {
           read_settings();
         } catch (...) {
           ::unsetenv("WEFT_LOG");
           throw;
         }
         ::unsetenv("WEFT_LOG");
       }},
  };
}

TEST(Mistakes, OfTheLibrary) {
  for (const Mistake& mistake : mistakes()) {
    SCOPED_TRACE(mistake.name);
    if (!missing_cuda_device() && std::string_view(mistake.name) == "a device that is not there") continue;
    try {
      mistake.make();
      ADD_FAILURE() << "no error";
    } catch (const Error& e) {
      const std::string text = e.what();
      EXPECT_EQ(exit_code(e.kind()), mistake.code) << text;
      for (const std::string& word : mistake.words)
        EXPECT_NE(text.find(word), std::string::npos) << "no \"" << word << "\" in: " << text;
    }
    EXPECT_EQ(run([] { return tensor({}) + 1.0; }).item(), 2) << "the next step works";
  }
}

// ---- on the command line
// ------------------------------------------------------------------------------------------------

struct Outcome {
  int code;
  std::string text;  // stdout and stderr
};

Outcome weft_program(const std::string& arguments) {
  const char* program = std::getenv("WEFT_PROGRAM");
  std::FILE* pipe = ::popen(("'" + std::string(program) + "' " + arguments + " 2>&1 </dev/null").c_str(), "r");
  Outcome outcome{-1, {}};
  char buffer[4096];
  while (const std::size_t n = std::fread(buffer, 1, sizeof buffer, pipe)) outcome.text.append(buffer, n);
  const int status = ::pclose(pipe);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return outcome;
}

class Program : public testing::Test {
 protected:
  void SetUp() override {
    const char* program = std::getenv("WEFT_PROGRAM");
    if (!program || !*program) GTEST_SKIP() << "WEFT_PROGRAM is not set";
  }
};

TEST_F(Program, Mistakes) {
  const TempFolder folder;
  folder.write("short.txt", "too short");
  folder.write("empty.txt", "");
  const std::string at = folder.path().string();
  const struct {
    std::string arguments;
    int code;
    std::vector<std::string> words;
  } cases[] = {
      {"", 2, {"a subcommand is needed", "train", "verify"}},
      {"trian", 2, {"unknown subcommand 'trian'; did you mean 'train'?"}},
      {"--hepl", 2, {"unknown option '--hepl'; did you mean '--help'?"}},
      {"train --stpes 10", 2, {"train: unknown option '--stpes'; did you mean '--steps'?"}},
      {"train --steps=ten", 2, {"--steps"}},
      {"train --steps", 2, {"--steps"}},
      {"train --steps 0 --data " + at + "/short.txt", 2, {"at least one step is needed"}},
      {"train --steps 1 --width 0 --data /etc/passwd --length 8", 2, {"sizes must be positive", "width = 0"}},
      {"train extra", 2, {"train: unexpected word 'extra'"}},
      {"train --device cuda", 3, {"CUDA driver is missing", "apt-get install"}},
      {"train --device tpu", 2, {"--device: unknown word 'tpu'; did you mean 'cpu'?"}},
      {"train --data " + at + "/none.txt", 4, {at + "/none.txt", "No such file"}},
      {"train --data " + at + "/empty.txt", 4, {"is empty"}},
      {"train --data " + at + "/short.txt", 4, {"text too short"}},
      {"train --resume " + at, 4, {"no training state"}},
      {"verify", 2, {"folder"}},
      {"verify " + at + "/none", 4, {at + "/none"}},
      {"verify --dtype f16 " + at, 2, {"f16"}},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.arguments);
    if (!missing_cuda_device() && std::string_view(c.arguments) == "train --device cuda") continue;
    const Outcome outcome = weft_program(c.arguments);
    EXPECT_EQ(outcome.code, c.code) << outcome.text;
    for (const std::string& word : c.words)
      EXPECT_NE(outcome.text.find(word), std::string::npos) << "no \"" << word << "\" in: " << outcome.text;
  }
}

TEST_F(Program, EveryOptionHasHelpAndADefault) {
  for (const char* command : {"train", "verify", "bench", "doctor"}) {
    const Outcome outcome = weft_program(std::string(command) + " --help");
    EXPECT_EQ(outcome.code, 0);
    std::istringstream lines(outcome.text);
    for (std::string line; std::getline(lines, line);) {
      if (!line.starts_with("  --")) continue;
      EXPECT_NE(line.find('='), std::string::npos) << "no default: " << line;
      EXPECT_NE(line.find_first_not_of(' ', std::min(line.find("  ", 4), line.size())), std::string::npos)
          << "no help: " << line;
    }
  }
  EXPECT_EQ(weft_program("--version").code, 0);
  EXPECT_EQ(weft_program("--help").code, 0);
}

TEST_F(Program, TrainsSavesResumesAndSamples) {
  const TempFolder folder;
  std::string text;
  for (int i = 0; i < 400; ++i) text += "line " + std::to_string(i * 7 % 100) + " of the text\n";
  folder.write("text.txt", text);
  const std::string common = "--data " + (folder / "text.txt").string() +
                             " --steps 6 --batch 2 --length 16 --width 16 --layers 1 --state 4 --sample 20 --warmup 2 ";
  const Outcome whole = weft_program("train " + common + "--out " + (folder / "a").string());
  EXPECT_EQ(whole.code, 0) << whole.text;
  for (const char* word :
       {"step 6/6", "loss ", "tokens/s", "left", "validation loss", "bits per character", "saved: ", "sample"})
    EXPECT_NE(whole.text.find(word), std::string::npos) << word << "\n" << whole.text;
  EXPECT_EQ(whole.text.find('\x1b'), std::string::npos) << "no colours outside a terminal";
  const Outcome again = weft_program("train --resume " + (folder / "a").string() + " --steps 8 --sample 0 --out " +
                                     (folder / "b").string());
  EXPECT_EQ(again.code, 0) << again.text;
  EXPECT_NE(again.text.find("resumed after step 6"), std::string::npos) << again.text;
  EXPECT_TRUE(fs::exists(folder / "b/latest/state.json"));
}

TEST_F(Program, ATrainingThatFailsNamesTheStepAndExitsWith1) {
  const TempFolder folder;
  folder.write("text.txt", std::string(2000, 'x') + std::string(2000, 'y'));
  const Outcome outcome =
      weft_program("train --data " + (folder / "text.txt").string() +
                   " --steps 300 --batch 2 --length 16 --width 16 --layers 1 --lr 1e30 --warmup 1 --clip 0");
  EXPECT_EQ(outcome.code, 1) << outcome.text;
  EXPECT_NE(outcome.text.find("gave a value that is not finite"), std::string::npos) << outcome.text;
}

TEST_F(Program, VerifyPassesAndFails) {
  const fs::path golden = fs::path(WEFT_SOURCE_DIR) / "tests/golden/mamba";
  const Outcome good = weft_program("verify " + golden.string());
  EXPECT_EQ(good.code, 0) << good.text;
  EXPECT_NE(good.text.find("checks passed"), std::string::npos) << good.text;
  const TempFolder folder;
  for (const char* file : {"config.json", "model.safetensors", "reference.safetensors"})
    fs::copy(golden / file, folder / file);
  TensorMap weights = read_safetensors(folder / "model.safetensors");
  weights.at("backbone.norm_f.weight").bytes[2] ^= std::byte(0x40);
  write_safetensors(folder / "model.safetensors", weights);
  const Outcome bad = weft_program("verify " + folder.path().string());
  EXPECT_EQ(bad.code, 1) << bad.text;
  EXPECT_NE(bad.text.find("FAILED"), std::string::npos) << bad.text;
}

TEST_F(Program, DoctorSaysWhatThereIs) {
  const Outcome outcome = weft_program("doctor");
  EXPECT_EQ(outcome.code, 0);
  for (const char* word : {"CPU", "threads", "BLAS", "cpu, cuda, emu", "NVRTC"})
    EXPECT_NE(outcome.text.find(word), std::string::npos) << outcome.text;
}

}  // namespace
}  // namespace weft
