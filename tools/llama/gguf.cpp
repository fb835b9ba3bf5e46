#include "tools/llama/gguf.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <system_error>
#include <utility>

#include "common/error.h"

namespace quire::tools {
namespace {

static_assert(
    std::endian::native == std::endian::little,
    "GGUF values are read as they lie in the file");

// Far above any model's (a 400-billion-parameter Llama has 1,138 tensors), and
// small enough that a file of nothing but tiny keys stays cheap to reject.
constexpr std::uint64_t kMaxEntries = 65'536;
constexpr std::uint32_t kMaxDims = 4;
constexpr std::uint64_t kDefaultAlignment = 32;
constexpr std::uint64_t kMaxAlignment = 65'536;

std::uint64_t value_bytes(GgufValueType type) {
  switch (type) {
    case GgufValueType::U8:
    case GgufValueType::I8:
    case GgufValueType::Bool:
      return 1;
    case GgufValueType::U16:
    case GgufValueType::I16:
      return 2;
    case GgufValueType::U32:
    case GgufValueType::I32:
    case GgufValueType::F32:
      return 4;
    case GgufValueType::U64:
    case GgufValueType::I64:
    case GgufValueType::F64:
      return 8;
    case GgufValueType::String:
    case GgufValueType::Array:
      break;
  }
  return 0;
}

bool is_known(GgufType type) {
  switch (type) {
    case GgufType::F32:
    case GgufType::F16:
    case GgufType::Q4_0:
    case GgufType::Q4_1:
    case GgufType::Q8_0:
    case GgufType::BF16:
      return true;
  }
  return false;
}

template <typename T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

// A name for messages: printable ASCII only, and not endless.
std::string printable(std::string_view text) {
  std::string result;
  for (const char c : text.substr(0, 80)) {
    result += c >= ' ' && c <= '~' ? c : '?';
  }
  return result + (text.size() > 80 ? "..." : "");
}

std::span<const std::byte> map_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require(fd >= 0, path, "Cannot open the model: ", std::strerror(errno), ".");
  struct stat info {};
  const bool is_file = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  const auto size = static_cast<std::size_t>(is_file ? info.st_size : 0);
  void* data = size > 0 ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0)
                        : MAP_FAILED;
  const int error = errno;
  ::close(fd);
  require(is_file, path, "The model must be a regular file.");
  require(size > 0, path, "The model file is empty.");
  if (data == MAP_FAILED) {
    throw std::system_error(error, std::generic_category(), path);
  }
  return {static_cast<const std::byte*>(data), size};
}

}  // namespace

GgufBlock gguf_block(GgufType type) {
  switch (type) {
    case GgufType::F32:
      return {1, 4};
    case GgufType::F16:
    case GgufType::BF16:
      return {1, 2};
    case GgufType::Q4_0:  // f16 scale, 16 bytes of two 4-bit values
      return {32, 18};
    case GgufType::Q4_1:  // f16 scale and minimum, 16 bytes
      return {32, 20};
    case GgufType::Q8_0:  // f16 scale, 32 bytes
      return {32, 34};
  }
  return {1, 0};
}

