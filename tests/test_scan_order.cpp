// Scan orders: files, paths, what a patch changes and what it does not, the commands.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "jit/file.h"
#include "jit/json.h"
#include "tests/expect_error.h"
#include "tests/program.h"
#include "tests/temp_folder.h"
#include "tests/words_text.h"
#include "tools/evaluate/scan_order.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Order = std::vector<std::int64_t>;

// ---- .npy -------------------------------------------------------------------------------------------------------------------

TEST(Npy, BytesAreThoseOfTheFormat) {
  const TempFolder folder;
  write_npy(folder / "a.npy", HostTensor::from<std::int64_t>(DType::i64, {3}, Order{2, 0, 1}));
  const std::string bytes = read_text(folder / "a.npy");
  const std::string header = "{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }";
  EXPECT_EQ(bytes.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  EXPECT_EQ(bytes.size(), 128u + 24u) << "the data begin at a multiple of 64";
  EXPECT_EQ(std::uint8_t(bytes[8]) + 256 * std::uint8_t(bytes[9]), 118);
  EXPECT_EQ(bytes.substr(10, header.size()), header);
  EXPECT_EQ(bytes[127], '\n');
  EXPECT_EQ(bytes.substr(10 + header.size(), 117 - header.size()), std::string(117 - header.size(), ' '));
  EXPECT_EQ(bytes.substr(128, 9), std::string("\x02\0\0\0\0\0\0\0\0", 9));
}

TEST(Npy, GivesBackWhatWasWritten) {
  const TempFolder folder;
  const std::vector<double> values = {1.5, -2, 0, 3, 1e30, -0.25};
  for (const DType dtype : {DType::f32, DType::f64})
    for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{2, 3}, {6}, {1, 6, 1}}) {
      const HostTensor tensor = HostTensor::from<double>(dtype, shape, values);
      write_npy(folder / "x.npy", tensor);
      const HostTensor back = read_npy(folder / "x.npy");
      EXPECT_EQ(back.shape, shape);
      EXPECT_EQ(back.dtype, dtype);
      EXPECT_EQ(back.bytes, tensor.bytes);
    }
  write_npy(folder / "none.npy", HostTensor::from<float>(DType::f32, {0, 4}, {}));
  EXPECT_EQ(read_npy(folder / "none.npy").shape, (std::vector<std::int64_t>{0, 4}));
  write_npy(folder / "scalar.npy", HostTensor::from<double>(DType::f64, {}, std::vector<double>{7}));
  EXPECT_EQ(read_npy(folder / "scalar.npy").values<double>(), std::vector<double>{7});
}

std::string npy(const std::string& header, const std::string& data, char version = 1) {
  std::string text = std::string("\x93NUMPY") + version + '\0';
  text += char(header.size() & 255), text += char(header.size() >> 8);
  if (version > 1) text += std::string(2, '\0');
  return text + header + data;
}

TEST(Npy, ReadsOtherVersionsAndRefusesWhatIsDamaged) {
  const TempFolder folder;
  const std::string eight(8, '\0');
  const auto read = [&](const std::string& bytes) { return read_npy(folder.write("x.npy", bytes)); };
  EXPECT_EQ(read(npy("{'shape': (2,), 'fortran_order': True, 'descr': '<f4'}\n", eight, 3)).shape, Order{2});
  const std::string good = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", eight);
  EXPECT_NO_THROW(read(good));
  for (std::size_t size = 0; size < good.size(); ++size)  // wherever it is cut off
    expect_error(ErrorKind::io, {"x.npy"}, [&] { read(good.substr(0, size)); });
  const struct {
    std::string bytes;
    std::vector<std::string> words;
  } rows[] = {
      {good + "x", {"bytes follow the array", "8 bytes, there are 9"}},
      {good.substr(0, good.size() - 4), {"truncated", "f32 of (2) need 8 bytes, there are 4"}},
      {npy("{'descr': '<f2', 'fortran_order': False, 'shape': (4,), }", eight), {"does not read", "'<f2'"}},
      {npy("{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", eight), {"does not read", "'>f4'"}},
      {npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", eight), {"no simple one"}},
      {npy("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 2), }", eight), {"order of Fortran"}},
      {npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", eight), {"its shape has '-2"}},
      {npy("{'descr': '<f4', 'fortran_order': False, 'shape': 2, }", eight), {"no tuple"}},
      {npy("{'descr': '<f4', 'fortran_order': False}", eight), {"has no 'shape'"}},
      {npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }", eight), {"beyond any memory"}},
      {npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2305843009213693953,), }", eight), {"truncated"}},
      {npy("{}", "", 9), {"version", "9.0"}},
      {"PK\x03\x04 and so on", {"not an .npy file"}},
      {"<!DOCTYPE html><html>", {"not an .npy file"}},
  };
  for (const auto& row : rows) expect_error(ErrorKind::io, row.words, [&] { read(row.bytes); });
  expect_error(ErrorKind::io, {"there.npy"}, [&] { read_npy(folder / "there.npy"); });
  expect_error(ErrorKind::usage, {"bf16"}, [&] { write_npy(folder / "y.npy", HostTensor{DType::bf16, {1}, {{}, {}}}); });
}

// ---- paths ------------------------------------------------------------------------------------------------------------------

SquareMatrix random_costs(std::int64_t n, unsigned from, bool symmetric) {
  std::mt19937 random(from);
  SquareMatrix cost{n, std::vector<double>(std::size_t(n * n))};
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j)
      cost.values[std::size_t(i * n + j)] = symmetric && j < i ? cost(j, i) : double(random() >> 8) * 0x1p-24;
  return cost;
}

