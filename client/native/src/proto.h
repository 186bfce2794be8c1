// Protobuf on the wire: enough of it for client/fleet/fleet.proto.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common.h"

namespace fedslm {

class ProtoWriter {
 public:
  // Fields that hold their default are left out, as proto3 does.
  ProtoWriter& number(int field, std::uint64_t value) { return value ? varint(field, value) : *this; }
  ProtoWriter& real(int field, double value) { return value != 0 ? fixed(field, value) : *this; }
  ProtoWriter& text(int field, std::string_view value) { return value.empty() ? *this : bytes(field, value); }
  // These are written whatever they hold: members of a oneof, optional fields, messages.
  ProtoWriter& varint(int field, std::uint64_t value);
  ProtoWriter& zigzag(int field, std::int64_t value);
  ProtoWriter& fixed(int field, double value);
  ProtoWriter& bytes(int field, std::string_view value);
  const Bytes& done() const { return out_; }

 private:
  void raw(std::uint64_t value);
  Bytes out_;
};

struct ProtoField {
  int number;
  int wire;               // 0 varint, 1 eight bytes, 2 bytes, 5 four bytes
  std::uint64_t value;    // of wire 0 and 1
  std::string_view data;  // of wire 2

  std::uint64_t whole() const;
  std::int64_t zigzag() const;
  double real() const;
  std::string_view bytes() const;
};

// Goes through the fields of a message; refuses what is cut off.
class ProtoReader {
 public:
  explicit ProtoReader(std::string_view message) : rest_(message) {}
  std::optional<ProtoField> next();

 private:
  std::uint64_t varint();
  std::string_view take(std::uint64_t size);
  std::string_view rest_;
};

}  // namespace fedslm
