#include "nn/safetensors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <csignal>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "jit/file.h"
#include "tests/expect_error.h"
#include "tests/temp_folder.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

template <class T>
HostTensor make(DType dtype, std::vector<std::int64_t> shape, std::vector<T> values) {
  return HostTensor::from<T>(dtype, std::move(shape), std::span<const T>(values));
}

void expect_equal(const TensorMap& a, const TensorMap& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) {
    ASSERT_TRUE(b.contains(name)) << name;
    EXPECT_EQ(int(tensor.dtype), int(b.at(name).dtype)) << name;
    EXPECT_EQ(tensor.shape, b.at(name).shape) << name;
    EXPECT_EQ(tensor.bytes, b.at(name).bytes) << name;
  }
}

// The bytes of a file with this header and so many bytes of data.
std::string with_header(std::string header, std::size_t data, std::uint64_t length = 0) {
  if (length == 0) length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(data, '\x01');
}

TensorMap read_bytes(const std::string& bytes) {
  TempFolder folder;
  return read_safetensors(folder.write("m.safetensors", bytes));
}

void refused(const std::string& bytes, std::vector<std::string> words) {
  SCOPED_TRACE(bytes.size() > 8 ? bytes.substr(8, 200) : bytes);
  words.push_back("m.safetensors");
  expect_error(ErrorKind::io, words, [&] { read_bytes(bytes); });
}

std::string entry(std::string dtype, std::string shape, std::string offsets, std::string name = "w") {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

TensorMap sample() {
  TensorMap map;
  map["f32"] = make<float>(DType::f32, {2, 3}, {1, -2, 3.5f, 0, -0.f, 1e-40f});
  map["f64"] = make<double>(DType::f64, {2}, {1.0 / 3, -1e300});
  map["bf16"] = make<float>(DType::bf16, {3}, {1, -2.5f, 3e38f});
  map["i32"] = make<std::int64_t>(DType::i32, {2, 1}, {-2147483648LL, 2147483647});
  map["i64"] = make<std::int64_t>(DType::i64, {1}, {std::numeric_limits<std::int64_t>::min()});
  map["bool"] = make<std::int64_t>(DType::boolean, {5}, {1, 0, 0, 1, 7});
  map["scalar"] = make<float>(DType::f32, {}, {42});
  map["empty"] = make<float>(DType::f32, {3, 0, 2}, {});
  map["empty.bf16"] = make<float>(DType::bf16, {0}, {});
  map["ключ.重み.\"\\\n"] = make<float>(DType::f32, {1}, {7});
  map[""] = make<float>(DType::f32, {1}, {8});
  return map;
}

TEST(Safetensors, RoundTripOfEveryDtype) {
  TempFolder folder;
  std::map<std::string, std::string> metadata{{"format", "pt"}, {"step", "12"}, {"é", "\n"}}, back;
  write_safetensors(folder / "m.safetensors", sample(), metadata);
  expect_equal(sample(), read_safetensors(folder / "m.safetensors", &back));
  EXPECT_EQ(metadata, back);
  write_safetensors(folder / "m.safetensors", {});
  EXPECT_TRUE(read_safetensors(folder / "m.safetensors", &back).empty());
  EXPECT_TRUE(back.empty());
}

TEST(Safetensors, LayoutOfTheFile) {
  TempFolder folder;
  TensorMap map{{"b", make<float>(DType::f32, {1}, {1})},
                {"a", make<float>(DType::bf16, {1}, {1})},
                {"c", make<double>(DType::f64, {1}, {1})}};
  write_safetensors(folder / "m.safetensors", map);
  std::string bytes = read_text(folder / "m.safetensors");
  std::uint64_t length;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ(length % 8, 0u);
  std::string header = bytes.substr(8, length);
  EXPECT_EQ(header.substr(0, header.find_last_not_of(' ') + 1),
            R"({"a":{"data_offsets":[12,14],"dtype":"BF16","shape":[1]},"b":{"data_offsets":[8,12],"dtype":"F32","shape":[1]},)"
            R"("c":{"data_offsets":[0,8],"dtype":"F64","shape":[1]}})");
  EXPECT_EQ(bytes.size(), 8 + length + 14);
  std::string first = bytes;
  write_safetensors(folder / "m.safetensors", map);
  EXPECT_EQ(first, read_text(folder / "m.safetensors"));
}

TEST(Safetensors, HalvesAreWidenedExactly) {
  std::string data;
  for (int i = 0; i < 65536; ++i) data += std::string{char(i & 255), char(i >> 8)};
  std::string header = "{" + entry("F16", "[256,256]", "[0,131072]") + "}";
  HostTensor tensor = read_bytes(with_header(header, 0) + data)["w"];
  ASSERT_EQ(int(tensor.dtype), int(DType::f32));
  auto values = tensor.values<float>();
  for (int i = 0; i < 65536; ++i) {
    int exponent = (i >> 10) & 31, fraction = i & 1023;
    double expected = exponent == 0    ? std::ldexp(fraction, -24)
                      : exponent == 31 ? (fraction ? std::nan("") : INFINITY)
                                       : std::ldexp(1024 + fraction, exponent - 25);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(values[std::size_t(i)])) << i;
    } else {
      EXPECT_EQ(double(values[std::size_t(i)]), i & 0x8000 ? -expected : expected) << i;
    }
    EXPECT_EQ(std::signbit(values[std::size_t(i)]), i >= 0x8000) << i;
  }
}

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  EXPECT_TRUE(read_bytes(with_header("{}", 0)).empty());
  EXPECT_TRUE(read_bytes(with_header("{\"__metadata__\":{}}     ", 0)).empty());
  EXPECT_EQ(read_bytes(with_header("{" + entry("F32", "[]", "[0,4]") + "}   ", 4)).size(), 1u);
  // Any order in the header, no alignment, empty tensors between others.
  auto map = read_bytes(with_header("{" + entry("F32", "[1]", "[1,5]", "z") + "," + entry("BOOL", "[1]", "[0,1]", "b") + "," +
                                        entry("F32", "[0]", "[1,1]", "e") + "," + entry("F32", "[9,0]", "[5,5]", "f") + "}",
                                    5));
  EXPECT_EQ(map.size(), 4u);
  EXPECT_EQ(map["z"].bytes.size(), 4u);
  EXPECT_EQ(map["e"].numel(), 0);
  // A BOOL is 0 or 1 in memory whatever the file says.
  EXPECT_EQ(read_bytes(with_header("{" + entry("BOOL", "[2]", "[0,2]") + "}", 0) + "\xff" + std::string(1, '\0'))["w"]
                .values<std::int64_t>(),
            (std::vector<std::int64_t>{1, 0}));
}