Order counted(std::int64_t n) {
  Order order(std::size_t(n), 0);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

TEST(ScanOrder, CorrelationIsThatOfTheDefinition) {
  // Columns: x, -2x + 1, a constant, and one whose correlation with x is by hand: x = 1 2 3 4, y = 2 1 4 3:
  // sum (x - 2.5)(y - 2.5) = 0.75 - 0.75 + ... = 3, squares 5 and 5, so 0.6.
  const SquareMatrix rho = correlation({1, -1, 7, 2, 2, -3, 7, 1, 3, -5, 7, 4, 4, -7, 7, 3}, 4, 4);
  const double expected[4][4] = {{1, -1, 0, 0.6}, {-1, 1, 0, -0.6}, {0, 0, 1, 0}, {0.6, -0.6, 0, 1}};
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) EXPECT_NEAR(rho(i, j), expected[i][j], 1e-12) << i << " " << j;
  const SquareMatrix cost = scan_cost(rho);
  EXPECT_NEAR(cost(0, 1), 0, 1e-12);
  EXPECT_NEAR(cost(0, 2), 1, 1e-12);
  EXPECT_NEAR(cost(0, 3), 0.4, 1e-12);
}

TEST(ScanOrder, NearestNeighbourTakesTheFirstOfEquals) {
  const SquareMatrix cost{4, {0, 2, 1, 1, 2, 0, 3, 9, 1, 3, 0, 5, 1, 9, 5, 0}};
  EXPECT_EQ(nearest_neighbour(cost), (Order{0, 2, 1, 3}));
  EXPECT_EQ(nearest_neighbour(cost, 3), (Order{3, 0, 2, 1}));
  EXPECT_DOUBLE_EQ(path_cost(cost, {0, 2, 1, 3}), 13);
}

double best_of_all(const SquareMatrix& cost) {
  Order path = counted(cost.n);
  double best = path_cost(cost, path);
  while (std::next_permutation(path.begin(), path.end())) best = std::min(best, path_cost(cost, path));
  return best;
}

TEST(ScanOrder, ImprovingNeverRaisesTheCostAndEndsNearTheBest) {
  for (const bool symmetric : {true, false}) {
    double sum = 0, best = 0, near = 0;
    for (unsigned from = 0; from < 30; ++from) {
      const SquareMatrix cost = random_costs(7, from, symmetric);
      const Order start = nearest_neighbour(cost), end = improve_path(cost, start);
      EXPECT_NO_THROW(check_permutation(end));
      EXPECT_LE(path_cost(cost, end), path_cost(cost, start));
      const double least = best_of_all(cost);
      EXPECT_GE(path_cost(cost, end), least - 1e-12);
      near += path_cost(cost, start), sum += path_cost(cost, end), best += least;
    }
    EXPECT_LT(sum, best + 0.25 * (near - best)) << "most of what nearest neighbours lose is found" << symmetric;
  }
}

// A local optimum of both kinds of moves, which is computed here from whole paths.
TEST(ScanOrder, NoMoveIsLeftThatLowersTheCost) {
  for (const bool symmetric : {true, false})
    for (const std::int64_t n : {1, 2, 3, 24}) {
      const SquareMatrix cost = random_costs(n, 7, symmetric);
      const Order path = improve_path(cost, nearest_neighbour(cost));
      const double reached = path_cost(cost, path);
      const auto expect_no_better = [&](const Order& other) { EXPECT_GE(path_cost(cost, other), reached - 1e-9); };
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = i + 1; j < n; ++j) {
          Order other = path;
          std::reverse(other.begin() + i, other.begin() + j + 1);
          expect_no_better(other);
        }
      for (std::int64_t size = 1; size <= 3; ++size)
        for (std::int64_t i = 0; i + size <= n; ++i)
          for (std::int64_t k = 0; k <= n - size; ++k)
            for (const bool turned : {false, true}) {
              Order moved(path.begin() + i, path.begin() + i + size), other = path;
              if (turned) std::reverse(moved.begin(), moved.end());
              other.erase(other.begin() + i, other.begin() + i + size);
              other.insert(other.begin() + k, moved.begin(), moved.end());
              expect_no_better(other);
            }
    }
}

// Seed 000: groups of features that follow a common signal, dealt out in turn.
HostTensor correlated_states(std::int64_t rows, std::int64_t d) {
  std::mt19937 random(3);
  const auto noise = [&] { return double(random() >> 8) * 0x1p-23 - 1; };
  std::vector<float> x;
  for (std::int64_t r = 0; r < rows; ++r) {
    double signals[4];
    for (double& s : signals) s = noise();
    for (std::int64_t i = 0; i < d; ++i) x.push_back(float((i % 3 ? 1 : -1) * signals[i % 4] + 0.2 * noise()));
  }
  return HostTensor::from<float>(DType::f32, {rows, d}, x);
}

