// A bounds-checked, read-only view of a GGUF file (versions 2 and 3,
// little-endian): every count, length, dimension, type and offset is checked
// against the file's size before it is used, and nothing is allocated in
// proportion to a number that the file merely claims.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace quire::tools {

/** Tensor types that Quire reads; the numbers are GGUF's. */
enum class GgufType : std::uint32_t {
  F32 = 0,
  F16 = 1,
  // NOLINTBEGIN(readability-identifier-naming): the names that users know
  Q4_0 = 2,
  Q4_1 = 3,
  Q8_0 = 8,
  // NOLINTEND(readability-identifier-naming)
  BF16 = 30,
};

/** Elements in one block of the type, and the bytes that a block takes. */
struct GgufBlock {
  std::int64_t elements;
  std::int64_t bytes;
};
GgufBlock gguf_block(GgufType type);

/** A tensor's place in the file. */
struct GgufTensor {
  std::string name;
  GgufType type;
  std::vector<std::int64_t> shape;  // row-major: the file's order reversed
  std::span<const std::byte> data;
};

/** Type of a metadata value; the numbers are GGUF's. */
enum class GgufValueType : std::uint32_t {
  U8,
  I8,
  U16,
  I16,
  U32,
  I32,
  F32,
  Bool,
  String,
  Array,
  U64,
  I64,
  F64,
};

/** One metadata value, still in the file's bytes. */
struct GgufValue {
  GgufValueType type;  // of the elements, if this is an array
  bool is_array = false;
  std::uint64_t count = 1;  // elements
  std::span<const std::byte> bytes;
};

/**
 * A mapped GGUF file.
 *
 * - Keys and tensor names are unique; every tensor lies inside the file.
 * - Views (string_view, span) stay valid as long as the object lives.
 *
 * All members throw std::invalid_argument naming the file, the key or tensor,
 * and the value that is wrong.
 */
class GgufFile {
 public:
  explicit GgufFile(const std::string& path);
  ~GgufFile();
  GgufFile(const GgufFile&) = delete;
  GgufFile& operator=(const GgufFile&) = delete;

  const std::string& path() const {
    return path_;
  }

  bool has(std::string_view key) const {
    return metadata_.find(key) != metadata_.end();
  }

  /** A whole number of any of GGUF's integer types, in [min, max]. */
  std::int64_t integer(std::string_view key, std::int64_t min, std::int64_t max)
      const;
  std::optional<std::int64_t>
  find_integer(std::string_view key, std::int64_t min, std::int64_t max) const;

  /** A finite number of type F32 or F64. */
  double real(std::string_view key) const;
  std::optional<bool> find_bool(std::string_view key) const;
  std::string_view string(std::string_view key) const;
  std::optional<std::string_view> find_string(std::string_view key) const;
  std::vector<std::string_view> strings(std::string_view key) const;
  std::vector<std::int32_t> int32s(std::string_view key) const;

  const std::map<std::string, GgufTensor, std::less<>>& tensors() const {
    return tensors_;
  }
  /** The tensor, which must have this shape. */
  const GgufTensor& tensor(
      std::string_view name,
      const std::vector<std::int64_t>& shape) const;

  /** The tensors' pages may be dropped from memory: they were read. */
  void drop_tensor_pages() const;

 private:
  class Cursor;
  void read_metadata(Cursor& cursor, std::uint64_t count);
  void read_tensors(Cursor& cursor, std::uint64_t count);
  const GgufValue& value(std::string_view key) const;

  std::string path_;
  std::span<const std::byte> bytes_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::map<std::string, GgufTensor, std::less<>> tensors_;
  std::uint64_t data_begin_ = 0;
};

}  // namespace quire::tools