/** Reads forward through the header; never past its end. */
class GgufFile::Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& path)
      : bytes_(bytes), path_(path) {}

  std::uint64_t position() const {
    return position_;
  }
  std::uint64_t remaining() const {
    return bytes_.size() - position_;
  }

  std::span<const std::byte> take(std::uint64_t count, std::string_view what) {
    require(
        count <= remaining(),
        path_,
        what,
        " takes ",
        count,
        " bytes at byte ",
        position_,
        ", but the file has only ",
        remaining(),
        " more.");
    const auto result = bytes_.subspan(position_, count);
    position_ += count;
    return result;
  }

  template <typename T>
  T number(std::string_view what) {
    return load<T>(take(sizeof(T), what).data());
  }

  std::string_view string(std::string_view what) {
    const auto length = number<std::uint64_t>(what);
    const auto bytes = take(length, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& path_;
  std::uint64_t position_ = 0;
};

GgufFile::GgufFile(const std::string& path)
    : path_(path), bytes_(map_file(path)) {
  try {
    Cursor cursor(bytes_, path_);
    const auto magic = cursor.take(4, "The magic number");
    require(
        std::memcmp(magic.data(), "GGUF", 4) == 0,
        path_,
        "Not a GGUF file: it does not begin with \"GGUF\".");
    const auto version = cursor.number<std::uint32_t>("The version");
    require(
        version == 2 || version == 3,
        path_,
        "The GGUF version must be 2 or 3, little-endian; got ",
        version,
        ".");
    const auto num_tensors = cursor.number<std::uint64_t>("The tensor count");
    const auto num_keys = cursor.number<std::uint64_t>("The key count");
    require(
        num_tensors <= kMaxEntries,
        path_,
        "The tensor count must be at most ",
        kMaxEntries,
        "; got ",
        num_tensors,
        ".");
    require(
        num_keys <= kMaxEntries,
        path_,
        "The key count must be at most ",
        kMaxEntries,
        "; got ",
        num_keys,
        ".");
    read_metadata(cursor, num_keys);
    read_tensors(cursor, num_tensors);
  } catch (...) {
    ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
    throw;
  }
}

GgufFile::~GgufFile() {
  ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void GgufFile::read_metadata(Cursor& cursor, std::uint64_t count) {
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::string_view key = cursor.string("A key");
    const std::string what = "Key \"" + printable(key) + "\"";
    const auto read_type = [&] {
      const auto type = cursor.number<std::uint32_t>(what);
      require(
          type <= static_cast<std::uint32_t>(GgufValueType::F64),
          path_,
          what,
          " has unknown value type ",
          type,
          ".");
      return static_cast<GgufValueType>(type);
    };
    GgufValue value{.type = read_type(), .bytes = {}};
    if (value.type == GgufValueType::Array) {
      value.is_array = true;
      value.type = read_type();
      value.count = cursor.number<std::uint64_t>(what);
      require(
          value.type != GgufValueType::Array,
          path_,
          what,
          " is an array of arrays, which no model that Quire runs has.");
    }
    if (value.type == GgufValueType::String) {
      // Each string has a length of 8 bytes: a false count ends here early.
      require(
          value.count <= cursor.remaining() / 8,
          path_,
          what,
          " claims ",
          value.count,
          " strings, but the file has only ",
          cursor.remaining(),
          " more bytes.");
      const std::uint64_t begin = cursor.position();
      for (std::uint64_t j = 0; j < value.count; ++j) {
        (void)cursor.string(what);
      }
      value.bytes = bytes_.subspan(begin, cursor.position() - begin);
    } else {
      const std::uint64_t size = value_bytes(value.type);
      require(
          value.count <= cursor.remaining() / size,
          path_,
          what,
          " claims ",
          value.count,
          " values, but the file has only ",
          cursor.remaining(),
          " more bytes.");
      value.bytes = cursor.take(value.count * size, what);
    }
    require(
        metadata_.emplace(std::string(key), value).second,
        path_,
        what,
        " occurs twice.");
  }
}

void GgufFile::read_tensors(Cursor& cursor, std::uint64_t count) {
  std::uint64_t alignment = kDefaultAlignment;
  if (const auto value = find_integer(
          "general.alignment", 0, std::numeric_limits<std::int64_t>::max())) {
    alignment = static_cast<std::uint64_t>(*value);
    require(
        std::has_single_bit(alignment) && alignment >= 8 &&
            alignment <= kMaxAlignment,
        path_,
        "Key \"general.alignment\" must be a power of two from 8 to ",
        kMaxAlignment,
        "; got ",
        alignment,
        ".");
  }

  struct Entry {
    GgufTensor tensor;
    std::uint64_t offset;
    std::uint64_t num_bytes;
  };
  std::vector<Entry> entries;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::string_view name = cursor.string("A tensor's name");
    const std::string what = "Tensor \"" + printable(name) + "\"";
    const auto num_dims = cursor.number<std::uint32_t>(what);
    require(
        num_dims >= 1 && num_dims <= kMaxDims,
        path_,
        what,
        " must have 1 to ",
        kMaxDims,
        " dimensions; got ",
        num_dims,
        ".");
    // No tensor can have more elements than the file could hold at the lowest
    // number of bits, so products stay far below 2^64.
    const std::uint64_t max_elements = 2 * std::uint64_t{bytes_.size()};
    std::uint64_t elements = 1;
    std::vector<std::int64_t> shape(num_dims);
    for (std::uint32_t d = 0; d < num_dims; ++d) {
      const auto dim = cursor.number<std::uint64_t>(what);
      require(
          dim >= 1 && dim <= max_elements / elements,
          path_,
          what,
          " has dimension ",
          d,
          " of ",
          dim,
          ", which a file of ",
          bytes_.size(),
          " bytes cannot hold.");
      elements *= dim;
      shape[num_dims - 1 - d] = static_cast<std::int64_t>(dim);
    }
    const auto type_number = cursor.number<std::uint32_t>(what);
    const auto type = static_cast<GgufType>(type_number);
    require(
        is_known(type),
        path_,
        what,
        " must be F32, F16, BF16, Q4_0, Q4_1 or Q8_0; got type number ",
        type_number,
        ".");
    const GgufBlock block = gguf_block(type);
    require(
        shape.back() % block.elements == 0,
        path_,
        what,
        " must have rows of a multiple of ",
        block.elements,
        " elements for its type; got ",
        shape.back(),
        ".");
    const auto offset = cursor.number<std::uint64_t>(what);
    require(
        offset % alignment == 0,
        path_,
        what,
        " must begin at a multiple of ",
        alignment,
        " bytes; got offset ",
        offset,
        ".");
    entries.push_back(
        {{std::string(name), type, std::move(shape), {}},
         offset,
         elements / static_cast<std::uint64_t>(block.elements) *
             static_cast<std::uint64_t>(block.bytes)});
  }

  const std::uint64_t data_begin =
      (cursor.position() + alignment - 1) / alignment * alignment;
  const std::uint64_t data_bytes =
      bytes_.size() - std::min<std::uint64_t>(data_begin, bytes_.size());
  data_begin_ = data_begin;
  for (Entry& entry : entries) {
    require(
        entry.offset <= data_bytes &&
            entry.num_bytes <= data_bytes - entry.offset,
        path_,
        "Tensor \"",
        printable(entry.tensor.name),
        "\" takes ",
        entry.num_bytes,
        " bytes at offset ",
        entry.offset,
        ", but the file holds only ",
        data_bytes,
        " bytes of tensors.");
    entry.tensor.data =
        bytes_.subspan(data_begin + entry.offset, entry.num_bytes);
    std::string name = entry.tensor.name;
    const auto [at, is_new] =
        tensors_.emplace(std::move(name), std::move(entry.tensor));
    require(
        is_new, path_, "Tensor \"", printable(at->first), "\" occurs twice.");
  }
}