TEST(SeedsScan, S000_calculate_scan_order) {
  const HostTensor states = correlated_states(200, 48);
  for (const ScanMode mode : {ScanMode::channels, ScanMode::tokens}) {
    const ScanOrder order = compute_scan_order(states, mode, 60);
    EXPECT_EQ(order.order.size(), mode == ScanMode::channels ? 48u : 60u);
    EXPECT_NO_THROW(check_permutation(order.order));
    EXPECT_NO_THROW(check_permutation(order.inverse));
    for (std::size_t t = 0; t < order.order.size(); ++t) EXPECT_EQ(order.inverse[std::size_t(order.order[t])], std::int64_t(t));
    EXPECT_LE(order.optimised, order.nearest);
    EXPECT_LE(order.nearest, order.identity);
    EXPECT_NEAR(order.improvement(), 100 * (1 - order.optimised / order.identity), 1e-9);
  }
  const ScanOrder order = compute_scan_order(states, ScanMode::channels);
  int changes = 0;  // of the group from one place to the next
  for (std::size_t t = 0; t + 1 < 48; ++t) changes += order.order[t] % 4 != order.order[t + 1] % 4;
  EXPECT_EQ(changes, 3);
  EXPECT_GT(order.improvement(), 80);
}

TEST(ScanOrder, IsNeverWorseThanHowThingsStand) {
  SquareMatrix cost{40, std::vector<double>(1600, 1)};  // a path that nearest neighbours, who begin at 0, miss
  for (std::int64_t i = 0; i + 1 < 40; ++i) cost.values[std::size_t(i * 40 + i + 1)] = 0.5;
  cost.values[39] = 0.4;
  for (std::int64_t i = 0; i < 39; ++i) cost.values[std::size_t(39 * 40 + i)] = 3;
  const ScanOrder order = shortest_order(cost);
  EXPECT_GT(order.nearest, order.identity);
  EXPECT_LE(order.optimised, order.identity);
}

TEST(ScanOrder, RefusesStatesThatAreNone) {
  expect_error(ErrorKind::io, {"x.npy: not hidden states", "f32 (4)"}, [] {
    compute_scan_order(HostTensor::from<float>(DType::f32, {4}, std::vector<float>(4)), ScanMode::channels, 512, "x.npy");
  });
  expect_error(ErrorKind::io, {"not finite", "token 1, feature 0"}, [] {
    compute_scan_order(HostTensor::from<float>(DType::f32, {2, 2}, std::vector<float>{1, 2, NAN, 4}), ScanMode::channels);
  });
  expect_error(ErrorKind::usage, {"cost is not finite"}, [] { shortest_order({1, {INFINITY}}); });
  expect_error(ErrorKind::usage, {"nothing to order"}, [] { shortest_order({}); });
  expect_error(ErrorKind::io, {"too few texts", "2 lines", "3 are wanted"},
               [] { sample_texts(Corpus("t.txt", "a long enough line\nshort\n\nanother long line\n"), 3); });
  EXPECT_EQ(sample_texts(Corpus("t.txt", "ääääääääää\nääääääääa\nlong enough\n"), 2),
            (std::vector<std::string>{"ääääääääää", "long enough"}))
      << "ten characters, whatever their bytes";
}

TEST(ScanOrder, PermutationsThatAreNoneAreNamed) {
  const auto message = [](const Order& order, const std::vector<std::string>& words) {
    expect_error(ErrorKind::io, words, [&] { check_permutation(order, "o.npy"); });
  };
  message({}, {"o.npy is empty"});
  message({0, 3, 1}, {"o.npy is no permutation of 0 to 2", "entry 1 is 3"});
  message({-1, 0, 1}, {"entry 0 is -1"});
  message({0, 1, 1, 0, 7}, {"1 stands at 1 and at 2, 0 stands at 0 and at 3, and 1 more"});
  EXPECT_NO_THROW(check_permutation({0}));
  const TempFolder folder;
  write_npy(folder / "f.npy", HostTensor::from<float>(DType::f32, {2}, std::vector<float>{0, 1}));
  expect_error(ErrorKind::io, {"f.npy: not an order", "f32 (2)"}, [&] { read_scan_order(folder / "f.npy"); });
  write_npy(folder / "i.npy", HostTensor::from<std::int64_t>(DType::i32, {3}, Order{2, 0, 1}));
  EXPECT_EQ(read_scan_order(folder / "i.npy"), (Order{2, 0, 1}));
  EXPECT_EQ(token_order({3, 0, 2, 1}, 3), (Order{0, 2, 1}));
  EXPECT_EQ(token_order({1, 0}, 4), (Order{1, 0, 2, 3}));
}

// ---- patches ----------------------------------------------------------------------------------------------------------------

void stir(Module& model) {  // no norm stays at its start, where an order does not show
  std::mt19937 random(5);
  for (Param& p : model.parameters()) {
    std::vector<double> values = p.to_host<double>();
    for (double& v : values) v += 0.2 * (double(random() >> 8) * 0x1p-23 - 1);
    p.set(values);
  }
}

template <class F>
void for_each_model(F&& f) {
  for (const bool tied : {true, false}) {
    seed(1);
    Mamba mamba({.vocab = 40, .width = 24, .layers = 3, .state = 4, .bias = !tied, .tie = tied});
    if (!tied) mamba.block(0).mixer().in_proj().mask({}), mamba.block(1).mixer().out_proj().mask({});
    stir(mamba);
    f(mamba);
    Mamba2 mamba2({.vocab = 40, .width = 24, .layers = 2, .state = 8, .head = 12, .bias = !tied, .tie = tied});
    stir(mamba2);
    f(mamba2);
  }
  seed(0);
}

