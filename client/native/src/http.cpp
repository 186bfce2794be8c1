#include "http.h"

#include <openssl/pem.h>
#include <sys/stat.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>

#include "json.h"
#include "tls.h"

namespace fedslm {
namespace {

constexpr std::size_t kLongestHead = std::size_t{64} << 10;
constexpr std::size_t kLongestBody = (std::size_t{16} << 20) + 4096;
constexpr double kSlack = 3.0;

[[noreturn]] void away(const std::string& why) { throw Refusal("server-unreachable", why); }

using Digest = std::unique_ptr<EVP_MD_CTX, Freed<EVP_MD_CTX, EVP_MD_CTX_free>>;

std::string lower(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  return text;
}

}  // namespace

double ServerClock::now() const {
  timespec time{};
  clock_gettime(CLOCK_REALTIME, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec) + offset_;
}

bool ServerClock::learn(const std::string& date) {
  std::tm parts{};
  const char* end = strptime(date.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &parts);
  if (end == nullptr || *end != '\0') return false;
  const double found = static_cast<double>(timegm(&parts)) - (now() - offset_);
  const double offset = std::fabs(found) > kSlack ? found + 0.5 : 0.0;
  if (!(std::fabs(offset - offset_) > kSlack)) return false;
  offset_ = offset;
  return true;
}

DeviceKey DeviceKey::load(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0 || (status.st_mode & 077) != 0)
    throw Refusal("certificate-invalid", "the device's key is missing, or others may read it");
  return parse(read_file(path, 1 << 16));
}

DeviceKey DeviceKey::parse(const Bytes& pem) {
  KeyPointer key = private_key(pem);
  const MemoryBio out(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_PUBKEY(out.get(), key.get()) != 1) throw std::bad_alloc();
  DeviceKey found;
  found.pem_ = text_of_memory(out);
  found.key_ = std::shared_ptr<void>(key.release(), [](void* p) { EVP_PKEY_free(static_cast<EVP_PKEY*>(p)); });
  return found;
}

Bytes DeviceKey::sign(std::string_view data) const {
  const Digest digest(EVP_MD_CTX_new());
  auto* key = static_cast<EVP_PKEY*>(key_.get());
  const auto* bytes = reinterpret_cast<const unsigned char*>(data.data());
  std::size_t size = 0;
  Bytes out;
  if (EVP_DigestSignInit(digest.get(), nullptr, EVP_sha256(), nullptr, key) == 1 &&
      EVP_DigestSign(digest.get(), nullptr, &size, bytes, data.size()) == 1) {
    out.resize(size);
    if (EVP_DigestSign(digest.get(), reinterpret_cast<unsigned char*>(out.data()), &size, bytes, data.size()) == 1) {
      out.resize(size);
      return out;
    }
  }
  throw Refusal("certificate-invalid", "the device's key cannot sign");
}

bool verify_signature(const std::string& public_pem, std::string_view data, std::string_view signature) {
  const MemoryBio in = memory_of(public_pem);
  const KeyPointer key(PEM_read_bio_PUBKEY(in.get(), nullptr, nullptr, nullptr));
  const Digest digest(EVP_MD_CTX_new());
  return key && EVP_DigestVerifyInit(digest.get(), nullptr, EVP_sha256(), nullptr, key.get()) == 1 &&
         EVP_DigestVerify(digest.get(), reinterpret_cast<const unsigned char*>(signature.data()), signature.size(),
                          reinterpret_cast<const unsigned char*>(data.data()), data.size()) == 1;
}

std::string timestamp_of(double seconds) {
  const auto micro = static_cast<long long>(std::llround(seconds * 1e6));
  const std::time_t whole = static_cast<std::time_t>(micro / 1000000);
  std::tm parts{};
  gmtime_r(&whole, &parts);
  char text[64];
  const std::size_t size = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text + size, sizeof text - size, ".%06lld+00:00", micro % 1000000);
  return text;
}

struct Connection::Wire {
  Wire(const std::string& host, int port, const TlsOptions& options) : tls(host, port, options) {}

