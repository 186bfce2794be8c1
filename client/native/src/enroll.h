// Bringing a device into a fleet, and keeping its certificate young (docs/deploy/enrolment.md).
#pragma once

#include <optional>
#include <string>

#include "common.h"
#include "tls.h"

namespace fedslm {

struct Token {
  // Refuses what is not a whole token; never repeats it.
  explicit Token(const std::string& text);
  std::string address, fingerprint, secret, name;
  std::string secret_digest() const;
};

bool is_name(const std::string& text);

struct Enrolled {
  std::string certificate, ca, name, role;
  std::optional<std::int64_t> client_index;
  std::string control, fleet, adapter_key, ledger_key, base_digest;
};

Bytes enroll_request(const std::string& secret, const Bytes& csr);
Enrolled enroll_response(const Bytes& message);
Bytes renew_request(const Bytes& csr);
Bytes renew_response(const Bytes& message);  // the certificate

// An enrolled device, as its folder says.
struct Device {
  static Device load(const std::string& folder);
  TlsOptions identity() const;  // for calls of the control service
  std::string folder, name, control, ca, key, certificate, adapter_key, base_digest;
};

// Makes the key here, redeems the token, writes the folder; device.conf last. After a failure the
// same token goes on with the same key. Returns the client's index.
std::int64_t enroll(const std::string& token, const std::string& folder);
// Fetches a new certificate for the same key; returns whether it did.
bool renew(const Device& device, bool if_due);
// Takes part in nothing from now on, and tells the server then; the ledger stays. Raises what kept the
// server from being told.
void leave(const Device& device);
bool has_left(const std::string& folder);

}  // namespace fedslm