Order shuffled(std::int64_t n) {
  Order order = counted(n);
  std::shuffle(order.begin(), order.end(), std::mt19937(9));
  return order;
}

std::vector<float> logits(LanguageModel& model, std::int64_t t = 30, std::int64_t last = 7) {
  Order ids;
  for (std::int64_t i = 0; i < 2 * t; ++i) ids.push_back((i * 17 + i * i * 5 + 3) % 40);
  ids[std::size_t(t - 1)] = last;
  const Evaluating scope(model);
  return run([&] { return no_grad([&] { return model(Tensor::from(ids, {2, t})); }); }).to_host<float>();
}

double farthest(const std::vector<float>& a, const std::vector<float>& b) {
  double d = a.size() == b.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) d = std::max(d, std::abs(double(a[i]) - double(b[i])));
  return d;
}

std::string stderr_of(const std::function<void()>& work) {
  testing::internal::CaptureStderr();
  work();
  return testing::internal::GetCapturedStderr();
}

TEST(SeedsScan, S002_channel_mode_changes_no_logit) {
  for_each_model([](LanguageModel& model) {
    SCOPED_TRACE(model.description());
    const std::vector<float> before = logits(model);
    const TensorMap weights = model.state_dict();
    const std::vector<std::int64_t> greedy = generate(model, {1, 2}, {.tokens = 12, .temperature = 0});
    EXPECT_EQ(stderr_of([&] { apply_scan_patch(model, shuffled(24)); }), "") << "nothing to warn of";
    const TensorMap permuted = model.state_dict();
    for (const char* part : {"backbone.embeddings.weight", "backbone.layers.1.norm.weight", "backbone.norm_f.weight",
                             "backbone.layers.1.mixer.in_proj.weight", "backbone.layers.0.mixer.out_proj.weight"})
      EXPECT_NE(permuted.at(part).bytes, weights.at(part).bytes) << part;
    EXPECT_EQ(permuted.at("backbone.layers.0.mixer.A_log").bytes, weights.at("backbone.layers.0.mixer.A_log").bytes);
    EXPECT_LT(farthest(logits(model), before), 1e-5);
    EXPECT_EQ(generate(model, {1, 2}, {.tokens = 12, .temperature = 0}), greedy) << "with a cache";
    remove_scan_patch(model);
    for (const auto& [name, tensor] : model.state_dict()) EXPECT_EQ(tensor.bytes, weights.at(name).bytes) << name;
    EXPECT_EQ(logits(model), before);
  });
}

// The hidden state of a mixer is that of before in the new order: h' = h[order].
TEST(ScanPatch, HiddenStatesFollowTheOrder) {
  for_each_model([](LanguageModel& model) {
    const std::string path = model.stream_layout().mixers.back();
    const auto states = [&] {
      const Evaluating scope(model);
      const Tensor ids = Tensor::from(Order{1, 5, 9}, {1, 3});
      return run([&] {
               return no_grad([&] {
                 model(ids);
                 return tap(path).input;
               });
             })
          .to_host<float>();
    };
    const std::vector<float> before = states();
    const Order order = shuffled(24);
    apply_scan_patch(model, order);
    const std::vector<float> after = states();
    for (std::size_t t = 0; t < 3; ++t)
      for (std::size_t j = 0; j < 24; ++j) EXPECT_NEAR(after[t * 24 + j], before[t * 24 + std::size_t(order[j])], 1e-4);
  });
}

TEST(ScanPatch, WeightsThatStayAreAnotherFunction) {
  for_each_model([](LanguageModel& model) {
    const std::vector<float> before = logits(model);
    const TensorMap weights = model.state_dict();
    apply_scan_patch(model, shuffled(24), ScanMode::channels_keep);
    EXPECT_GT(farthest(logits(model), before), 1e-3);
    EXPECT_EQ(model.state_dict().at("backbone.embeddings.weight").bytes, weights.at("backbone.embeddings.weight").bytes);
    remove_scan_patch(model);
    EXPECT_EQ(logits(model), before);
  });
  // By the definition: what the mixer is given, norm included, is h[order], with the weights as they are.
  Mamba model({.vocab = 40, .width = 24, .layers = 1, .state = 4});
  stir(model);
  const Order order = shuffled(24), inverse = inverse_of(order);
  const std::vector<float> numbers = logits(model);
  const Tensor x = Tensor::from(std::vector<float>(numbers.begin(), numbers.begin() + 5 * 24), {1, 5, 24});
  const Tensor places = Tensor::from(order, {24}), back = Tensor::from(inverse, {24});
  const auto columns = [](const Tensor& t, const Tensor& by) {  // rows of the transpose
    return reshape(permute(embedding(permute(reshape(t, {5, 24}), {1, 0}), by), {1, 0}), {1, 5, 24});
  };
  const auto wanted = run([&] {
                        const Tensor inside = columns(x, places);
                        return x + columns(model.block(0)(inside) - inside, back);
                      }).to_host<float>();
  apply_scan_patch(model, order, ScanMode::channels_keep);
  EXPECT_LT(farthest(run([&] { return model.block(0)(x); }).to_host<float>(), wanted), 1e-5);
}

