#include "objects.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "json.h"
#include "proto.h"

namespace fedslm {
namespace {

constexpr std::size_t kChunk = std::size_t{5} << 20;
constexpr std::int64_t kProtocol = 1;

const std::map<std::string, std::set<std::string>> kChildren = {
    {"Message", {"RecordDict"}},
    {"RecordDict", {"ArrayRecord", "ConfigRecord", "MetricRecord"}},
    {"ArrayRecord", {"Array"}},
    {"Array", {"ArrayChunk"}},
    {"ConfigRecord", {}},
    {"MetricRecord", {}},
    {"ArrayChunk", {}},
};

std::vector<std::string> split(std::string_view text, char by) {
  std::vector<std::string> parts;
  for (;;) {
    const std::size_t place = text.find(by);
    parts.emplace_back(text.substr(0, place));
    if (place == std::string_view::npos) return parts;
    text.remove_prefix(place + 1);
  }
}

// Which names an object gives its children: exactly those of its header.
std::vector<std::pair<std::string, std::string>> members_of(const Object& object, const Limits& limits) {
  const Json found = parse_json(object.body);
  require(found.kind == Json::Kind::object && found.members.size() <= limits.values,
          "an object does not name its members");
  std::vector<std::pair<std::string, std::string>> members;
  std::set<std::string> named;
  for (const auto& [name, id] : found.members) {
    members.emplace_back(name, id.string());
    named.insert(id.string());
  }
  require(named == std::set<std::string>(object.children.begin(), object.children.end()),
          "an object names other members than its header");
  return members;
}

Header header_of(std::string_view body, const Limits& limits) {
  Header header;
  ProtoReader record(body);
  while (const auto item = record.next()) {
    if (item->number != 1) continue;
    std::string key;
    Value value;
    ProtoReader inner(item->bytes());
    while (const auto field = inner.next()) {
      if (field->number == 1) key = field->bytes();
      if (field->number != 2) continue;
      ProtoReader chosen(field->bytes());
      while (const auto one = chosen.next()) {
        value = std::monostate{};
        if (one->number == 1) value = one->real();
        if (one->number == 2) value = one->zigzag();
        if (one->number == 4) value = one->whole() != 0;
        if (one->number == 5) value = std::string(one->bytes());
        if (one->number == 6) value = Blob{Bytes(one->bytes())};
      }
    }
    require(header.emplace(key, value).second, "a record gives a name twice");
    require(header.size() <= limits.values, "a record holds more values than are taken");
  }
  return header;
}

Floats vector_of(const Tree& tree, const Object& record, const Limits& limits) {
  const auto arrays = members_of(record, limits);
  require(arrays.size() == 1 && arrays[0].first == "vector", "a message has other arrays than one vector");
  const Object array = parse_object(tree.at(arrays[0].second), limits);
  const Json head = parse_json(array.body);
  require(head.members.size() == 4 && head.at("dtype").string() == "float32" &&
              head.at("stype").string() == "numpy.ndarray" && head.at("shape").list().size() == 1,
          "a vector is not float32 of one dimension");
  const std::int64_t count = head.at("shape").items[0].whole();
  require(count >= 0 && static_cast<std::uint64_t>(count) <= limits.message_bytes / sizeof(float),
          "a vector is larger than is taken");
  Bytes data;
  std::set<std::int64_t> used;
  for (const Json& index : head.at("arraychunk_ids").list()) {
    const std::int64_t piece = index.whole();
    require(piece >= 0 && static_cast<std::size_t>(piece) < array.children.size(),
            "a vector names a chunk that it does not have");
    used.insert(piece);
    data += parse_object(tree.at(array.children[static_cast<std::size_t>(piece)]), limits).body;
    require(data.size() <= limits.message_bytes, "a vector is larger than is taken");
  }
  require(used.size() == array.children.size(), "a vector has a chunk that it does not name");
  return read_npy(data, static_cast<std::size_t>(count));
}

template <typename T>
const T& typed(const Header& header, const std::string& name) {
  const auto found = header.find(name);
  const T* value = found == header.end() ? nullptr : std::get_if<T>(&found->second);
  if (value == nullptr) mismatch("header field " + name + " is missing or of another type");
  return *value;
}

class Builder {
 public:
  std::string put(const std::string& kind, const std::vector<std::string>& children, std::string_view body) {
    Bytes bytes = build_object(kind, children, body);
    const std::string id = sha256(bytes);
    for (const auto& object : tree.objects)
      if (object.first == id) return id;
    tree.objects.emplace_back(id, std::move(bytes));
    return id;
  }
  Tree tree;
};

std::vector<std::string> once(const std::vector<std::string>& names) {
  std::vector<std::string> out;
  for (const std::string& name : names)
    if (std::find(out.begin(), out.end(), name) == out.end()) out.push_back(name);
  return out;
}

std::string array_of(Builder& builder, const Floats& vector) {
  const Bytes file = write_npy(vector.data(), vector.size());
  std::vector<std::string> pieces;
  for (std::size_t at = 0; at < file.size(); at += kChunk)
    pieces.push_back(builder.put("ArrayChunk", {}, std::string_view(file).substr(at, kChunk)));
  const std::vector<std::string> children = once(pieces);
  std::string order;
  for (const std::string& piece : pieces) {
    if (!order.empty()) order += ", ";
    order += std::to_string(std::find(children.begin(), children.end(), piece) - children.begin());
  }
  const std::string head = "{\"dtype\": \"float32\", \"shape\": [" + std::to_string(vector.size()) +
                           "], \"stype\": \"numpy.ndarray\", \"arraychunk_ids\": [" + order + "]}";
  return builder.put("Array", children, head);
}

}  // namespace

const Bytes& Tree::at(const std::string& id) const {
  for (const auto& object : objects)
    if (object.first == id) return object.second;
  mismatch("a message lacks an object that it names");
}

Bytes build_object(const std::string& kind, const std::vector<std::string>& children, std::string_view body) {
  Bytes out = kind + " ";
  for (std::size_t i = 0; i < children.size(); ++i) out += (i ? "," : "") + children[i];
  out += " " + std::to_string(body.size());
  out += '\0';
  return out += body;
}

Object parse_object(std::string_view bytes, const Limits& limits) {
  require(bytes.size() <= limits.object_bytes, "an object is larger than is taken");
  const std::size_t end = bytes.substr(0, 64 + 65 * limits.objects).find('\0');
  require(end != std::string_view::npos, "an object has no header");
  const std::vector<std::string> head = split(bytes.substr(0, end), ' ');
  require(head.size() == 3, "the header of an object has not three fields");
  Object object{head[0], {}, bytes.substr(end + 1)};
  if (!head[1].empty()) object.children = split(head[1], ',');
  require(kChildren.count(object.kind) == 1, "an object is of no kind that a message is made of");
  for (const std::string& child : object.children)
    require(is_digest(child), "the header of an object names its children wrongly");
  require(once(object.children).size() == object.children.size(), "an object names a child twice");
  require(head[2] == std::to_string(object.body.size()), "an object is not as long as its header says");
  return object;
}

Tree collect(const std::string& root, const std::string& kind,
             const std::function<Bytes(const std::string&)>& fetch, const Limits& limits) {
  Tree tree{root, {}};
  std::map<std::string, std::string> kinds;  // of the objects that were fetched
  std::size_t budget = limits.message_bytes;
  std::vector<std::pair<std::string, std::set<std::string>>> level = {{root, {kind}}};
  require(is_digest(root), "a message has no name");
  while (!level.empty()) {
    std::vector<std::pair<std::string, std::set<std::string>>> below;
    for (const auto& [name, allowed] : level) {
      if (kinds.count(name) == 0) {
        require(kinds.size() < limits.objects, "a message is made of more objects than are taken");
        Bytes bytes = fetch(name);
        require(bytes.size() <= budget, "a message is larger than is taken");
        require(sha256(bytes) == name, "an object is not the one that its name says");
        budget -= bytes.size();
        const Object object = parse_object(bytes, limits);
        kinds.emplace(name, object.kind);
        for (const std::string& child : object.children) below.emplace_back(child, kChildren.at(object.kind));
        tree.objects.emplace_back(name, std::move(bytes));
      }
      require(allowed.count(kinds.at(name)) == 1, "an object stands where its kind may not");
    }
    require(below.size() <= limits.objects, "a message is made of more objects than are taken");
    level = std::move(below);
  }
  std::reverse(tree.objects.begin(), tree.objects.end());
  return tree;
}

bool flag_of(const Header& header, const std::string& name) { return typed<bool>(header, name); }
std::int64_t whole_of(const Header& header, const std::string& name) {
  return typed<std::int64_t>(header, name);
}
const std::string& text_of(const Header& header, const std::string& name) {
  return typed<std::string>(header, name);
}

const Bytes& bytes_of(const Header& header, const std::string& name) { return typed<Blob>(header, name).bytes; }

Content decode_content(const Tree& tree, const std::string& root, const Limits& limits) {
  const Object records = parse_object(tree.at(root), limits);
  require(records.kind == "RecordDict", "a content is no RecordDict");
  Content content;
  bool headed = false;
  for (const auto& [name, id] : members_of(records, limits)) {
    const Object record = parse_object(tree.at(id), limits);
    if (name == "fedslm" && record.kind == "ConfigRecord") {
      content.header = header_of(record.body, limits);
      headed = true;
    } else if (name == "adapter" && record.kind == "ArrayRecord") {
      if (headed && content.header.count("codec"))
        throw Refusal("unsupported-model", "the adapter is coded, and this client reads float32");
      content.vector = vector_of(tree, record, limits);
      content.has_vector = true;
    } else {
      throw Refusal("unsupported-model", "a message has a record that this client does not know");
    }
  }
  require(headed && whole_of(content.header, "protocol") == kProtocol, "a message has no fedslm header");
  return content;
}

Bytes write_npy(const float* values, std::size_t count) {
  std::string head = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(count) + ",), }";
  // Magic, version and length are ten bytes, a line break ends the header, all is a multiple of 64;
  // numpy leaves room for the first side to grow to 21 digits.
  head.append(21 - std::to_string(count).size(), ' ');
  head.append((64 - (10 + head.size() + 1) % 64) % 64, ' ');
  head += '\n';
  Bytes out = "\x93NUMPY";
  out += std::string("\x01\x00", 2);
  out += static_cast<char>(head.size() & 255);
  out += static_cast<char>(head.size() >> 8);
  return out + head + bytes_of(values, count);
}

Floats read_npy(std::string_view bytes, std::size_t count) {
  const std::string start = std::string("\x93NUMPY\x01\x00", 8);
  require(bytes.size() >= 10 && bytes.substr(0, 8) == start, "an array is no plain .npy file");
  const std::size_t length = static_cast<unsigned char>(bytes[8]) + 256u * static_cast<unsigned char>(bytes[9]);
  require(length <= 1024 && bytes.size() >= 10 + length, "an array is no plain .npy file");
  std::string_view head = bytes.substr(10, length);
  while (!head.empty() && (head.back() == ' ' || head.back() == '\n')) head.remove_suffix(1);
  const std::string shape = "'shape': (" + std::to_string(count) + ",), }";
  const std::string c = "{'descr': '<f4', 'fortran_order': False, " + shape;
  const std::string f = "{'descr': '<f4', 'fortran_order': True, " + shape;
  require(head == c || head == f, "an array and its file disagree on type or shape");
  const std::string_view data = bytes.substr(10 + length);
  require(data.size() == count * sizeof(float), "an array has not as many bytes as its shape says");
  return floats_of(data);
}

Bytes write_item(const std::string& key, const Value& value) {
  ProtoWriter chosen;
  if (const auto* flag = std::get_if<bool>(&value)) chosen.varint(4, *flag ? 1 : 0);
  if (const auto* whole = std::get_if<std::int64_t>(&value)) chosen.zigzag(2, *whole);
  if (const auto* real = std::get_if<double>(&value)) chosen.fixed(1, *real);
  if (const auto* text = std::get_if<std::string>(&value)) chosen.bytes(5, *text);
  if (const auto* blob = std::get_if<Blob>(&value)) chosen.bytes(6, blob->bytes);
  return ProtoWriter().bytes(1, ProtoWriter().text(1, key).bytes(2, chosen.done()).done()).done();
}

Tree encode_content(const Items& header, const Floats* vector) {
  Builder builder;
  Bytes body;
  for (const auto& [key, value] : header) body += write_item(key, value);
  const std::string head = builder.put("ConfigRecord", {}, body);
  std::string members = "{\"fedslm\": \"" + head + "\"";
  std::vector<std::string> children = {head};
  if (vector != nullptr) {
    const std::string array = array_of(builder, *vector);
    const std::string record = builder.put("ArrayRecord", {array}, "{\"vector\": \"" + array + "\"}");
    members += ", \"adapter\": \"" + record + "\"";
    children.push_back(record);
  }
  builder.tree.root = builder.put("RecordDict", children, members + "}");
  return builder.tree;
}

Tree encode_update(std::int64_t server_round, const std::string& config_digest, const std::string& stage,
                   const Floats& vector) {
  const Items header = {{"protocol", kProtocol},
                        {"server-round", server_round},
                        {"config-digest", config_digest},
                        {"stage", stage}};
  return encode_content(header, &vector);
}

Tree encode_phase(const std::string& phase, const Bytes& payload) {
  return encode_content({{"protocol", kProtocol}, {"phase", phase}, {"payload", Blob{payload}}});
}

Tree encode_failure(const std::string& code) {
  return encode_content({{"protocol", kProtocol}, {"failure", code}});
}

Tree encode_introduction(std::int64_t client) {
  return encode_content({{"protocol", kProtocol}, {"client", client}});
}

}  // namespace fedslm