const GgufValue& GgufFile::value(std::string_view key) const {
  const auto at = metadata_.find(key);
  require(at != metadata_.end(), path_, "Key \"", key, "\" must be present.");
  return at->second;
}

std::optional<std::int64_t> GgufFile::find_integer(
    std::string_view key,
    std::int64_t min,
    std::int64_t max) const {
  if (!has(key)) {
    return std::nullopt;
  }
  const auto in_range = [&](auto number) {
    require(
        std::cmp_greater_equal(number, min) && std::cmp_less_equal(number, max),
        path_,
        "Key \"",
        key,
        "\" must be from ",
        min,
        " to ",
        max,
        "; got ",
        +number,  // 8 bits are a number here, no character
        ".");
    return static_cast<std::int64_t>(number);
  };
  const GgufValue& v = value(key);
  const std::byte* bytes = v.bytes.data();
  switch (v.is_array ? GgufValueType::Array : v.type) {
    case GgufValueType::U8:
      return in_range(load<std::uint8_t>(bytes));
    case GgufValueType::I8:
      return in_range(load<std::int8_t>(bytes));
    case GgufValueType::U16:
      return in_range(load<std::uint16_t>(bytes));
    case GgufValueType::I16:
      return in_range(load<std::int16_t>(bytes));
    case GgufValueType::U32:
      return in_range(load<std::uint32_t>(bytes));
    case GgufValueType::I32:
      return in_range(load<std::int32_t>(bytes));
    case GgufValueType::U64:
      return in_range(load<std::uint64_t>(bytes));
    case GgufValueType::I64:
      return in_range(load<std::int64_t>(bytes));
    default:
      require(false, path_, "Key \"", key, "\" must be a whole number.");
      return std::nullopt;
  }
}

