#include "tools/llama/gguf.h"

#include <doctest/doctest.h>

#include <fstream>
#include <limits>
#include <optional>

#include "tools/llama/dequantize.h"
#include "tools/llama/test_gguf.h"

namespace quire::tools {
namespace {

using test::Bytes;
using test::TemporaryFile;
using test::TestFile;

// The message with which a file is refused; empty if it is accepted.
std::string refusal(const std::string& content) {
  const TemporaryFile file(content);
  try {
    const GgufFile gguf(file.path());
    return {};
  } catch (const std::invalid_argument& error) {
    std::string message = error.what();
    CHECK_MESSAGE(
        message.find(file.path()) != std::string::npos,
        "names the file: ",
        message);
    return message;
  }
}

void check_refusal(const std::string& content, const std::string& part) {
  CAPTURE(part);
  const std::string message = refusal(content);
  CAPTURE(message);
  CHECK(message.find(part) != std::string::npos);
}

TestFile small_file() {
  TestFile file;
  file.set("a.number", test::u32(3));
  file.set("a.text", test::text("hello"));
  file.tensors.push_back({"first", 0, {3, 2}, std::string(24, '\1')});
  file.tensors.push_back({"second", 8, {64}, std::string(68, '\2')});
  return file;
}

Bytes header(std::uint64_t num_tensors, std::uint64_t num_keys) {
  Bytes bytes;
  bytes.raw("GGUF").put(std::uint32_t{3}).put(num_tensors).put(num_keys);
  return bytes;
}

}  // namespace

TEST_CASE("gguf: values and tensors are read as written") {
  TestFile content = small_file();
  content.set("flag", test::boolean(true));
  content.set("real", test::f32(0.5f));
  content.set("words", test::texts({"x", "", "yz"}));
  content.set("numbers", test::i32s({-1, 7}));
  for (const std::uint64_t alignment : {32u, 64u, 4096u}) {
    CAPTURE(alignment);
    content.alignment = alignment;
    content.set(
        "general.alignment", test::u32(static_cast<std::uint32_t>(alignment)));
    const TemporaryFile path(content.bytes());
    const GgufFile file(path.path());
    CHECK(file.integer("a.number", 0, 9) == 3);
    CHECK(file.string("a.text") == "hello");
    CHECK(file.find_bool("flag") == true);
    CHECK(file.real("real") == 0.5);
    CHECK(
        file.strings("words") == std::vector<std::string_view>{"x", "", "yz"});
    CHECK(file.int32s("numbers") == std::vector<std::int32_t>{-1, 7});
    CHECK(!file.find_integer("none", 0, 9));
    const GgufTensor& first = file.tensor("first", {2, 3});
    CHECK(first.data.size() == 24);
    CHECK(first.data[23] == std::byte{1});
    CHECK(file.tensor("second", {64}).data[0] == std::byte{2});
  }
}

TEST_CASE("gguf: whole numbers of every width") {
  const auto read = [](std::uint32_t type, auto number, std::int64_t min) {
    TestFile content = small_file();
    content.set("n", {type, Bytes().put(number).text()});
    const TemporaryFile path(content.bytes());
    return GgufFile(path.path()).integer("n", min, 255);
  };
  CHECK(read(0, std::uint8_t{255}, 0) == 255);
  CHECK(read(1, std::int8_t{-128}, -128) == -128);
  CHECK(read(2, std::uint16_t{200}, 0) == 200);
  CHECK(read(3, std::int16_t{-2}, -2) == -2);
  CHECK(read(4, std::uint32_t{7}, 0) == 7);
  CHECK(read(5, std::int32_t{-7}, -9) == -7);
  CHECK(read(10, std::uint64_t{255}, 0) == 255);
  CHECK(read(11, std::int64_t{-255}, -255) == -255);
  CHECK_THROWS_WITH_AS(
      read(1, std::int8_t{-3}, -2),
      doctest::Contains("\"n\" must be from -2 to 255; got -3."),
      std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      read(10, std::numeric_limits<std::uint64_t>::max(), -1),
      doctest::Contains("got 18446744073709551615."),
      std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      read(6, 3.0f, 0),
      doctest::Contains("\"n\" must be a whole number"),
      std::invalid_argument);
}

TEST_CASE("gguf: wrong keys are named with their value") {
  const TemporaryFile path(small_file().bytes());
  const GgufFile file(path.path());
  CHECK_THROWS_WITH_AS(
      file.integer("a.number", 4, 9),
      doctest::Contains("\"a.number\" must be from 4 to 9; got 3"),
      std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      file.integer("absent", 4, 9),
      doctest::Contains("\"absent\" must be present"),
      std::invalid_argument);
  CHECK_THROWS_AS(file.integer("a.text", 0, 9), std::invalid_argument);
  CHECK_THROWS_AS(file.string("a.number"), std::invalid_argument);
  CHECK_THROWS_AS(file.strings("a.text"), std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      file.tensor("first", {3, 2}),
      doctest::Contains("shape [3, 2] to fit the model's keys; got [2, 3]"),
      std::invalid_argument);
}

TEST_CASE("gguf: false counts, lengths and versions") {
  constexpr std::uint64_t kHuge = std::uint64_t{1} << 48;
  check_refusal("", "empty");
  check_refusal("GGUX", "does not begin with");
  check_refusal("GGUF", "The version");
  check_refusal(Bytes().raw("GGUF").put(3u << 24).text(), "version");
  check_refusal(header(0, std::uint64_t{1} << 63).text(), "key count");
  check_refusal(header(std::uint64_t{1} << 63, 0).text(), "tensor count");
  check_refusal(header(0, 1).put(kHuge).text(), "A key");
  const auto with_value = [&](const Bytes& value) {
    return header(0, 1).string("k").raw(value.text()).text();
  };
  check_refusal(with_value(Bytes().put(13u)), "unknown value type 13");
  check_refusal(
      with_value(Bytes().put(9u).put(0u).put(std::uint64_t{1} << 60)),
      "1152921504606846976 values");
  check_refusal(
      with_value(Bytes().put(9u).put(10u).put(std::uint64_t{1} << 61)),
      "values");
  check_refusal(
      with_value(Bytes().put(9u).put(8u).put(std::uint64_t{1} << 61)),
      "strings");
  Bytes nested;
  for (int i = 0; i < 1000; ++i) {
    nested.put(9u);
    if (i > 0) {
      nested.put(std::uint64_t{1});
    }
  }
  check_refusal(with_value(nested), "array of arrays");
}

TEST_CASE("gguf: tensors that do not fit the file") {
  const std::uint64_t max = std::numeric_limits<std::uint64_t>::max();
  // Where the fields of "first" lie: after its name.
  const std::string whole = small_file().bytes();
  const std::size_t dims_at = whole.find("first") + 5;
  const auto patched = [&](std::size_t offset, auto value) {
    std::string content = whole;
    std::memcpy(&content[dims_at + offset], &value, sizeof(value));
    return content;
  };
  for (const std::uint32_t num_dims : {0u, 5u, 9u, 0xFFFFFFFFu}) {
    check_refusal(
        patched(0, num_dims), "dimensions; got " + std::to_string(num_dims));
  }
  for (const std::uint64_t dim :
       {std::uint64_t{0},
        (std::uint64_t{1} << 42) + 1,
        std::uint64_t{0x1C71C71C71C71C72},
        max}) {
    for (const std::size_t offset : {4u, 12u}) {
      check_refusal(patched(offset, dim), "of " + std::to_string(dim));
    }
  }
  check_refusal(patched(20, 7u), "type number 7");
  check_refusal(patched(20, 8u), "multiple of 32");
  check_refusal(patched(24, std::uint64_t{16}), "offset 16");
  for (const std::uint64_t offset :
       {std::uint64_t{1} << 40, max - 31, std::uint64_t{128}}) {
    check_refusal(patched(24, offset), "at offset " + std::to_string(offset));
  }
  check_refusal(
      whole.substr(0, whole.size() - 60), "Tensor \"second\" takes 68 bytes");
}

TEST_CASE("gguf: alignment must be a usable power of two") {
  for (const std::uint32_t alignment : {0u, 1u, 3u, 48u, 1u << 31}) {
    TestFile file = small_file();
    file.set("general.alignment", test::u32(alignment));
    check_refusal(
        file.bytes(),
        "\"general.alignment\" must be a power of two from 8 to 65536; got " +
            std::to_string(alignment));
  }
}

TEST_CASE("gguf: names are unique") {
  TestFile file = small_file();
  file.keys.push_back(file.keys[0]);
  check_refusal(file.bytes(), "Key \"a.number\" occurs twice");
  file = small_file();
  file.tensors.push_back(file.tensors[0]);
  check_refusal(file.bytes(), "Tensor \"first\" occurs twice");
}

TEST_CASE("gguf: paths that are no model") {
  CHECK_THROWS_AS(GgufFile("/nonexistent/x.gguf"), std::invalid_argument);
  CHECK_THROWS_AS(GgufFile("/"), std::invalid_argument);
  CHECK_THROWS_AS(GgufFile("/dev/null"), std::invalid_argument);
}

// Any two bytes of the header overwritten, or the file cut anywhere: either
// refused or read, never outside the mapping (the sanitizers watch).
TEST_CASE("gguf: no damage crashes the reader") {
  const std::string whole = small_file().bytes();
  int num_refused = 0;
  const auto try_file = [&](const std::string& content) {
    const TemporaryFile path(content);
    try {
      const GgufFile file(path.path());
      unsigned sum = 0;
      for (const auto& [name, tensor] : file.tensors()) {
        for (const std::byte byte : tensor.data) {
          sum += std::to_integer<unsigned>(byte);
        }
      }
      CHECK(sum <= 255 * content.size());
    } catch (const std::invalid_argument&) {
      ++num_refused;
    }
  };
  for (std::size_t at = 4; at + 1 < whole.size() - 128; ++at) {
    for (const int value : {0x0000, 0xFFFF, 0x0100, 0x8000}) {
      std::string content = whole;
      content[at] = static_cast<char>(value & 0xFF);
      content[at + 1] = static_cast<char>(value >> 8);
      try_file(content);
    }
  }
  for (std::size_t size = 0; size < whole.size(); size += 3) {
    try_file(whole.substr(0, size));
  }
  CHECK(num_refused > 200);
}

TEST_CASE("dequantize: every type, by hand") {
  const auto read =
      [](GgufType type, const std::string& data, std::int64_t size) {
        const GgufTensor tensor{
            "t",
            type,
            {size},
            {reinterpret_cast<const std::byte*>(data.data()), data.size()}};
        std::vector<float> out(static_cast<std::size_t>(size), -99.0f);
        dequantize(tensor, out.data(), 2);
        return out;
      };
  CHECK(
      read(GgufType::F32, Bytes().put(1.5f).put(-2.0f).text(), 2) ==
      std::vector<float>{1.5f, -2.0f});
  // 1, -2, largest, smallest normal, smallest subnormal
  Bytes halves;
  for (const unsigned bits : {0x3C00u, 0xC000u, 0x7BFFu, 0x0400u, 0x0001u}) {
    halves.put(static_cast<std::uint16_t>(bits));
  }
  CHECK(
      read(GgufType::F16, halves.text(), 5) ==
      std::vector<float>{1.0f, -2.0f, 65504.0f, 0x1p-14f, 0x1p-24f});
  CHECK(
      read(GgufType::BF16, Bytes().put(std::uint16_t{0x3FC0}).text(), 1) ==
      std::vector<float>{1.5f});

  // Scale 0.5, minimum 3: nibbles low 1 and high 15 in every byte.
  const std::string nibbles(16, '\xF1');
  const auto q4_1 = read(
      GgufType::Q4_1,
      Bytes()
          .put(std::uint16_t{0x3800})
          .put(std::uint16_t{0x4200})
          .raw(nibbles)
          .text(),
      32);
  CHECK(q4_1[0] == 3.5f);
  CHECK(q4_1[15] == 3.5f);
  CHECK(q4_1[16] == 10.5f);
  const auto q4_0 = read(
      GgufType::Q4_0,
      Bytes().put(std::uint16_t{0x3800}).raw(nibbles).text(),
      32);
  CHECK(q4_0[0] == -3.5f);
  CHECK(q4_0[31] == 3.5f);

  // Enough blocks for several threads; element i of block b is b % 100 - i.
  Bytes bytes;
  constexpr std::int64_t kBlocks = 45'000;
  for (std::int64_t b = 0; b < kBlocks; ++b) {
    bytes.put(std::uint16_t{0x3C00});
    for (std::int64_t i = 0; i < 32; ++i) {
      bytes.put(static_cast<std::int8_t>(b % 100 - i));
    }
  }
  const auto q8_0 = read(GgufType::Q8_0, bytes.text(), kBlocks * 32);
  bool all_equal = true;
  for (std::int64_t b = 0; b < kBlocks; ++b) {
    for (int i = 0; i < 32; ++i) {
      all_equal = all_equal && q8_0[static_cast<std::size_t>(b * 32 + i)] ==
                                   static_cast<float>(b % 100 - i);
    }
  }
  CHECK(all_equal);
}

}  // namespace quire::tools
