#include "proto.h"

#include <cstring>

namespace fedslm {

void ProtoWriter::raw(std::uint64_t value) {
  while (value >= 0x80) {
    out_ += static_cast<char>(value | 0x80);
    value >>= 7;
  }
  out_ += static_cast<char>(value);
}

ProtoWriter& ProtoWriter::varint(int field, std::uint64_t value) {
  raw(static_cast<std::uint64_t>(field) << 3);
  raw(value);
  return *this;
}

ProtoWriter& ProtoWriter::zigzag(int field, std::int64_t value) {
  const auto bits = static_cast<std::uint64_t>(value);
  return varint(field, bits << 1 ^ (value < 0 ? ~std::uint64_t{0} : 0));
}

ProtoWriter& ProtoWriter::fixed(int field, double value) {
  raw(static_cast<std::uint64_t>(field) << 3 | 1);
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out_.append(bytes, sizeof bytes);
  return *this;
}

ProtoWriter& ProtoWriter::bytes(int field, std::string_view value) {
  raw(static_cast<std::uint64_t>(field) << 3 | 2);
  raw(value.size());
  out_ += value;
  return *this;
}

std::uint64_t ProtoField::whole() const {
  require(wire == 0, "a field is no integer");
  return value;
}

std::int64_t ProtoField::zigzag() const {
  const std::uint64_t bits = whole();
  return static_cast<std::int64_t>(bits >> 1 ^ (bits & 1 ? ~std::uint64_t{0} : 0));
}

double ProtoField::real() const {
  require(wire == 1, "a field is no double");
  double out;
  std::memcpy(&out, &value, sizeof out);
  return out;
}

std::string_view ProtoField::bytes() const {
  require(wire == 2, "a field is neither text nor a message");
  return data;
}

std::optional<ProtoField> ProtoReader::next() {
  if (rest_.empty()) return std::nullopt;
  const std::uint64_t tag = varint();
  require(tag >> 3 > 0 && tag >> 3 < 1u << 29, "a message has a field without a number");
  ProtoField field{static_cast<int>(tag >> 3), static_cast<int>(tag & 7), 0, {}};
  if (field.wire == 0) {
    field.value = varint();
  } else if (field.wire == 1) {
    std::memcpy(&field.value, take(8).data(), 8);
  } else if (field.wire == 2) {
    field.data = take(varint());
  } else if (field.wire == 5) {
    take(4);
  } else {
    mismatch("a message has a field of an unknown form");
  }
  return field;
}

std::uint64_t ProtoReader::varint() {
  std::uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    require(!rest_.empty(), "a message is cut off");
    const auto byte = static_cast<unsigned char>(rest_.front());
    rest_.remove_prefix(1);
    require(shift < 63 || byte < 2, "a message has a number of more than 64 bits");
    value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  mismatch("a message has a number of more than 64 bits");
}

std::string_view ProtoReader::take(std::uint64_t size) {
  require(size <= rest_.size(), "a message is cut off");
  const std::string_view out = rest_.substr(0, static_cast<std::size_t>(size));
  rest_.remove_prefix(out.size());
  return out;
}

}  // namespace fedslm
