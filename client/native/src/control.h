// Calls of the server's control service: gRPC, one connection each (docs/protocol.md, "Control").
#pragma once

#include <functional>
#include <string>

#include "common.h"
#include "tls.h"

namespace fedslm {

class Control {
 public:
  // Nothing is sent before the server has proved to be of the authority in `options.ca`.
  Control(const std::string& address, TlsOptions options);
  // Makes a call, up to `attempts` times while the server is away or busy; refuses what the server refuses.
  Bytes call(const std::string& method, const Bytes& request, int attempts = 3) const;
  // One stream of answers; it may end before all was said.
  void stream(const std::string& method, const Bytes& request, const std::function<void(std::string_view)>& each) const;

 private:
  void attempt(const std::string& method, const Bytes& request, double seconds,
               const std::function<void(std::string_view)>& each) const;
  const std::string address_;
  const Address where_;
  TlsOptions options_;
};

// The authority's certificate (PEM) among those that a server shows; refuses a server without it.
Bytes authority_behind(const std::string& address, const std::string& fingerprint);

// Takes gRPC's messages out of a body that comes in pieces.
class Messages {
 public:
  explicit Messages(std::function<void(std::string_view)> each) : each_(std::move(each)) {}
  void add(std::string_view piece);
  void done() const { require(rest_.empty(), "a message is cut off"); }
  int count = 0;

 private:
  std::function<void(std::string_view)> each_;
  Bytes rest_;
};

}  // namespace fedslm