  std::string line() {
    for (;;) {
      const std::size_t end = buffer.find("\r\n");
      if (end != std::string::npos) {
        std::string out = buffer.substr(0, end);
        buffer.erase(0, end + 2);
        return out;
      }
      if (buffer.size() > kLongestHead || !tls.receive(buffer)) away("the server does not speak HTTP");
    }
  }

  Bytes take(std::size_t size) {
    if (size > kLongestBody) away("an answer is too long");
    while (buffer.size() < size)
      if (!tls.receive(buffer)) away("an answer is cut off");
    Bytes out = buffer.substr(0, size);
    buffer.erase(0, size);
    return out;
  }

  Bytes chunks() {
    Bytes out;
    for (;;) {
      const std::string head = line();
      char* end = nullptr;
      const unsigned long size = std::strtoul(head.c_str(), &end, 16);
      if (end == head.c_str() || size > kLongestBody - out.size()) away("an answer is too long");
      if (size == 0) {
        while (!line().empty()) continue;
        return out;
      }
      out += take(size);
      if (!line().empty()) away("the server does not speak HTTP");
    }
  }

  TlsStream tls;
  Bytes buffer;
};

Connection::Connection(std::string host, int port, std::string ca, const DeviceKey& key, ServerClock& clock)
    : host_(std::move(host)), port_(port), ca_(std::move(ca)), key_(key), clock_(clock) {}

Connection::~Connection() = default;

void Connection::open() {
  TlsOptions options;
  try {
    options.ca = read_file(ca_, 1 << 16);
  } catch (const Refusal&) {
    throw Refusal("certificate-invalid", "ca cannot be read");
  }
  wire_ = std::make_unique<Wire>(host_, port_, options);
}

HttpAnswer Connection::once(const std::string& path, const Bytes& body, bool& reset) {
  if (!wire_) open();
  const std::string time = timestamp_of(clock_.now());
  std::string head = "POST " + path + " HTTP/1.1\r\nhost: " + host_ + ":" + std::to_string(port_);
  head += "\r\ncontent-type: application/protobuf\r\naccept: application/protobuf";
  head += "\r\naccept-encoding: identity\r\ncontent-length: " + std::to_string(body.size());
  head += "\r\nflwr-public-key: " + base64(key_.public_pem()) + "\r\nflwr-timestamp: " + time;
  head += "\r\nflwr-signature: " + base64(key_.sign(time)) + "\r\n\r\n";
  wire_->tls.send(head + body);
  const std::string status = wire_->line();
  if (status.size() < 12 || status.compare(0, 7, "HTTP/1.") != 0) away("the server does not speak HTTP");
  HttpAnswer answer;
  answer.status = std::atoi(status.c_str() + 9);
  std::map<std::string, std::string> fields;
  for (std::string field = wire_->line(); !field.empty(); field = wire_->line()) {
    const std::size_t colon = field.find(':');
    if (colon == std::string::npos || fields.size() > 100) away("the server does not speak HTTP");
    const std::size_t start = field.find_first_not_of(" \t", colon + 1);
    fields[lower(field.substr(0, colon))] = start == std::string::npos ? "" : field.substr(start);
  }
  if (fields.count("transfer-encoding"))
    answer.body = wire_->chunks();
  else if (fields.count("content-length"))
    answer.body = wire_->take(std::strtoul(fields["content-length"].c_str(), nullptr, 10));
  else
    away("an answer has no length");
  if (lower(fields["connection"]) == "close") wire_.reset();
  reset = clock_.learn(fields["date"]);
  if (answer.status != 200) {
    try {
      const Json error = parse_json(answer.body);
      if (const Json* code = error.find("code")) answer.code = static_cast<int>(code->whole());
    } catch (const Refusal&) {
      answer.code = 0;
    }
  }
  return answer;
}

HttpAnswer Connection::post(const std::string& path, const Bytes& body) {
  bool reset = false;
  const auto exchange = [&]() {
    const bool kept = wire_ != nullptr;
    try {
      return once(path, body, reset);
    } catch (const Refusal& refusal) {
      wire_.reset();
      if (!kept || refusal.code != "server-unreachable") throw;
      return once(path, body, reset);  // a kept connection may have been closed
    }
  };
  HttpAnswer answer = exchange();
  if (answer.status == 401 && reset) answer = exchange();
  return answer;
}

}  // namespace fedslm
