// Folders and configurations that transformers writes and loads; and what lies where a model should.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "jit/file.h"
#include "jit/json.h"
#include "tests/expect_error.h"
#include "tests/peak_memory.h"
#include "tests/temp_folder.h"
#include "tools/evaluate/verify.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char *kEmbeddings = "backbone.embeddings.weight", *kHead = "lm_head.weight";

MambaConfig sizes() { return {.vocab = 50, .width = 24, .layers = 2, .state = 8}; }

// A saved model, to be changed and loaded.
class Folders : public testing::Test {
 protected:
  Folders() {
    seed(5);
    Mamba model(sizes());
    model.save(folder_.path());
    tensors_ = model.weights();
  }

  void save(const TensorMap& tensors) const { write_safetensors(folder_ / "model.safetensors", tensors); }
  // Half of the tensors in each shard; the index lists what `listed` says, by shard.
  void save_shards(const TensorMap& first, const TensorMap& second, const json& map) const {
    fs::remove(folder_ / "model.safetensors");
    write_safetensors(folder_ / "model-00001-of-00002.safetensors", first);
    write_safetensors(folder_ / "model-00002-of-00002.safetensors", second);
    folder_.write("model.safetensors.index.json", json{{"metadata", {{"total_size", 1}}}, {"weight_map", map}}.dump());
  }
  void expect_the_model(const TensorMap& expected) const {
    const TensorMap loaded = Mamba::load(folder_.path()).weights();
    ASSERT_EQ(loaded.size(), expected.size());
    for (const auto& [name, tensor] : expected) EXPECT_EQ(loaded.at(name).bytes, tensor.bytes) << name;
  }
  json config() const { return read_json(folder_ / "config.json"); }
  void set_config(const json& config) const { folder_.write("config.json", text_of(config)); }

  const TempFolder folder_;
  TensorMap tensors_;
};

// The same values in another type: of such tensors in files every f32 is one of bf16.
TensorMap rounded(TensorMap tensors) {
  for (auto& [name, tensor] : tensors) {
    const std::vector<float> values = tensor.values<float>();
    const HostTensor narrow = HostTensor::from(DType::bf16, tensor.shape, std::span(values));
    const std::vector<float> wide = narrow.values<float>();
    tensor = HostTensor::from(DType::f32, tensor.shape, std::span(wide));
  }
  return tensors;
}

HostTensor in_bf16(const HostTensor& tensor) {
  const std::vector<float> values = tensor.values<float>();
  return HostTensor::from(DType::bf16, tensor.shape, std::span(values));
}

// ---- weights ----------------------------------------------------------------------------------------------------------------

TEST_F(Folders, ATiedHeadMayBeSavedAlone) {
  TensorMap tensors = tensors_;
  tensors[kHead] = tensors.at(kEmbeddings);
  tensors.erase(kEmbeddings);
  save(tensors);
  expect_the_model(tensors_);
  tensors.erase(kHead);
  save(tensors);
  expect_error(ErrorKind::io, {"missing: backbone.embeddings.weight"}, [&] { Mamba::load(folder_.path()); });
}

// A quarter of a gigabyte that is right in all but one shape: neither the file is read nor the model's memory touched.
TEST_F(Folders, AWrongShapeIsRefusedBeforeMemoryIsTaken) {
  std::ofstream reset("/proc/self/clear_refs");
  json large = config();
  large["vocab_size"] = 2'500'000;
  set_config(large);
  json header;
  std::uint64_t end = 0;
  for (const auto& [name, tensor] : tensors_) {
    std::vector<std::int64_t> shape = tensor.shape;
    if (name == kEmbeddings) shape[0] = 2'500'000;
    if (name.ends_with("x_proj.weight")) shape[0] += 1;
    std::uint64_t bytes = 4;
    for (const std::int64_t dim : shape) bytes *= std::uint64_t(dim);
    header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {end, end + bytes}}};
    end += bytes;
  }
  const std::string text = header.dump();
  const std::uint64_t length = text.size();
  std::string begin(8, '\0');
  std::memcpy(begin.data(), &length, 8);
  folder_.write("model.safetensors", begin + text);
  fs::resize_file(folder_ / "model.safetensors", 8 + length + end);  // the rest is a hole
  if (!(reset << "5" << std::flush)) GTEST_SKIP() << "the peak of memory cannot be set back";
  if (device() == Device::emu) GTEST_SKIP() << "the emulated device's memory is this machine's";
  const std::size_t before = peak_of(getpid());
  expect_error(ErrorKind::io, {"the tensors do not fit the model", "2 problems", "x_proj.weight"},
               [&] { LanguageModel::load(folder_.path()); });
  EXPECT_LT(peak_of(getpid()), before + (std::size_t(60) << 20));
}

