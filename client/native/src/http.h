// HTTPS to one server, whose certificate the fleet's own authority issued; signed requests.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "common.h"

namespace fedslm {

struct HttpAnswer {
  int status = 0;
  Bytes body;
  int code = 0;  // Flower's number of an error, or 0
};

// The server's time, as far as the dates of its answers tell; shared by two threads.
class ServerClock {
 public:
  double now() const;
  bool learn(const std::string& date);  // whether the clock was set anew

 private:
  std::atomic<double> offset_{0.0};
};

// The device's key: names the node, signs the time.
class DeviceKey {
 public:
  static DeviceKey load(const std::string& path);
  static DeviceKey parse(const Bytes& pem);
  const std::string& public_pem() const { return pem_; }
  Bytes sign(std::string_view data) const;

 private:
  std::shared_ptr<void> key_;
  std::string pem_;
};

bool verify_signature(const std::string& public_pem, std::string_view data, std::string_view signature);
std::string timestamp_of(double seconds);

class Connection {
 public:
  Connection(std::string host, int port, std::string ca, const DeviceKey& key, ServerClock& clock);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  // Raises server-unreachable, certificate-invalid or schema-mismatch.
  HttpAnswer post(const std::string& path, const Bytes& body);

 private:
  struct Wire;
  HttpAnswer once(const std::string& path, const Bytes& body, bool& reset);
  void open();
  const std::string host_;
  const int port_;
  const std::string ca_;
  const DeviceKey& key_;
  ServerClock& clock_;
  std::unique_ptr<Wire> wire_;
};

}  // namespace fedslm
