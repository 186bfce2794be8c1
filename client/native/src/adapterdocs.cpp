// Signed documents about adapters, and the weights themselves: read, not believed.
#include <algorithm>
#include <cstring>
#include <set>

#include "adapters.h"
#include "json.h"
#include "proto.h"

namespace fedslm {
namespace {

constexpr std::size_t kLongestDocument = 1 << 18;
constexpr std::int64_t kLargestNumber = 1000000000000;
constexpr std::size_t kMostFiles = 16, kMostTensors = 8192, kLongestHeader = 1 << 20;
constexpr std::uint64_t kLargestWeights = 1u << 30, kLargestOther = 1u << 24, kLargestSide = 1u << 22;
constexpr char kWeights[] = "adapter_model.safetensors", kPeft[] = "adapter_config.json";

[[noreturn]] void corrupt(const std::string& why) { throw Refusal("adapter-corrupt", why); }
[[noreturn]] void untrusted(const std::string& why) { throw Refusal("adapter-untrusted", why); }

void require_keys(const Json& found, const std::set<std::string>& keys, const char* what) {
  std::set<std::string> names;
  for (const auto& member : found.members) names.insert(member.first);
  if (found.kind != Json::Kind::object || names != keys) corrupt(std::string(what) + " has other keys than it should");
}

std::string digest_of(const Json& value) {
  if (!is_digest(value.string())) corrupt("a digest in a document about adapters is none");
  return value.string();
}

std::int64_t number_of(const Json& value, std::int64_t least, std::int64_t most = kLargestNumber) {
  const std::int64_t found = value.whole();
  if (found < least || found > most) corrupt("a number in a document about adapters is out of range");
  return found;
}

// Reads a document by a function of its JSON; whatever is wrong with it is one refusal.
template <typename Read>
auto document(const Bytes& text, const Signature& signature, const char* domain, const std::string& trusted, Read read) {
  if (text.size() > kLongestDocument) corrupt("a document about adapters is too long");
  if (signature.public_key != trusted) untrusted("a document about adapters is signed by another key");
  bool holds = signature.domain == domain && signature.sha256 == sha256(text);
  try {
    holds = holds && ed25519_holds(unhex(trusted), unhex(signature.signature), signature.domain + "|" + signature.sha256);
  } catch (const Refusal&) {
    holds = false;
  }
  if (!holds) untrusted("the signature of a document about adapters does not hold");
  try {
    const Json found = parse_json(text);
    if (canonical(found) != text || found.at("schema").whole() != 1) corrupt("a document about adapters is not in canonical form");
    return read(found);
  } catch (const Refusal& refusal) {
    if (refusal.code == "schema-mismatch") corrupt("a document about adapters is signed and is none of schema 1");
    throw;
  }
}

bool plain_name(const std::string& name) {
  static const std::set<std::string> reserved = {"manifest.json", "signature.json", "order.json"};
  const bool letters = name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == std::string::npos;
  return !name.empty() && name.size() <= 100 && letters && name.find("..") == std::string::npos && name.front() != '.' &&
         name.front() != '-' && name.front() != '_' && name.back() != '.' && !reserved.count(name);
}

std::vector<AdapterFile> files_of(const Json& said) {
  std::vector<AdapterFile> found;
  std::set<std::string> names;
  for (const Json& one : said.list()) {
    require_keys(one, {"name", "sha256", "size"}, "a file");
    AdapterFile file{one.at("name").string(), digest_of(one.at("sha256")), 0};
    const auto most = static_cast<std::int64_t>(file.name == kWeights ? kLargestWeights : kLargestOther);
    file.size = static_cast<std::uint64_t>(number_of(one.at("size"), 1, most));
    if (!plain_name(file.name) || (!found.empty() && found.back().name >= file.name)) corrupt("a file of an adapter has no plain name");
    std::string lower = file.name;
    for (char& c : lower)
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
    if (!names.insert(lower).second) corrupt("two files of an adapter have one name");
    found.push_back(file);
  }
  if (found.size() > kMostFiles || !names.count(kWeights) || !names.count(kPeft)) corrupt("an adapter lacks a file that each has");
  return found;
}

void audit_of(const Json& said, AdapterManifest& manifest) {
  if (said.is_null()) return;
  require_keys(said, {"profile", "sha256", "signed_by", "verdict"}, "an audit");
  digest_of(said.at("sha256"));
  manifest.verdict = said.at("verdict").string();
  if (manifest.verdict != "consistent" && manifest.verdict != "inconclusive" && manifest.verdict != "violation")
    corrupt("an audit has an unknown verdict");
  if (!said.at("signed_by").is_null()) manifest.signed_by = digest_of(said.at("signed_by"));
}

Signature signature_of(std::string_view message) {
  Signature found;
  ProtoReader reader(message);
  while (const auto field = reader.next()) {
    std::string* const where[] = {&found.domain, &found.sha256, &found.public_key, &found.signature};
    if (field->number >= 1 && field->number <= 4) *where[field->number - 1] = field->bytes();
  }
  return found;
}

std::pair<Bytes, Signature> signed_text(const Bytes& message, int text, int signature) {
  std::pair<Bytes, Signature> found;
  ProtoReader reader(message);
  while (const auto field = reader.next()) {
    if (field->number == text) found.first = field->bytes();
    if (field->number == signature) found.second = signature_of(field->bytes());
  }
  return found;
}

bool finite(const char* bytes, std::size_t count, bool half) {
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t word = 0;
    std::memcpy(&word, bytes + i * (half ? 2 : 4), half ? 2 : 4);
    const std::uint32_t exponent = half ? 0x7c00u : 0x7f800000u;
    if ((word & exponent) == exponent) return false;
  }
  return true;
}

}  // namespace