TEST_F(Folders, ATiedHeadMayHaveTheSameValuesInAnotherType) {
  const TensorMap expected = rounded(tensors_);
  TensorMap tensors = expected;
  tensors[kHead] = in_bf16(expected.at(kEmbeddings));
  save(tensors);
  expect_the_model(expected);
  std::swap(tensors.at(kHead), tensors.at(kEmbeddings));
  save(tensors);
  expect_the_model(expected);
  tensors[kHead] = in_bf16(tensors_.at(kEmbeddings));  // rounded, and so another
  tensors[kEmbeddings] = tensors_.at(kEmbeddings);
  save(tensors);
  expect_error(ErrorKind::io, {"the head differs from the embedding"}, [&] { Mamba::load(folder_.path()); });
}

TEST_F(Folders, AnIndexMayListATiedTensorThatIsInNoShard) {
  TensorMap first, second;
  json map;
  for (const auto& [name, tensor] : tensors_) {
    TensorMap& shard = first.size() <= second.size() ? first : second;
    shard.emplace(name, tensor);
    map[name] = &shard == &first ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors";
  }
  map[kHead] = "model-00002-of-00002.safetensors";
  save_shards(first, second, map);
  expect_the_model(tensors_);
  map["absent.weight"] = "model-00001-of-00002.safetensors";  // neither does transformers mind
  save_shards(first, second, map);
  expect_the_model(tensors_);
  second.erase(second.begin());  // but what the model needs must be somewhere
  save_shards(first, second, map);
  expect_error(ErrorKind::io, {"missing: "}, [&] { Mamba::load(folder_.path()); });
}

TEST_F(Folders, AShardMayHaveMoreThanTheIndexLists) {
  TensorMap first, second;
  json map;
  for (const auto& [name, tensor] : tensors_) {
    TensorMap& shard = first.size() <= second.size() ? first : second;
    shard.emplace(name, tensor);
    if (&shard == &first || second.size() > 1)
      map[name] = &shard == &first ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors";
  }
  ASSERT_LT(map.size(), tensors_.size());
  second[kHead] = tensors_.at(kEmbeddings);
  save_shards(first, second, map);
  expect_the_model(tensors_);
  first["other.weight"] = tensors_.at(kEmbeddings);
  save_shards(first, second, map);
  expect_error(ErrorKind::io, {"unexpected: other.weight"}, [&] { Mamba::load(folder_.path()); });
}

TEST_F(Folders, ATensorInTwoShardsIsTheOneThatTheIndexNames) {
  TensorMap first = tensors_, second = {{kEmbeddings, tensors_.at(kEmbeddings)}};
  std::fill(second.at(kEmbeddings).bytes.begin(), second.at(kEmbeddings).bytes.end(), std::byte(0));
  json map;
  for (const auto& [name, tensor] : tensors_) map[name] = "model-00001-of-00002.safetensors";
  map["other"] = "model-00002-of-00002.safetensors";
  save_shards(first, second, map);
  expect_the_model(tensors_);
  map[kEmbeddings] = "model-00002-of-00002.safetensors";
  save_shards(first, second, map);
  TensorMap expected = tensors_;
  expected[kEmbeddings] = second.at(kEmbeddings);
  expect_the_model(expected);
  map.erase(kEmbeddings);
  save_shards(first, second, map);
  expect_error(ErrorKind::io, {"a tensor is in two shards", kEmbeddings}, [&] { Mamba::load(folder_.path()); });
}

TEST_F(Folders, MetadataMayBeNull) {
  std::string bytes = read_text(folder_ / "model.safetensors");
  std::uint64_t length;
  std::memcpy(&length, bytes.data(), sizeof length);
  json header = json::parse(bytes.substr(8, length));
  header["__metadata__"] = nullptr;
  const std::string text = header.dump(), data = bytes.substr(8 + length);
  length = text.size();
  folder_.write("model.safetensors", std::string(reinterpret_cast<const char*>(&length), sizeof length) + text + data);
  expect_the_model(tensors_);
}

// ---- configurations ---------------------------------------------------------------------------------------------------------

// MambaConfig(vocab_size=50, hidden_size=24, num_hidden_layers=2, state_size=8).to_dict() of transformers 4.48.3.
constexpr const char* kFullDump =
    R"({"vocab_size": 50, "hidden_size": 24, "state_size": 8, "num_hidden_layers": 2, "layer_norm_epsilon": 1e-05,