TEST(SeedsScan, S000_scan_patch_apply_remove_is_patched_info) {
  for_each_model([](LanguageModel& model) {
    SCOPED_TRACE(model.description());
    const std::vector<float> before = logits(model);
    EXPECT_FALSE(is_scan_patched(model));
    expect_error(ErrorKind::usage, {"the model is not patched"}, [&] { get_permutation_info(model); });
    expect_error(ErrorKind::usage, {"the model is not patched"}, [&] { remove_scan_patch(model); });
    const Order order = shuffled(20);
    const std::string said = stderr_of([&] { apply_scan_patch(model, order, ScanMode::tokens); });
    EXPECT_NE(said.find("no causal language model"), said.npos) << said;
    EXPECT_TRUE(is_scan_patched(model));
    const PermutationInfo info = get_permutation_info(model);
    EXPECT_EQ(info.length, 20);
    EXPECT_EQ(info.first, Order(order.begin(), order.begin() + 10));
    EXPECT_EQ(info.mixers, std::int64_t(model.stream_layout().mixers.size()));
    expect_error(ErrorKind::usage, {"patched already", "20 tokens"}, [&] { apply_scan_patch(model, order, ScanMode::tokens); });
    expect_error(ErrorKind::usage, {"patched already"}, [&] { apply_scan_patch(model, shuffled(24)); });
    EXPECT_GT(farthest(logits(model), before), 1e-3);
    remove_scan_patch(model);
    EXPECT_FALSE(is_scan_patched(model));
    EXPECT_EQ(logits(model), before) << "bit for bit";
    expect_error(ErrorKind::io, {"another length", "20 entries, the width is 24"}, [&] { apply_scan_patch(model, order); });
    expect_error(ErrorKind::io, {"no permutation"}, [&] { apply_scan_patch(model, Order(24, 0)); });
    expect_error(ErrorKind::io, {"is empty"}, [&] { apply_scan_patch(model, {}, ScanMode::tokens); });
    EXPECT_FALSE(is_scan_patched(model));
    EXPECT_EQ(logits(model), before) << "an error changes nothing";
  });
  Transformer other({.vocab = 40, .width = 24, .layers = 1, .heads = 2});
  expect_error(ErrorKind::usage, {"no mixers that take one"}, [&] { apply_scan_patch(other, shuffled(24)); });
}

TEST(ScanPatch, CopiesOfAModelShareIt) {
  Mamba model({.vocab = 40, .width = 24, .layers = 1, .state = 4}), copy = model;
  apply_scan_patch(model, shuffled(24));
  EXPECT_TRUE(is_scan_patched(copy));
  remove_scan_patch(copy);
  EXPECT_FALSE(is_scan_patched(model));
}

// The mixers see order[0], order[1], ... one after the other: with the order reversed, a place depends on those behind it
// alone.
TEST(ScanPatch, TokensAreReadInTheirOrder) {
  Mamba model({.vocab = 40, .width = 24, .layers = 1, .state = 4});
  stir(model);
  Order backwards = counted(30);
  std::reverse(backwards.begin(), backwards.end());
  const auto changed = [&] {  // by another last token of the first row: places of it whose logits are not the same bits
    const std::vector<float> a = logits(model, 30, 7), b = logits(model, 30, 8);
    const std::size_t v = a.size() / 60;
    std::int64_t count = 0;
    for (std::size_t t = 0; t < 30; ++t)
      count += !std::equal(a.begin() + std::ptrdiff_t(t * v), a.begin() + std::ptrdiff_t((t + 1) * v),
                           b.begin() + std::ptrdiff_t(t * v));
    return count;
  };
  EXPECT_EQ(changed(), 1) << "causal: the last alone";
  stderr_of([&] { apply_scan_patch(model, backwards, ScanMode::tokens); });
  EXPECT_EQ(changed(), 30) << "trap: an early place reads a late one";
  remove_scan_patch(model);
  stderr_of([&] { apply_scan_patch(model, counted(30), ScanMode::tokens); });
  const std::vector<float> same = logits(model);
  remove_scan_patch(model);
  EXPECT_EQ(logits(model), same) << "an order that is none";
  stderr_of([&] { apply_scan_patch(model, {1, 0}, ScanMode::tokens); });
  EXPECT_EQ(changed(), 1) << "places after the order's stay";
  const auto cache = model.make_cache(2);
  expect_error(ErrorKind::usage, {"tokens in another order", "cache"}, [&] {
    run([&] { return model.prefill(Tensor::from(Order{1, 2}, {2, 1}), *cache); });
  });
  const Tensor ids = Tensor::from(Order{1, 2, 3}, {1, 3});
  expect_error(ErrorKind::usage, {"packed documents"}, [&] {
    run([&] { return model.flow(ids, {.segments = Documents(Tensor::from(Order{0, 0, 1}, {1, 3}))}); });
  });
}

TEST(ScanPatch, TokensHaveGradients) {
  Mamba model({.vocab = 40, .width = 8, .layers = 2, .state = 4, .dtype = DType::f64});
  stir(model);
  stderr_of([&] { apply_scan_patch(model, shuffled(6), ScanMode::tokens); });
  const Tensor ids = Tensor::from(Order{1, 5, 9, 30, 2, 8, 8}, {1, 7}),
               targets = Tensor::from(Order{5, 9, 30, 2, 8, 8, 1}, {1, 7});
  const auto loss = [&] { return cross_entropy(model(ids), targets); };
  run([&] { backward(loss()); });
  Param p = model.block(0).mixer().in_proj().weight();
  const std::vector<double> gradient = p.gradient<double>();
  std::vector<double> values = p.to_host<double>();
  for (const std::size_t i : {3u, 40u, 100u}) {
    const double kept = values[i], h = 1e-6;
    double sides[2];
    for (const int side : {0, 1}) {
      values[i] = kept + (side ? h : -h);
      p.set(values);
      sides[side] = run([&] { return no_grad(loss); }).item();
    }
    values[i] = kept, p.set(values);
    EXPECT_NEAR(gradient[i], (sides[1] - sides[0]) / (2 * h), 1e-8);
  }
}