std::pair<Bytes, Signature> order_response(const Bytes& message) { return signed_text(message, 1, 2); }
std::pair<Bytes, Signature> manifest_response(const Bytes& message) { return signed_text(message, 2, 3); }

Order read_order(const Bytes& text, const Signature& signature, const std::string& trusted) {
  return document(text, signature, "fedslm-adapter-order-v1", trusted, [&text](const Json& said) {
    require_keys(said, {"created", "digest", "kind", "number", "previous", "replaces", "schema", "sequence"}, "an order");
    const std::string& kind = said.at("kind").string();
    if (kind != "promote" && kind != "rollback") corrupt("an order is neither promote nor rollback");
    return Order{number_of(said.at("number"), 1), number_of(said.at("sequence"), 1), digest_of(said.at("digest")), sha256(text)};
  });
}

AdapterManifest read_manifest(const Bytes& text, const Signature& signature, const std::string& trusted) {
  return document(text, signature, "fedslm-adapter-v1", trusted, [&text](const Json& said) {
    require_keys(said, {"audit", "base_digest", "created", "files", "ledger_head", "name", "order", "parent", "plan_digest",
                        "privacy", "schema", "sequence", "withheld"}, "a manifest");
    AdapterManifest found;
    found.digest = sha256(text);
    found.base_digest = digest_of(said.at("base_digest"));
    found.sequence = number_of(said.at("sequence"), 1);
    found.order = number_of(said.at("order"), 0);
    found.withheld = said.at("withheld").boolean();
    found.files = files_of(said.at("files"));
    audit_of(said.at("audit"), found);
    if (found.verdict == "violation" && !found.withheld) corrupt("an adapter with a violation is not withheld");
    return found;
  });
}

void require_taken(const AdapterManifest& manifest, const AdapterRules& rules, const std::string& base_digest) {
  if (manifest.withheld) untrusted("the server withholds the adapter");
  if (manifest.base_digest != base_digest) untrusted("the adapter belongs to another base model");
  if (manifest.verdict.empty()) {
    if (!rules.unaudited) untrusted("no audit of the adapter was made");
  } else if (manifest.verdict == "violation" ||
             std::find(rules.verdicts.begin(), rules.verdicts.end(), manifest.verdict) == rules.verdicts.end()) {
    untrusted("the audit's verdict is " + manifest.verdict);
  } else if (!rules.audit_key.empty() && manifest.signed_by != rules.audit_key) {
    untrusted("the audit is not signed with the key that is trusted for audits");
  }
  std::uint64_t size = 0;
  for (const AdapterFile& file : manifest.files) size += file.size;
  if (size > static_cast<std::uint64_t>(rules.max_megabytes) * 1000000) untrusted("the adapter is larger than the owner allows");
}

void require_weights(const Bytes& file) {
  std::uint64_t length = 0;
  if (file.size() < 8) corrupt("the weights are cut off");
  std::memcpy(&length, file.data(), sizeof length);
  if (length < 2 || length > kLongestHeader || length > file.size() - 8 || file[8] != '{') corrupt("the weights have no header");
  std::vector<std::pair<std::uint64_t, std::uint64_t>> parts;
  const char* const start = file.data() + 8 + length;
  const std::uint64_t room = file.size() - 8 - length;
  try {
    const Json header = parse_json(std::string_view(file).substr(8, length));
    for (const auto& [name, entry] : header.members) {
      if (name == "__metadata__") continue;
      require_keys(entry, {"data_offsets", "dtype", "shape"}, "a tensor");
      const std::string& type = entry.at("dtype").string();
      if ((type != "F32" && type != "F16") || parts.size() >= kMostTensors) corrupt("a tensor is of another type than F32 and F16");
      const auto& shape = entry.at("shape").list();
      const auto& offsets = entry.at("data_offsets").list();
      std::uint64_t count = 1;
      if (shape.empty() || shape.size() > 2 || offsets.size() != 2) corrupt("a tensor has a shape that is not allowed");
      for (const Json& side : shape) count *= static_cast<std::uint64_t>(number_of(side, 1, static_cast<std::int64_t>(kLargestSide)));
      const auto from = static_cast<std::uint64_t>(number_of(offsets[0], 0)), to = static_cast<std::uint64_t>(number_of(offsets[1], 0));
      if (to > room || from > to || to - from != count * (type == "F16" ? 2 : 4)) corrupt("a tensor's bytes are not those of its shape");
      if (!finite(start + from, count, type == "F16")) corrupt("the weights have a value that is not finite");
      parts.emplace_back(from, to);
    }
  } catch (const Refusal& refusal) {
    if (refusal.code == "schema-mismatch") corrupt("the weights' header is not that of this format");
    throw;
  }
  std::sort(parts.begin(), parts.end());
  std::uint64_t end = 0;
  for (const auto& [from, to] : parts) {
    if (from != end) corrupt("tensors overlap or leave a gap");
    end = to;
  }
  if (parts.empty() || end != room) corrupt("the weights do not fill their file");
}

}  // namespace fedslm