"conv_kernel": 4, "expand": 2, "intermediate_size": 48, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
"use_bias": false, "use_conv_bias": true, "hidden_act": "silu", "initializer_range": 0.1, "time_step_rank": 2,
"time_step_scale": 1.0, "time_step_min": 0.001, "time_step_max": 0.1, "time_step_init_scheme": "random",
"time_step_floor": 0.0001, "rescale_prenorm_residual": false, "residual_in_fp32": true, "use_cache": true,
"use_mambapy": false, "return_dict": true, "output_hidden_states": false, "output_attentions": false,
"torchscript": false, "torch_dtype": null, "use_bfloat16": false, "tf_legacy_loss": false, "pruned_heads": {},
"tie_word_embeddings": true, "chunk_size_feed_forward": 0, "is_encoder_decoder": false, "is_decoder": false,
"cross_attention_hidden_size": null, "add_cross_attention": false, "tie_encoder_decoder": false, "max_length": 20,
"min_length": 0, "do_sample": false, "early_stopping": false, "num_beams": 1, "num_beam_groups": 1,
"diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
"length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": null,
"num_return_sequences": 1, "output_scores": false, "return_dict_in_generate": false, "forced_bos_token_id": null,
"forced_eos_token_id": null, "remove_invalid_values": false, "exponential_decay_length_penalty": null,
"suppress_tokens": null, "begin_suppress_tokens": null, "architectures": null, "finetuning_task": null,
"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "tokenizer_class": null,
"prefix": null, "sep_token_id": null, "decoder_start_token_id": null, "task_specific_params": null,
"problem_type": null, "_name_or_path": "", "_attn_implementation_autoset": false, "transformers_version": "4.48.3",
"model_type": "mamba"})";

std::string said_about(const json& config) {
  testing::internal::CaptureStderr();
  mamba_config_from_json(config, "config.json");
  return testing::internal::GetCapturedStderr();
}

TEST_F(Folders, AFullDumpOfTransformersIsReadWithOneLine) {
  const json dump = json::parse(kFullDump);
  const MambaConfig c = mamba_config_from_json(dump);
  EXPECT_EQ(c.width, 24);
  EXPECT_EQ(c.inner_width(), 48);
  set_config(dump);
  expect_the_model(tensors_);
  const std::string said = said_about(dump);
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  for (const char* word : {"config.json", "max_length", "temperature", "num_beams"})
    EXPECT_NE(said.find(word), std::string::npos) << word << " in: " << said;
  EXPECT_EQ(said.find("tokenizer_class"), std::string::npos) << said;  // null says nothing
  EXPECT_EQ(said_about(to_hugging_face(sizes())), "");
}

TEST_F(Folders, KeysThatSayNothingAboutTheMathematicsAreNamed) {
  const std::vector<std::pair<const char*, json>> keys = {{"max_length", 20},
                                                          {"temperature", 0.7},
                                                          {"tokenizer_class", "GPTNeoXTokenizer"},
                                                          {"top_k", 3},
                                                          {"unsloth_version", "1"}};
  for (const auto& [key, value] : keys) {
    json config = to_hugging_face(sizes());
    config[key] = value;
    const std::string said = said_about(config);
    EXPECT_NE(said.find(key), std::string::npos) << key << " in: " << said;
  }
  json config = to_hugging_face(sizes());
  config["_commit_hash"] = "ab12", config["quantization_config"] = nullptr, config["hidden_act"] = "swish";
  EXPECT_EQ(said_about(config), "");
  config["what\x1b[2J"] = nullptr;  // a key from a file, on a terminal
  const std::string said = said_about(config);
  EXPECT_NE(said.find("what\\u001b"), std::string::npos) << said;
  EXPECT_EQ(said.find('\x1b'), std::string::npos);
}

TEST_F(Folders, KeysThatChangeTheMathematicsAreErrors) {
  const auto with = [](const char* key, const json& value, const std::vector<std::string>& words) {
    json config = to_hugging_face(sizes());
    config[key] = value;
    expect_error(ErrorKind::io, words, [&] { mamba_config_from_json(config); });
  };
  with("hidden_act", "gelu", {"hidden_act = \"gelu\"", "\"silu\" or \"swish\""});
  with("time_step_limit", {0.0, 0.1}, {"time_step_limit = [0.0,0.1]"});
  with("quantization_config", {{"quant_method", "awq"}}, {"quantized", "awq"});
  with("add_cross_attention", true, {"add_cross_attention = true"});
  with("pruned_heads", {{"1", {0}}}, {"pruned_heads"});
  with("rope_theta", 1e4, {"unknown key", "rope_theta"});
  json config = to_hugging_face(sizes());
  config["time_step_limit"] = {0.0, std::numeric_limits<double>::infinity()};
  EXPECT_EQ(mamba_config_from_json(config).width, 24);
  expect_error(ErrorKind::io, {"no such feature"}, [&] {
    config["time_step_limit"] = {0.001, std::numeric_limits<double>::infinity()};
    mamba_config_from_json(config);
  });
}

