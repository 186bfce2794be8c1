// JSON, read strictly; numbers keep their spelling, so that canonical text needs no formatter.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common.h"

namespace fedslm {

struct Json {
  enum class Kind { null, boolean, number, string, array, object };
  Kind kind = Kind::null;
  bool flag = false;
  std::string text;  // of a string, decoded to UTF-8; of a number, as it is spelt
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;  // in the order of the text

  bool is_null() const { return kind == Kind::null; }
  // The member of a name; refuses an object without it.
  const Json& at(std::string_view name) const;
  const Json* find(std::string_view name) const;
  const std::string& string() const;
  bool boolean() const;
  double real() const;
  std::int64_t whole() const;
  const std::vector<Json>& list() const;
  Floats floats() const;  // of hexadecimal text
};

// Refuses anything else than one JSON value: names given twice, NaN, depth above 64.
Json parse_json(std::string_view text);
// docs/protocol.md, "Digests"; a top-level name may be left out.
std::string canonical(const Json& value, std::string_view without = "");
std::string quoted(std::string_view utf8);

}  // namespace fedslm
