#include "control.h"

#include <chrono>
#include <cstdlib>
#include <set>
#include <thread>

#include "http2.h"
#include "pki.h"

namespace fedslm {
namespace {

constexpr std::size_t kLongestMessage = 4194304;
constexpr std::size_t kLongestWords = 400;
constexpr double kSeconds = 20, kStreamSeconds = 120;

// A server's words are shown, never acted on: printable, on one line, cut.
std::string words_of(const std::string& said) {
  std::string out;
  for (std::size_t i = 0; i < said.size() && out.size() < kLongestWords; ++i) {
    char c = said[i];
    if (c == '%' && i + 2 < said.size()) {
      const std::string two = said.substr(i + 1, 2);
      char* end = nullptr;
      const long value = std::strtol(two.c_str(), &end, 16);
      if (end == two.c_str() + 2) {
        c = static_cast<char>(value);
        i += 2;
      }
    }
    out += c >= ' ' && c <= '~' ? c : ' ';
  }
  return out;
}

// What a refusal means here (client/controlerrors.py).
[[noreturn]] void refused(const Fields& fields, const std::string& status) {
  const auto said = [&fields](const char* name) {
    const auto found = fields.find(name);
    return found == fields.end() ? std::string() : found->second;
  };
  static const std::set<std::string> away = {"1", "4", "8", "14"}, denied = {"7", "16"}, state = {"5", "9"};
  std::string words = words_of(said("grpc-message"));
  if (words.empty()) words = "the control service refused with status " + words_of(status);
  std::string code = words_of(said("fedslm-error"));
  const bool known = !code.empty() && code.size() <= 40 &&
                     code.find_first_not_of("abcdefghijklmnopqrstuvwxyz-") == std::string::npos;
  if (status == "4" || status == "14" || !known || code == "fleet" || code == "unexpected")
    code = away.count(status) ? "server-unreachable" : denied.count(status) ? "access-denied" : state.count(status) ? "fleet" : "protocol";
  throw Refusal(code, words);
}

}  // namespace

void Messages::add(std::string_view piece) {
  rest_ += piece;
  while (rest_.size() >= 5) {
    const auto byte = [this](int i) { return static_cast<std::size_t>(static_cast<unsigned char>(rest_[i])); };
    const std::size_t size = byte(1) << 24 | byte(2) << 16 | byte(3) << 8 | byte(4);
    require(byte(0) == 0 && size <= kLongestMessage, "a message is compressed or too long");
    if (rest_.size() - 5 < size) return;
    ++count;
    each_(std::string_view(rest_).substr(5, size));
    rest_.erase(0, 5 + size);
  }
}

Control::Control(const std::string& address, TlsOptions options)
    : address_(address), where_(address), options_(std::move(options)) {
  options_.http2 = true;
}

Bytes Control::call(const std::string& method, const Bytes& request, int attempts) const {
  for (int left = attempts, pause = 1;; pause *= 2) {
    Bytes found;
    int count = 0;
    try {
      attempt(method, request, kSeconds, [&](std::string_view message) {
        found = Bytes(message);
        ++count;
      });
      require(count == 1, "an answer is not one message");
      return found;
    } catch (const Refusal& refusal) {
      if (refusal.code != "server-unreachable" || --left <= 0) throw;
    }
    std::this_thread::sleep_for(std::chrono::seconds(pause));
  }
}

void Control::stream(const std::string& method, const Bytes& request,
                     const std::function<void(std::string_view)>& each) const {
  attempt(method, request, kStreamSeconds, each);
}

void Control::attempt(const std::string& method, const Bytes& request, double seconds,
                      const std::function<void(std::string_view)>& each) const {
  TlsStream tls(where_.host, where_.port, options_);
  require(tls.speaks_http2(), "the server does not speak HTTP/2");
  Bytes body(1, '\0');
  for (int shift : {24, 16, 8, 0}) body += static_cast<char>(request.size() >> shift & 255);
  body += request;
  Messages messages(each);
  const Fields fields = exchange(
      tls,
      {{":method", "POST"},
       {":scheme", "https"},
       {":path", "/fedslm.control.v1." + method},
       {":authority", address_},
       {"te", "trailers"},
       {"grpc-timeout", std::to_string(static_cast<int>(seconds)) + "S"},
       {"content-type", "application/grpc"},
       {"user-agent", "fedslm-native"}},
      body, [&messages](std::string_view piece) { messages.add(piece); }, seconds);
  const auto status = fields.find("grpc-status");
  if (status == fields.end()) throw Refusal("protocol", "the server does not speak gRPC");
  if (status->second != "0") refused(fields, status->second);
  messages.done();
}

Bytes authority_behind(const std::string& address, const std::string& wanted) {
  const Address where(address);
  TlsOptions nobody;
  nobody.anyone = true;
  nobody.http2 = true;
  for (const Bytes& der : TlsStream(where.host, where.port, nobody).shown())
    if (sha256(der) == wanted) return pem_of_certificate(der);
  throw Refusal("enrolment-refused", "the server at " + address + " is not the one that the token names: do not go on");
}

}  // namespace fedslm