// ---- tokens that end a text -------------------------------------------------------------------------------------------------

using Ids = std::vector<std::int64_t>;

TEST_F(Folders, SeveralTokensMayEndAText) {
  json form = config();
  form["eos_token_id"] = {7, 9, 7};
  set_config(form);
  const auto model = LanguageModel::load(folder_.path());
  EXPECT_EQ(model->special_tokens().eos, (Ids{7, 9}));
  EXPECT_TRUE(model->special_tokens().ends(9));
  EXPECT_FALSE(model->special_tokens().ends(8));
  const TempFolder again;
  model->save(again.path());
  EXPECT_EQ(LanguageModel::load(again.path())->special_tokens().eos, (Ids{7, 9}));
  EXPECT_EQ(to_hugging_face(sizes()).at("eos_token_id"), json(nullptr));
}

TEST_F(Folders, GenerationConfigDecidesAboutSpecialTokens) {
  json form = config();
  form["eos_token_id"] = 3, form["bos_token_id"] = 4;
  set_config(form);
  folder_.write(
      "generation_config.json",
      R"({"_from_model_config": true, "eos_token_id": [5, 6], "pad_token_id": 1, "bos_token_id": null, "top_p": 0.9})");
  const SpecialTokens tokens = LanguageModel::load(folder_.path())->special_tokens();
  EXPECT_EQ(tokens.eos, (Ids{5, 6}));
  EXPECT_EQ(tokens.pad, 1);
  EXPECT_EQ(tokens.bos, 4);
  folder_.write("generation_config.json", "[]");
  EXPECT_EQ(LanguageModel::load(folder_.path())->special_tokens().eos, (Ids{3}));
  folder_.write("generation_config.json", R"({"eos_token_id": "x"})");
  expect_error(ErrorKind::io, {"a token's id is expected", "eos_token_id"}, [&] { LanguageModel::load(folder_.path()); });
  folder_.write("generation_config.json", "{");
  expect_error(ErrorKind::io, {"generation_config.json", "not valid JSON"}, [&] { LanguageModel::load(folder_.path()); });
}

TEST_F(Folders, GenerationStopsAtAnyOfThem) {
  seed(1);
  Mamba free({.vocab = 256, .width = 16, .layers = 1, .state = 4});
  std::string whole;
  generate_text(free, Tokenizer::bytes(), "the", {.tokens = 60, .seed = 3}, [&](std::string_view part) { whole += part; });
  // Both end it where they come first: two characters of what it says without.
  const std::size_t early = 10;
  const auto until = [&](Ids ends) {
    MambaConfig c = {.vocab = 256, .width = 16, .layers = 1, .state = 4, .eos = std::move(ends)};
    Mamba model(c);
    model.load_weights(free.weights());
    std::string text;
    const GeneratedText made = generate_text(model, Tokenizer::bytes(), "the", {.tokens = 60, .seed = 3},
                                             [&](std::string_view part) { text += part; });
    EXPECT_TRUE(made.ended);
    return made.tokens;
  };
  const auto id = [&](std::size_t i) { return std::int64_t(static_cast<unsigned char>(whole[i])); };
  const std::int64_t first = until({id(3 + early)}), second = until({id(3 + 2 * early)});
  EXPECT_EQ(until({id(3 + early), id(3 + 2 * early)}), std::min(first, second));
  EXPECT_EQ(until({id(3 + 2 * early), id(3 + early)}), std::min(first, second));
}

// ---- what is no model -------------------------------------------------------------------------------------------------------

constexpr const char* kPointer =
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 516567560\n";
constexpr const char* kPage = "\n<!DOCTYPE html>\n<html><head><title>weights · Hugging Face</title></head></html>\n";