// Training goes on as it would have, with the moments of the optimizer.
TEST(ScanPatch, TrainingGoesOnWithTheMoments) {
  const auto losses = [](bool patched, bool moments) {
    seed(4);
    Mamba model({.vocab = 40, .width = 24, .layers = 2, .state = 4});
    AdamW opt(model.parameters(), {.lr = 0.01});
    const Tensor ids = Tensor::from(shuffled(40), {2, 20}), targets = Tensor::from(inverse_of(shuffled(40)), {2, 20});
    std::vector<double> all;
    for (int i = 0; i < 12; ++i) {
      if (i == 4 && patched)
        moments ? apply_scan_patch(model, shuffled(24), ScanMode::channels, opt) : apply_scan_patch(model, shuffled(24));
      if (i == 8 && patched) moments ? remove_scan_patch(model, opt) : remove_scan_patch(model);
      all.push_back(run([&] {
                      Tensor loss = cross_entropy(model(ids), targets);
                      backward(loss);
                      opt.step();
                      return loss;
                    }).item());
    }
    return all;
  };
  const std::vector<double> plain = losses(false, false), with = losses(true, true), without = losses(true, false);
  double worst = 0, wrong = 0;
  for (std::size_t i = 0; i < plain.size(); ++i)
    worst = std::max(worst, std::abs(plain[i] - with[i])), wrong = std::max(wrong, std::abs(plain[i] - without[i]));
  EXPECT_LT(worst, 2e-5);
  EXPECT_GT(wrong, 1e-3) << "moments that stay belong to other weights: the test can tell";
  seed(0);
}

TEST(ScanPatch, RefusesPendingGradients) {
  Mamba model({.vocab = 40, .width = 24, .layers = 1, .state = 4});
  const Tensor ids = Tensor::from(Order{1, 2}, {1, 2});
  run([&] { backward(sum(model(ids))); });
  expect_error(ErrorKind::usage, {"gradients are pending", "opt.step()"}, [&] { apply_scan_patch(model, shuffled(24)); });
  for (Param& p : model.parameters()) p.zero_grad();
  EXPECT_NO_THROW(apply_scan_patch(model, shuffled(24)));
}

TEST(ScanPatch, IsSavedAndLoaded) {
  const TempFolder folder;
  Mamba model({.vocab = 40, .width = 24, .layers = 2, .state = 4});
  stir(model);
  const std::vector<float> before = logits(model);
  for (const ScanMode mode : {ScanMode::channels, ScanMode::tokens}) {
    const Order order = shuffled(24);
    stderr_of([&] { apply_scan_patch(model, order, mode); });
    model.save(folder / "m");
    const auto loaded = LanguageModel::load(folder / "m");
    EXPECT_EQ(logits(*loaded), logits(model));
    ASSERT_TRUE(is_scan_patched(*loaded));
    EXPECT_EQ(loaded->scan_patch()->order, order);
    EXPECT_EQ(loaded->scan_patch()->mode, mode);
    remove_scan_patch(*loaded);
    EXPECT_EQ(logits(*loaded), before) << "the order that was saved leads back";
    remove_scan_patch(model);
  }
  model.save(folder / "m");
  EXPECT_FALSE(is_scan_patched(*LanguageModel::load(folder / "m"))) << "the file of before is gone";
  const auto refuse = [&](const std::string& text, const std::vector<std::string>& words) {
    folder.write("m/scan_patch.json", text);
    expect_error(ErrorKind::io, words, [&] { LanguageModel::load(folder / "m"); });
  };
  refuse("{", {"scan_patch.json"});
  refuse(R"({"mode": "channels"})", {"not an order", "order"});
  refuse(R"({"mode": "rows", "order": [0]})", {"no mode 'rows'"});
  refuse(R"({"mode": "channels", "order": [1, 0]})", {"another length", "2 entries, the width is 24"});
  refuse(R"({"mode": "tokens", "order": [1, 1]})", {"no permutation", "1 stands at 0 and at 1"});
}

TEST(ScanPatch, ACheckpointHasIt) {
  const TempFolder folder;
  const auto data =
      std::make_shared<TokenStream>(Corpus("t", words_text(4000)), Tokenizer::bytes(), BatchOptions{.batch = 2, .length = 16});
  TrainOptions options = options_from({{"width", "16"}, {"layers", "1"}, {"batch", "2"}, {"length", "16"}, {"steps", "5"}});
  Trainer trainer(data, options);
  trainer.step();
  stderr_of([&] { apply_scan_patch(trainer.model(), shuffled(9), ScanMode::tokens); });
  trainer.save(folder / "c");
  const double next = trainer.step().loss;
  Trainer again = Trainer::resume(folder / "c", data);
  EXPECT_TRUE(is_scan_patched(again.model()));
  EXPECT_EQ(again.step().loss, next);
}

// ---- extraction and reports -------------------------------------------------------------------------------------------------

std::vector<std::string> ten_texts() {
  std::vector<std::string> texts;
  for (int i = 0; i < 10; ++i) texts.push_back(words_text(20 + std::size_t(i) * 9));
  return texts;
}

