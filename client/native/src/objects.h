// Objects, records, arrays and fedslm's messages: docs/protocol.md, sections 2 to 4.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common.h"

namespace fedslm {

struct Limits {
  std::size_t message_bytes = std::size_t{256} << 20;
  std::size_t object_bytes = std::size_t{8} << 20;
  std::size_t objects = 4096;
  std::size_t values = 1024;
};

struct Object {
  std::string kind;
  std::vector<std::string> children;
  std::string_view body;  // of the bytes that were given
};

// A root and everything below it; children before their parents.
struct Tree {
  std::string root;
  std::vector<std::pair<std::string, Bytes>> objects;
  const Bytes& at(const std::string& id) const;
};

Bytes build_object(const std::string& kind, const std::vector<std::string>& children, std::string_view body);
Object parse_object(std::string_view bytes, const Limits& limits = {});
// Fetches a root and everything below it, each object once, compared with its name and its place.
Tree collect(const std::string& root, const std::string& kind,
             const std::function<Bytes(const std::string&)>& fetch, const Limits& limits = {});

struct Blob {
  Bytes bytes;
};

// The types that our header has; any other is monostate.
using Value = std::variant<std::monostate, bool, std::int64_t, double, std::string, Blob>;
using Header = std::map<std::string, Value>;

bool flag_of(const Header& header, const std::string& name);
std::int64_t whole_of(const Header& header, const std::string& name);
const std::string& text_of(const Header& header, const std::string& name);
const Bytes& bytes_of(const Header& header, const std::string& name);

// What a server sends: the header, and the vector where there is one.
struct Content {
  Header header;
  bool has_vector = false;
  Floats vector;
};

Content decode_content(const Tree& tree, const std::string& root, const Limits& limits = {});

Bytes write_npy(const float* values, std::size_t count);
Floats read_npy(std::string_view bytes, std::size_t count);
Bytes write_item(const std::string& key, const Value& value);  // of a ConfigRecord

using Items = std::vector<std::pair<std::string, Value>>;
Tree encode_content(const Items& header, const Floats* vector = nullptr);
Tree encode_update(std::int64_t server_round, const std::string& config_digest, const std::string& stage,
                   const Floats& vector);
// The answer in a phase of secure aggregation.
Tree encode_phase(const std::string& phase, const Bytes& payload);
Tree encode_failure(const std::string& code);
Tree encode_introduction(std::int64_t client);

}  // namespace fedslm