TEST(Safetensors, RefusesWhatBreaksARule) {
  refused("", {"too short"});
  refused("1234567", {"too short"});
  refused(with_header("{}", 0, 1u << 20), {"truncated inside the header"});
  refused(with_header("", 0), {"does not begin with {"});
  refused(with_header(" {}", 0), {"does not begin with {"});
  refused(with_header("[]", 0), {"does not begin with {"});
  refused(with_header("{\"a\":}", 0), {"not valid JSON", "line 1, column 6"});
  refused(with_header("{}}", 0), {"not valid JSON"});
  refused(with_header(std::string("{}\0\0", 4), 0), {"not valid JSON"});
  refused(with_header("{\"\xff\":1}", 0), {"not valid JSON"});
  refused(with_header("{\"w\":" + std::string(100, '['), 0), {"levels"});
  refused(with_header("{\"w\":1}", 0), {"tensor w", "shape"});
  refused(with_header("{\"w\":{}}", 0), {"tensor w", "shape"});
  refused(with_header("{\"w\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4), {"tensor w", "dtype"});
  refused(with_header("{\"w\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4), {"tensor w", "shape"});
  refused(with_header("{\"w\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4), {"tensor w", "data_offsets"});
  refused(with_header("{\"w\":{\"dtype\":3,\"shape\":[1],\"data_offsets\":[0,4]}}", 4), {"tensor w", "dtype"});
  refused(with_header("{" + entry("F31", "[1]", "[0,4]") + "}", 4), {"unknown dtype", "F31"});
  refused(with_header("{" + entry("f32", "[1]", "[0,4]") + "}", 4), {"unknown dtype"});
  refused(with_header("{" + entry("F32", "[-1]", "[0,4]") + "}", 4), {"unsigned"});
  refused(with_header("{" + entry("F32", "[1.0]", "[0,4]") + "}", 4), {"unsigned"});
  refused(with_header("{" + entry("F32", "[\"1\"]", "[0,4]") + "}", 4), {"unsigned"});
  refused(with_header("{" + entry("F32", "[Infinity]", "[0,4]") + "}", 4), {"unsigned"});
  refused(with_header("{" + entry("F32", "1", "[0,4]") + "}", 4), {"shape"});
  refused(with_header("{" + entry("F32", "[1]", "[0]") + "}", 4), {"pair"});
  refused(with_header("{" + entry("F32", "[1]", "[0,2,4]") + "}", 4), {"pair"});
  refused(with_header("{" + entry("F32", "[1]", "[4,0]") + "}", 4), {"out of range"});
  refused(with_header("{" + entry("F32", "[1]", "[0,4]") + "}", 3), {"out of range", "truncated"});
  refused(with_header("{" + entry("F32", "[2]", "[0,4]") + "}", 4), {"size is not shape x dtype", "4 bytes for F32 (2)"});
  refused(with_header("{" + entry("F32", "[0]", "[0,4]") + "}", 4), {"size is not shape x dtype"});
  refused(with_header("{" + entry("F32", "[1]", "[4,8]") + "}", 8), {"gap"});
  refused(with_header("{" + entry("F32", "[1]", "[0,4]") + "}", 8), {"after the last tensor"});
  refused(with_header("{}", 1), {"after the last tensor"});
  refused(with_header("{" + entry("F32", "[1]", "[0,4]", "a") + "," + entry("F32", "[1]", "[8,12]", "b") + "}", 12),
          {"gap", "tensor b"});
  refused(with_header("{" + entry("F32", "[2]", "[0,8]", "a") + "," + entry("F32", "[2]", "[4,12]", "b") + "}", 12),
          {"overlap", "tensor b"});
  refused(with_header("{" + entry("F32", "[1]", "[0,4]", "a") + "," + entry("F32", "[1]", "[0,4]", "b") + "}", 4), {"overlap"});
  refused(with_header("{" + entry("F32", "[2]", "[0,8]", "a") + "," + entry("F32", "[0]", "[4,4]", "b") + "}", 8), {"overlap"});
  refused(with_header("{" + entry("F32", "[1]", "[0,4]", "a") + "," + entry("F32", "[1]", "[4,8]", "a") + "}", 8),
          {"\"a\" stands twice"});
  refused(with_header("{\"__metadata__\":{\"a\":1}}", 0), {"__metadata__", "not a string"});
  refused(with_header("{\"__metadata__\":[]}", 0), {"__metadata__"});
}

TEST(Safetensors, NumbersBeyond64Bits) {
  refused(with_header("{" + entry("F32", "[18446744073709551616]", "[0,4]") + "}", 4), {"unsigned"});
  refused(with_header("{" + entry("F32", "[18446744073709551615]", "[0,4]") + "}", 4), {"too large"});
  refused(with_header("{" + entry("F32", "[9223372036854775807]", "[0,4]") + "}", 4), {"too large"});
  refused(with_header("{" + entry("F32", "[4294967296,4294967297]", "[0,4]") + "}", 4), {"too large"});
  refused(with_header("{" + entry("F32", "[4611686018427387905]", "[0,4]") + "}", 4), {"too large"});  // 4x wraps to 4
  refused(with_header("{" + entry("F32", "[1]", "[18446744073709551612,18446744073709551615]") + "}", 4), {"out of range"});
  refused(with_header("{" + entry("F32", "[1]", "[0,18446744073709551616]") + "}", 4), {"unsigned"});
  refused(with_header("{}", 0, std::numeric_limits<std::uint64_t>::max()), {"header too large"});
  refused(with_header("{}", 0, std::numeric_limits<std::uint64_t>::max() - 7), {"header too large"});
}

TEST(Safetensors, LargeHeaderIsRefusedBeforeItIsRead) {
  TempFolder folder;
  auto file = folder.write("m.safetensors", with_header("{", 0, 100'000'001));
  fs::resize_file(file, 200'000'000);  // sparse
  expect_error(ErrorKind::io, {"header too large", "100000001"}, [&] { read_safetensors(file); });
}

TEST(Safetensors, UnsupportedDtypesAreRefusedUnlessLeftOut) {
  for (auto [dtype, bytes] : {std::pair{"U8", "1"},
                              {"I8", "1"},
                              {"I16", "2"},
                              {"U16", "2"},
                              {"U32", "4"},
                              {"U64", "8"},
                              {"F8_E4M3", "1"},
                              {"F8_E5M2", "1"}}) {
    std::string text = with_header("{" + entry(dtype, "[1]", std::string("[0,") + bytes + "]") + "}", std::stoul(bytes));
    refused(text, {"dtype not supported", "tensor w is " + std::string(dtype)});
    TempFolder folder;
    EXPECT_TRUE(read_safetensors(folder.write("m.safetensors", text), nullptr, [](auto name) { return name != "w"; }).empty());
  }
  refused(with_header("{" + entry("F4", "[3]", "[0,1]") + "}", 1), {"whole bytes"});
}

TEST(Safetensors, TruncationAtEveryLength) {
  TempFolder folder;
  write_safetensors(folder / "m.safetensors", sample(), {{"k", "v"}});
  std::string bytes = read_text(folder / "m.safetensors");
  for (std::size_t n = 0; n < bytes.size(); ++n)
    expect_error(ErrorKind::io, {"t.safetensors"},
                 [&] { read_safetensors(folder.write("t.safetensors", bytes.substr(0, n))); });
  expect_equal(sample(), read_safetensors(folder.write("t.safetensors", bytes)));
}

TEST(Safetensors, MutatedBytesNeverCrash) {
  TempFolder folder;
  write_safetensors(folder / "m.safetensors", sample(), {{"k", "v"}});
  const std::string bytes = read_text(folder / "m.safetensors");
  std::uint64_t header;
  std::memcpy(&header, bytes.data(), 8);
  std::mt19937 random(7);
  int refusals = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string mutated = bytes;
    for (unsigned edits = 1 + random() % 4; edits; --edits) mutated[random() % (8 + header)] = char(random());
    try {
      read_safetensors(folder.write("t.safetensors", mutated));
    } catch (const Error& error) {
      ASSERT_EQ(int(error.kind()), int(ErrorKind::io));
      ++refusals;
    }
  }
  EXPECT_GT(refusals, 1000);
}

TEST(Safetensors, Shards) {
  TempFolder folder;
  TensorMap a{{"x", make<float>(DType::f32, {1}, {1})}, {"y", make<float>(DType::f32, {1}, {2})}};
  TensorMap b{{"z", make<float>(DType::f32, {1}, {3})}};
  auto index = [&](std::string map) {
    folder.write("model.safetensors.index.json", "{\"metadata\":{},\"weight_map\":{" + map + "}}");
  };
  auto error = [&](std::vector<std::string> words) {
    expect_error(ErrorKind::io, words, [&] { read_safetensors_folder(folder.path()); });
  };
  error({"no model in", "neither"});
  expect_error(ErrorKind::io, {"no such folder"}, [&] { read_safetensors_folder(folder / "absent"); });
  index(R"("x":"a.safetensors","y":"a.safetensors","z":"b.safetensors")");
  write_safetensors(folder / "a.safetensors", a);
  error({"missing shard", "b.safetensors", "such as z"});
  write_safetensors(folder / "b.safetensors", b);
  TensorMap all = a;
  all.merge(TensorMap(b));
  expect_equal(all, read_safetensors_folder(folder.path()));
  expect_equal(b, read_safetensors_folder(folder.path(), [](auto name) { return name == "z"; }));
  index(R"("x":"a.safetensors","y":"a.safetensors","z":"a.safetensors")");
  EXPECT_FALSE(read_safetensors_folder(folder.path()).contains("z"));  // listed where it is not; see also test_folders.cpp
  index(R"("x":"a.safetensors","z":"b.safetensors")");
  expect_equal(all, read_safetensors_folder(folder.path()));  // a shard has more than is listed
  for (std::string name : {"../x", "/etc/passwd", "a/b", "..", ".", "", "a\\\\b", "a\\u0000b"}) {
    index("\"x\":\"" + name + "\"");
    error({"index.json", "without folders"});
  }
  index("\"x\":3");
  error({"not a string"});
  index(R"("x":"a.safetensors","x":"b.safetensors")");
  error({"stands twice"});
  folder.write("model.safetensors.index.json", "{}");
  error({"weight_map"});
  folder.write("model.safetensors.index.json", "{");
  error({"not valid JSON"});
  write_safetensors(folder / "model.safetensors", b);  // one file is preferred
  expect_equal(b, read_safetensors_folder(folder.path()));
}

std::size_t count_files(const fs::path& folder) {
  return std::size_t(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

TEST(Safetensors, DescriptionsAreWhatIsReadWithoutBytes) {
  const TempFolder folder;
  const TensorMap tensors = {{"a", HostTensor::from<float>(DType::bf16, {2, 3}, std::vector<float>(6, 1))},
                             {"b", HostTensor::from<std::int64_t>(DType::i64, {}, std::vector<std::int64_t>{7})},
                             {"none", {DType::f32, {0, 4}, {}}}};
  for (const std::size_t shard_bytes : {kShardBytes, std::size_t(13)}) {
    write_safetensors_folder(folder.path(), tensors, {}, shard_bytes);
    const TensorMap described = describe_safetensors_folder(folder.path());
    ASSERT_EQ(described.size(), tensors.size());
    for (const auto& [name, tensor] : described) {
      EXPECT_EQ(tensor.dtype, tensors.at(name).dtype);
      EXPECT_EQ(tensor.shape, tensors.at(name).shape);
      EXPECT_TRUE(tensor.bytes.empty());
      EXPECT_EQ(tensor.described(), name != "none");
      EXPECT_FALSE(tensors.at(name).described());
    }
  }
}

TEST(Safetensors, FailedWriteLeavesThePreviousFile) {
  TempFolder folder;
  auto file = folder / "m.safetensors";
  TensorMap large{{"w", make<float>(DType::f32, {100'000}, std::vector<float>(100'000))}};
  write_safetensors(file, sample());
  std::string before = read_text(file);

  // As on a full disk; the signal that comes with it must not end the process.
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  for (rlim_t limit : {rlim_t(0), rlim_t(10), rlim_t(200'000)}) {
    rlimit small{limit, old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    std::string message;
    try {
      write_safetensors(file, large);
    } catch (const Error& error) {
      message = error.what();
    }
    setrlimit(RLIMIT_FSIZE, &old);
    EXPECT_NE(message.find("cannot write " + file.string() + ": File too large"), std::string::npos) << message;
    EXPECT_EQ(before, read_text(file));
    EXPECT_EQ(count_files(folder.path()), 1u);
  }
  sigset_t pending;
  sigpending(&pending);
  EXPECT_FALSE(sigismember(&pending, SIGXFSZ));

  HostTensor broken{DType::f32, {3}, {}};
  expect_error(ErrorKind::usage, {"bytes of its shape", "b: f32"}, [&] { write_safetensors(file, {{"b", broken}}); });
  HostTensor negative{DType::f32, {-1, -1}, std::vector<std::byte>(4)};
  expect_error(ErrorKind::usage, {"not a shape", "(-1, -1)"}, [&] { write_safetensors(file, {{"b", negative}}); });
  HostTensor vast{DType::f32, {1LL << 40, 1LL << 40}, {}};
  expect_error(ErrorKind::usage, {"not a shape"}, [&] { write_safetensors(file, {{"b", vast}}); });
  HostTensor one = make<float>(DType::f32, {1}, {1});
  expect_error(ErrorKind::usage, {"__metadata__"}, [&] { write_safetensors(file, {{"__metadata__", one}}); });
  expect_error(ErrorKind::usage, {"UTF-8"}, [&] { write_safetensors(file, {{"\xff", one}}); });
  EXPECT_EQ(before, read_text(file));
  EXPECT_EQ(count_files(folder.path()), 1u);
}

TEST(Safetensors, PlacesThatCannotBeWritten) {
  TempFolder folder;
  TensorMap map{{"w", make<float>(DType::f32, {1}, {1})}};
  auto error = [&](const fs::path& file, std::vector<std::string> words) {
    words.push_back(file.string());
    expect_error(ErrorKind::io, words, [&] { write_safetensors(file, map); });
  };
  error(folder / "absent/m.safetensors", {"cannot write", "No such file or directory"});
  error(folder.path(), {"not a regular file"});
  error("/dev/full", {"not a regular file"});
  error("/dev/null", {"not a regular file"});
  error(folder.write("plain", "") / "m", {"cannot write"});
  if (geteuid() != 0) {
    fs::permissions(folder.path(), fs::perms::owner_read | fs::perms::owner_exec);
    error(folder / "m.safetensors", {"Permission denied"});
    fs::permissions(folder.path(), fs::perms::owner_all);
  }
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST(Files, ReplaceKeepsTheModeAndOfLinksOnlyThoseThatAreAskedFor) {
  TempFolder folder, other;
  std::string text = "abc";
  auto bytes = std::as_bytes(std::span(text));
  auto target = other.write("target", "old");
  fs::permissions(target, fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink(target, folder / "link");
  write_file(link_target(folder / "link"), bytes);
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_EQ(read_text(target), "abc");
  EXPECT_EQ(fs::status(target).permissions(), fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink(other / "fresh", folder / "dangling");
  write_file(link_target(folder / "dangling"), bytes);
  EXPECT_EQ(read_text(other / "fresh"), "abc");
  other.write("target", "theirs");
  write_file(folder / "link", bytes);
  EXPECT_FALSE(fs::is_symlink(folder / "link"));
  EXPECT_EQ(read_text(target), "theirs");
  EXPECT_EQ(read_text(folder / "link"), "abc");
  fs::create_symlink(folder / "link", folder / "again");
  EXPECT_EQ(link_target(folder / "again"), folder / "link");
  fs::remove(folder / "again");
  EXPECT_EQ(count_files(folder.path()), 2u);
  fs::path here = fs::current_path();
  fs::current_path(folder.path());
  write_file("relative", bytes);
  EXPECT_EQ(read_text("relative"), "abc");
  fs::current_path(here);
}

TEST(Files, ReadWhole) {
  TempFolder folder;
  EXPECT_EQ(read_text(folder.write("empty", "")), "");
  std::string bytes(300'000, 'x');
  bytes[5] = '\0';
  EXPECT_EQ(read_text(folder.write("f", bytes)), bytes);
  EXPECT_EQ(read_text(folder / "f").size(), bytes.size());
  EXPECT_EQ(read_text(folder / "f", bytes.size()), bytes);
  expect_error(ErrorKind::io, {"too large"}, [&] { read_text(folder / "f", bytes.size() - 1); });
  EXPECT_FALSE(read_text("/proc/self/status").empty());  // its size shows as 0
  expect_error(ErrorKind::io, {"too large"}, [&] { read_text("/dev/zero", 100'000); });
  expect_error(ErrorKind::io, {"Is a directory"}, [&] { read_text(folder.path()); });
}

TEST(HostTensors, Conversions) {
  EXPECT_EQ(make<double>(DType::bf16, {2}, {1.00390625, -3}).values<double>(), (std::vector<double>{1, -3}));  // ties to even
  EXPECT_EQ(make<std::int64_t>(DType::f32, {2}, {3, -4}).values<std::int64_t>(), (std::vector<std::int64_t>{3, -4}));
  EXPECT_EQ(make<float>(DType::boolean, {3}, {0, 0.5f, -1}).values<float>(), (std::vector<float>{0, 1, 1}));
  const HostTensor any{DType::boolean, {3}, {std::byte(0), std::byte(2), std::byte(255)}};
  EXPECT_EQ(any.values<float>(), (std::vector<float>{0, 1, 1}));
  EXPECT_EQ(any.values<std::int64_t>(), (std::vector<std::int64_t>{0, 1, 1}));
  TempFolder folder;
  write_safetensors(folder / "any.safetensors", {{"any", any}});
  EXPECT_EQ(read_safetensors(folder / "any.safetensors")["any"].bytes, (std::vector{std::byte(0), std::byte(1), std::byte(1)}));
  EXPECT_EQ(make<double>(DType::i64, {1}, {-9007199254740993.0}).values<std::int64_t>()[0], -9007199254740992);
  expect_error(ErrorKind::usage, {"not an integer", "0.5"}, [] { make<float>(DType::i32, {1}, {0.5f}); });
  expect_error(ErrorKind::usage, {"not an integer"}, [] { make<double>(DType::i64, {1}, {9223372036854775808.0}); });
  expect_error(ErrorKind::usage, {"not an integer", "nan"}, [] { make<float>(DType::f32, {1}, {NAN}).values<std::int64_t>(); });
  expect_error(ErrorKind::usage, {"out of range"}, [] { make<std::int64_t>(DType::i32, {1}, {2147483648}); });
  expect_error(ErrorKind::usage, {"values of its shape"}, [] { make<float>(DType::f32, {2}, {1}); });
}

TEST(HostTensors, GoldenFilesAreRead) {
  fs::path golden = fs::path(WEFT_SOURCE_DIR) / "tests/golden/mamba";
  if (!fs::exists(golden)) GTEST_SKIP() << golden << " is not there";
  auto map = read_safetensors_folder(golden);
  EXPECT_FALSE(map.empty());
  TempFolder folder;
  write_safetensors(folder / "copy.safetensors", map);
  expect_equal(map, read_safetensors(folder / "copy.safetensors"));
}

}  // namespace
}  // namespace weft
