#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "jit/json.h"
#include "tests/expect_error.h"
#include "tests/temp_folder.h"

namespace weft {
namespace {

using nlohmann::json;

void refused(const std::string& text, const std::vector<std::string>& words) {
  SCOPED_TRACE(text.substr(0, 60));
  expect_error(ErrorKind::io, words, [&] { parse_json(text, "config.json"); });
}

TEST(Json, AgreesWithTheLibraryOnOrdinaryText) {
  for (const char* text :
       {"null", "true", "-0", "18446744073709551615", "-9223372036854775808", "1e-3", "\"\"", "[]", "{}", " [1, 2.5, \"a\"] ",
        R"({"a": {"b": [1, [2, {"c": null}], []]}, "d": "\u00e9\n\\\"", "e": {}, "": 1})", "[[[]],[[1]],{\"x\":[{}]}]"})
    EXPECT_EQ(parse_json(text, "t"), json::parse(text)) << text;
}

TEST(Json, NestedContainersKeepEverything) {
  std::string text = "[";
  for (int i = 0; i < 2000; ++i) text += (i ? ",[" : "[") + std::to_string(i) + ",{\"k\":[" + std::to_string(-i) + "]}]";
  text += "]";
  EXPECT_EQ(parse_json(text, "t"), json::parse(text));
}

TEST(Json, BareInfinityAndNan) {
  auto value =
      parse_json(R"({"time_step_limit": [0.0, Infinity], "a": [-Infinity, NaN, 7, Infinity], "s": "Infinity, \"NaN"})", "t");
  EXPECT_EQ(value["time_step_limit"][0].get<double>(), 0.0);
  EXPECT_EQ(value["time_step_limit"][1].get<double>(), INFINITY);
  EXPECT_EQ(value["a"][0].get<double>(), -INFINITY);
  EXPECT_TRUE(std::isnan(value["a"][1].get<double>()));
  EXPECT_EQ(value["a"][2].get<int>(), 7);
  EXPECT_EQ(value["a"][3].get<double>(), INFINITY);
  EXPECT_EQ(value["s"].get<std::string>(), "Infinity, \"NaN");
  EXPECT_EQ(parse_json("Infinity", "t").get<double>(), INFINITY);
  for (const char* text : {"Inf", "infinity", "+Infinity", "--Infinity", "Infinity1", "nan", "[1 NaN]", "{NaN: 1}", "-NaN"})
    refused(text, {"config.json: not valid JSON", "line 1"});
}

TEST(Json, DuplicateKeys) {
  refused("{\"a\": 1,\n \"b\": {\"a\": 1},\n \"a\": 2}", {"config.json", "line 3, column 4", "the key \"a\" stands twice"});
  refused(R"({"x": {"k": 1, "k": 1}})", {"\"k\""});
  refused(R"({"a": 1, "\u0061": 1})", {"\"a\""});
  EXPECT_EQ(parse_json(R"([{"a": 1}, {"a": 1}])", "t").size(), 2u);
}

TEST(Json, LineAndColumn) {
  refused("", {"line 1, column 1"});
  refused("{\n  \"a\": 1,\n  \"b\" 2\n}", {"line 3, column 8"});
  refused("[1, 2", {"line 1, column 5"});
  refused("[1, 2]]", {"line 1, column 7"});
  refused("[1,\n\n 1e999]", {"line 3", "1e999"});
  refused("{\"a\": \"\xff\"}", {"line 1, column 8"});
  refused("[1] // comment", {"line 1"});
  refused("{'a': 1}", {"line 1, column 2"});
  refused("[1,]", {"line 1, column 4"});
  refused("\"a\nb\"", {"not valid JSON"});
  refused(std::string("[1\0]", 4), {"line 1, column 3", "zero byte"});
}

TEST(Json, DepthIsLimited) {
  auto nested = [](std::size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  EXPECT_NO_THROW(parse_json(nested(kMaxJsonDepth), "t"));
  refused(nested(kMaxJsonDepth + 1), {"more than 64 levels", "column 65"});
  refused(std::string(1'000'000, '['), {"more than 64 levels"});
  std::string objects;
  for (int i = 0; i < 1000; ++i) objects += "{\"a\":";
  refused(objects, {"more than 64 levels"});
}

TEST(Json, SizeIsLimited) {
  std::string large(kMaxJsonBytes + 1, ' ');
  expect_error(ErrorKind::io, {"too large"}, [&] { parse_json(large, "config.json"); });
  TempFolder folder;
  std::filesystem::resize_file(folder.write("sparse.json", "1"), 1'000'000'000'000);
  expect_error(ErrorKind::io, {"sparse.json", "too large"}, [&] { read_json(folder / "sparse.json"); });
  expect_error(ErrorKind::io, {"/dev/zero", "too large"}, [] { read_json("/dev/zero"); });
}

TEST(Json, LongTokensAreCutInMessages) {
  try {
    parse_json("\"" + std::string(1'000'000, 'x'), "t");
    FAIL();
  } catch (const Error& error) {
    EXPECT_LT(std::string(error.what()).size(), 1000u);
  }
}

TEST(Json, Files) {
  TempFolder folder;
  EXPECT_EQ(read_json(folder.write("a.json", "{\"a\": 1}"))["a"], 1);
  expect_error(ErrorKind::io, {"missing.json", "No such file"}, [&] { read_json(folder / "missing.json"); });
  expect_error(ErrorKind::io, {"Is a directory"}, [&] { read_json(folder.path()); });
}

TEST(Json, IntegersAreNotConverted) {
  const json object =
      parse_json(R"({"a": -7, "b": 18446744073709551615, "c": 9223372036854775807, "d": 1.5, "e": 1e300, "f": NaN, "g": "7",
                     "h": true, "i": null, "j": 3.0, "k": -9223372036854775808})",
                 "t");
  EXPECT_EQ(integer_at<std::int64_t>(object, "a", "t"), -7);
  EXPECT_EQ(integer_at<std::uint64_t>(object, "b", "t"), UINT64_MAX);
  EXPECT_EQ(integer_at<std::int64_t>(object, "c", "t"), INT64_MAX);
  EXPECT_EQ(integer_at<std::uint64_t>(object, "c", "t"), std::uint64_t(INT64_MAX));
  EXPECT_EQ(integer_at<std::int64_t>(object, "k", "t"), INT64_MIN);
  for (const char* key : {"b", "d", "e", "f", "g", "h", "i", "j"})
    expect_error(ErrorKind::io, {"state.json", key, text_of(object[key])},
                 [&] { integer_at<std::int64_t>(object, key, "state.json"); });
  for (const char* key : {"a", "d", "e", "k"})
    expect_error(ErrorKind::io, {"state.json", key}, [&] { integer_at<std::uint64_t>(object, key, "state.json"); });
  EXPECT_EQ(text_of(object["f"]), "NaN");
  EXPECT_EQ(text_of(parse_json("[-Infinity]", "t")[0]), "-Infinity");
  EXPECT_THROW(integer_at<std::int64_t>(object, "missing", "t"), json::out_of_range);
}

TEST(Json, MutatedTextNeverCrashes) {
  const std::string text = R"({"a": [1, -2.5e3, Infinity, NaN], "b": {"c": "d\u00e9\\", "e": null, "f": [true, false, {}]}})";
  const std::string alphabet =
      "{}[]\",:\\ \n\x01\xff\xc3"
      "0123456789-+.eENaInfinitytruefalsn";
  std::mt19937 random(1);
  int accepted = 0;
  for (int i = 0; i < 5000; ++i) {
    std::string mutated = text;
    for (unsigned edits = 1 + random() % 3; edits; --edits) {
      std::size_t at = random() % mutated.size();
      char c = alphabet[random() % alphabet.size()];
      if (random() % 3 == 0)
        mutated.insert(at, 1, c);
      else if (random() % 2)
        mutated.erase(at, 1);
      else
        mutated[at] = c;
    }
    try {
      parse_json(mutated, "t");
      ++accepted;
    } catch (const Error& error) {
      ASSERT_EQ(int(error.kind()), int(ErrorKind::io));
    }
  }
  EXPECT_GT(accepted, 10);
}

}  // namespace
}  // namespace weft