TEST_F(Folders, WhatLiesInPlaceOfTheWeightsIsNamed) {
  const auto refused = [&](std::string_view bytes, const std::vector<std::string>& words) {
    folder_.write("model.safetensors", bytes);
    expect_error(ErrorKind::io, words, [&] { LanguageModel::load(folder_.path()); });
  };
  refused(kPointer, {"model.safetensors: not a safetensors file", "Git LFS", "git lfs pull"});
  refused(kPage, {"a web page", "/resolve/"});
  refused("<HTML></HTML>", {"a web page"});
  refused(std::string_view("PK\x03\x04\x14\0\0\0data.pkl", 16), {"a zip archive", "save_pretrained"});
  refused(std::string_view("\x80\x02}q\0X\x05\0\0\0", 10), {"a pickle"});
  refused(std::string_view("GGUF\x03\0\0\0\0\0", 10), {"llama.cpp"});
  refused(std::string_view("\x1f\x8b\x08\0\0\0\0\0", 8), {"gzip", "unpack"});
  refused(R"({"error":"Repository not found"})", {"it is a text", "Repository not found"});
  refused("Access denied", {"it is a text: \"Access denied\""});
  refused("", {"too short"});
}

// The length of a header may look like the first bytes of a pickle or of gzip.
TEST_F(Folders, AHeaderOfAnyLengthIsRead) {
  for (const std::size_t length : {std::size_t(0x280), std::size_t(0x380), std::size_t(0x88b1f), std::size_t(0x8b1f)}) {
    std::string header = R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
    header.resize(length, ' ');
    const std::uint64_t size = length;
    folder_.write("t.safetensors",
                  std::string(reinterpret_cast<const char*>(&size), sizeof size) + header + std::string(4, '\0'));
    EXPECT_EQ(read_safetensors(folder_ / "t.safetensors").size(), 1u) << length;
  }
}

TEST_F(Folders, LikewiseInPlaceOfOtherFiles) {
  for (const char* text : {kPointer, kPage}) {
    folder_.write("config.json", text);
    expect_error(ErrorKind::io, {"config.json: not JSON", text == kPage ? "a web page" : "Git LFS"},
                 [&] { LanguageModel::load(folder_.path()); });
    folder_.write("tokenizer.model", text);
    expect_error(ErrorKind::io, {"tokenizer.model: not a SentencePiece model", text == kPage ? "a web page" : "Git LFS"},
                 [&] { Tokenizer::load(folder_ / "tokenizer.model"); });
  }
  folder_.write("text.txt", kPointer);
  expect_error(ErrorKind::io, {"text.txt: not a text", "Git LFS"}, [&] { load_corpus(folder_ / "text.txt"); });
  folder_.write("text.txt", kPage);  // which somebody may well learn from
  EXPECT_EQ(load_corpus(folder_ / "text.txt").size(), std::string_view(kPage).size());
}

TEST_F(Folders, WhatTheFolderHasInsteadIsNamed) {
  fs::remove(folder_ / "model.safetensors");
  const auto says = [&](const char* name, const std::vector<std::string>& words) {
    folder_.write(name, "x");
    expect_error(ErrorKind::io, words, [&] { LanguageModel::load(folder_.path()); });
    fs::remove(folder_ / name);
  };
  says("pytorch_model.bin", {"no model in", "pytorch_model.bin is a pickle"});
  says("pytorch_model-00001-of-00002.bin", {"is a pickle"});
  says("consolidated.00.pth", {"is a pickle"});
  says("tf_model.h5", {"TensorFlow"});
  says("model.fp16.safetensors", {"model.fp16.safetensors has another name"});
  says("adapter_model.safetensors", {"holds an adapter", "merge_and_unload"});
}

TEST_F(Folders, AnAdapterIsToldFromAModel) {
  fs::remove(folder_ / "config.json");
  fs::remove(folder_ / "model.safetensors");
  folder_.write("adapter_config.json",
                R"({"peft_type": "LORA", "base_model_name_or_path": "state-spaces/mamba-130m-hf", "r": 8})");
  for (const auto& load : std::vector<std::function<void()>>{[&] { LanguageModel::load(folder_.path()); },
                                                             [&] { load_text_model(folder_.path()); },
                                                             [&] { verify_model(folder_.path(), DType::f32); }})
    expect_error(ErrorKind::io, {"an adapter, not a model", "\"LORA\"", "mamba-130m-hf", "--adapter"}, load);
}

TEST_F(Folders, AnotherKindOfModelIsNamedBeforeWhatItLacks) {
  json form = config();
  form["model_type"] = "bert";
  set_config(form);
  expect_error(ErrorKind::io, {"this kind of model is unknown", "model_type = \"bert\""},
               [&] { verify_model(folder_.path(), DType::f32); });
  write_safetensors(folder_ / "reference.safetensors",
                    {{"input_ids", tensors_.at(kEmbeddings)}, {"loss", tensors_.at(kEmbeddings)}});
  expect_error(ErrorKind::io, {"model_type = \"bert\""}, [&] { verify_model(folder_.path(), DType::f32); });
}

}  // namespace
}  // namespace weft