TEST(SeedsScan, S000_extract_hidden_states) {
  seed(2);
  Mamba model({.vocab = 256, .width = 24, .layers = 2, .state = 4});
  const std::vector<std::string> texts = ten_texts();
  const HostTensor states = extract_hidden_states(model, Tokenizer::bytes(), texts, 32);
  std::int64_t tokens = 0;
  for (const std::string& text : texts) tokens += std::min<std::int64_t>(32, std::int64_t(text.size()));
  EXPECT_EQ(states.shape, (std::vector<std::int64_t>{tokens, 24}));
  EXPECT_EQ(states.dtype, DType::f32);
  EXPECT_EQ(extract_hidden_states(model, Tokenizer::bytes(), texts, 32).bytes, states.bytes) << "deterministic";
  const Order ids = Tokenizer::bytes().encode(texts[0].substr(0, 32));  // of the first text, by hand: behind the last norm
  const auto expected = run([&] {
                          return no_grad([&] {
                            model(Tensor::from(ids, {1, std::int64_t(ids.size())}));
                            return tap("backbone.layers.1.norm").output;
                          });
                        }).to_host<float>();
  const std::vector<float> values = states.values<float>();
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), values.begin()));
  apply_scan_patch(model, shuffled(24));
  expect_error(ErrorKind::usage, {"patched"}, [&] { extract_hidden_states(model, Tokenizer::bytes(), texts, 32); });
  seed(0);
}

TEST(SeedsScan, S000_before_and_after_perplexity_and_generation) {
  seed(2);
  Mamba model({.vocab = 256, .width = 24, .layers = 2, .state = 4});
  const TokenStream data(Corpus("t", words_text(2000)), Tokenizer::bytes(), {.batch = 2, .length = 32});
  const ScanReportOptions options{.prompts = {"the ", "and"}, .tokens = 4, .runs = 5, .batches = 0};
  const ScanReport same = report_scan_order(model, Tokenizer::bytes(), data, shuffled(24), ScanMode::channels, options);
  EXPECT_FALSE(is_scan_patched(model));
  EXPECT_TRUE(same.comparable());
  EXPECT_TRUE(same.restored);
  EXPECT_LT(same.largest_difference, 1e-5);
  EXPECT_GT(same.largest_difference, 0) << "sums have another order";
  EXPECT_NEAR(same.after.perplexity, same.before.perplexity, 1e-3);
  EXPECT_EQ(same.before.texts, same.after.texts);
  const Evaluation e = evaluate(model, data);
  EXPECT_DOUBLE_EQ(same.before.perplexity, std::exp(e.nats / double(e.tokens))) << "over all tokens, not a mean of batches";
  const std::vector<std::int64_t> ids = generate(model, Tokenizer::bytes().encode("the "), {.tokens = 4, .temperature = 0});
  EXPECT_EQ(same.before.texts[0], Tokenizer::bytes().decode(ids)) << "as with a cache";
  const std::string page = to_markdown(same, options, "m", "t");
  for (const char* words : {"| perplexity a token | ", "medians of 5 runs", "the same function", "## Text 2"})
    EXPECT_NE(page.find(words), page.npos) << words << page;

  ScanReport tokens;
  stderr_of([&] { tokens = report_scan_order(model, Tokenizer::bytes(), data, shuffled(32), ScanMode::tokens, options); });
  EXPECT_FALSE(tokens.comparable());
  EXPECT_TRUE(tokens.restored);
  EXPECT_GT(tokens.largest_difference, 1e-3);
  const std::string other = to_markdown(tokens, options, "m", "t");
  EXPECT_NE(other.find("| not comparable |"), other.npos) << other;
  const nlohmann::json json = to_json(tokens);
  EXPECT_FALSE(json["after"].contains("perplexity"));
  EXPECT_FALSE(json["after"].contains("bits_per_character"));
  EXPECT_TRUE(json["before"].contains("perplexity"));

  ScanReport hopeless = same;  // T1: a perplexity above the vocabulary
  hopeless.before.perplexity = 9.5e13;
  EXPECT_NE(to_markdown(hopeless, options, "m", "t").find("Warning: a perplexity above 256"), std::string::npos);
  hopeless.before.perplexity = 20;
  EXPECT_EQ(to_markdown(hopeless, options, "m", "t").find("Warning: a perplexity"), std::string::npos);
  seed(0);
}

// ---- the program ------------------------------------------------------------------------------------------------------------

class ScanOrderProgram : public ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    if (IsSkipped()) return;
    Mamba model({.vocab = 256, .width = 16, .layers = 1, .state = 4});
    stir(model);
    model.save(folder_ / "model");
    std::string text;
    for (const std::string& one : ten_texts()) text += one + "\n";
    folder_.write("text.txt", text + words_text(9000));
  }
};

