#include "enroll.h"

#include <ctime>

#include "control.h"
#include "files.h"
#include "json.h"
#include "lines.h"
#include "pki.h"
#include "proto.h"

namespace fedslm {
namespace {

constexpr std::size_t kLongestToken = 1024;
constexpr char kPrefix[] = "fedslm1.";
constexpr char kPending[] = "enrolling", kLeft[] = "left";

[[noreturn]] void no_token() {
  throw Refusal("enrolment-refused", "this is not a whole enrolment token: copy all of it, or ask for a new one");
}
[[noreturn]] void another() {
  throw Refusal("enrolment-refused", "the server's answer is not what a server of this version says");
}

// base64url without padding, in its one canonical form.
Bytes unbase64url(std::string text) {
  const std::string given = text;
  for (char& c : text) {
    if (c == '+' || c == '/' || c == '=') no_token();
    if (c == '-') c = '+';
    if (c == '_') c = '/';
  }
  text.append((4 - text.size() % 4) % 4, '=');
  Bytes found = unbase64(text);
  std::string again = base64(found);
  if (again != text) no_token();
  return found;
}

std::string digest_or_nothing(std::string_view said) {
  const std::string text(said);
  if (!text.empty() && !is_digest(text)) another();
  return text;
}

std::string address_of(std::string_view said) {
  const std::string text(said);
  try {
    Address checked(text);
  } catch (const Refusal&) {
    another();
  }
  return text;
}

// The key of this attempt: the same for the same token, a new one for another. A server gives a
// token's place to the first key that comes with it.
Bytes key_for(const std::string& folder, const Token& token) {
  const std::string pending = folder + "/" + kPending, file = folder + "/node.key";
  const std::string digest = token.secret_digest();
  if (exists(folder + "/" + kDevice) || !exists(pending) || read_private(pending, 100) != digest) {
    for (const char* name : {kDevice, "node.key", "node.crt", "ca.crt", kPending}) remove_file(folder + "/" + name);
    replace_private(pending, digest);
  }
  if (!exists(file)) replace_private(file, new_key());
  return read_private(file, 1 << 16);
}

void require_ours(const Enrolled& answer, const Token& token, const Bytes& key) {
  if (fingerprint(answer.ca) != token.fingerprint) another();
  verify_certificate(answer.certificate, answer.ca, token.name, answer.role, key);
  if (answer.name != token.name || answer.role != "node" || !answer.client_index)
    throw Refusal("enrolment-refused", "the token is not for a device that trains");
}

std::string conf_of(const Enrolled& answer) {
  std::string text = "# Written by fedslm-native enroll; what the owner allows is in client.conf.\n";
  const auto add = [&text](const char* name, const std::string& value) {
    if (!value.empty()) text += std::string(name) + " = " + value + "\n";
  };
  add("name", answer.name);
  add("client_index", std::to_string(*answer.client_index));
  add("server", answer.fleet);
  add("control", answer.control);
  add("ca", "ca.crt");
  add("key", "node.key");
  add("certificate", "node.crt");
  add("server_key", answer.ledger_key);
  add("adapter_key", answer.adapter_key);
  add("base_digest", answer.base_digest);
  return text;
}

}  // namespace

bool is_name(const std::string& text) {
  return !text.empty() && text.size() <= 40 && text.front() != '-' && text.back() != '-' &&
         text.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") == std::string::npos;
}

Token::Token(const std::string& said) {
  std::string line;
  for (char c : said)
    if (c != ' ' && c != '\t' && c != '\r' && c != '\n') line += c;
  if (said.size() > 2 * kLongestToken || line.size() > kLongestToken || line.compare(0, 8, kPrefix) != 0) no_token();
  try {
    const Json fields = parse_json(unbase64url(line.substr(8)));
    if (fields.members.size() != 5 || fields.at("e").whole() <= 0) no_token();
    address = fields.at("a").string();
    fingerprint = fields.at("f").string();
    secret = fields.at("s").string();
    name = fields.at("n").string();
    Address checked(address);
    if (!is_digest(fingerprint) || !is_name(name) || unbase64url(secret).size() != 32) no_token();
  } catch (const Refusal&) {
    no_token();
  }
}

std::string Token::secret_digest() const { return sha256("fedslm-enrolment-v1|" + secret); }

Bytes enroll_request(const std::string& secret, const Bytes& csr) {
  return ProtoWriter().text(1, secret).text(2, csr).done();
}

Bytes renew_request(const Bytes& csr) { return ProtoWriter().text(1, csr).done(); }

Enrolled enroll_response(const Bytes& message) {
  Enrolled found;
  ProtoReader reader(message);
  while (const auto field = reader.next()) {
    switch (field->number) {
      case 1: found.certificate = field->bytes(); break;
      case 2: found.ca = field->bytes(); break;
      case 3: found.name = field->bytes(); break;
      case 4: found.role = field->bytes(); break;
      case 5:
        if (field->whole() > 0xffffffffu) another();
        found.client_index = static_cast<std::int64_t>(field->whole());
        break;
      case 6: found.control = address_of(field->bytes()); break;
      case 7: found.fleet = address_of(field->bytes()); break;
      case 8: found.adapter_key = digest_or_nothing(field->bytes()); break;
      case 9: found.ledger_key = digest_or_nothing(field->bytes()); break;
      case 10: found.base_digest = digest_or_nothing(field->bytes()); break;
      default: break;
    }
  }
  if (found.control.empty() || found.fleet.empty()) another();
  return found;
}

Bytes renew_response(const Bytes& message) {
  Bytes found;
  ProtoReader reader(message);
  while (const auto field = reader.next())
    if (field->number == 1) found = field->bytes();
  return found;
}

Device Device::load(const std::string& folder) {
  const std::string path = folder + "/" + kDevice;
  if (!exists(path)) throw Refusal("fleet", "no device was enrolled here: fedslm-native enroll TOKEN FOLDER");
  read_private(path, 1 << 16);
  Lines lines(path);
  Device found;
  found.folder = folder;
  found.name = lines.text("name");
  found.control = lines.text("control");
  for (auto [name, field] : {std::pair{"ca", &found.ca}, std::pair{"key", &found.key}, std::pair{"certificate", &found.certificate}})
    *field = lines.path(name);
  if (lines.has("adapter_key")) found.adapter_key = lines.digest("adapter_key");
  if (lines.has("base_digest")) found.base_digest = lines.digest("base_digest");
  for (const char* name : {"client_index", "server", "server_key"}) lines.drop(name);
  lines.done();
  return found;
}

TlsOptions Device::identity() const {
  TlsOptions options;
  options.ca = read_file(ca, 1 << 16);
  options.certificate = read_private(certificate, 1 << 16);
  options.key = read_private(key, 1 << 16);
  return options;
}

std::int64_t enroll(const std::string& said, const std::string& folder) {
  const Token token(said);
  private_folder(folder);
  const Held held(folder + "/node.lock");
  if (exists(folder + "/" + kDevice) && !has_left(folder))
    throw Refusal("fleet", "the folder is enrolled already: give another one, or leave first");
  Bytes key = key_for(folder, token);
  TlsOptions options;
  options.ca = authority_behind(token.address, token.fingerprint);
  const Bytes request = enroll_request(token.secret, certificate_request(key, token.name));
  const Enrolled answer = enroll_response(Control(token.address, options).call("Enrolment/Enroll", request));
  require_ours(answer, token, key);
  OPENSSL_cleanse(key.data(), key.size());
  replace_private(folder + "/ca.crt", answer.ca);
  replace_private(folder + "/node.crt", answer.certificate);
  remove_file(folder + "/" + kLeft);
  // Last: a folder that has it is whole.
  replace_private(folder + "/" + kDevice, conf_of(answer));
  remove_file(folder + "/" + kPending);
  return *answer.client_index;
}

bool has_left(const std::string& folder) { return exists(folder + "/" + kLeft); }

void leave(const Device& device) {
  replace_private(device.folder + "/" + kLeft, "");
  Control(device.control, device.identity()).call("Certificates/Leave", "", 1);
}

bool renew(const Device& device, bool if_due) {
  TlsOptions identity = device.identity();
  if (if_due && !certificate_times(identity.certificate).renewal_due(std::time(nullptr))) return false;
  verify_certificate(identity.certificate, identity.ca, device.name, "node", identity.key);
  const Bytes request = renew_request(certificate_request(identity.key, device.name));
  const Bytes fresh = renew_response(Control(device.control, identity).call("Certificates/Renew", request));
  verify_certificate(fresh, identity.ca, device.name, "node", identity.key);
  OPENSSL_cleanse(identity.key.data(), identity.key.size());
  replace_private(device.certificate, fresh);
  return true;
}

}  // namespace fedslm