std::int64_t GgufFile::integer(
    std::string_view key,
    std::int64_t min,
    std::int64_t max) const {
  (void)value(key);
  return *find_integer(key, min, max);
}

double GgufFile::real(std::string_view key) const {
  const GgufValue& v = value(key);
  const bool is_real = !v.is_array && (v.type == GgufValueType::F32 ||
                                       v.type == GgufValueType::F64);
  require(is_real, path_, "Key \"", key, "\" must be a real number.");
  const double result = v.type == GgufValueType::F32
                            ? static_cast<double>(load<float>(v.bytes.data()))
                            : load<double>(v.bytes.data());
  require(
      std::isfinite(result),
      path_,
      "Key \"",
      key,
      "\" must be finite; got ",
      result,
      ".");
  return result;
}

std::optional<bool> GgufFile::find_bool(std::string_view key) const {
  if (!has(key)) {
    return std::nullopt;
  }
  const GgufValue& v = value(key);
  require(
      !v.is_array && v.type == GgufValueType::Bool,
      path_,
      "Key \"",
      key,
      "\" must be true or false.");
  return v.bytes[0] != std::byte{0};
}

std::string_view GgufFile::string(std::string_view key) const {
  const GgufValue& v = value(key);
  require(
      !v.is_array && v.type == GgufValueType::String,
      path_,
      "Key \"",
      key,
      "\" must be a string.");
  return {
      reinterpret_cast<const char*>(v.bytes.data()) + 8, v.bytes.size() - 8};
}

std::optional<std::string_view> GgufFile::find_string(
    std::string_view key) const {
  return has(key) ? std::optional(string(key)) : std::nullopt;
}

std::vector<std::string_view> GgufFile::strings(std::string_view key) const {
  const GgufValue& v = value(key);
  require(
      v.is_array && v.type == GgufValueType::String,
      path_,
      "Key \"",
      key,
      "\" must be an array of strings.");
  std::vector<std::string_view> result;
  result.reserve(v.count);
  const std::byte* at = v.bytes.data();  // lengths were checked when read
  for (std::uint64_t i = 0; i < v.count; ++i) {
    const auto length = load<std::uint64_t>(at);
    result.emplace_back(reinterpret_cast<const char*>(at) + 8, length);
    at += 8 + length;
  }
  return result;
}

std::vector<std::int32_t> GgufFile::int32s(std::string_view key) const {
  const GgufValue& v = value(key);
  require(
      v.is_array &&
          (v.type == GgufValueType::I32 || v.type == GgufValueType::U32),
      path_,
      "Key \"",
      key,
      "\" must be an array of 32-bit whole numbers.");
  std::vector<std::int32_t> result(v.count);
  if (v.count > 0) {
    std::memcpy(result.data(), v.bytes.data(), v.bytes.size());
  }
  return result;
}

const GgufTensor& GgufFile::tensor(
    std::string_view name,
    const std::vector<std::int64_t>& shape) const {
  const auto at = tensors_.find(name);
  require(
      at != tensors_.end(), path_, "Tensor \"", name, "\" must be present.");
  const auto text = [](const std::vector<std::int64_t>& dims) {
    std::string result = "[";
    for (const std::int64_t dim : dims) {
      result += (result.size() > 1 ? ", " : "") + std::to_string(dim);
    }
    return result + "]";
  };
  require(
      at->second.shape == shape,
      path_,
      "Tensor \"",
      name,
      "\" must have shape ",
      text(shape),
      " to fit the model's keys; got ",
      text(at->second.shape),
      ".");
  return at->second;
}

void GgufFile::drop_tensor_pages() const {
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t begin = (data_begin_ + page - 1) / page * page;
  if (begin < bytes_.size()) {
    ::madvise(
        const_cast<std::byte*>(bytes_.data()) + begin,
        bytes_.size() - begin,
        MADV_DONTNEED);
  }
}

}  // namespace quire::tools
