// choices.json: what was chosen by timing comes back as it was.
#include "tools/train/choices.h"

#include <gtest/gtest.h>

#include "autograd/run.h"
#include "jit/driver.h"
#include "tests/expect_error.h"
#include "tests/temp_folder.h"
#include "tools/weft.h"

namespace weft {
namespace {

TEST(Choices, ComeBack) {
  const TempFolder folder;
  const Choices some{"NVIDIA H200", 130002, {{"a product", {1, 2, 3, 0xfedcba9876543210, 5, 6, 7, 8}}, {"another", {}}}};
  write_choices(some, folder / "choices.json");
  const Choices read = read_choices(folder / "choices.json");
  EXPECT_EQ(read.device, some.device);
  EXPECT_EQ(read.cublas_lt, some.cublas_lt);
  EXPECT_EQ(read.gemms, some.gemms);
}

TEST(Choices, DamagedFilesAreRefused) {
  const TempFolder folder;
  const auto refused = [&](std::string_view text, const std::string& word) {
    const auto file = folder.write("choices.json", text);
    expect_error(ErrorKind::io, {word}, [&] { read_choices(file); });
  };
  refused("{", "choices.json");
  refused("[]", "not a file of choices");
  refused(R"({"device": "x", "cublas_lt": 1})", "products");
  refused(R"({"device": "x", "cublas_lt": 1, "products": {"p": 3}})", "not a file of choices");
  refused(R"({"device": "x", "cublas_lt": 1, "products": {"p": "12"}})", "no algorithm");
  refused(R"({"device": "x", "cublas_lt": 1, "products": {"p": ")" + std::string(127, '0') + "g\"}}", "no algorithm");
}

TEST(Choices, GoToOtherProcessesAsText) {
  const GemmChoices some = {{"a product, bf16", {1, 2, 3, 0xfedcba9876543210, 5, 6, 7, 8}}, {"another", {}}};
  EXPECT_EQ(gemm_choices_from(to_text(some)), some);
  EXPECT_EQ(gemm_choices_from(""), GemmChoices());
  const std::string digits(128, '0');
  for (const std::string& wrong : {std::string("x"), digits, digits + "x", digits.substr(1) + "g a", "\n" + digits + " a"})
    expect_error(ErrorKind::io, {"not a choice"}, [&] { gemm_choices_from(wrong); });
}

TEST(Choices, NeedAGpu) {
  if (device() == Device::cuda) GTEST_SKIP() << "there is one";
  const TempFolder folder;
  save_choices(folder / "choices.json");
  EXPECT_FALSE(std::filesystem::exists(folder / "choices.json"));
  load_choices(folder.write("choices.json", "not even JSON"));
}

// On a GPU: products are timed, kept and taken again.
TEST(Choices, AreTimedAndKept) {
  if (device() != Device::cuda) GTEST_SKIP() << "needs WEFT_DEVICE=cuda";
  const TempFolder folder;
  const auto product = [](std::int64_t m) {
    const Tensor a = Tensor::from(std::vector<float>(std::size_t(m * 72), 0.5f), {m, 72});
    return run([&] { return matmul(cast(a, DType::bf16), cast(transpose(a), DType::bf16)); }).to_host<float>();
  };
  const GemmChoices before = gemm_choices();
  tune_gemms(true);
  EXPECT_EQ(product(136)[5], 18);
  tune_gemms(false);
  GemmChoices after = gemm_choices();
  EXPECT_EQ(after.size(), before.size() + 1);
  save_choices(folder / "choices.json");
  EXPECT_EQ(read_choices(folder / "choices.json").gemms, after);
  // A product of another size takes a choice that is there.
  for (const auto& [name, algorithm] : before) after.erase(name);
  ASSERT_EQ(after.size(), 1u);
  std::string other = after.begin()->first;
  for (std::size_t i = other.find("136"); i != std::string::npos; i = other.find("136", i)) other.replace(i, 3, "144");
  use_gemm_choices({{other, after.begin()->second}});
  EXPECT_EQ(product(144)[5], 18);
  EXPECT_EQ(gemm_choices().at(other), after.begin()->second);
  EXPECT_EQ(gemm_choices().size(), before.size() + 2);
  load_choices(folder / "choices.json");
}

}  // namespace
}  // namespace weft