TEST_F(ScanOrderProgram, S000_run_correlation_scan_one_command) {
  const Outcome all = shell("weft scan-order run --from model --data text.txt --tokens 2 --runs 2 --device cpu --out all");
  expect_words(all, 0,
               {"hidden states of the last mixer", "16 channels: correlation matrix (16, 16)", "improvement", "# Scan order",
                "the same bits", "saved: all"});
  for (const char* file : {"hidden_states.npy", "scan_order.npy", "scan_order_inv.npy", "scan_report.md", "scan_report.json"})
    EXPECT_TRUE(fs::exists(folder_ / "all" / file)) << file;
  const Order order = read_scan_order(folder_ / "all/scan_order.npy");
  EXPECT_EQ(inverse_of(order), read_scan_order(folder_ / "all/scan_order_inv.npy"));
  const nlohmann::json json = read_json(folder_ / "all/scan_report.json");
  EXPECT_EQ(json["path"]["items"], 16);
  EXPECT_TRUE(json["restored_bits"].get<bool>());

  // Step by step it is the same.
  expect_words(shell("weft scan-order extract --from model --data text.txt --device cpu --out h.npy"), 0, {"saved: h.npy"});
  EXPECT_EQ(read_text(folder_ / "h.npy"), read_text(folder_ / "all/hidden_states.npy"));
  expect_words(shell("weft scan-order compute --states h.npy --out o"), 0, {"saved: o/scan_order.npy, o/scan_order_inv.npy"});
  EXPECT_EQ(read_scan_order(folder_ / "o/scan_order.npy"), order);
  expect_words(shell("weft scan-order apply --from model --order o/scan_order.npy --device cpu --out patched"), 0,
               {"order of 16 channels in 1 mixers: ", "saved: patched"});
  expect_words(shell("weft scan-order remove --from patched --device cpu --out back"), 0, {"saved: back"});
  EXPECT_EQ(read_text(folder_ / "model/model.safetensors"), read_text(folder_ / "back/model.safetensors")) << "equal bits";
  EXPECT_NE(read_text(folder_ / "model/model.safetensors"), read_text(folder_ / "patched/model.safetensors"));
  const std::string eval = "weft eval --device cpu --data text.txt --from ";
  const auto perplexity = [](const std::string& text) { return text.substr(text.find("perplexity")); };
  const Outcome before = shell(eval + "model"), after = shell(eval + "patched");
  expect_words(before, 0, {"perplexity"});
  EXPECT_EQ(perplexity(before.text), perplexity(after.text));
  expect_words(
      shell("weft scan-order report --from model --order o/scan_order.npy --data text.txt --prompt the --tokens 2 --runs 1 "
            "--batches 1 --device cpu --out report"),
      0, {"| perplexity a token |", "medians of 1 runs"});
}

TEST_F(ScanOrderProgram, TokensHaveNoPerplexity) {
  expect_words(
      shell(
          "weft scan-order run --from model --data text.txt --mode tokens --items 40 --tokens 2 --runs 1 --device cpu --out t"),
      0, {"warning: in an order of tokens", "40 tokens: correlation matrix (40, 40)", "| not comparable |"});
  expect_words(shell("weft scan-order apply --from model --mode tokens --order t/scan_order.npy --device cpu --out p"), 0,
               {"order of 40 tokens"});
  const Outcome eval = shell("weft eval --device cpu --data text.txt --from p");
  expect_words(eval, 0, {"not causal", "this is no perplexity"});
  EXPECT_EQ(eval.text.find("perplexity 2"), eval.text.npos);
  expect_words(shell("weft generate --device cpu --from p --tokens 2"), 2, {"another order", "remove_scan_patch"});
}

TEST_F(ScanOrderProgram, Mistakes) {
  write_scan_order(folder_ / "short.npy", {1, 0});
  write_npy(folder_ / "twice.npy", HostTensor::from<std::int64_t>(DType::i64, {16}, Order(16, 3)));
  write_scan_order(folder_ / "good.npy", shuffled(16));
  folder_.write("cut.npy", read_text(folder_ / "good.npy").substr(0, 150));
  fs::create_directory(folder_ / "full");
  folder_.write("full/x", "x");
  const std::string apply = "weft scan-order apply --from model --device cpu --out new --order ";
  const struct {
    std::string command;
    int code;
    std::vector<std::string> words;
  } rows[] = {
      {"weft scan-order", 2, {"a subcommand is needed", "extract, compute, apply, remove, report, run"}},
      {"weft scan-order aply", 2, {"did you mean 'apply'?"}},
      {apply + "short.npy", 4, {"another length", "2 entries, the width is 16"}},
      {apply + "twice.npy", 4, {"twice.npy is no permutation of 0 to 15", "3 stands at 0 and at 1"}},
      {apply + "cut.npy", 4, {"cut.npy: truncated", "there are 22"}},
      {apply + "text.txt", 4, {"text.txt: not an .npy file"}},
      {apply + "none.npy", 4, {"none.npy"}},
      {apply + "good.npy --mode channel", 2, {"unknown word 'channel'", "did you mean 'channels'?"}},
      {"weft scan-order apply --from model --device cpu --order good.npy --out full", 4, {"full"}},
      {apply + "good.npy && weft scan-order apply --from new --device cpu --order good.npy --out twice",
       2,
       {"patched already"}},
      {"weft scan-order remove --from model --device cpu --out back", 2, {"the model is not patched"}},
      {"weft scan-order compute --out o", 2, {"either hidden states or costs"}},
      {"weft scan-order compute --states good.npy --out o", 4, {"good.npy: not hidden states", "i64 (16)"}},
      {"weft scan-order compute --costs good.npy --out o", 4, {"good.npy: not costs"}},
      {"weft scan-order extract --from model --device cpu --data text.txt --texts 100000 --out h.npy", 4, {"too few texts"}},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.command);
    expect_words(shell(row.command), row.code, row.words);
  }
}

}  // namespace
}  // namespace weft
